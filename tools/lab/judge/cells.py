"""A learner's own cells, picked out of a notebook that was handed in.

Nothing else of a handed-in notebook is run: its exercises go into the instructors' own notebook. So
this reads with patience (old formats, missing, split and doubled cells, lost metadata), and notes what
it found.
"""

from __future__ import annotations

import html
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import nbformat

from tools.lab.judge.sanitize_outputs import harmless, writable
from utils.checks.own_cell import defined_names, same

MAX_FILE_BYTES = 200 << 20
MAX_TEXT = 100_000
MAX_SHOWN = 8 << 20  # characters of a notebook's outputs that are kept
CHECK = "check-"
ANSWER = "answer-"


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
        before: of a written answer, id of the cell in front of it; "" otherwise.
        question: text of that cell.
        variable: name that an exercise's check examines; "" otherwise.
        check: source of its check cell; "" otherwise.
        points: what it is worth.
        title: heading of an exercise's task, such as "Exercise 1: TTFT"; "" otherwise.
    """

    id: str
    cell: str
    stub: str
    before: str = ""
    question: str = ""
    variable: str = ""
    check: str = ""
    points: int = 0
    title: str = ""


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

    @property
    def answers(self) -> tuple[Slot, ...]:
        """The written answers."""
        return tuple(slot for slot in self.others if slot.cell.startswith(ANSWER))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> LabCells:
        """Read `to_dict`'s output."""
        exercises, others = (
            tuple(Slot(**slot) for slot in values[name]) for name in ("exercises", "others")
        )
        return cls(values["name"], values["setup"], exercises, others)


@dataclass
class HandedIn:
    """Cells that were found.

    Attributes:
        texts: of the cells that a learner fills, by cell id.
        elsewhere: sources of all other code cells, the lab's own and the learner's.
        shown: outputs of the lab's other code cells as they were handed in, made harmless.
        notes: what is to be said about it.
        readable: whether it was a notebook.
    """

    texts: dict[str, str] = field(default_factory=dict)
    elsewhere: list[str] = field(default_factory=list)
    shown: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    notes: list[Note] = field(default_factory=list)
    readable: bool = True


def read_lab_cells(notebook: Mapping[str, Any], name: str) -> LabCells:
    """Return the slots of a lab, from its untouched notebook."""
    cells = list(_cells(notebook))
    setup = next((cell.text for cell in cells if cell.kind == "code"), "")
    checks = {cell.id.removeprefix(CHECK): cell for cell in cells if cell.id.startswith(CHECK)}
    exercises, others = [], []
    for before, cell in zip([None, *cells], cells, strict=False):
        role, _, key = cell.id.partition("-")
        if role == "exercise" and key in checks:
            check = checks[key]
            variable = next(iter(defined_names(check.text)), "")  # name = checks.<id>(name)
            exercises.append(
                Slot(
                    key,
                    cell.id,
                    cell.text,
                    variable=variable,
                    check=check.text,
                    points=check.points,
                    title=_title(before.text) if before else "",
                )
            )
        elif role == "answer":
            front, question = (before.id, before.text) if before else ("", "")
            others.append(Slot(key, cell.id, cell.text, front, question, points=cell.points))
        elif role == "prediction":
            others.append(Slot(key, cell.id, cell.text))
    return LabCells(name, setup, tuple(exercises), tuple(others))


def _title(task: str) -> str:
    """Return the text of a task's first line if that is a heading, else ""."""
    first = task.partition("\n")[0]
    return first.lstrip("# ") if first.startswith("#") else ""


def pick(data: bytes, lab: LabCells) -> HandedIn:
    """Find the learner's texts in a handed-in file; never raises."""
    handed = HandedIn()
    try:
        cells = list(_cells(_parse(data)))
    except Exception as error:
        named = isinstance(error, _Unreadable)
        reason = (str(error) if named else f"{type(error).__name__}: {error}")[:300]
        learner = (
            f"Your file could not be read as a notebook ({reason}), so nothing in it was graded. "
            "Hand in the .ipynb file that JupyterLab saved."
        )
        return HandedIn(notes=[Note(learner, f"unreadable: {reason}")], readable=False)
    taken: set[int] = set()
    for slot in lab.slots:
        found = [i for i, cell in enumerate(cells) if cell.id == slot.cell]
        taken.update(found)
        _take(handed, slot, [cells[i] for i in found])
    rest = [cell for i, cell in enumerate(cells) if i not in taken]
    missing = [slot for slot in lab.exercises if slot.cell not in handed.texts]
    defining = [
        (cell, defined_names(cell.text)) for cell in rest if missing and cell.kind == "code"
    ]
    for slot in missing:
        _by_name(handed, slot, defining)
    for slot in lab.answers:
        _written_beside(handed, slot, cells)
    for slot in lab.slots:
        _not_too_long(handed, slot)
    _look_at_checks(handed, lab, cells)
    room = MAX_SHOWN
    for cell in rest:
        if cell.kind == "code" and not cell.id.startswith(CHECK):
            handed.elsewhere.append(cell.text)
            outputs = harmless(cell.outputs)
            room -= len(json.dumps(outputs))
            if room > 0:
                handed.shown.setdefault(cell.id, outputs)
    if room <= 0:
        learner = "Your notebook holds very large outputs; the feedback leaves some of them out."
        handed.notes.append(Note(learner, f"more than {MAX_SHOWN >> 20} MB of outputs"))
    return handed


