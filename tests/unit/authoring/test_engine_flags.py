"""What the course says that engines accept: stale things are caught wherever they stand."""

import dataclasses
import shutil

import pytest

from tools.authoring import engine_flags_lint
from tools.authoring.cli_schemas import Option, accepted, nearest, recorded
from tools.authoring.cli_schemas.argparse_answers import metrics, options, reason
from tools.authoring.cli_schemas.ask import Answer, CommandLine, parse_llama_help
from tools.authoring.commands import as_command, logical_lines, of_compose, of_launch
from tools.authoring.engine_flags_lint import look
from tools.authoring.text_blocks import Line, passages
from utils.engines.llama_cpp import NATIVE
from utils.profiles import ROOT

STALE = (
    "--guided-decoding-backend",
    "trtllm-build",
    "--draft-max",
    "gpu_cache_usage_perc",
    "Qwen/Qwen3-8B-Instruct",
    "lmsysorg/sglang:v0.5.22-cu130",
    "nvcr.io/nvidia/vllm:25.01-py3",
    "vllm:num_requests_swapped",
    "VLLM_USE_V1",
    "SGLANG_USE_GPU_ENGINE",
    "--max-num-sequences",
)
PLACES = {
    "module": ("utils/engines/vllm.py", 'def more():\n    """Docs."""\n    return ["{}", "x"]\n'),
    "notebook's code": (
        "solutions/lab-3.3.9-x.py",
        '# %% [markdown]\n# # Lab\n\n# %%\nlaunch("vllm", p, extra_arguments=("{}", "x"))\n',
    ),
    "notebook's text": (
        "solutions/lab-3.3.9-x.py",
        "# %% [markdown]\n# # Lab\n#\n# vLLM, llama.cpp: use `{}` here.\n",
    ),
    "document": ("QUICK_REFERENCE.md", "# Engines\n\nFor vLLM and SGLang, write `{}` there.\n"),
    "table": ("README.md", "# Engines\n\n| a | b |\n|---|---|\n| vLLM | `{}` |\n"),
    "command": ("README.md", "# Engines\n\n    vllm serve MODEL --port 1 \\\n      {} 4\n"),
    "fenced command": ("README.md", "# Engines\n\n```bash\nvllm serve MODEL {} 4\n```\n"),
    "compose file": (
        "docker/compose.yaml",
        "services:\n  a:\n    image: {image}\n    command: MODEL {}\n",
    ),
}


def planted(folder, place, text):
    name, content = PLACES[place]
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image = engine_flags_lint.ENGINES["vllm"].container.image
    path.write_text(content.replace("{image}", image).replace("{}", text))
    return name


@pytest.mark.parametrize("stale", STALE)
@pytest.mark.parametrize("place", PLACES)
def test_a_stale_thing_is_caught_in_every_kind_of_place(tmp_path, place, stale):
    name = planted(tmp_path, place, stale)
    found = look(tmp_path)
    assert found, f"{stale} was not seen in a {place}"
    assert {finding.path for finding in found} == {name}
    text = (tmp_path / name).read_text().splitlines()
    word = stale.rpartition(":")[2] if "/" in stale else stale
    assert any(word in text[finding.line - 1] for finding in found)


@pytest.mark.parametrize("place", PLACES)
def test_what_is_accepted_today_is_not_complained_about(tmp_path, place):
    planted(tmp_path, place, "--max-num-seqs")
    assert look(tmp_path) == []


def test_the_message_names_file_line_flag_version_and_nearest(tmp_path):
    planted(tmp_path, "command", "--max-num-seq")
    message = str(look(tmp_path)[0])
    assert message.startswith("README.md:4: `vllm serve`")
    assert "vLLM 0.32.0" in message
    assert "--max-num-seq." in message
    assert message.endswith("Nearest: --max-num-seqs.")


def test_a_text_may_say_that_a_thing_is_gone_but_no_command_may_have_it(tmp_path):
    (tmp_path / "A.md").write_text("There is no `trtllm-build` any more: it was removed.\n")
    assert look(tmp_path) == []
    (tmp_path / "A.md").write_text("# Removed\n\n    trtllm-build --checkpoint_dir x\n")
    assert any("trtllm-serve MODEL" in str(found) for found in look(tmp_path))


