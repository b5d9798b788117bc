"""Faults of a lab's source, their places and their cures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.lab.course_error import CourseError


@dataclass(frozen=True)
class Problem:
    """One fault of a source file.

    Attributes:
        path: the file.
        line: 1-based line of the fault.
        message: what is wrong.
        fix: what the author does next.
    """

    path: Path
    line: int
    message: str
    fix: str

    def __str__(self) -> str:
        here = Path.cwd()
        path = self.path.relative_to(here) if self.path.is_relative_to(here) else self.path
        return f"{path}:{self.line}: {self.message}\n    {self.fix}"


class SourceError(CourseError):
    """Lab sources that break a rule of authoring; nothing was written.

    Args:
        problems: every fault found, in reading order.
    """

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))
