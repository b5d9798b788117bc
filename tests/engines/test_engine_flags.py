"""The installed engines' own parsers accept every command that the course writes or builds."""

import ast
import dataclasses
import json
import os
import re
import shlex
import subprocess
from functools import cache

import pytest
import record_engine_flags
import stub_engine
import yaml
from documents import code_blocks, code_spans, read_documents

from utils.engines import ENGINES, ServeOptions, UnsupportedOption, llama_cpp_server, sglang, vllm
from utils.engines.launch import profile_fields
from utils.engines.structured import COMPACT_JSON
from utils.labs.lab_3_3_5.experiments import sglang_options
from utils.profiles import PROFILES, ROOT
from utils.speculative.comparison import speculation

PYTHONS = {"vllm": vllm.PYTHON, "sglang": sglang.PYTHON}
SERVES = {
    "vllm": "vllm serve",
    "sglang": "sglang.launch_server",
    "llama_cpp": "llama-server",
    "tensorrt_llm": "trtllm-serve",
}
PROGRAMS = {
    "vllm": ("vllm serve", "vllm.entrypoints.openai.api_server", "vllm bench serve"),
    "sglang": ("sglang.launch_server", "sglang serve", "sglang_router.launch_router"),
    "llama_cpp": ("llama-server",),
    "tensorrt_llm": ("trtllm-serve",),
}
MAKE_PARSERS = {
    "vllm": """
from vllm.benchmarks.serve import add_cli_args
from vllm.config import SpeculativeConfig
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.utils.argparse_utils import FlexibleArgumentParser
bench = FlexibleArgumentParser()
add_cli_args(bench)
serve = make_arg_parser(FlexibleArgumentParser())
parsers = {"vllm serve": serve, "vllm bench serve": bench, "vllm.entrypoints.openai.api_server": serve}
def check(options):  # the parser takes any JSON object
    config = getattr(options, "speculative_config", None) or {}
    unknown = set(config) - {field.name for field in dataclasses.fields(SpeculativeConfig)}
    assert not unknown, f"--speculative-config has no key {unknown}"
""",
    "sglang": """
from sglang.srt.server_args import ServerArgs
from sglang_router.launch_router import RouterArgs
serve, router = argparse.ArgumentParser(), argparse.ArgumentParser()
ServerArgs.add_cli_args(serve)
RouterArgs.add_cli_args(router, use_router_prefix=False)
parsers = {"sglang.launch_server": serve, "sglang serve": serve, "sglang_router.launch_router": router}
def check(options): pass
""",
}
PARSE = """
import argparse, contextlib, dataclasses, json, sys
def fault(program, argv):
    parser = parsers[program]
    def refuse(message): raise ValueError(message)
    parser.error = refuse
    try:
        check(parser.parse_args(argv))
    except (Exception, SystemExit) as error:
        return str(error) or type(error).__name__
    return ""
with contextlib.redirect_stdout(sys.stderr):  # imports may print
    exec(sys.argv[1])
    found = [fault(*command) for command in json.load(sys.stdin)]
print(json.dumps(found))
"""


