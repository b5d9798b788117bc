"""The judge's findings on one notebook, kept in `OUT/judged/<student>/<lab>.json`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tools.lab.judge.judge import Judgement


@dataclass(frozen=True)
class Findings:
    """All that is entered into the gradebook.

    Attributes:
        key: digest of the submission and of all that its grade depends on.
        judgement: points, reasons and notes.
        texts: what the learner wrote, by cell id.
        shown: outputs of the lab's other cells as they were handed in.
        readable: whether it was a notebook.
    """

    key: str
    judgement: Judgement
    texts: dict[str, str]
    shown: dict[str, list[dict[str, Any]]]
    readable: bool

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return vars(self) | {"judgement": self.judgement.to_dict()}


def findings_path(out: Path, student: str, lab: str) -> Path:
    """Return the file of one notebook."""
    return out / "judged" / student / f"{lab}.json"


def read_findings(out: Path, student: str, lab: str) -> Findings:
    """Read one notebook's file."""
    values = json.loads(findings_path(out, student, lab).read_text(encoding="utf-8"))
    return Findings(**values | {"judgement": Judgement.from_dict(values["judgement"])})
