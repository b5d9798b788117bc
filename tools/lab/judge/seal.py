"""The course as a learner's code finds it while it is graded: without the answers.

A copy of `utils` in which the checks of the labs are empty, and the functions and classes that answer
an exercise have no bodies. A body comes back (`Session.unseal`) when the exercise that it answers has
been judged: later exercises may be given objects that need it.
"""

from __future__ import annotations

import ast
import compileall
import shutil
from collections.abc import Iterable
from pathlib import Path

from utils.checks import Check

_CHECKS = '''"""The checks are not here while a lab is graded: the grader calls what you wrote."""


def __getattr__(name: str) -> object:
    if name.startswith("__"):
        raise AttributeError(name)
    raise RuntimeError(f"checks.{name} is not in reach while a lab is graded")
'''
_BODY = "raise RuntimeError({!r})"
JUDGE = Path("tools/lab/judge")
_REASON = "{} is the course's own answer to an exercise: not in reach while that is graded"


def seals_of(check: Check, twins: Iterable[str] = ()) -> tuple[str, ...]:
    """Dotted names of all that is out of reach while an exercise is graded: its reference too."""
    reference = check.reference
    module = getattr(reference, "__module__", "")
    own = module.startswith("utils.") and not module.startswith("utils.checks.")
    return (*twins, *([f"{module}.{reference.__qualname__}"] if own else []))


def build_sealed(root: Path, target: Path, seals: Iterable[str]) -> None:
    """Write `target/utils`, sealed, and the judge that runs with it in the worker.

    Args:
        root: the course's folder.
        target: an empty folder.
        seals: dotted names of functions and classes in `utils`.

    Raises:
        LookupError: there is no such function or class, or its body cannot be taken out.
    """
    left_out = shutil.ignore_patterns("__pycache__")
    shutil.copytree(root / "utils", target / "utils", ignore=left_out)
    shutil.copytree(root / JUDGE, target / JUDGE, ignore=left_out)
    for package in JUDGE.parents[:-1]:
        shutil.copy2(root / package / "__init__.py", target / package / "__init__.py")
    for path in (target / "utils" / "checks").glob("lab_*.py"):
        path.write_text(_CHECKS, encoding="utf-8")
    for module, names in by_module(root, seals).items():
        (target / module).write_text(sealed_source(root, module, names), encoding="utf-8")
    for name in ("tools", "utils"):  # nobody can write there later
        compileall.compile_dir(target / name, quiet=1)


def by_module(root: Path, seals: Iterable[str]) -> dict[Path, list[str]]:
    """Return the names within each module's file (below `root`)."""
    found: dict[Path, list[str]] = {}
    for seal in dict.fromkeys(seals):
        module, qualname = split_name(root, seal)
        found.setdefault(module, []).append(qualname)
    return found


def sealed_source(root: Path, module: Path, names: Iterable[str]) -> str:
    """Return the text of one module with the named functions and classes sealed."""
    return _sealed((root / module).read_text(encoding="utf-8"), module, names)


def split_name(root: Path, name: str) -> tuple[Path, str]:
    """File (below `root`) and name within it: "utils.a.b.C.f" is utils/a/b.py, "C.f".

    Raises:
        LookupError: there is no such module.
    """
    parts = name.split(".")
    for count in range(len(parts) - 1, 0, -1):
        path = Path(*parts[:count]).with_suffix(".py")
        if (root / path).is_file():
            return path, ".".join(parts[count:])
    raise LookupError(f"{name} is in no module of the course")


def dotted(module: Path) -> str:
    """Import name of a module's file."""
    return ".".join(module.with_suffix("").parts)


def _sealed(source: str, module: Path, names: Iterable[str]) -> str:
    tree = ast.parse(source)
    lines = source.splitlines()
    replaced: dict[int, tuple[int, str]] = {}
    for name in names:
        full = f"{dotted(module)}.{name}"
        found = _find(tree, name)
        if found is None:
            raise LookupError(f"{full} does not exist")
        members = found.body if isinstance(found, ast.ClassDef) else [found]
        functions = [m for m in members if isinstance(m, ast.FunctionDef | ast.AsyncFunctionDef)]
        for function in functions:
            body = function.body[1:] if ast.get_docstring(function) else function.body
            if not body or body[0].lineno == function.lineno:
                raise LookupError(f"{full}: {function.name} has no body of its own to take out")
            line = " " * body[0].col_offset + _BODY.format(_REASON.format(full))
            replaced[body[0].lineno] = (body[-1].end_lineno or body[-1].lineno, line)
    for first in sorted(replaced, reverse=True):
        last, line = replaced[first]
        lines[first - 1 : last] = [line]
    return "\n".join(lines) + "\n"


def _find(
    tree: ast.Module, name: str
) -> ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | None:
    scope: list[ast.stmt] = tree.body
    found = None
    for part in name.split("."):
        kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
        found = next((n for n in scope if isinstance(n, kinds) and n.name == part), None)
        if found is None:
            return None
        scope = found.body
    return found