def test_a_value_that_is_no_choice_is_caught(tmp_path):
    (tmp_path / "A.md").write_text("    vllm serve MODEL --kv-cache-dtype int3\n")
    assert "has the choices" in str(look(tmp_path)[0])


def test_one_engines_argument_is_not_anothers(tmp_path):
    (tmp_path / "A.md").write_text("Give SGLang `--enable-prompt-tokens-details`.\n")
    assert "SGLang 0.5.23" in str(look(tmp_path)[0])
    (tmp_path / "A.md").write_text("Give vLLM `--enable-prompt-tokens-details`.\n")
    assert look(tmp_path) == []


def test_short_arguments_of_llama_cpp_are_looked_up_too(tmp_path):
    (tmp_path / "A.md").write_text("llama.cpp: `-fa on -ctk q8_0 -cty q8_0`.\n")
    (found,) = look(tmp_path)
    assert "-cty" in str(found)


def test_a_key_that_tensorrt_llm_does_not_have_is_caught(tmp_path):
    (tmp_path / "A.md").write_text(
        "# TensorRT-LLM\n\n| `dtype: bfloat16` | a |\n| `kv_cache_config: {typ: fp8}` | b |\n"
    )
    (found,) = look(tmp_path)
    assert (found.line, "typ" in str(found)) == (4, True)


def test_what_launch_makes_is_accepted():  # all else that the course says: make check
    lines = list(of_launch())
    assert {line.program for line in lines} == set(engine_flags_lint.ENGINE_OF) - {
        "vllm bench serve",
        "sglang_router.launch_router",
    }
    assert engine_flags_lint.refused(lines, recorded()) == []


def test_every_metric_of_a_spec_is_one_that_its_engine_has():
    for name, spec in engine_flags_lint.ENGINES.items():
        if name == "transformers":
            continue
        named = {value for value in dataclasses.astuple(spec.metrics) if value}
        assert [metric for metric in named if not accepted(name).has_metric(metric)] == []


def test_the_lists_are_of_the_versions_that_the_course_runs():
    versions = {name: has.version for name, has in recorded().items()}
    for name, has in recorded().items():
        spec = engine_flags_lint.ENGINES[name]
        pinned = spec.local.version if spec.local else spec.container.image
        pinned = NATIVE if name == "llama_cpp" else pinned  # the wheel has no `--help` to ask
        assert versions[name] in pinned
        assert has.source
        assert has.date
    assert set(versions) == set(engine_flags_lint.ENGINES) - {"transformers"}


def test_an_answer_that_differs_from_the_list_asks_for_a_new_one():
    kept = accepted("ollama")
    assert engine_flags_lint.of_answers({"ollama": Answer(kept, {}, ())}, []) == []
    now = dataclasses.replace(kept, environment=kept.environment | {"OLLAMA_NEW"})
    (found,) = engine_flags_lint.of_answers({"ollama": Answer(now, {}, ())}, [])
    assert "environment" in str(found)
    assert "flags --record" in str(found)


def test_what_an_engine_refuses_is_said_with_its_own_words():
    line = CommandLine("llama-server", ("--draft-max", "3"), "A.md:7")
    answer = Answer(accepted("llama_cpp"), {}, ("the argument has been removed",))
    (found,) = engine_flags_lint.of_answers({"llama_cpp": answer}, [line])
    assert str(found).startswith("A.md:7: ")
    assert "has been removed" in str(found)


def test_a_list_is_written_once_and_read_back(tmp_path):
    for path in engine_flags_lint.FOLDER.glob("ollama.json"):
        shutil.copy(path, tmp_path)
    kept = accepted("ollama", tmp_path)
    data = {
        "version": "9",
        "programs": {"ollama": {"--x": {"values": 1, "choices": ["a"]}}},
        "environment": ["OLLAMA_X"],
        "metrics": [],
    }
    now = dataclasses.replace(kept, version="9", environment=frozenset({"OLLAMA_X"}))
    assert engine_flags_lint.record(tmp_path, {"ollama": Answer(kept, data, ())}) == []
    assert engine_flags_lint.record(tmp_path, {"ollama": Answer(now, data, ())}) == [
        tmp_path / "ollama.json"
    ]
    accepted.cache_clear()
    again = accepted("ollama", tmp_path)
    assert again.version == "9"
    assert again.programs["ollama"]["--x"] == Option(1, ("a",))