class _Unreadable(ValueError):
    pass


class _Cell(NamedTuple):
    kind: str
    id: str
    text: str
    points: int
    outputs: Any
    ours: bool


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
        older: Mapping[str, Any] = nbformat.reads(data.decode("utf-8-sig"), as_version=4)
        return older
    if not isinstance(notebook.get("cells"), list):
        raise _Unreadable("it has no cells")
    return notebook


def _cells(notebook: Mapping[str, Any]) -> Iterator[_Cell]:
    """Return the cells; one is known by its grade id, which a copy keeps, or else by its own id."""
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
            writable(str(cell.get("cell_type"))),
            writable(id_) if isinstance(id_, str) else "",
            writable(text),
            points if type(points) is int else 0,
            cell.get("outputs"),
            bool(marks),
        )


def _take(handed: HandedIn, slot: Slot, found: list[_Cell]) -> None:
    """The text of the cells that claim to be this slot: one, or the pieces of one, in order."""
    if not found:
        return
    attempted = [cell.text for cell in found if not same(cell.text, slot.stub)]
    handed.texts[slot.cell] = "\n\n".join(attempted) if attempted else slot.stub
    if len(found) > 1:
        one = len(attempted) < 2
        how = "the one that you changed counts" if one else "they were taken one after the other"
        learner = f"The cell of {slot.id} is there {len(found)} times; {how}."
        attempts = f"{slot.id}: the cell is there {len(found)} times, {len(attempted)} changed"
        handed.notes.append(Note(learner, attempts, slot.id))
    kinds = {cell.kind for cell in found}
    if slot.variable and kinds != {"code"}:
        learner = f"The cell of {slot.id} is not a code cell any more; it was graded as one."
        changed = f"{slot.id}: the type of its cell was changed to {', '.join(sorted(kinds))[:50]}"
        handed.notes.append(Note(learner, changed, slot.id))


def _by_name(handed: HandedIn, slot: Slot, defining: list[tuple[_Cell, set[str]]]) -> None:
    """Find a cell that lost its id and metadata by its definitions."""
    kept = [
        cell.text
        for cell, names in defining
        if slot.variable in names and not same(cell.text, slot.check)
    ]
    if kept:
        handed.texts[slot.cell] = kept[-1]
        learner = f"The cell of {slot.id} had lost its marks; it was found by the name it defines."
        handed.notes.append(Note(learner, f"{slot.id}: found by name, its id is lost", slot.id))
    else:
        learner = f"The cell of {slot.id} is missing, so it was not graded. Start from a fresh lab."
        handed.notes.append(Note(learner, f"{slot.id}: its cell is missing", slot.id))


def _written_beside(handed: HandedIn, slot: Slot, cells: list[_Cell]) -> None:
    """Find an answer in another cell: one of the learner's own, or one that lost its marks."""
    if not same(handed.texts.get(slot.cell, slot.stub), slot.stub):
        return
    following: list[_Cell] = []
    for place, cell in enumerate(cells):
        if cell.id in (slot.cell, slot.before):
            following = cells[place + 1 :]
            break
        if same(cell.text, slot.question):
            following = cells[place + 1 : place + 2]  # without marks nothing says where to stop
    beside = []
    for cell in following:
        if cell.id == slot.cell:
            continue
        if cell.ours:
            break
        if cell.kind == "markdown" and cell.text.strip() and not same(cell.text, slot.stub):
            beside.append(cell.text)
    if beside:
        handed.texts[slot.cell] = "\n\n".join(beside)
        learner = f"Your answer to {slot.id} was not in its cell; it was taken from the one behind."
        handed.notes.append(Note(learner, f"{slot.id}: taken from the cell behind", slot.id))
    elif slot.cell not in handed.texts:
        learner = f"The cell of {slot.id} is missing, and no answer was found in its place."
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


def names_in(texts: Iterable[str]) -> list[str]:
    """Return the names that any of these cells defines, sorted."""
    return sorted(set().union(*map(defined_names, texts)))


def merge(lab: LabCells, notebook: Mapping[str, Any], texts: Mapping[str, str]) -> dict[str, Any]:
    """Return the instructors' notebook with a learner's texts in their cells; none of it is markup."""
    stubs = {slot.cell: slot.stub for slot in lab.slots}
    cells = []
    for cell in notebook["cells"]:
        id_ = str(cell.get("id"))
        if id_ not in stubs or id_ not in texts or same(texts[id_], stubs[id_]):
            cells.append(dict(cell))
        else:
            text = texts[id_]
            source = as_text(text) if cell["cell_type"] == "markdown" else text
            cells.append({**cell, "source": source})
    return {**notebook, "cells": cells}


def as_text(text: str) -> str:
    """Markdown that shows a text as it is: no tags, no links, no formulas."""
    return f'<pre style="white-space: pre-wrap">\n{html.escape(text)}\n</pre>'
