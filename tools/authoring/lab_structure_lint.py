"""What every lab has around its exercises: a beginning that promises, figures in words, an end that asks.

Part of `python -m tools.authoring docs`. Each rule is about what a learner reads, in either notebook.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from tools.authoring.exercises import Lab, Part
from tools.authoring.lab_source import Cell
from tools.authoring.lint_errors import Problem
from utils.profiles import ROOT

_OPENING = {
    "You will be able to": "a list of what a learner can do afterwards",
    "**Time**": "how long it takes: `**Time**: about 2 hours`",
    "**It starts**": "what it starts on this machine",
    "**It writes**": "what it writes",
}
_CLOSING = {
    r"^## (?:Summary|What you found)": "a summary, `## Summary` or `## What you found`",
    r"^(?:## |\*\*)Questions": "questions, `## Questions`",
    r"(?:^## |\*\*)What to try next": "`What to try next`",
}
LEAST_QUESTIONS = 3
_FIGURE = re.compile(r"(?:plot_\w+|draw_stream|plot_run)")
_WORDS = "*In the picture"
_ASKED = re.compile(r"<details><summary>(.+?)</summary>\s*(.*?)\s*</details>", re.DOTALL)
# A label of an axis names a unit, or what is counted.
_UNIT = re.compile(
    r"\((?:ms|s|%|tok/s|GB|GB/s|MiB)\b|\(%\)|milliseconds|seconds?\b|per second|\btimes\b|\bspeed-up|\bT\(n\)"
    r"|\b(?:tokens?|requests?|guesses|nodes?|place|share|loss|step|position|perplexity"
    r"|throughput over|cold over warm|seen)\b"
)
_LABELS = ("set_xlabel", "set_ylabel", "supxlabel", "supylabel")


def check_craft(lab: Lab) -> Iterator[Problem]:
    """What a lab lacks at its beginning, at its end and at its figures."""
    cells = list(zip(lab.source.cells, lab.parts, strict=True))
    opening = cells[0][0]
    for words, what in _OPENING.items():
        if words not in opening.source:
            yield _problem(
                lab, opening, f"the lab does not open with {what}", f"Write {words!r} there."
            )
    prose = "\n".join(cell.source for cell, _ in cells if cell.kind == "markdown")
    last = next(cell for cell, _ in reversed(cells) if cell.kind == "markdown")
    for pattern, what in _CLOSING.items():
        if not re.search(pattern, prose, re.MULTILINE):
            yield _problem(
                lab, last, f"the lab does not close with {what}", "Add it to the last cells."
            )
    answers = _ASKED.findall(last.source)
    if sum(bool(answer) for _, answer in answers) < LEAST_QUESTIONS:
        message = f"fewer than {LEAST_QUESTIONS} questions with a folded answer in the last text"
        yield _problem(
            lab, last, message, "<details><summary>Question</summary>, an empty line, the answer."
        )
    yield from _details(lab, cells)
    yield from _figures(lab, cells)


def _details(lab: Lab, cells: Sequence[tuple[Cell, Part]]) -> Iterator[Problem]:
    for cell, _ in cells:
        if cell.kind == "markdown" and cell.source.count("<details>") != len(
            _ASKED.findall(cell.source)
        ):
            yield _problem(
                lab, cell, "a fold that is not closed, or has no summary", "Close <details>."
            )


def _figures(lab: Lab, cells: Sequence[tuple[Cell, Part]]) -> Iterator[Problem]:
    """A figure is followed, before the next one, by a paragraph that says what is to be seen."""
    shown: Cell | None = None
    for cell, part in cells:
        if cell.kind == "markdown":
            if _WORDS in cell.source:
                shown = None
        elif _draws(part.solved):
            if shown is not None:
                yield _untold(lab, shown)
            shown = cell
    if shown is not None:
        yield _untold(lab, shown)


def _draws(source: str) -> bool:
    tree = ast.parse(source, mode="exec") if "await" not in source else None
    if tree is None:
        return False
    calls = [node.func for node in ast.walk(tree) if isinstance(node, ast.Call)]
    names = [f.attr if isinstance(f, ast.Attribute) else getattr(f, "id", "") for f in calls]
    return any(_FIGURE.fullmatch(name) for name in names)


def _untold(lab: Lab, cell: Cell) -> Problem:
    fix = "Say in a text right after it what is to be seen: *In the picture: across, up, lines.*"
    return _problem(lab, cell, "a figure without words for those who cannot see it", fix)


def _problem(lab: Lab, cell: Cell, message: str, fix: str) -> Problem:
    return Problem(lab.source.path, cell.line, message, fix)


def check_axes(root: Path = ROOT) -> Iterator[Problem]:
    """Labels of axes, in all that draws, that name neither a unit nor what is counted."""
    for path in sorted((root / "utils").rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if not any(name in text for name in _LABELS):
            continue
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") in _LABELS:
                label = "".join(map(_text, ast.walk(node.args[0])))
                if label and not _UNIT.search(label):
                    fix = "Write it as `what (unit)`, or name what is counted."
                    yield Problem(path, node.lineno, f"an axis without a unit: {label!r}", fix)


def _text(node: ast.AST) -> str:
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""
