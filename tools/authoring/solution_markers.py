"""Solution regions: the lines between nbgrader's markers are taken out for the learner."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

BEGIN = "### BEGIN SOLUTION"
END = "### END SOLUTION"
STUB_SIGN = "#:"


@dataclass(frozen=True)
class Split:
    """A cell in its two forms.

    Attributes:
        solved: the author's code, markers kept (nbgrader knows them), stub lines taken out.
        stubbed: what the learner sees.
        regions: number of solution regions.
        defaults: 1-based lines of `stubbed` that hold a default stub.
    """

    solved: str
    stubbed: str
    regions: int
    defaults: tuple[int, ...]


Refuse = Callable[[int, str, str], None]


def split_regions(source: str, default_stub: str, refuse: Refuse) -> Split:
    """Split a cell at its solution regions.

    The learner gets the lines of a region that start with `#:` in the region's place; a
    region without them becomes `default_stub` at the indentation of its first marker.

    Args:
        source: the cell's text.
        default_stub: one line of code.
        refuse: called with (0-based line in the cell, message, fix) for every fault.
    """
    solved: list[str] = []
    stubbed: list[str] = []
    defaults: list[int] = []
    regions = 0
    opened: int | None = None
    indent, stub, body = "", [""], [""]
    for number, line in enumerate(source.splitlines()):
        text = line.strip()
        if text == BEGIN:
            if opened is not None:
                refuse(number, "a solution region inside another", f"Write `{END}` before it.")
            opened, regions = number, regions + 1
            indent, stub, body = line[: len(line) - len(line.lstrip())], [], []
            solved.append(line)
        elif text == END:
            if opened is None:
                refuse(number, f"`{END}` without a beginning", f"Write `{BEGIN}` above it.")
                continue
            if not any(code.strip() and not code.strip().startswith("#") for code in body):
                refuse(opened, "an empty solution region", "Put the solution between the markers.")
            if stub:
                stubbed += stub
            else:
                stubbed.append(indent + default_stub)
                defaults.append(len(stubbed))
            opened = None
            solved.append(line)
        elif opened is None:
            if _looks_like_marker(text):
                refuse(number, f"`{text}` is not a marker", f"Write `{BEGIN}` or `{END}`.")
            if text.startswith(STUB_SIGN):
                refuse(number, "a stub line outside a solution region", f"Move it below `{BEGIN}`.")
            solved.append(line)
            stubbed.append(line)
        elif text.startswith(STUB_SIGN):
            code = text[len(STUB_SIGN) :].removeprefix(" ")
            stubbed_line = line[: len(line) - len(line.lstrip())] + code
            stub.append(stubbed_line.rstrip())
        else:
            body.append(line)
            solved.append(line)
    if opened is not None:
        refuse(opened, "a solution region that is never closed", f"Write `{END}` after it.")
    return Split("\n".join(solved), "\n".join(stubbed), regions, tuple(defaults))


def _looks_like_marker(text: str) -> bool:
    bare = text.replace(" ", "").upper()
    return bare.startswith("#") and bare.lstrip("#") in {"BEGINSOLUTION", "ENDSOLUTION"}
