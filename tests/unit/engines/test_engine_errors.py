"""A notebook shows an engine's error without our own frames: the message, then the learner's line."""

import linecache
from pathlib import Path

import pytest

from utils.engines import engine_errors
from utils.engines.engine_errors import EngineError, EngineStartError


def raised_in_a_cell(error):
    text = "x = 1\nfail()\n"
    name = "<the cell of a notebook>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)

    def fail():
        raise error

    with pytest.raises(EngineError) as caught:
        exec(compile(text, name, "exec"), {"__name__": "__main__", "fail": fail})
    return caught.value


def test_message_comes_first_then_the_cells_line():
    error = raised_in_a_cell(EngineError("vLLM has ended. Run the cell that starts it again."))
    assert error._render_traceback_() == [
        "vLLM has ended. Run the cell that starts it again.",
        "",
        "In line 2 of your cell: fail()",
    ]


def test_log_is_folded(monkeypatch):
    shown = []
    monkeypatch.setattr(engine_errors, "display_folded", lambda *parts: shown.append(parts))
    log = "\n".join(f"line {i}" for i in range(30))
    start = EngineStartError("vLLM", "ended with code 1.", log, "free some memory", Path("a.log"))
    lines = raised_in_a_cell(start)._render_traceback_()
    assert lines == [
        "vLLM ended with code 1.",
        "",
        "The end of its log (a.log):",
        "    (see above)",
        "",
        "What to try: free some memory",
        "",
        "In line 2 of your cell: fail()",
    ]
    ((title, text),) = shown
    assert title == "The end of its log"
    assert text.splitlines()[29] == "    line 29"


def test_without_a_cell_only_the_message_is_shown():
    assert EngineError("gone")._render_traceback_() == ["gone"]
