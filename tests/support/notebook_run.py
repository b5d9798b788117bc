"""Runs a notebook as `pytest --nbmake` does, in its own folder, and keeps what it printed."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil
from nbformat import NotebookNode
from nbmake.nb_run import NotebookRun

MARK = "COURSE_TEST_RUN"
AT_ONCE_S = 0.01


@dataclass(frozen=True)
class Ran:
    """An executed notebook.

    Attributes:
        notebook: the notebook with outputs and timing.
        error: the cell and the error that ended it, "" for none.
        seconds: how long it took.
        left_running: processes that it started and that outlived its kernel.
    """

    notebook: NotebookNode
    error: str
    seconds: float
    left_running: list[psutil.Process]

    @property
    def cells(self) -> dict[str, NotebookNode]:
        """Its cells by id."""
        return {cell.id: cell for cell in self.notebook.cells}

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

    def faults(self, *, solved: bool) -> Iterator[str]:
        """What is wrong with a run of a lab, though no cell may have raised.

        Args:
            solved: whether its exercises are solved; else none was attempted.
        """
        if self.error:
            yield self.error
            return
        for id_ in self.with_role("check"):
            exercise = id_.removeprefix("check-")
            text = f"✔ {exercise}: right." if solved else f"○ {exercise}: not attempted"
            if text not in self.printed(id_):
                yield f"{id_} does not say {text!r} but:\n{self.printed(id_)}"
        measuring = self.tagged("measures")
        if not measuring:
            yield "no cell is tagged as measuring"
        for id_ in measuring:
            if not (text := self.printed(id_)):
                yield f"{id_} shows nothing"
            elif self.took(id_) <= AT_ONCE_S and "not run here" not in text:
                yield f"{id_} took {self.took(id_)} s: did it measure?"
        for process in self.left_running:
            with contextlib.suppress(psutil.Error):
                yield f"left running: {' '.join(process.cmdline())}"


def run_notebook(path: Path, environment: Mapping[str, str | None], limit_s: int) -> Ran:
    """Executes a notebook with nbmake; the file stays as it is.

    Args:
        path: the notebook; it runs in its own folder.
        environment: variables of its kernel besides this process's own; None takes one away.
        limit_s: longest time of one cell, seconds.
    """
    mark = uuid.uuid4().hex
    with _environment({**environment, MARK: mark}):
        began = time.monotonic()
        result = NotebookRun(path, limit_s).execute()
        seconds = time.monotonic() - began
    error = result.error.trace if result.error else ""
    return Ran(result.nb, error, seconds, survivors(mark))


@contextlib.contextmanager
def _environment(changes: Mapping[str, str | None]) -> Iterator[None]:
    """This process's variables with `changes`, until the block ends: kernels inherit them."""
    before = {name: os.environ.get(name) for name in changes}
    _set(changes)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value


def survivors(
    mark: str, patience_s: float = 5.0, but: Collection[str] = ()
) -> list[psutil.Process]:
    """Processes whose environment holds `mark`, after some time to end.

    Args:
        mark: value of the variable MARK that their ancestor was started with.
        patience_s: seconds that they have.
        but: words; a process that has one in its command line may stay.
    """
    deadline = time.monotonic() + patience_s
    while (found := _marked(mark, but)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def _marked(mark: str, but: Collection[str]) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) != mark or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if not any(word in " ".join(process.cmdline()) for word in but):
                found.append(process)
    return found
