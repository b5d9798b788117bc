"""How a verdict looks in a notebook: the outputs of a check cell."""

from __future__ import annotations

from typing import Any

import nbformat
from nbformat import NotebookNode

from utils.grading.judge import ExerciseResult


def nodes(outputs: list[dict[str, Any]]) -> list[NotebookNode]:
    """Outputs as nbformat's own objects."""
    return [nbformat.from_dict(output) for output in outputs]  # type: ignore[no-untyped-call]


def verdict_outputs(result: ExerciseResult) -> list[dict[str, Any]]:
    """Outputs of a check cell, from which nbgrader reads the score (its `determine_grade`)."""
    lines = [f"{result.id}: {result.score} of {result.points} points"]
    for part in result.parts:
        sign = "✔" if part.score else "✘"
        why = f": {part.message}" if part.message else ""
        lines.append(f"  {sign} {part.score}/{part.points}  {part.title}{why}")
    if result.message and not any(result.message == part.message for part in result.parts):
        lines.append(f"  {result.message}")
    text = "\n".join(lines) + "\n"
    outputs: list[dict[str, Any]] = [{"output_type": "stream", "name": "stdout", "text": text}]
    if result.score == 0:
        message = result.message or result.verdict
        outputs.append(
            {
                "output_type": "error",
                "ename": "NotAttempted" if result.verdict == "not attempted" else "CheckFailed",
                "evalue": message,
                "traceback": [f"{result.id}: {result.verdict}. {message}"],
            }
        )
    elif result.score < result.points:
        partial = {
            "data": {"text/plain": str(result.score)},
            "execution_count": None,
            "metadata": {},
        }
        outputs.append({"output_type": "execute_result"} | partial)
    return outputs