def test_commands_are_cut_as_a_shell_would():
    text = "$ docker run -d IMAGE a \\\n  b  # why\necho 'x\ny' | vllm serve M --port 1 > log"
    lines = [Line(n, each) for n, each in enumerate(text.splitlines(), 1)]
    found = list(logical_lines(lines))
    assert [number for number, _ in found] == [1, 3]
    assert found[0][1] == ["docker", "run", "-d", "IMAGE", "a", "b"]
    assert found[1][1][1] == "x\ny"


def test_commands_are_found_behind_images_and_modules():
    image = engine_flags_lint.ENGINES["llama_cpp"].container.image
    assert as_command(["docker", "run", image, "-m", "x"]) == ("llama-server", ["-m", "x"])
    serve = ["python3", "-m", "sglang.launch_server", "--port", "1", "|", "tee"]
    assert as_command(serve) == ("sglang.launch_server", ["--port", "1"])
    assert as_command(["trtllm-serve", "M"]) == ("trtllm-serve", ["M"])
    assert as_command(["make", "lab"]) is None


def test_the_compose_files_commands_are_found():
    assert {line.program for line in of_compose(ROOT)} >= {"llama-server"}


def test_passages_know_their_lines_and_what_they_are_about(tmp_path):
    path = tmp_path / "a.py"
    path.write_text('# %% [markdown]\n# # About vLLM\n#\n# one\n\n# %%\nx = "two"  # three\n')
    found = list(passages(path))
    assert [(p.lines[-1].number, p.lines[-1].text) for p in found] == [
        (2, "# About vLLM"),
        (4, "one"),
        (7, "# three"),
    ]
    assert all("vLLM" in passage.about for passage in found)


HELP = """
-c,    --ctx-size N                     size (default: 0)
                                        (env: LLAMA_ARG_CTX_SIZE)
--metrics                               enable
-kvo,  --kv-offload, -nkvo, --no-kv-offload
                                        whether to
--spec-draft-p-split, --draft-p-split P
                                        speculative
--draft, --draft-max N                  the argument has been removed. use
                                        --spec-draft-n-max
                                        (env: LLAMA_ARG_DRAFT_MAX)
"""


def test_llama_cpps_help_is_read():
    found = parse_llama_help(HELP)
    read = found["programs"]["llama-server"]
    assert {name for name, entry in read.items() if entry["values"]} == {
        "-c",
        "--ctx-size",
        "--spec-draft-p-split",
        "--draft-p-split",
    }
    assert {"--metrics", "-nkvo", "--no-kv-offload"} <= set(read)
    assert found["removed"]["--draft-max"].endswith("use --spec-draft-n-max")
    assert found["environment"] == ["LLAMA_ARG_CTX_SIZE", "LLAMA_ARG_DRAFT_MAX"]


def test_parsers_are_asked_without_ending_the_process():
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--kind", choices=["a", "b"])
    parser.add_argument("--on", action="store_true")
    assert options(parser)["--kind"] == {"values": 1, "choices": ["a", "b"]}
    assert options(parser)["--on"] == {"values": 0}
    assert reason(parser, ["--kind", "a", "--on"]) is None
    assert "invalid choice" in reason(parser, ["--kind", "c"])
    assert "unrecognized" in reason(parser, ["--off"])
    assert reason(parser, ["--help"]) is not None


def test_counters_have_the_name_that_a_scrape_has():
    source = 'Counter(name="x:a"); self._gauge_cls(name="x:b"); table = ["x:c"]; Histogram("x:d")'
    assert metrics([source], "x:") == ["x:a_total", "x:b", "x:c", "x:c_total", "x:d"]


def test_the_nearest_name_is_told_only_if_one_is_near():
    assert nearest("--max-num-seq", frozenset({"--max-num-seqs"})) == " Nearest: --max-num-seqs."
    assert nearest("--zzz", frozenset({"--max-num-seqs"})) == ""
