"""Code blocks of documents: they parse, and the commands, modules and files that they name are there."""

from __future__ import annotations

import ast
import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import yaml

from tools.authoring.lint_errors import Problem
from tools.authoring.markdown import Block
from tools.lab.course_error import CourseError
from tools.lab.labs import find_lab
from tools.setup.setup_steps import COURSE, LLAMA_CPP, SGLANG, VLLM
from utils.profiles import ENVIRONMENT_VARIABLE, LOAD_VARIABLE, PROFILES

SHELLS = ("", "bash", "sh", "console")  # an indented block is for the shell
SHOWN = ("text", "http", "dockerfile", "promql")  # what is read, and not run
FOLDERS = ("benchmarks", "docker", "labs", "models", "requirements", "solutions", "tests", "utils")
HIDDEN = ("solutions", "tests", "benchmarks")  # what a release does not have
_ASSIGNMENT = re.compile(r"(?P<name>[A-Za-z_]\w*)=(?P<value>.*)", re.DOTALL)
_TARGET = re.compile(r"^([a-z][\w -]*?):(?!=)", re.MULTILINE)
_PYTHON = re.compile(r"(?:.*/)?python(?:3(?:\.\d+)?)?")
_ENDS = frozenset([";", "|", "&", "&&", "||", "(", ")"])
_STEPS = tuple(step.name for step in (COURSE, VLLM, SGLANG, LLAMA_CPP))
_PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./*@-]*")


@cache
def make_targets(root: Path, *, learner: bool) -> frozenset[str]:
    """What can be typed behind `make`: in a release, or in a clone."""
    files = [root / "Makefile", *(() if learner else (root / "solutions" / "instructors.mk",))]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files if file.is_file())
    return frozenset(name for line in _TARGET.findall(text) for name in line.split())


def check_code(path: Path, block: Block, root: Path, *, learner: bool) -> Iterator[Problem]:
    """Faults of a code block; `learner`: it has to work in a release."""
    fault = _syntax(block)
    if fault:
        yield Problem(
            path, block.line, f"this {block.info or 'shell'} does not parse: {fault}", "Mend it."
        )
    elif block.info in SHELLS:
        for reason in check_shell(block.text, root, learner=learner):
            yield Problem(path, block.line, reason, "Name what is there.")
    elif block.info == "python":
        for reason in _imports(block.text, root):
            yield Problem(path, block.line, reason, "Name what is there.")


def _syntax(block: Block) -> str:
    """Why a block does not parse; "" if it does, or is only to be read."""
    try:
        match block.info:
            case kind if kind in SHELLS:
                said = subprocess.run(
                    ["bash", "-n"], input=block.text, capture_output=True, text=True, check=False
                )
                return said.stderr.strip()
            case "python":
                compile(
                    block.text, "block", "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT | ast.PyCF_ONLY_AST
                )
            case "json":
                json.loads(block.text)
            case "yaml":
                yaml.safe_load(block.text)
            case kind if kind not in SHOWN:
                return f"{kind!r} is no kind of block: bash, python, json, yaml, {', '.join(SHOWN)}"
    except (SyntaxError, ValueError, yaml.YAMLError) as error:
        return str(error).splitlines()[0]
    return ""


def check_shell(text: str, root: Path, *, learner: bool) -> Iterator[str]:
    """What shell commands name and is not there."""
    for words in _commands(text):
        variables = [_ASSIGNMENT.fullmatch(word) for word in words]
        first = next((i for i, found in enumerate(variables) if not found), len(words))
        for found in variables:
            if found and (reason := _variable(found["name"], found["value"], root)):
                yield reason
        command = words[first:]
        if not command:
            continue
        if command[0] == "make":
            known = make_targets(root, learner=learner)
            for word in command[1:]:
                if (
                    not _ASSIGNMENT.fullmatch(word)
                    and not word.startswith("-")
                    and word not in known
                ):
                    yield f"there is no `make {word}`" + (" in a release" if learner else "")
        elif _PYTHON.fullmatch(command[0]) and "-m" in command[:-1]:
            module = command[command.index("-m") + 1]
            if not _module(module, root):
                yield f"there is no module {module}"
        for word in command:
            if _PATH.fullmatch(word) and (reason := path_fault(word, root, learner=learner)):
                yield reason


def _commands(text: str) -> Iterator[list[str]]:
    """The simple commands of a script, as words."""
    joined = re.sub(r"\\\n", " ", re.sub(r"(?m)(^|[ \t])#.*$", "", text))
    lexer = shlex.shlex(joined, posix=True, punctuation_chars=";|&()\n")
    lexer.whitespace, lexer.commenters, lexer.whitespace_split = " \t\r", "", True
    words: list[str] = []
    for word in lexer:
        if word.strip("\n") == "" or word in _ENDS:
            if words:
                yield words
            words = []
        else:
            words.append(word)
    if words:
        yield words


def _variable(name: str, value: str, root: Path) -> str:
    known: dict[str, tuple[str, ...]] = {
        ENVIRONMENT_VARIABLE: tuple(PROFILES),
        LOAD_VARIABLE: ("full", "quick"),
        "STEP": _STEPS,
    }
    values = value.split() if name == "STEP" else [value]
    if name in known and not set(values) <= set(known[name]):
        return f"{name}={value}: it is one of {', '.join(known[name])}"
    if name == "LAB" and value.isdecimal():
        try:
            find_lab(value, root)
        except CourseError:
            return f"there is no lab {value}"
    return ""


def _module(name: str, root: Path) -> bool:
    if name.split(".")[0] in ("utils", "benchmarks"):
        place = root.joinpath(*name.split("."))
        return place.with_suffix(".py").is_file() or (place / "__main__.py").is_file()
    packages = [
        *root.glob(".venv/lib/python3.*/site-packages"),
        *root.glob(".engines/*/lib/python3.*/site-packages"),
    ]
    places = [folder.joinpath(*name.split(".")) for folder in packages]
    return any(p.with_suffix(".py").is_file() or (p / "__main__.py").is_file() for p in places)


