"""Errors of a check, and their look in a notebook."""

from __future__ import annotations

import html
import sys
from typing import Any

_FRAME = "border-left:4px solid #dc2626;padding-left:0.7em"


class CheckFailed(AssertionError):
    """A learner's answer is not right yet; the message is in the exercise's own terms.

    Args:
        message: Lines that tell the learner what is wrong. The first is the reason.
        cause: "answer", "signature" (not the function that was asked for), "exception" (the
            learner's code raised) or "time" (it did not finish).
        actual: Value that was compared, if any.
    """

    def __init__(self, message: str, cause: str = "answer", actual: object = None) -> None:
        super().__init__(message)
        self.cause = cause
        self.actual = actual
        self._shown = False

    def show(self) -> None:
        """Show the message as a block where a notebook displays HTML.

        The block has the page's own text colour, so it is readable in the light and in the dark theme.
        """
        display = _display()
        if display is None:
            return
        first, *rest = (html.escape(line.strip()) for line in str(self).splitlines() or [""])
        lines = "".join(f"<div>{line}</div>" for line in rest)
        block = f'<div style="{_FRAME}"><div><b>✘ {first}</b></div>{lines}</div>'
        display({"text/plain": f"✘ {self}", "text/html": block}, raw=True)
        self._shown = True

    def _render_traceback_(self) -> list[str]:
        """Return the lines that IPython shows in place of a traceback through the framework."""
        if self._shown:
            return ["✘ Not right yet. The reason is above this line."]
        first, *rest = str(self).splitlines() or [""]
        return [f"✘ {first}", *rest]


class NotAttempted(CheckFailed):
    """Raised while grading only: the exercise is still the stub, or parts of it are."""


def _display() -> Any:
    """Return IPython's `display` in a notebook, else None."""
    module = sys.modules.get("IPython")
    if module is None or module.get_ipython() is None:
        return None
    from IPython.display import display

    return display


def show(sign: str, text: str, colour: str, folded: str = "") -> None:
    """Print one line, in colour where a notebook shows it.

    Args:
        sign: Character that begins the line.
        text: The line.
        colour: Colour of the sign.
        folded: The course's own solution, which a notebook shows after a click.
    """
    display = _display()
    if display is None:
        print(f"{sign} {text}")
        return
    line = html.escape(text).replace("\n", "<br>")
    block = f'<span style="color:{colour};font-weight:bold">{sign}</span> {line}'
    if folded:
        block += (
            f"<details><summary>Our solution</summary><pre>{html.escape(folded)}</pre></details>"
        )
    display({"text/plain": f"{sign} {text}", "text/html": block}, raw=True)
