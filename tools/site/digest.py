"""What decides a notebook's outputs: its code, the modules that it reaches, models, versions, profile.

Prose is not part of it: who corrects a sentence does not wait for engines. Modules are found by reading
imports, also those inside of functions, and names of modules in strings (`python -m utils.gateway`), from
the notebook on. Of a module that is reached, files beside it that are no Python count too (templates).
"""

from __future__ import annotations

import ast
import hashlib
import json
import platform
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.setup.setup_steps import REQUIREMENTS, steps_for
from tools.site import figures
from utils.profiles import ROOT, load_profile

DATA = ("models", "docker")  # what modules open by path; documents in there do not count
_DOTTED = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def run_key(notebook: Path, root: Path = ROOT) -> str:
    """Digest of everything that an execution of `notebook` depends on, as far as files tell.

    Args:
        notebook: a notebook; modules in its folder count too.
        root: the course's folder.
    """
    code = code_of(notebook)
    digest = hashlib.sha256()
    settings = repr(load_profile()).replace(str(ROOT), "")
    for fact in (*code, settings, platform.python_version(), platform.machine()):
        digest.update(fact.encode() + b"\0")
    files = reached("\n".join(code), (notebook.parent, root)) | {Path(figures.__file__)}
    for file in sorted({*files, *_data(root)}):
        digest.update(f"{file.name}\0".encode() + hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()[:20]


def code_of(notebook: Path) -> list[str]:
    """The sources of a notebook's code cells."""
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    return ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]


def reached(code: str, roots: Sequence[Path]) -> set[Path]:
    """Files of the modules below `roots` that `code` imports or names, and those that they do, and so on.

    Args:
        code: Python source, in which lines of a notebook's magic commands may stand.
        roots: folders that are searched as Python searches `sys.path`, the first that has the module.
    """
    files: set[Path] = set()
    waiting = list(_modules(code, "", roots))
    while waiting:
        name, file = waiting.pop()
        if file in files:
            continue
        files.add(file)
        package = name if file.name == "__init__.py" else name.rpartition(".")[0]
        waiting += _modules(file.read_text(encoding="utf-8"), package, roots)
    beside = {
        other for file in files if file.parent not in roots for other in file.parent.iterdir()
    }
    return files | {
        file for file in beside if file.is_file() and file.suffix not in (".py", ".pyc")
    }


def _modules(code: str, package: str, roots: Sequence[Path]) -> Iterator[tuple[str, Path]]:
    """Name and file of each module that the code names, and of the packages it lies in."""
    for named in _names(code, package):
        parts = named.split(".")
        for root in roots:
            found = [
                (".".join(parts[:i]), file)
                for i in range(1, len(parts) + 1)
                for file in _files(root.joinpath(*parts[:i]))
            ]
            yield from found
            if found:
                break


def _files(place: Path) -> Iterator[Path]:
    if (module := place.with_name(f"{place.name}.py")).is_file():
        yield module
    for inside in ("__init__.py", "__main__.py"):
        if (place / inside).is_file():
            yield place / inside


def _names(code: str, package: str) -> Iterator[str]:
    plain = "\n".join("" if line.startswith(("%", "!")) else line for line in code.splitlines())
    for node in ast.walk(ast.parse(plain)):
        match node:
            case ast.Import():
                yield from (alias.name for alias in node.names)
            case ast.ImportFrom():
                parts = package.split(".")
                base = parts[: len(parts) - node.level + 1] if node.level else []
                module = ".".join([*base, *([node.module] if node.module else [])])
                yield from (f"{module}.{alias.name}" for alias in node.names)
            case ast.Constant(value=str(text)) if _DOTTED.fullmatch(text):
                yield text


def _data(root: Path) -> Iterator[Path]:
    for step in steps_for(load_profile().name):
        yield from (REQUIREMENTS / lock for lock in step.locks)
    for folder in DATA:
        for file in (root / folder).rglob("*"):
            if file.is_file() and file.suffix != ".md" and "__pycache__" not in file.parts:
                yield file