def path_fault(name: str, root: Path, *, learner: bool) -> str:
    """Why a path from the course's folder is not there; "" if it is."""
    if re.search(r"3[._]3[._]N", name):
        return ""  # it stands for each lab's
    if learner and name.split("/")[0] in HIDDEN:
        return f"{name} is not in a release"
    found = any(root.glob(name)) if "*" in name else (root / name).exists()
    return "" if found else f"there is no {name}"


def name_fault(dotted: str, root: Path) -> str:
    """Why a dotted name below `utils` is none; "" if it is a module, or a name at its top."""
    parts = dotted.split(".")
    for depth in range(len(parts), 0, -1):
        place = root.joinpath(*parts[:depth])
        file = (
            place.with_suffix(".py")
            if place.with_suffix(".py").is_file()
            else place / "__init__.py"
        )
        if file.is_file():
            rest = parts[depth:]
            known = not rest or rest[0] in _names_in(file)
            return "" if known else f"{'.'.join(parts[:depth])} has no {rest[0]}"
    return f"there is no {dotted}"


@cache
def _names_in(file: Path) -> frozenset[str]:
    names: set[str] = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        match node:
            case ast.FunctionDef() | ast.AsyncFunctionDef() | ast.ClassDef():
                names.add(node.name)
            case ast.Import() | ast.ImportFrom():
                names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            case ast.Assign() | ast.AnnAssign():
                names |= {n.id for n in ast.walk(node) if isinstance(n, ast.Name)}
    return frozenset(names)


def _imports(text: str, root: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.ImportFrom(module=str() as module) if module.split(".")[0] == "utils":
                found = [name_fault(f"{module}.{alias.name}", root) for alias in node.names]
            case ast.Import():
                names = [alias.name for alias in node.names if alias.name.split(".")[0] == "utils"]
                found = [name_fault(name, root) for name in names]
            case _:
                continue
        yield from (reason for reason in found if reason)
