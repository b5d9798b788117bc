"""Asks the installed engines' own parsers: once a process, every command line in one question.

vLLM's and SGLang's run under those engines' Pythons (`ask_vllm.py`, `ask_sglang.py`); llama.cpp's is its
program, which parses what stands before `--version` and then ends.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.authoring.cli_schemas import FOLDER, Accepted, from_data
from utils.engines import llama_cpp, sglang, vllm

TIMEOUT_S = 240.0
LLAMA_SERVER = "llama-server"
ASKED = ("vllm", "sglang", "llama_cpp")
_PYTHONS: Mapping[str, Path] = {"vllm": vllm.PYTHON, "sglang": sglang.PYTHON}
# Names, then a blank and what a value is called; words follow after two blanks, or on the next line.
_ENTRY = re.compile(r"(?P<names>--?[\w.-]+(?:,\s+--?[\w.-]+)*)(?P<value> \S.*?)?(?:\s{2,}|$)")
_ENVIRONMENT = re.compile(r"\(env: ([A-Z0-9_]+)\)")


class AskError(RuntimeError):
    """An engine is installed and its parser could not be asked."""


@dataclass(frozen=True)
class CommandLine:
    """One command line for a program's parser.

    Attributes:
        program: As `Accepted.programs` names it.
        argv: Arguments after the program.
        where: File and line, or what made it; for messages.
    """

    program: str
    argv: tuple[str, ...]
    where: str


@dataclass(frozen=True)
class Answer:
    """What an engine says.

    Attributes:
        accepted: What it accepts.
        data: The same as plain data, for the file.
        refused: For each command line why it is refused; None: it is accepted.
    """

    accepted: Accepted
    data: Mapping[str, Any]
    refused: tuple[str | None, ...]


def installed() -> tuple[str, ...]:
    """Names of the engines whose parsers can be asked on this machine."""
    needs = {**_PYTHONS, "llama_cpp": llama_cpp.NATIVE_SERVER}
    return tuple(name for name, path in needs.items() if path.exists())


def ask(questions: Mapping[str, Sequence[CommandLine]]) -> dict[str, Answer]:
    """Asks engines, by name, side by side.

    Raises:
        AskError: One did not answer; its last words are in it.
    """
    running = {name: _start(name, lines) for name, lines in questions.items() if name in _PYTHONS}
    answers = {}
    if "llama_cpp" in questions:
        answers["llama_cpp"] = _ask_llama_cpp(questions["llama_cpp"])
    for name, process in running.items():
        answers[name] = _finish(name, process)
    return answers


def _start(name: str, lines: Sequence[CommandLine]) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    process = subprocess.Popen(
        [str(_PYTHONS[name]), "-W", "ignore", str(FOLDER / f"ask_{name}.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment | {"HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert process.stdin is not None
    json.dump([{"program": line.program, "argv": line.argv} for line in lines], process.stdin)
    process.stdin.close()
    process.stdin = None
    return process


def _finish(name: str, process: subprocess.Popen[str]) -> Answer:
    try:
        out, err = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired as error:
        process.kill()
        process.communicate()
        raise AskError(f"{name} did not answer within {TIMEOUT_S:.0f} s.") from error
    if process.returncode != 0:
        raise AskError(
            f"{name}'s parser could not be asked:\n{err[-1500:]}\n"
            f"Set it up again: make setup STEP={name}"
        )
    data = json.loads(out)
    refused = tuple(data.pop("refused"))
    return Answer(from_data(name, data), data, refused)


def _ask_llama_cpp(lines: Sequence[CommandLine]) -> Answer:
    answer = _run_llama_cpp("--help")
    if answer.returncode != 0:
        raise AskError(f"{llama_cpp.NATIVE_SERVER} --help failed:\n{answer.stderr[-1500:]}")
    binary = llama_cpp.NATIVE_SERVER.read_bytes()
    names = set(llama_cpp.SPEC.metrics.__dict__.values()) - {None}
    data = parse_llama_help(answer.stdout) | {
        "version": llama_cpp.NATIVE,
        # The program puts names together from `llamacpp:` and these; a list it does not have.
        "metrics": sorted(n for n in names if n.partition(":")[2].encode() in binary),
    }
    return Answer(from_data("llama_cpp", data), data, tuple(map(_refused_by_llama_cpp, lines)))


def _run_llama_cpp(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [str(llama_cpp.NATIVE_SERVER), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _refused_by_llama_cpp(line: CommandLine) -> str | None:
    answer = _run_llama_cpp(*line.argv, "--version")
    said = next((text for text in (answer.stdout + answer.stderr).splitlines() if text), "")
    return None if answer.returncode == 0 else said


def parse_llama_help(text: str) -> dict[str, Any]:
    """Options, environment variables and removed options of `llama-server --help`."""
    options: dict[str, dict[str, Any]] = {}
    removed: dict[str, str] = {}
    current: list[str] = []
    told = ""
    for line in text.splitlines():
        if entry := _ENTRY.match(line):
            current = re.split(r",\s+", entry["names"])
            options |= {name: {"values": 1 if entry["value"] else 0} for name in current}
            told = ""
        if "argument has been removed" in line:
            told = line[line.find("the argument has been removed") :].strip()
        elif told and not line.lstrip().startswith("(env:"):
            told += f" {line.strip()}"
        removed |= {name: told for name in current if told}
    kept = {name: entry for name, entry in sorted(options.items()) if name not in removed}
    environment = sorted(set(_ENVIRONMENT.findall(text)))
    return {
        "programs": {LLAMA_SERVER: kept},
        "environment": environment,
        "removed": dict(sorted(removed.items())),
    }
