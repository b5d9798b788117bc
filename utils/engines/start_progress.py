"""The line that tells what a start is doing, and the way to break the start off."""

from __future__ import annotations

import shutil
import sys
import threading
from collections.abc import Callable
from typing import Any

from utils.engines.engine_errors import StartCancelled

_ENDS = ("ready", "failed")


class StatusLine:
    """One line of text that is rewritten in place.

    A terminal rewrites it after a carriage return. A notebook's kernel updates one display instead, because
    a saved notebook may keep every line that was only returned over. Where neither works, for example in a
    file, the line is printed once a stage, which is its first word.
    """

    def __init__(self) -> None:
        self._display: Any = None
        self._stage = ""
        self._in_kernel = running_kernel() is not None

    def show(self, text: str) -> None:
        """Show `text` in place of the text before."""
        if self._in_kernel:
            self._update({"text/plain": text})
        elif sys.stdout.isatty():
            width = min(118, shutil.get_terminal_size().columns - 2)
            print(f"\r{text[:width]:<{width}}", end="", flush=True)
        elif (stage := " ".join(text.split(", ")[0].split()[:3])) != self._stage:
            self._stage = stage
            print(text, flush=True)

    def end(self, text: str) -> None:
        """Show the last text, and leave the line."""
        self.show(text)
        if not self._in_kernel and sys.stdout.isatty():
            print(flush=True)

    def _update(self, data: dict[str, str]) -> None:
        from IPython.display import display

        if self._display is None:
            self._display = display(data, raw=True, display_id=True)  # type: ignore[no-untyped-call]
        else:
            self._display.update(data, raw=True)


def running_kernel() -> Any:
    """Return IPython's shell if this code runs in a notebook's kernel, else None."""
    module = sys.modules.get("IPython")
    shell = module.get_ipython() if module is not None else None
    return shell if hasattr(shell, "kernel") else None


class StartProgress:
    """Progress of one engine's start, shown in a line; and the place where the start can be cancelled.

    Args:
        title: Name of the engine for people.
        say: Gets each text; None for a status line of its own.
        quiet: True if nothing is shown.
        stop: Set by somebody who no longer wants the engine. Each step of a start then ends with
            `StartCancelled`.
    """

    def __init__(
        self,
        title: str,
        quiet: bool = False,
        *,
        say: Callable[[str], None] | None = None,
        stop: threading.Event | None = None,
    ) -> None:
        self.title = title
        self.stop = stop or threading.Event()
        self._line = None if quiet or say is not None else StatusLine()
        self._say = say
        self._last = -1.0

    def check(self) -> None:
        """Raise `StartCancelled` if the start was cancelled."""
        if self.stop.is_set():
            raise StartCancelled(self.title)

    def sleep(self, seconds: float) -> None:
        """Wait, but not if the start is cancelled.

        Raises:
            StartCancelled: It was.
        """
        self.stop.wait(seconds)
        self.check()

    def show(self, waited_s: float, line: str) -> None:
        """Show the seconds waited and the last line of the log, at most once a second."""
        if waited_s - self._last >= 1.0:
            self._last = waited_s
            self.say(f"starting, {waited_s:.0f} s: {line}")

    def say(self, text: str) -> None:
        """Show `text` in place of the text before.

        Raises:
            StartCancelled: Nobody wants this engine any more.
        """
        self.check()
        if self._say is not None:
            self._say(text)
        elif self._line is not None:
            self._line.show(f"{self.title}: {text}")

    def end(self, text: str) -> None:
        """Show the last text, and end the line."""
        if self._say is not None:
            self._say(text)
        elif self._line is not None:
            self._line.end(f"{self.title}: {text}")


class FleetProgress:
    """One line for several engines that start at the same time.

    Args:
        names: Names of the engines, in order.
        line: Line that shows it.
    """

    def __init__(self, names: list[str], line: StatusLine) -> None:
        self._texts = dict.fromkeys(names, "waiting")
        self._line = line
        self._shown = ""

    def hear(self, name: str) -> Callable[[str], None]:
        """Return what one engine's start calls, from whichever thread it runs in."""

        def say(text: str) -> None:
            self._texts[name] = text

        return say

    def show(self) -> None:
        """Show how far all are; called by the thread that waits for them."""
        done = [name for name, text in self._texts.items() if text.startswith(_ENDS)]
        waiting = [f"{name}: {text}" for name, text in self._texts.items() if name not in done]
        text = f"{len(done)} of {len(self._texts)} engines started; {'; '.join(waiting)}"
        if waiting and text != self._shown:
            self._shown = text
            self._line.show(text)

    def end(self) -> None:
        """Show the last text of each, and end the line."""
        self._line.end("; ".join(f"{name}: {text}" for name, text in self._texts.items()))
