"""Reads a lab's source: jupytext decides what a cell is, this module adds the line numbers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import jupytext

from tools.authoring.lint_errors import Problem, SourceError
from tools.lab.labs import LAB_FILE

_MARKER = re.compile(r"#\s*%%(?:%*)(?:\s|$)")
_JUPYTEXT_KEYS = {"lines_to_next_cell", "lines_to_end_of_cell_marker", "cell_marker"}


@dataclass(frozen=True)
class Cell:
    """One cell as its author wrote it.

    Attributes:
        kind: "code" or "markdown".
        source: the text, without the marker line and without comment signs of markdown.
        line: 1-based line of the `# %%` marker.
        first_line: 1-based line of the source's first line.
        options: the keys on the marker line.
    """

    kind: str
    source: str
    line: int
    first_line: int
    options: Mapping[str, object]


@dataclass(frozen=True)
class LabSource:
    """One lab's file: `number` is "3.3.1", `stem` the file name without its suffix."""

    path: Path
    number: str
    stem: str
    cells: tuple[Cell, ...]


def read_source(path: Path) -> LabSource:
    """Parse one `lab-3.3.N-*.py` in jupytext's percent format.

    Raises:
        SourceError: the file name is not a lab's, or the text is not cells.
    """
    name = LAB_FILE.fullmatch(path.stem)
    if name is None:
        fix = "Rename it to lab-3.3.N-words-in-lower-case.py."
        raise SourceError([Problem(path, 1, "not the name of a lab", fix)])
    try:
        text = path.read_text(encoding="utf-8")
        parsed = jupytext.reads(text, fmt="py:percent").cells if text.strip() else []
    except Exception as error:
        fix = "Begin the file, in UTF-8, with `# %% [markdown]`; it needs no header."
        message = f"jupytext cannot read it: {str(error).splitlines()[0]}"
        raise SourceError([Problem(path, 1, message, fix)]) from error
    lines = text.splitlines()
    markers = [i for i, line in enumerate(lines) if _MARKER.match(line)]
    if len(parsed) != len(markers) or not parsed:
        raise SourceError([_miscounted(path, lines, markers, len(parsed))])
    ends = [*markers[1:], len(lines)]
    cells = tuple(
        Cell(
            kind=node.cell_type,
            source=node.source,
            line=start + 1,
            first_line=_first_text(lines, start + 1, end) + 1,
            options={k: v for k, v in node.metadata.items() if k not in _JUPYTEXT_KEYS},
        )
        for node, start, end in zip(parsed, markers, ends, strict=True)
    )
    return LabSource(path, name["number"], path.stem, cells)


def _first_text(lines: list[str], start: int, end: int) -> int:
    return next((i for i in range(start, end) if lines[i].strip()), start)


def _miscounted(path: Path, lines: list[str], markers: list[int], cells: int) -> Problem:
    if not markers:
        return Problem(path, 1, "no cell: no line starts with `# %%`", "Write one cell at least.")
    message = f"{len(markers)} lines start with `# %%`, jupytext reads {cells} cells"
    fix = "Put text before the first marker into a cell; indent a `# %%` inside a string."
    return Problem(path, markers[0] + 1, message, fix)
