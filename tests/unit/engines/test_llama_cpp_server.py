"""The flags of the wheel's server, on a stand-in for the wheel; tests/engines starts the real one."""

import re
import sys
from types import SimpleNamespace

import pytest

from utils.engines import llama_cpp_server
from utils.engines.diagnose import hint_for
from utils.engines.llama_cpp_server import FLAGS, EnumMember, FlagError, apply, main, parse


class Enumeration:
    """An enumeration whose members are their own names."""

    def __getattr__(self, name):
        return name


def holder():
    return SimpleNamespace(
        model=SimpleNamespace(),
        cpuparams=SimpleNamespace(),
        cpuparams_batch=SimpleNamespace(),
        sampling=SimpleNamespace(),
        speculative=SimpleNamespace(
            draft=SimpleNamespace(mparams=SimpleNamespace()), ngram_simple=SimpleNamespace()
        ),
    )


WHEEL = SimpleNamespace(
    CommonParams=holder,
    ggml_type=Enumeration(),
    llama_flash_attn_type=Enumeration(),
    common_speculative_type=Enumeration(),
)


def parameters(line):
    return apply(parse(["-m", "x.gguf", *line.split()]), WHEEL)


def test_flags_become_attributes():
    got = parameters("--alias a,b --host 0.0.0.0 --port 81 -np 16 -c 32768 --metrics -ngl all")
    assert got.model.path == "x.gguf"
    assert got.model_alias == {"a", "b"}
    assert got.hostnames == ["0.0.0.0"]
    assert got.port == 81
    assert got.n_parallel == 16
    assert got.n_ctx == 32768
    assert got.endpoint_metrics is True
    assert got.n_gpu_layers == -2


def test_switches_have_opposites():
    assert parameters("--no-cache-prompt").cache_prompt is False
    assert parameters("--no-repack").no_extra_bufts is True
    assert parameters("--no-repack --repack").no_extra_bufts is False


def test_metrics_are_off_unless_asked_for():
    assert not hasattr(parameters(""), "endpoint_metrics")


def test_cache_types_and_flash_attention_are_enum_members():
    got = parameters("-fa on -ctk q8_0 -ctv iq4_nl")
    assert got.flash_attn_type == "LLAMA_FLASH_ATTN_TYPE_ENABLED"
    assert got.cache_type_k == "GGML_TYPE_Q8_0"
    assert got.cache_type_v == "GGML_TYPE_IQ4_NL"


def test_speculation_is_a_list_of_enum_members():
    got = parameters("--spec-type ngram-simple,draft-eagle3 -md d.gguf --spec-draft-n-max 4")
    assert got.speculative.types == [
        "COMMON_SPECULATIVE_TYPE_NGRAM_SIMPLE",
        "COMMON_SPECULATIVE_TYPE_DRAFT_EAGLE3",
    ]
    assert got.speculative.draft.mparams.path == "d.gguf"
    assert got.speculative.draft.n_max == 4


def test_threads_of_prompts_follow_those_of_decoding():
    got = parameters("-t 1")
    assert got.cpuparams_batch.n_threads == 1
    got = parameters("-t 1 -tb 2")
    assert got.cpuparams_batch.n_threads == 2
    assert parameters("-t 0").cpuparams.n_threads == -1


def test_defaults_are_those_of_llama_server():
    got = parameters("")
    assert got.port == 8080
    assert got.n_parallel == -1


def test_underscores_in_long_flags_are_dashes():
    assert parameters("--ctx_size 512").n_ctx == 512


def test_last_of_two_values_counts():
    assert parameters("-c 512 --ctx-size 1024").n_ctx == 1024


def test_unknown_flag_is_refused_with_list():
    with pytest.raises(FlagError) as caught:
        parameters("--no-such-flag")
    message = str(caught.value)
    assert message.endswith("error: invalid argument: --no-such-flag")
    for name in (name for flag in FLAGS for name in flag.names):
        assert name in message
    assert len(message.splitlines()) < 20, "a failed start shows the last 20 lines of the log"


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("-c", "argument -c: expected a value after it"),
        ("-c many", "argument -c: expected a whole number from 0 to .*, but got 'many'"),
        ("-c -5", "argument -c: .*got '-5'"),
        ("-c 1e3", "argument -c: .*got '1e3'"),
        ("--port 70000", "argument --port: expected a whole number from 0 to 65535"),
        ("-np 0", "argument -np: expected at least one slot"),
        ("-ctk q9", "argument -ctk: expected one of f32, f16, .*, but got 'q9'"),
        ("-fa yes", "argument -fa: expected one of on, off, auto, but got 'yes'"),
        ("-ngl some", "argument -ngl: expected a whole number"),
        ("--spec-type medusa", "argument --spec-type: expected one of none, draft-simple"),
        ("--spec-draft-p-min 2", "argument --spec-draft-p-min: expected a number from 0 to 1"),
        ("--spec-draft-p-min nan", "argument --spec-draft-p-min: expected a number from 0 to 1"),
        ("--alias ,", "argument --alias: expected at least one word"),
        ("stray", "invalid argument: stray"),
        ("-hf owner/name:Q8_0", r"invalid argument: -hf\. The wheel can't download models"),
    ],
)
def test_wrong_value_is_refused(line, message):
    with pytest.raises(FlagError, match=message) as caught:
        parameters(line)
    assert "know one of the arguments" in hint_for(str(caught.value), 1)


def test_model_is_required():
    with pytest.raises(FlagError, match=r"no model is given. Pass a \.gguf file with -m"):
        parse(["-c", "512"])


def test_flag_names_are_unique():
    names = [name for flag in FLAGS for name in flag.names]
    assert len(names) == len(set(names))


def test_missing_model_ends_with_code_1(tmp_path, capsys):
    assert main(["-m", str(tmp_path / "no.gguf")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert re.search(r"failed to load model: .*no\.gguf is not a file", last)
    assert "check the path" in hint_for(last, 1)


def test_missing_wheel_names_setup_step(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "xllamacpp", None)
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    assert main(["-m", str(tmp_path / "x.gguf")]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert "make setup STEP=llama_cpp" in last
    assert "not whole" in hint_for(last, 1)


def test_failed_start_ends_with_code_1(capsys):
    def server(parameters):
        raise RuntimeError("Failed to init server")

    wheel = SimpleNamespace(**vars(WHEEL), Server=server)
    assert llama_cpp_server.serve({"model.path": "x"}, wheel) == 1
    assert "Failed to init server" in capsys.readouterr().err.splitlines()[-1]


def test_help_shows_flags(capsys):
    assert main(["--help"]) == 0
    assert "-ctk|--cache-type-k" in capsys.readouterr().out


def test_enum_members_are_resolved_in_lists():
    member = EnumMember("ggml_type", "GGML_TYPE_F16")
    assert llama_cpp_server.resolve([member, 1], WHEEL) == ["GGML_TYPE_F16", 1]
