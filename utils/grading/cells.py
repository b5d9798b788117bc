"""What a learner wrote, picked out of whatever was handed in.

Nothing else of a handed-in notebook is used: its exercises go into the instructors' own notebook.
So this reads with patience (old formats, missing and doubled cells, lost metadata), and notes what
it found.
"""

from __future__ import annotations

import ast
import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import nbformat

MAX_FILE_BYTES = 200 << 20
MAX_TEXT = 100_000
CHECK = "check-"


@dataclass(frozen=True)
class Note:
    """Something about a submission that is worth saying.

    Attributes:
        learner: what the learner reads; "" for nothing.
        instructor: what the instructor reads.
        exercise: the exercise that it is about; "" for the notebook.
    """

    learner: str
    instructor: str
    exercise: str = ""


@dataclass(frozen=True)
class Slot:
    """A cell that a learner fills.

    Attributes:
        id: of the exercise, prediction or answer.
        cell: id of its cell, such as "exercise-ttft".
        stub: what it holds untouched.
        variable: name that an exercise's check examines; "" otherwise.
        check: source of its check cell; "" otherwise.
        points: what it is worth.
    """

    id: str
    cell: str
    stub: str
    variable: str = ""
    check: str = ""
    points: int = 0


@dataclass(frozen=True)
class LabCells:
    """A lab as grading sees it: the cell that everything needs, and the cells that learners fill."""

    name: str
    setup: str
    exercises: tuple[Slot, ...]
    others: tuple[Slot, ...]

    @property
    def slots(self) -> tuple[Slot, ...]:
        """All that learners fill, predictions and written answers too."""
        return (*self.exercises, *self.others)


@dataclass
class HandedIn:
    """What was found: texts by cell id, the sources of all other cells, and notes."""

    texts: dict[str, str] = field(default_factory=dict)
    others: list[str] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)


def read_lab_cells(notebook: Mapping[str, Any], name: str) -> LabCells:
    """The slots of a lab, from its generated notebook.

    Raises:
        ValueError: it is not a lab of this course.
    """
    cells = list(_cells(notebook))
    code = [cell.text for cell in cells if cell.kind == "code"]
    checks = {cell.id.removeprefix(CHECK): cell for cell in cells if cell.id.startswith(CHECK)}
    exercises, others = [], []
    for cell in cells:
        role, _, key = cell.id.partition("-")
        if role == "exercise" and key in checks:
            check = checks[key]
            variable = next(iter(defined_names(check.text)), "")  # name = checks.<id>(name)
            exercises.append(Slot(key, cell.id, cell.text, variable, check.text, check.points))
        elif role in ("prediction", "answer"):
            others.append(Slot(key, cell.id, cell.text, points=cell.points))
    if not exercises or not code:
        raise ValueError(f"{name} is no lab of this course: it has no exercise with a check")
    return LabCells(name, code[0], tuple(exercises), tuple(others))


def pick(data: bytes, lab: LabCells) -> HandedIn:
    """Find the learner's texts in a handed-in file; never raises."""
    handed = HandedIn()
    try:
        notebook = _parse(data)
        cells = list(_cells(notebook))
    except Exception as error:
        reason = (
            str(error) if isinstance(error, _Unreadable) else f"{type(error).__name__}: {error}"
        )
        handed.notes.append(
            Note(
                f"Your file could not be read as a notebook ({reason[:300]}), so nothing in it was "
                "graded. Open it in JupyterLab, save it, and hand it in again.",
                f"unreadable: {reason[:300]}",
            )
        )
        return handed
    taken: set[int] = set()
    for slot in lab.slots:
        found = [i for i, cell in enumerate(cells) if cell.id == slot.cell]
        taken.update(found)
        _take(handed, slot, [cells[i] for i in found])
    rest = [cell for i, cell in enumerate(cells) if i not in taken]
    for slot in lab.exercises:
        if slot.cell not in handed.texts:
            _by_name(handed, slot, rest)
    for slot in lab.slots:
        _not_too_long(handed, slot)
    _look_at_checks(handed, lab, cells)
    handed.others = [
        cell.text for cell in rest if cell.kind == "code" and not cell.id.startswith(CHECK)
    ]
    return handed


class _Unreadable(ValueError):
    pass


class _Cell(NamedTuple):
    kind: str
    id: str
    text: str
    points: int


def _parse(data: bytes) -> Mapping[str, Any]:
    if len(data) > MAX_FILE_BYTES:
        raise _Unreadable(f"it has {len(data) >> 20} MB; clear the outputs and save it")
    try:
        notebook = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise _Unreadable(f"it is not JSON: {error}" if data else "it is empty") from error
    if not isinstance(notebook, dict):
        raise _Unreadable("it is JSON, but no notebook")
    version = notebook.get("nbformat")
    if isinstance(version, int) and version < 4:
        older: Mapping[str, Any] = nbformat.reads(data.decode("utf-8-sig"), as_version=4)  # type: ignore[no-untyped-call]
        return older
    if not isinstance(notebook.get("cells"), list):
        raise _Unreadable("it has no cells")
    return notebook


