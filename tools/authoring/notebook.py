"""Turns a lab into its two notebooks, byte for byte the same every time."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import nbformat

from tools.authoring.exercises import MAX_DIFFICULTY, Exercise, Lab, Part
from tools.lab.judge.cells import read_lab_cells
from tools.lab.labs import GENERATED_BY, count

_KERNEL = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}


def render(lab: Lab, *, solved: bool) -> str:
    """Render a lab as notebook JSON (nbformat 4.5, no outputs, trailing newline).

    Args:
        lab: a lab without problems.
        solved: the instructors' notebook, with solutions; else the learners'.
    """
    fresh = _cells(lab, solved=False)
    cells = _cells(lab, solved=True) if solved else fresh
    notebook = {
        "cells": cells,
        "metadata": {
            "course": {
                "digest": digest(cells),
                "generated_by": GENERATED_BY,
                "lab": read_lab_cells({"cells": fresh}, lab.source.stem).to_dict(),
                "source": f"solutions/{lab.source.path.name}",
            },
            "kernelspec": _KERNEL,
            "language_info": {"name": "python"},
        },
        "nbformat": 4,
        "nbformat_minor": 5,
    }
    nbformat.validate(notebook)
    return json.dumps(notebook, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def digest(cells: list[Any]) -> str:
    """Fingerprint of what a person could change in cells: their ids, kinds and sources."""
    facts = [(cell.get("id"), cell["cell_type"], _text(cell["source"])) for cell in cells]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def touched(text: str) -> str:
    """What somebody did to this notebook since it was generated, in words; "" for nothing."""
    try:
        notebook = json.loads(text)
        if any(cell.get("outputs") for cell in notebook["cells"]):
            return "was run: it holds outputs"
        built = notebook["metadata"]["course"]["digest"]
        return "" if built == digest(notebook["cells"]) else "was edited by hand"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "is not a notebook that was generated"


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)


def _cells(lab: Lab, *, solved: bool) -> list[dict[str, Any]]:
    seen: Counter[str] = Counter()
    return [_cell(lab, index, part, solved, seen) for index, part in enumerate(lab.parts)]


def _cell(lab: Lab, index: int, part: Part, solved: bool, seen: Counter[str]) -> dict[str, Any]:
    source = part.solved if solved else part.stubbed
    if part.role == "task" and part.exercise is not None:
        source = f"{_heading(part.exercise)}\n\n{source}"
    if index == 0 and (lab.exercises or lab.answers):
        source = f"{source}\n\n{_summary(lab)}"
    id_ = _cell_id(part, seen)
    metadata: dict[str, Any] = {"nbgrader": _nbgrader(part, id_)}
    if part.role in ("exercise", "check", "prediction", "answer"):
        metadata["deletable"] = False
    if part.role == "check":
        metadata["editable"] = False
    if part.tags:
        metadata["tags"] = list(part.tags)
    lines = source.splitlines(keepends=True)
    cell: dict[str, Any] = {"cell_type": part.kind, "id": id_, "metadata": metadata}
    if part.kind == "code":
        cell |= {"execution_count": None, "outputs": []}
    return cell | {"source": lines}


def _cell_id(part: Part, seen: Counter[str]) -> str:
    """An id that no insertion elsewhere changes: by name, or by the cell's own text."""
    if part.id:
        return f"{part.role}-{part.id}"
    text = hashlib.sha256(f"{part.kind}\n{part.stubbed}".encode()).hexdigest()[:12]
    seen[text] += 1
    return f"cell-{text}" + (f"-{seen[text]}" if seen[text] > 1 else "")


def _nbgrader(part: Part, id_: str) -> dict[str, Any]:
    writable = part.role in ("exercise", "prediction", "answer")
    metadata: dict[str, Any] = {
        "grade": part.role in ("check", "answer"),
        "grade_id": id_,
        "locked": not writable,
        "schema_version": 3,
        "solution": writable,
        "task": False,
    }
    if part.role == "check" and part.exercise is not None:
        metadata["points"] = part.exercise.points
    if part.role == "answer":
        metadata["points"] = part.points
    return metadata


def _heading(exercise: Exercise) -> str:
    stars = "★" * exercise.difficulty + "☆" * (MAX_DIFFICULTY - exercise.difficulty)
    minutes, points = count(exercise.minutes, "minute"), count(exercise.points, "point")
    facts = f"{stars} · about {minutes} · {points}"
    return f"### Exercise {exercise.number}: {exercise.title}\n\n*{facts}*"


def _summary(lab: Lab) -> str:
    minutes = count(sum(exercise.minutes for exercise in lab.exercises), "minute")
    points = count(sum(exercise.points for exercise in lab.exercises), "point")
    exercises = count(len(lab.exercises), "exercise")
    written = ""
    if lab.answers:
        answers = count(len(lab.answers), "written answer")
        more = count(sum(answer.points for answer in lab.answers), "point")
        written = f", and {more} for {answers}"
    return f"*{exercises} · about {minutes} of your own work · {points}{written}*"
