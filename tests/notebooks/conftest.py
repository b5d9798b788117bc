"""Runs a notebook through the course's own runner, graded or not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from notebook_run import Ran, run_notebook

Runner = Callable[..., Ran]


@pytest.fixture(name="run_notebook")
def runner() -> Runner:
    """A function (path, *, grading, limit_s per cell) that executes a notebook with nbmake."""

    def run(path: Path, *, grading: bool = False, limit_s: int = 60) -> Ran:
        return run_notebook(path, {"COURSE_GRADING": "1" if grading else None}, limit_s)

    return run