def faults(engine, commands):
    """Return the reason why an engine refuses each command, or "".

    Args:
        engine: Name of an engine whose parser is on this machine.
        commands: Pairs of a program and its arguments.
    """
    if engine == "llama_cpp":
        return [llama_cpp_fault(argv) for _, argv in commands]
    if engine not in PYTHONS:
        pytest.skip(f"not checked here: {engine} has no parser on this machine")
    if not PYTHONS[engine].exists():
        pytest.skip(f"{engine} isn't set up. Run: make setup STEP={engine}")
    answer = subprocess.run(
        [PYTHONS[engine], "-W", "ignore", "-c", PARSE, MAKE_PARSERS[engine]],
        input=json.dumps(commands),
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert answer.returncode == 0, answer.stderr[-1500:]
    return json.loads(answer.stdout)


def llama_cpp_fault(argv):
    local = ["-m" if word == "-hf" else word for word in argv]  # the wheel downloads no models
    try:
        llama_cpp_server.parse(local)
    except llama_cpp_server.FlagError as error:
        return str(error).splitlines()[-1]
    return ""


def built_commands(engine):
    """Yield the commands that `launch` builds, with every option and extra argument of the course."""
    spec = ENGINES[engine]
    values = {
        "kv_blocks": (64,),
        "prefix_caching": (False,),
        "eager": (True, False),
        "kv_cache_dtype": spec.capabilities.kv_dtypes,
        "config": ("/course-config/settings.yml",),
    }
    for profile in (profile for profile in PROFILES.values() if engine in profile.models):
        plain = ServeOptions(
            model=profile.models[engine],
            served_name="model",
            host="127.0.0.1",
            port=8000,
            device=profile.device,
            kv_cache_bytes=1 << 30 if profile.device == "cuda" else None,
            **profile_fields(profile),
        )
        changes = [{}, {"extra_arguments": COMPACT_JSON.get(engine, ())}]
        changes += [{field: value} for field in spec.options for value in values[field]]
        if engine == "sglang":
            changes.append(sglang_options(profile))
        if engine == "vllm":
            changes.append(speculation("ngram", 4))
            for method in ("medusa", "eagle", "eagle3"):
                heads = profile.models.get(f"{method}_heads", "owner/heads")
                changes.append(speculation(method, 3, heads))
        for change in changes:
            try:
                yield SERVES[engine], spec.arguments(dataclasses.replace(plain, **change))
            except UnsupportedOption:
                continue


def written_commands(engine):
    """Return the engine's commands in documents, labs and the compose file."""
    texts = [text for document in read_documents() for text in shell_texts(document.text)]
    compose = (ROOT / "docker/compose.yaml").read_text()
    for service in yaml.safe_load(re.sub(r"\$\{\w+:?-([^}]*)\}", r"\1", compose))[
        "services"
    ].values():
        command = service.get("command") or []
        words = command if isinstance(command, str) else shlex.join(map(str, command))
        texts.append(f"{service.get('image')} {words}")
    found = [as_command(engine, words) for text in texts for words in split_commands(text)]
    return [command for command in found if command]


def shell_texts(text):
    spans = [span for span in code_spans(text) if " -" in span]
    return [code for info, code in code_blocks(text) if info in ("", "bash", "console")] + spans


def split_commands(text):
    """Yield the words of each simple command in a shell text."""
    text = re.sub(r"\\\n|\.\.\.|\d?>+&?\s*\S+", " ", re.sub(r"(?m)(^|\s)#.*$", "", text))
    lexer = shlex.shlex(text, posix=True, punctuation_chars=";|&()\n")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t\r", "", True
    words = []
    try:
        for word in lexer:
            if word.strip(";|&()\n"):
                words.append(word)
            else:
                yield words
                words = []
    except ValueError:  # a formula with a quote
        return
    yield words


def as_command(engine, words):
    """Return the engine's program that a command starts and its arguments, or None."""
    for at in range(len(words)):
        for program in PROGRAMS[engine]:
            rest = words[at + len(program.split()) :]
            named = [words[at].rpartition("/")[2], *words[at + 1 :]]
            if named[: len(program.split())] == program.split() and rest:
                return program, rest
    image = ENGINES[engine].container.image
    rest = words[words.index(image) + 1 :] if image in words else []
    if rest and rest[0] not in ("bash", "sh"):
        return SERVES[engine], rest
    return None


def literal_extras():
    """Return the extra arguments that labs write as literals. A value that isn't constant becomes 1."""
    found = set()
    for path in [*ROOT.glob("solutions/lab-*.py"), *ROOT.glob("utils/labs/**/*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            pairs = []
            if isinstance(node, ast.keyword):
                pairs = [(node.arg, node.value)]
            elif isinstance(node, ast.Dict):
                keys = [getattr(key, "value", None) for key in node.keys]
                pairs = list(zip(keys, node.values, strict=True))
            for name, value in pairs:
                items = getattr(value, "elts", ())
                starred = any(isinstance(item, ast.Starred) for item in items)
                if name == "extra_arguments" and items and not starred:
                    found.add(tuple(str(getattr(item, "value", 1)) for item in items))
    return sorted(found)


@cache
def answers(engine):
    """Return the faults of the course's commands, and of each literal with a built command before it.

    The last command has an unknown flag. All go to the parser at once, because its imports take seconds.
    """
    built = list(built_commands(engine))
    commands = [
        *written_commands(engine),
        *built,
        (SERVES[engine], [*built[0][1], "--no-such-flag"]),
    ]
    extended = [(SERVES[engine], [*built[0][1], *extra]) for extra in literal_extras()]
    found = faults(engine, [*commands, *extended])
    return list(zip(commands, found, strict=False)), found[len(commands) :]


@pytest.mark.parametrize("engine", SERVES)
def test_engine_accepts_commands_of_the_course(engine):
    (*found, planted), _ = answers(engine)
    assert [(command, fault) for command, fault in found if fault] == []
    assert planted[1]


def test_some_engine_accepts_each_extra_argument_of_a_lab():
    by_engine = [answers(engine)[1] for engine in ("vllm", "sglang", "llama_cpp")]
    refused = [all(reasons) for reasons in zip(*by_engine, strict=True)]
    assert [extra for extra, no in zip(literal_extras(), refused, strict=True) if no] == []


@pytest.mark.parametrize("engine", SERVES)
def test_recorded_flags_are_those_of_the_parser(engine):
    """The rehearsal's containers check their arguments with the record."""
    if engine in PYTHONS and not PYTHONS[engine].exists():
        pytest.skip(f"{engine} isn't set up. Run: make setup STEP={engine}")
    recorded = json.loads(record_engine_flags.RECORD.read_text(encoding="utf-8"))
    assert record_engine_flags.record(engine) == recorded[engine], (
        "Record them again: PYTHONPATH=. python tests/support/record_engine_flags.py"
    )


@pytest.mark.parametrize("engine", SERVES)
def test_record_and_parser_agree_on_commands_of_the_course(engine):
    recorded = json.loads(record_engine_flags.RECORD.read_text(encoding="utf-8"))
    for _, arguments in built_commands(engine):
        stub_engine.parse(arguments, recorded[engine]["flags"])
    with pytest.raises(stub_engine.Refused, match="--no-such-flag"):
        stub_engine.parse(["--no-such-flag"], recorded[engine]["flags"])


def test_commands_are_found_in_shell_texts():
    text = "$ docker run \\\n  vllm serve M --port 1 > log 2>&1  # why\ncd x && llama-server -m f | tee"
    found = [as_command(engine, w) for engine in SERVES for w in split_commands(text)]
    assert [command for command in found if command] == [
        ("vllm serve", ["M", "--port", "1"]),
        ("llama-server", ["-m", "f"]),
    ]
