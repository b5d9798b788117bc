"""Grading of an exercise: hidden parts, wrong solutions, and names that are kept out of reach.

A lab's file, `solutions/grading/lab_3_3_N.py`, is never released. It says per exercise:

    stream_metrics = Grading(
        lab.stream_metrics,
        wrong={
            "counts chunks as tokens": Wrong(_chunks_as_tokens, says="TPOT"),
            "returns milliseconds": lambda sent, events, completion_tokens: {...},
        },
        twins=("utils.benchmark.trace.RequestTrace.tpot",),
    )

    @stream_metrics.part("several tokens in a chunk", points=2)
    def _(attempt: Callable[..., dict[str, float]], rng: random.Random) -> None:
        ...
        expect_close(attempt(sent, events, tokens), wanted, what="...")

* A **part** is an examination like a check's, on inputs drawn from `rng`. It earns its points or
  not; the points of all parts are the exercise's. Draw enough cases that every wrong solution
  fails on every seed: a learner who stored the answers to the lab's own check earns nothing.
* **wrong** solutions, three at least, must be refused by the lab's check, with a message that
  contains `says`, and must not earn all points.
* **right** solutions in other styles (NumPy, recursion, another container) must pass the check and earn
  all points, as the reference does.
* **twins** are functions and classes of `utils` that answer the exercise. While it is graded they
  are not in reach of the learner's code. The check's reference is one without being named.
* **returns** are classes of `utils` that an answer may return or hold, in addition to plain values.

What a part hands over (and a check, for a part of its messages) crosses to another process: plain
values, containers, NumPy arrays, and objects of classes of `utils`. No function, no generator.

`python -m tools.authoring checks` tries all of it.
"""

from __future__ import annotations

import importlib.util
import random
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, Protocol

from tools.lab.judge.seal import seals_of
from utils.checks import Check

FOLDER = Path("solutions") / "grading"
DEFAULT_SEED = "inference"


class Examine(Protocol):
    """Raises CheckFailed when `attempt` is wrong; draws its inputs from `rng`."""

    def __call__(self, attempt: Any, rng: random.Random) -> None:
        """Examine an answer."""


@dataclass(frozen=True)
class Wrong:
    """A wrong solution that must be refused with a message that contains `says`."""

    solution: Any
    says: str = ""


@dataclass(frozen=True)
class GradedPart:
    """A part of an exercise that earns its points or does not.

    Attributes:
        title: Subject, as a noun phrase; learners read it.
        points: Points for it.
        examine: Function that decides.
    """

    title: str
    points: int
    examine: Examine


@dataclass
class Grading:
    """Grading of one exercise; see the module."""

    check: Check
    wrong: Mapping[str, Any]
    right: Mapping[str, Any] = field(default_factory=dict)
    twins: tuple[str, ...] = ()
    returns: tuple[type, ...] = ()
    parts: list[GradedPart] = field(default_factory=list)

    def part(self, title: str, points: int) -> Callable[[Examine], Examine]:
        """Add the decorated examination as a part."""

        def add(examine: Examine) -> Examine:
            self.parts.append(GradedPart(title, points, examine))
            return examine

        return add

    @property
    def points(self) -> int:
        """Points of all parts."""
        return sum(part.points for part in self.parts)

    def wrongs(self) -> dict[str, Wrong]:
        """Return the wrong solutions by name, each as a `Wrong`."""
        return {
            name: solution if isinstance(solution, Wrong) else Wrong(solution)
            for name, solution in self.wrong.items()
        }

    def seals(self) -> tuple[str, ...]:
        """Dotted names of all that is out of reach while this exercise is graded."""
        return seals_of(self.check, self.twins)

    def source(self, seed: str, part: GradedPart) -> random.Random:
        """Return the random inputs of one part; the same for the same seed."""
        index = self.parts.index(part)
        return random.Random(f"{seed}/{self.check.exercise}/{index}")


def load_gradings(root: Path) -> dict[str, dict[str, Grading]]:
    """Read `solutions/grading/lab_3_3_N.py`, all of them: by lab number, then by exercise.

    Raises:
        FileNotFoundError: this is a learner's copy, without that folder.
    """
    folder = root / FOLDER
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is not here: grading needs the instructors' repository, not a release."
        )
    found: dict[str, dict[str, Grading]] = {}
    for path in sorted(folder.glob("lab_*.py")):
        if name := re.fullmatch(r"lab_(\d+_\d+_\d+)", path.stem):
            values = vars(_load(path)).values()
            gradings = [value for value in values if isinstance(value, Grading)]
            found[name[1].replace("_", ".")] = {g.check.exercise: g for g in gradings}
    return found


def load_sample_class(root: Path) -> ModuleType:
    """Return the module `solutions/grading/sample_class.py`."""
    return _load(root / FOLDER / "sample_class.py")


def _load(path: Path) -> ModuleType:
    name = f"course_grading.{path.stem}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} cannot be imported")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
