"""Names that a learner's code takes from cells that grading doesn't run.

Grading runs a lab's first code cell and the cells of its exercises, and nothing else. Code that works in
the notebook may therefore fail there, because it reads a name from another cell.
"""

from __future__ import annotations

import ast
import builtins
import dis
import functools
import json
import linecache
from collections.abc import Iterator
from types import CodeType
from typing import Any

from utils.checks.attempt import named_functions
from utils.profiles import ROOT


def defined_names(text: str) -> set[str]:
    """Return the names that a cell defines at its top level, or none if it doesn't parse."""
    try:
        body = ast.parse(text).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    names: set[str] = set()
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        elif isinstance(node, ast.Import | ast.ImportFrom):
            names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
        else:
            names |= {
                n.id
                for n in ast.walk(node)
                if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)
            }
    return names


def names_of_other_cells(learner: Any, lab: str) -> list[str]:
    """Return the names that an answer reads from cells that grading doesn't run, sorted.

    Args:
        learner: Function or class from a notebook's cell.
        lab: Number of the lab, such as "3.3.1".
    """
    given = given_names(lab)
    found: set[str] = set()
    for _, function in named_functions(learner):
        code = function.__code__
        own = defined_names("".join(linecache.getlines(code.co_filename)))
        read = {name for name in _global_reads(code) if name in function.__globals__}
        found |= read - own - given - set(vars(builtins))
    return sorted(found) if given else []


def given_names(lab: str) -> frozenset[str]:
    """Return the names that grading has: those of the first code cell and of all exercises.

    The set is empty if there is no notebook of this lab.
    """
    facts = _facts(lab)
    names = {exercise["variable"] for exercise in facts["exercises"]}
    return frozenset(names | defined_names(facts["setup"]))


def is_stub_cell(learner: Any, lab: str, exercise: str) -> bool:
    """Tell whether an answer's cell is as it was handed out, also where it held some code already."""
    stubs = [slot["stub"] for slot in _facts(lab)["exercises"] if slot["id"] == exercise]
    cells = {function.__code__.co_filename for _, function in named_functions(learner)}
    texts = ["".join(linecache.getlines(cell)) for cell in cells]
    return any(same(text, stub) for text in texts for stub in stubs)


@functools.cache
def _facts(lab: str) -> dict[str, Any]:
    """Return the facts that a lab's notebook carries about itself, which a learner's edits don't change."""
    for path in (ROOT / "labs").glob(f"lab-{lab}-*.ipynb"):
        try:
            facts: dict[str, Any] = json.loads(path.read_bytes())["metadata"]["course"]["lab"]
            if facts["exercises"] and isinstance(facts["setup"], str):
                return facts
        except (OSError, ValueError, KeyError, TypeError):
            continue
    return {"exercises": [], "setup": ""}


def same(one: str, other: str) -> bool:
    """Tell whether two cells are equal but for white space at the ends of lines and of the cell."""

    def trimmed(text: str) -> list[str]:
        return [line.rstrip() for line in text.strip().splitlines()]

    return trimmed(one) == trimmed(other)


def _global_reads(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("LOAD_GLOBAL", "LOAD_NAME"):
            yield instruction.argval
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _global_reads(constant)
