"""Judges a learner's own notebook where it lies: JupyterLab's Validate button, `make progress`.

By the checks that the learner has, in a process of its own, without the cells that start engines. It
lists the work left before handing in; points are given elsewhere, on other inputs.
"""

from __future__ import annotations

import importlib
import json
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path

from tools.lab.judge.cells import LabCells, pick
from tools.lab.judge.judge import Judge, Judgement
from tools.lab.judge.sandbox import PlainSandbox, SandboxLimits
from tools.lab.judge.seal import build_sealed, seals_of
from tools.lab.judge.session import Session
from utils.checks import checks_of
from utils.checks.own_cell import same
from utils.profiles import ROOT

_LIMITS = SandboxLimits(memory_bytes=8 << 30)


class NotALab(ValueError):
    """A notebook that isn't a lab of this course, or has lost its marks; the message has the next step."""


@dataclass(frozen=True)
class Status:
    """Status of a learner's notebook.

    Attributes:
        lab: the lab as it was untouched.
        judgement: of its exercises, by the lab's own checks.
        unwritten: ids of written answers that are missing.
        begun: whether any exercise or answer was changed.
    """

    lab: LabCells
    judgement: Judgement
    unwritten: tuple[str, ...]
    begun: bool


def evaluate(data: bytes) -> Status:
    """Judge every exercise of a notebook.

    Args:
        data: the file's content.

    Raises:
        NotALab: it is not a lab of this course, or cannot be read.
        RuntimeError: no process could be started for it.
    """
    number, lab = _original(data)
    handed = pick(data, lab)
    texts = {slot.cell: handed.texts.get(slot.cell, slot.stub) for slot in lab.slots}
    unwritten = tuple(slot.id for slot in lab.answers if same(texts[slot.cell], slot.stub))
    begun = any(not same(texts[slot.cell], slot.stub) for slot in (*lab.exercises, *lab.answers))
    try:
        module = importlib.import_module(f"utils.checks.lab_{number.replace('.', '_')}")
    except ImportError as error:
        raise NotALab(f"Lab {number} has no checks in this copy of the course.") from error
    checks = checks_of(module)
    with tempfile.TemporaryDirectory(prefix="checking-") as scratch:
        course = Path(scratch) / "course"
        build_sealed(ROOT, course, [seal for check in checks.values() for seal in seals_of(check)])
        (course / "models").symlink_to(ROOT / "models")
        sandbox = PlainSandbox(course, Path(scratch), cwd=ROOT / "labs", inherit=True)
        judge = Judge(lab, checks, lambda spent: Session(sandbox, _LIMITS, spent), root=ROOT)
        return Status(lab, judge.judge(handed), unwritten, begun)


def _original(data: bytes) -> tuple[str, LabCells]:
    """Number of the lab that a notebook was made from, and its cells as they were."""
    try:
        course = json.loads(data)["metadata"]["course"]
        number = re.search(r"lab-(3\.3\.\d+)-", str(course["source"]))
        return str(number[1] if number else ""), LabCells.from_dict(course["lab"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise NotALab(
            "This notebook does not say which lab it is, or is damaged. Copy your answers into a "
            "fresh copy of the lab."
        ) from error
