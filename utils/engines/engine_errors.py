"""Errors of starting an engine, each with the next step in its message."""

from __future__ import annotations

import html
import linecache
import traceback
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType

import httpx

from utils.model_sizes import ConfigError


class EngineError(RuntimeError):
    """Any failure of an engine."""

    @property
    def reason(self) -> str:
        """Short reason for a table's row: without the engine's name and the end of its log."""
        return str(self)

    @property
    def folded(self) -> str:
        """Part of the message that a notebook folds, such as the end of a log."""
        return ""

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows in place of a traceback through our own frames.

        The message comes first and the cell's line last. The folded part is displayed by itself.
        """
        text = str(self)
        if self.folded:
            display_folded("The end of its log", self.folded)
            text = text.replace(self.folded, "    (see above)")
        return [*text.splitlines(), *_cell_line(self.__traceback__)]


class UnknownEngine(EngineError):
    """A name that is no engine's."""

    def __init__(self, name: str, known: tuple[str, ...]) -> None:
        super().__init__(f"There is no engine {name!r}. The engines are: {', '.join(known)}.")


class UnsupportedOption(EngineError):
    """An option that this engine does not have."""


class NotRunHere(EngineError):
    """An engine that this machine cannot run. It is counted as not run, never imitated.

    Attributes:
        engine: The engine's title.
    """

    def __init__(self, engine: str, reason: str) -> None:
        super().__init__(f"{engine}: not run here: {reason}")
        self.engine = engine
        self._reason = reason

    @property
    def reason(self) -> str:
        """Reason, and the remedy."""
        return self._reason


class StartCancelled(EngineError):
    """A start that was broken off, because nobody waits for the engine any more."""

    def __init__(self, title: str) -> None:
        super().__init__(f"The start of {title} was cancelled. Run the cell that starts it again.")


class ModelMissing(EngineError):
    """The model's folder or file is not there, or not whole."""


class PortTaken(EngineError):
    """The port that was asked for is in use."""

    def __init__(self, port: int) -> None:
        super().__init__(
            f"Port {port} is in use by another program. Leave out port=, and a free one is taken; "
            f"or find the program (ss -ltnp | grep {port}) and end it."
        )
        self.port = port


class EngineStartError(EngineError):
    """An engine did not become healthy.

    Attributes:
        log_path: Its whole log.
        hint: Remedy to try.
        tail: The last lines of its log.
    """

    def __init__(self, title: str, what: str, tail: str, hint: str, log_path: Path) -> None:
        indented = "\n".join("    " + line for line in tail.splitlines())
        super().__init__(
            f"{title} {what}\n\nThe end of its log ({log_path}):\n{indented}\n\nWhat to try: {hint}"
        )
        self._indented = indented
        self.log_path = log_path
        self.hint = hint
        self.tail = tail
        self._what = what

    @property
    def folded(self) -> str:
        """The end of the log."""
        return self._indented

    @property
    def reason(self) -> str:
        """Event, and the remedy to try."""
        return f"it {self._what.rstrip('.')} (log: {self.log_path}). What to try: {self.hint}"


def display_folded(title: str, text: str) -> None:
    """Display a text that a click unfolds. It does nothing outside a notebook."""
    from IPython import get_ipython
    from IPython.display import display

    if get_ipython() is not None:
        block = f"<details><summary>{title}</summary><pre>{html.escape(text)}</pre></details>"
        display({"text/plain": text, "text/html": block}, raw=True)  # type: ignore[no-untyped-call]


def _cell_line(trace: TracebackType | None) -> list[str]:
    """Return the line of the notebook's cell that an error went through, if there is one."""
    found = [
        (frame.f_code.co_filename, line)
        for frame, line in traceback.walk_tb(trace)
        if frame.f_globals.get("__name__") == "__main__"
    ]
    if not found:
        return []
    file, line = found[-1]
    return ["", f"In line {line} of your cell: {linecache.getline(file, line).strip()}"]


# All that can be raised by starting an engine, sending it requests, reading its metrics and its model's
# sizes. Any other exception is a fault of ours, and it ends the cell.
FAILURES: tuple[type[Exception], ...] = (EngineError, ConfigError, httpx.HTTPError)


def reason_of(error: Exception) -> str:
    """Return the short reason of one of `FAILURES`."""
    if isinstance(error, EngineError):
        return error.reason
    return str(error) or type(error).__name__


@contextmanager
def skip_on_failure(name: str, reasons: MutableMapping[str, str] | None = None) -> Iterator[None]:
    """Keep one engine's failure from ending the notebook.

    Put it in front of the engine's own context manager: `with skip_on_failure("vLLM"), launch("vllm") as x:`.
    If the engine doesn't start, or fails at its work, the rest of the block is skipped.

    Args:
        name: Name of the engine, or of the part that is skipped, for people.
        reasons: Gets the short reason by name, unless it has one already; the whole one is printed.
    """
    try:
        yield
    except FAILURES as error:
        if reasons is not None:
            reasons.setdefault(name, reason_of(error))
        text = str(error)
        print(text if text.startswith(name) else f"{name}: not run here: {text}")
