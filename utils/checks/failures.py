"""What a check raises, and how a notebook shows it."""

from __future__ import annotations

import html
import sys

_RED, _PLAIN = "\x1b[31m", "\x1b[0m"


class CheckFailed(AssertionError):
    """A learner's answer is not right yet; the message is in the exercise's own terms.

    Args:
        message: what is wrong.
        cause: "answer", "signature" (not the function that was asked for), "exception" (the
            learner's code raised) or "time" (it did not finish).
    """

    def __init__(self, message: str, cause: str = "answer") -> None:
        super().__init__(message)
        self.cause = cause

    def _render_traceback_(self) -> list[str]:
        """IPython shows these lines in place of a traceback through the framework."""
        first, *rest = str(self).splitlines() or [""]
        return [f"{_RED}✘ {first}{_PLAIN}", *rest]


class NotAttempted(CheckFailed):
    """Raised while grading only: the exercise is still the stub."""


def show(sign: str, text: str, colour: str) -> None:
    """Print one line, in colour where a notebook shows it."""
    shell = sys.modules.get("IPython")
    if shell is None or shell.get_ipython() is None:
        print(f"{sign} {text}")
        return
    from IPython.display import display

    line = html.escape(text).replace("\n", "<br>")
    display(  # type: ignore[no-untyped-call]
        {
            "text/plain": f"{sign} {text}",
            "text/html": f'<span style="color:{colour};font-weight:bold">{sign}</span> {line}',
        },
        raw=True,
    )
