"""The look of a submission: its texts, and a verdict as the outputs of a check cell."""

from __future__ import annotations

import textwrap
from typing import Any

import nbformat
from nbconvert.filters import Highlight2HTML
from nbformat import NotebookNode

from tools.lab.judge.judge import ExerciseResult
from utils.checks.attempt import Stopped, time_limit

_colour = Highlight2HTML(pygments_lexer="ipython3")  # type: ignore[no-untyped-call]
_TO_COLOUR_S = 5.0
_NOT_SHOWN = "# What was handed in here was run, but takes too long to show."


def showable(text: str) -> str:
    """Return the text of a code cell, or a sentence in its place.

    The pages that nbgrader makes are coloured by Pygments, whose time can grow with the square of the
    length (thousands of empty lines); so it is tried here, where only one notebook waits.
    """
    try:
        with time_limit(_TO_COLOUR_S):
            _colour(text)
    except Stopped:
        return _NOT_SHOWN
    return text


def nodes(outputs: list[dict[str, Any]]) -> list[NotebookNode]:
    """Outputs as nbformat's own objects."""
    return [nbformat.from_dict(output) for output in outputs]


def verdict_outputs(result: ExerciseResult) -> list[dict[str, Any]]:
    """Outputs of a check cell, from which nbgrader reads the score (its `determine_grade`)."""
    lines = [f"{result.id}: {result.score} of {result.points} points"]
    for part in result.parts:
        sign = "✔" if part.score else "✘"
        lines.append(f"  {sign} {part.score}/{part.points}  {part.title}")
        lines += _folded(part.message, "         ")
    if result.parts and result.message not in {part.message for part in result.parts}:
        lines += _folded(result.message, "  ")
    text = "\n".join(lines) + "\n"
    outputs: list[dict[str, Any]] = [{"output_type": "stream", "name": "stdout", "text": text}]
    if result.score == 0:
        output = [] if result.parts else _folded(result.message, "")
        outputs.append(
            {
                "output_type": "error",
                "ename": "NotAttempted" if result.verdict == "not attempted" else "CheckFailed",
                "evalue": result.message,
                "traceback": [f"{result.id}: {result.verdict}", *output],
            }
        )
    elif result.score < result.points:
        data = {"data": {"text/plain": str(result.score)}, "execution_count": None, "metadata": {}}
        outputs.append({"output_type": "execute_result"} | data)
    return outputs


def _folded(text: str, indent: str) -> list[str]:
    """Lines that fit a page."""
    return textwrap.wrap(text, 96, initial_indent=indent, subsequent_indent=indent)
