"""The progress line, cancelled starts, and cells that are run again."""

import sys
import threading
from types import SimpleNamespace

import pytest

from utils.engines import cell_runs, start_progress
from utils.engines.cell_runs import CellRun, remember, stop_earlier, this_run
from utils.engines.engine_errors import StartCancelled
from utils.engines.start_progress import FleetProgress, StartProgress, StatusLine


def test_line_is_printed_once_a_stage_in_a_file(capsys):
    line = StatusLine()
    for text in ("X: pulling a", "X: pulling a: 1 of 2 GB", "X: starting, 1 s: y"):
        line.show(text)
    line.show("X: starting, 2 s: z")
    line.end("X: ready after 3 s")
    assert capsys.readouterr().out.splitlines() == [
        "X: pulling a",
        "X: pulling a: 1 of 2 GB",
        "X: starting, 1 s: y",
        "X: ready after 3 s",
    ]


def test_line_is_rewritten_in_a_terminal(capsys, monkeypatch):
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    line = StatusLine()
    line.show("one")
    line.end("two")
    out = capsys.readouterr().out
    assert out.count("\r") == 2
    assert out.count("\n") == 1


def test_line_updates_one_display_in_a_kernel(monkeypatch):
    shown = []

    class Handle:
        def update(self, data, raw):
            shown.append(("update", data))

    def display(data, raw, display_id):
        shown.append(("display", data))
        return Handle()

    monkeypatch.setattr("IPython.display.display", display)
    monkeypatch.setattr(start_progress, "running_kernel", lambda: SimpleNamespace(kernel=1))
    line = StatusLine()
    line.show("one")
    line.end("two")
    assert shown == [("display", {"text/plain": "one"}), ("update", {"text/plain": "two"})]


def test_cancelled_start_ends_at_its_next_step():
    stop = threading.Event()
    progress = StartProgress("X", quiet=True, stop=stop)
    progress.say("loading")
    progress.check()
    stop.set()
    steps = (progress.check, lambda: progress.sleep(60), lambda: progress.say("more"))
    for step in steps:
        with pytest.raises(StartCancelled, match="start of X was cancelled"):
            step()


def test_fleet_line_names_the_engines_that_are_waited_for():
    texts = []
    line = SimpleNamespace(show=texts.append, end=texts.append)
    told = FleetProgress(["a", "b"], line)
    told.hear("a")("ready after 3 s")
    told.hear("b")("pulling x")
    told.show()
    told.show()
    told.hear("b")("failed after 4 s")
    told.show()
    told.end()
    assert texts == [
        "1 of 2 engines started; b: pulling x",
        "a: ready after 3 s; b: failed after 4 s",
    ]


def shell(cell, run, kind="execute_request"):
    metadata = {"cellId": cell} if cell else {}
    parent = {
        "header": {"msg_type": kind, "msg_id": run},
        "metadata": metadata,
        "content": {"code": "text of the cell"},
    }
    return SimpleNamespace(kernel=1, get_parent=lambda: parent)


def test_run_is_that_of_the_cell(monkeypatch):
    assert this_run() is None
    monkeypatch.setattr(cell_runs, "running_kernel", lambda: shell("c1", "r1"))
    assert this_run() == CellRun("c1", "r1")
    monkeypatch.setattr(cell_runs, "running_kernel", lambda: shell("", "r1"))
    assert this_run() == CellRun("text of the cell", "r1")
    monkeypatch.setattr(cell_runs, "running_kernel", lambda: shell("c1", "r1", "comm_msg"))
    assert this_run() is None


def test_engines_of_the_cells_earlier_run_are_stopped():
    stopped = []

    class Engine:
        def __init__(self, name):
            self.name = name

        def stop(self):
            stopped.append(self.name)

    engines = {name: Engine(name) for name in ("first", "second", "other cell", "let go of")}
    remember(engines["first"], CellRun("c", "1"))
    remember(engines["second"], CellRun("c", "1"))
    remember(engines["other cell"], CellRun("d", "1"))
    remember(engines.pop("let go of"), CellRun("c", "1"))
    stop_earlier(CellRun("c", "1"))
    stop_earlier(None)
    assert stopped == []
    stop_earlier(CellRun("c", "2"))
    assert stopped == ["first", "second"]
    stop_earlier(CellRun("c", "3"))
    assert stopped == ["first", "second"]
