"""Runs a notebook as `pytest --nbmake` does, in its own folder, and keeps what it printed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import pytest
from nbformat import NotebookNode
from nbmake.nb_run import NotebookRun


@dataclass(frozen=True)
class Ran:
    """An executed notebook: its cells by id, the error that ended it ("" for none), seconds."""

    cells: dict[str, NotebookNode]
    error: str
    seconds: float

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
def run_notebook(monkeypatch: pytest.MonkeyPatch) -> Iterator[Runner]:
    """A function (path, *, grading, limit_s per cell) that executes a notebook with nbmake."""

    def run(path: Path, *, grading: bool = False, limit_s: int = 60) -> Ran:
        if grading:
            monkeypatch.setenv("COURSE_GRADING", "1")
        else:
            monkeypatch.delenv("COURSE_GRADING", raising=False)
        began = time.monotonic()
        result = NotebookRun(path, limit_s).execute()
        seconds = time.monotonic() - began
        error = result.error.trace if result.error else ""
        return Ran({cell.id: cell for cell in result.nb.cells}, error, seconds)

    yield run
