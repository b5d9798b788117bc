"""Runs a notebook as `pytest --nbmake` does, in its own folder, and keeps what it printed."""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
import pytest
from nbformat import NotebookNode
from nbmake.nb_run import NotebookRun

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "unit"))

from lab_server import MARK, survivors


@dataclass(frozen=True)
class Ran:
    """An executed notebook.

    Attributes:
        cells: its cells by id, with outputs and timing.
        error: the error that ended it, "" for none.
        seconds: how long it took.
        left_running: processes that it started and that outlived its kernel.
    """

    cells: dict[str, NotebookNode]
    error: str
    seconds: float
    left_running: list[psutil.Process]

    def printed(self, id_: str) -> str:
        """Everything a cell showed, as plain text."""
        texts = []
        for output in self.cells[id_].get("outputs", []):
            texts += [output.get("text", ""), *output.get("traceback", [])]
            texts.append(output.get("data", {}).get("text/plain", ""))
        return "\n".join(text for text in texts if text)

    def took(self, id_: str) -> float:
        """Seconds between a cell's start and its reply."""
        timing = self.cells[id_].metadata.execution
        began, ended = timing["iopub.execute_input"], timing["shell.execute_reply"]
        return (datetime.fromisoformat(ended) - datetime.fromisoformat(began)).total_seconds()

    def with_role(self, role: str) -> list[str]:
        """Ids of the cells of one role: "check", "exercise", "prediction"."""
        return [id_ for id_ in self.cells if id_.startswith(f"{role}-")]

    def tagged(self, tag: str) -> list[str]:
        """Ids of the cells with a tag."""
        return [id_ for id_, cell in self.cells.items() if tag in cell.metadata.get("tags", [])]


Runner = Callable[..., Ran]


@pytest.fixture
def run_notebook(monkeypatch: pytest.MonkeyPatch) -> Runner:
    """A function (path, *, grading, limit_s per cell) that executes a notebook with nbmake."""

    def run(path: Path, *, grading: bool = False, limit_s: int = 60) -> Ran:
        if grading:
            monkeypatch.setenv("COURSE_GRADING", "1")
        else:
            monkeypatch.delenv("COURSE_GRADING", raising=False)
        mark = uuid.uuid4().hex
        monkeypatch.setenv(MARK, mark)
        began = time.monotonic()
        result = NotebookRun(path, limit_s).execute()
        seconds = time.monotonic() - began
        error = result.error.trace if result.error else ""
        cells = {cell.id: cell for cell in result.nb.cells}
        return Ran(cells, error, seconds, survivors(mark))

    return run
