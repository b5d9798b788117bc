"""Judges a learner's own notebook where it lies: JupyterLab's Validate button, `make progress`.

By the checks that the learner has, in a process of its own, without the cells that start engines. It
says what is still to do before handing in; points are given elsewhere, on other inputs.
"""

from __future__ import annotations

import importlib
import json
import re
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from utils.checks import checks_of
from utils.grading.cells import LabCells, pick, read_lab_cells
from utils.grading.judge import Judge, Judgement
from utils.grading.sandbox import Limits, Plain
from utils.grading.session import Session

ROOT = Path(__file__).resolve().parents[2]
_LIMITS = Limits(memory_bytes=8 << 30)


class NoLab(ValueError):
    """The notebook is not a lab of this course, or its marks are lost; says what to do."""


def lab_number(notebook: Mapping[str, Any]) -> str:
    """Number of the lab that a notebook was made from: "3.3.1".

    Raises:
        NoLab: it does not say.
    """
    course = notebook.get("metadata", {}).get("course", {})
    found = re.search(r"lab-(3\.3\.\d+)-", str(course.get("source")))
    if found is None:
        raise NoLab(
            "This notebook does not say which lab it is. Start from a fresh copy of the lab."
        )
    return found[1]


def judge_here(notebook: Mapping[str, Any]) -> tuple[LabCells, Judgement]:
    """Judge every exercise of a notebook by the lab's own checks.

    Raises:
        NoLab: it is not a lab of this course.
    """
    number = lab_number(notebook)
    try:
        module = importlib.import_module(f"utils.checks.lab_{number.replace('.', '_')}")
        lab = read_lab_cells(notebook, f"lab {number}")
    except (ImportError, ValueError) as error:
        raise NoLab(f"This notebook is no lab of this course: {error}.") from error
    # What it held untouched is not known here: the checks themselves see an untouched exercise.
    lab = replace(lab, exercises=tuple(replace(slot, stub="") for slot in lab.exercises))
    handed = pick(json.dumps(notebook).encode(), lab)
    with tempfile.TemporaryDirectory(prefix="checking-") as home:
        sandbox = Plain(ROOT, Path(home), cwd=ROOT / "labs", inherit=True)
        judge = Judge(
            lab, checks_of(module), lambda spent: Session(sandbox, _LIMITS, spent), root=ROOT
        )
        return lab, judge.judge(handed)
