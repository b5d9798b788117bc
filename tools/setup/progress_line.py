"""Shows what set-up is doing: one line of a terminal for all that runs, elsewhere a line now and then."""

from __future__ import annotations

import os
import sys
import threading

QUIET_INTERVAL_S = 20.0
WIDTH = 110


class Progress:
    """Progress of the steps that are running. Threads may share it: lines are never mixed."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._now: dict[str, str] = {}
        self._shown: dict[str, float] = {}

    def show(self, title: str, seconds: float, text: str, *, force: bool = False) -> None:
        """Show the progress of a step.

        Args:
            title: The step.
            seconds: Since it began.
            text: Its progress.
            force: Outside of a terminal, even if its last line is only a few seconds old.
        """
        with self._guard:
            line = f"{title} ... {seconds:4.0f} s  {text}"
            if sys.stdout.isatty():
                self._now[title] = line
                self._draw()
            elif force or seconds - self._shown.get(title, 0.0) >= QUIET_INTERVAL_S:
                self._shown[title] = seconds
                self._write(f"  {line}"[:WIDTH] + "\n")

    def finish(self, title: str, line: str) -> None:
        """Say in a line that stays that a step has ended."""
        with self._guard:
            self._now.pop(title, None)
            if sys.stdout.isatty():
                width = _terminal_width()
                self._write(f"\r{line[:width]:<{width}}\n")
                if self._now:
                    self._draw()
            else:
                self._write(line + "\n")

    def _draw(self) -> None:
        width = _terminal_width()
        share = (width - 2) // len(self._now) - 2
        line = "  ".join(f"{text[:share]:<{share}}" for text in self._now.values())
        self._write(f"\r{'  ' + line:<{width}}"[: width + 1])

    def _write(self, text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _terminal_width() -> int:
    return max(20, os.get_terminal_size().columns - 1)