def _cells(notebook: Mapping[str, Any]) -> Iterator[_Cell]:
    """The cells; one is known by its grade id, which a copy keeps, or else by its own id."""
    for cell in notebook["cells"]:
        if not isinstance(cell, dict):
            continue
        source = cell.get("source", "")
        text = "".join(map(str, source)) if isinstance(source, list) else str(source)
        metadata = cell.get("metadata")
        marks = metadata.get("nbgrader") if isinstance(metadata, dict) else None
        marks = marks if isinstance(marks, dict) else {}
        id_ = marks.get("grade_id") or cell.get("id")
        points = marks.get("points")
        yield _Cell(
            str(cell.get("cell_type")),
            id_ if isinstance(id_, str) else "",
            text,
            points if type(points) is int else 0,
        )


def _take(handed: HandedIn, slot: Slot, found: list[_Cell]) -> None:
    """Choose among the cells that claim to be this slot."""
    texts = [cell.text for cell in found]
    if not texts:
        return
    attempted = [text for text in texts if not same(text, slot.stub)]
    handed.texts[slot.cell] = attempted[-1] if attempted else texts[-1]
    if len(texts) > 1:
        which = "the last one that you changed" if attempted else "one of them, all untouched,"
        handed.notes.append(
            Note(
                f"The cell of {slot.id} is there {len(texts)} times; {which} was graded.",
                f"{slot.id}: the cell is there {len(texts)} times, "
                f"{len(set(attempted))} different attempts",
                slot.id,
            )
        )
    kinds = {cell.kind for cell in found}
    if slot.variable and kinds != {"code"}:
        handed.notes.append(
            Note(
                f"The cell of {slot.id} is not a code cell any more; it was graded as one.",
                f"{slot.id}: the type of its cell was changed to {', '.join(sorted(kinds))}",
                slot.id,
            )
        )


def _by_name(handed: HandedIn, slot: Slot, rest: list[_Cell]) -> None:
    """A cell that lost its id and metadata is known by what it defines."""
    kept = [
        cell.text
        for cell in rest
        if cell.kind == "code"
        and slot.variable in defined_names(cell.text)
        and not same(cell.text, slot.check)
    ]
    if kept:
        handed.texts[slot.cell] = kept[-1]
        learner = f"The cell of {slot.id} had lost its marks; it was found by the name it defines."
        handed.notes.append(Note(learner, f"{slot.id}: found by name, its id is lost", slot.id))
    else:
        learner = f"The cell of {slot.id} is missing, so it was not graded. Start from a fresh lab."
        handed.notes.append(Note(learner, f"{slot.id}: its cell is missing", slot.id))


def _not_too_long(handed: HandedIn, slot: Slot) -> None:
    length = len(handed.texts.get(slot.cell, ""))
    if length > MAX_TEXT:
        handed.texts[slot.cell] = handed.texts[slot.cell][:MAX_TEXT]
        learner = f"The cell of {slot.id} has {length} characters; {MAX_TEXT} of them were graded."
        handed.notes.append(Note(learner, f"{slot.id}: {length} characters", slot.id))


def _look_at_checks(handed: HandedIn, lab: LabCells, cells: list[_Cell]) -> None:
    for slot in lab.exercises:
        texts = [cell.text for cell in cells if cell.id == CHECK + slot.id]
        what = ""
        if not texts:
            what = "is missing"
        elif len(texts) > 1:
            what = f"is there {len(texts)} times"
        elif not same(texts[0], slot.check):
            what = "was edited"
        if what:
            learner = f"The check of {slot.id} {what}. The original was used."
            handed.notes.append(Note(learner, f"{slot.id}: its check {what}", slot.id))


def same(one: str, other: str) -> bool:
    """Equal but for white space at the ends of lines and of the cell."""

    def trimmed(text: str) -> list[str]:
        return [line.rstrip() for line in text.strip().splitlines()]

    return trimmed(one) == trimmed(other)


def defined_names(text: str) -> set[str]:
    """Names that a cell defines at its top level; none if it does not parse."""
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


def merge(lab: LabCells, notebook: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """The instructors' notebook with a learner's texts in their cells; none of it is markup."""
    stubs = {slot.cell: slot.stub for slot in lab.slots}
    cells = []
    for cell in notebook["cells"]:
        id_ = str(cell.get("id"))
        if id_ not in stubs or id_ not in texts or same(texts[id_], stubs[id_]):
            cells.append(dict(cell))
        else:
            text = texts[id_]
            cells.append(
                {**cell, "source": as_text(text) if cell["cell_type"] == "markdown" else text}
            )
    return {**notebook, "cells": cells}


def as_text(text: str) -> str:
    """Markdown that shows a text as it is: no tags, no links, no formulas."""
    return f'<pre style="white-space: pre-wrap">\n{html.escape(text)}\n</pre>'
