"""Turns a lab into its two notebooks, byte for byte the same every time."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from typing import Any

import nbformat

from tools.authoring.exercises import MAX_STARS, Exercise, Lab, Part
from tools.authoring.worked_examples import worked_example
from tools.lab.fresh_lab import digest
from tools.lab.judge.cells import read_lab_cells
from tools.lab.labs import GENERATED_BY, KERNEL, KERNEL_TITLE, count

_HOW_TO_WORK = """
### How this lab works

Work from top to bottom, and run each cell with *Shift+Enter*. If you want to see first whether the lab runs
on your machine, take the quick look that the [README](../README.md#how-you-work) describes.

* **Exercise.** Write your code in the cell with `raise NotImplementedError`. Run that cell and then the
  check below it. ✔ means that your answer is right, and ✘ tells you what to change. ○ means that something
  is still missing, so the notebook goes on with the course's own code.
* **Your prediction.** Replace `None` by a number *before* you run the measurement below it. Afterwards ◆
  shows both numbers.
* **Your answer.** Double-click the cell, replace its text, and run it.
* Put everything that an exercise needs into its own cell, imports too, because only that cell is graded.
* Hints are folded. Click on one to open it.
* If you have little time, begin with the exercises whose importance is ★★★★ or more.
* *Validate* in the toolbar tells you how many exercises are right, and so does `make progress` in a terminal.

If the next cell ends in `ModuleNotFoundError`, the notebook runs in another Python. Choose **Module 3.3** in
*Kernel → Change Kernel*. If it isn't listed there, open the lab with `make lab`, which installs it.

If a word is new to you, look it up in [QUICK_REFERENCE](../QUICK_REFERENCE.md). [ELI5](../ELI5.md) explains
each idea with a picture from daily life. If something goes wrong, see
[TROUBLESHOOTING](../TROUBLESHOOTING.md).
""".strip()
_HEADINGS = {"prediction": "#### Your prediction", "answer": "#### Your answer"}

_KERNEL = {"display_name": KERNEL_TITLE, "language": "python", "name": KERNEL}


def render(lab: Lab, *, solved: bool, following: str = "") -> str:
    """Render a lab as notebook JSON (nbformat 4.5, no outputs, trailing newline).

    Args:
        lab: a lab without problems.
        solved: the instructors' notebook, with solutions; else the learners'.
        following: file name of the next lab's notebook, or "" after the last lab.
    """
    fresh = _cells(lab, solved=False, following=following)
    cells = _cells(lab, solved=True, following=following) if solved else fresh
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


def touched(text: str) -> str:
    """Return the changes to this notebook since it was generated, in words; "" if there are none."""
    try:
        notebook = json.loads(text)
        if any(cell.get("outputs") for cell in notebook["cells"]):
            return "was run: it holds outputs"
        built = notebook["metadata"]["course"]["digest"]
        return "" if built == digest(notebook["cells"]) else "was edited by hand"
    except (ValueError, KeyError, TypeError, AttributeError):
        return "is not a notebook that was generated"


def _cells(lab: Lab, *, solved: bool, following: str) -> list[dict[str, Any]]:
    seen: Counter[str] = Counter()
    cells: list[dict[str, Any]] = []
    for index, part in enumerate(lab.parts):
        if index == 1 and lab.exercises:
            cells.append(_markdown("how-this-lab-works", _HOW_TO_WORK))
        cells += _headed(lab, index)
        cells.append(_cell(lab, index, part, solved, seen))
    if lab.exercises:
        cells.append(_markdown("next-lab", _next(following)))
    return cells


def _headed(lab: Lab, index: int) -> list[dict[str, Any]]:
    """Return a cell with the heading of a prediction or an answer, if no markdown cell is before it."""
    part, before = lab.parts[index], lab.parts[index - 1]
    if part.role not in _HEADINGS or before.kind == "markdown" or before.role == part.role:
        return []
    return [_markdown(f"heading-{part.id}", _HEADINGS[part.role])]


def _markdown(id_: str, text: str) -> dict[str, Any]:
    metadata = {"nbgrader": _nbgrader_metadata(id_, writable=False, grade=False)}
    lines = text.splitlines(keepends=True)
    return {"cell_type": "markdown", "id": id_, "metadata": metadata, "source": lines}


def _next(following: str) -> str:
    to_do = "Choose *Validate* in the toolbar to see what is still open."
    if not following:
        more = "[STUDY_GUIDE](../STUDY_GUIDE.md) tells you where to go from here."
        return f"---\n{to_do} This was the last lab. {more}"
    return f"---\n{to_do} The next lab is [{following}]({following})."


def _cell(lab: Lab, index: int, part: Part, solved: bool, seen: Counter[str]) -> dict[str, Any]:
    source = part.solved if solved else part.stubbed
    if part.role == "task" and part.exercise is not None:
        text, fold, hints = source.partition("<details>")
        example = worked_example(lab, part.exercise)
        source = f"{_heading(part.exercise)}\n\n{text.rstrip()}{example}"
        source += f"\n\n{fold}{hints}" if fold else ""
    following = lab.parts[index + 1] if index + 1 < len(lab.parts) else part
    if part.kind == "markdown" and following.role in _HEADINGS and part.role not in _HEADINGS:
        source = f"{source}\n\n{_HEADINGS[following.role]}"
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
    """Return an id that no insertion elsewhere changes: by name, or by the cell's own text."""
    if part.id:
        return f"{part.role}-{part.id}"
    text = hashlib.sha256(f"{part.kind}\n{part.stubbed}".encode()).hexdigest()[:12]
    seen[text] += 1
    return f"cell-{text}" + (f"-{seen[text]}" if seen[text] > 1 else "")


def _nbgrader(part: Part, id_: str) -> dict[str, Any]:
    writable = part.role in ("exercise", "prediction", "answer")
    metadata = _nbgrader_metadata(id_, writable=writable, grade=part.role in ("check", "answer"))
    if part.role == "check" and part.exercise is not None:
        metadata["points"] = part.exercise.points
    if part.role == "answer":
        metadata["points"] = part.points
    return metadata


def _nbgrader_metadata(id_: str, *, writable: bool, grade: bool) -> dict[str, Any]:
    return {
        "grade": grade,
        "grade_id": id_,
        "locked": not writable,
        "schema_version": 3,
        "solution": writable,
        "task": False,
    }


def _heading(exercise: Exercise) -> str:
    difficulty, importance = (
        "★" * number + "☆" * (MAX_STARS - number)
        for number in (exercise.difficulty, exercise.importance)
    )
    minutes, points = count(exercise.minutes, "minute"), count(exercise.points, "point")
    facts = f"difficulty {difficulty} · importance {importance} · about {minutes} · {points}"
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
