"""Reports for an instructor after grading: a page, and a summary in the terminal."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from tools.lab.judge.judge import Judgement
from utils.files import write_whole

TEMPLATE = Path(__file__).with_name("graded_report.html.j2")
_SIGNS = {
    "right": "●",
    "partly right": "◐",
    "wrong": "○",
    "not finished": "◌",
    "not attempted": "·",
    "missing": "–",
}


@dataclass(frozen=True)
class Graded:
    """One graded notebook.

    Attributes:
        student: whose.
        lab: name of the lab.
        path: what was handed in.
        score: points in the gradebook, those given by hand included.
        most: points that can be had.
        awaits_a_person: whether some points are still to be given by hand.
        judgement: what the judge found.
    """

    student: str
    lab: str
    path: Path
    score: float
    most: float
    awaits_a_person: bool
    judgement: Judgement

    @property
    def by_hand(self) -> float:
        """Points that a person gave, or took."""
        return self.score - self.judgement.score


def write_report(out: Path, graded: Sequence[Graded], facts: Mapping[str, Any]) -> Path:
    """Write `report.html`: per lab a table of students by exercises, then all that is to be seen to."""
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    template = environment.from_string(TEMPLATE.read_text(encoding="utf-8"))
    labs = [
        (name, [g for g in graded if g.lab == name]) for name in sorted({g.lab for g in graded})
    ]
    return write_whole(out / "report.html", template.render(labs=labs, signs=_SIGNS, **facts))


def print_summary(
    graded: Sequence[Graded], facts: Mapping[str, Any], paths: Sequence[Path]
) -> None:
    """Print the class's results, the work that needs a person, and the place of everything."""
    for lab in sorted({g.lab for g in graded}):
        actual = [g for g in graded if g.lab == lab]
        mean = sum(g.score for g in actual) / len(actual)
        print(f"\n{lab}: {len(actual)} graded, mean {mean:.1f} of {actual[0].most:g} points")
        verdicts = Counter((e.id, e.verdict) for g in actual for e in g.judgement.exercises)
        for exercise in actual[0].judgement.exercises:
            counts = [f"{n} {v}" for v in _SIGNS if (n := verdicts[exercise.id, v])]
            print(f"  {exercise.id:<24} {', '.join(counts)}")
    waiting = sum(g.awaits_a_person for g in graded)
    notes = sum(bool(g.judgement.notes) for g in graded)
    print(f"\n{waiting} await points by hand (make formgrader); {notes} with notes to look at")
    for complaint in facts["complaints"]:
        print(f"  {complaint}")
    for name in facts["outdated"]:
        print(
            f"  {name}: handed in again; points given by hand are those of the earlier one, so look again"
        )
    for name, reason in facts["failed"].items():
        print(f"  NOT GRADED {name}: {reason.splitlines()[0]}")
    for name in facts["earlier"]:
        print(f"  {name}: in the gradebook from an earlier run, not among these submissions")
    print()
    for path in paths:
        print(f"  {path}")
