"""The course's texts, cut into passages: what a person reads as one thing, and what it is about.

A passage is a paragraph, table row or code block of a document or of a notebook's text; the strings and
comments of one statement of a module, or of one code cell; one service of a compose file.
"""

from __future__ import annotations

import ast
import io
import itertools
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_CELL = re.compile(r"^# %%(?P<markdown> \[markdown\])?")
_HEADING = re.compile(r"^#{1,6} ")
_FENCE = re.compile(r"^\s*(```|~~~)")
_STRINGS = (tokenize.STRING, tokenize.COMMENT)
_MIDDLE = getattr(tokenize, "FSTRING_MIDDLE", -1)  # of Python 3.12 and newer


@dataclass(frozen=True)
class Line:
    """A line of a passage.

    Attributes:
        number: Its number in the file, from 1.
        text: What stands there: of a module, one string or comment.
    """

    number: int
    text: str


@dataclass(frozen=True)
class Passage:
    """One thing to read.

    Attributes:
        path: Its file.
        lines: Its lines.
        about: Headings above it, or all of its file's names: what it is about if it does not say so itself.
        code: Whether it is a block of commands.
    """

    path: Path
    lines: tuple[Line, ...]
    about: str
    code: bool = False

    @property
    def text(self) -> str:
        """All lines."""
        return "\n".join(line.text for line in self.lines)


def passages(path: Path) -> Iterator[Passage]:
    """The passages of one file: Markdown, a notebook's source, a module, or any other text by its lines."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        yield from of_markdown(path, list(enumerate(text.splitlines(), 1)))
    elif path.suffix == ".py" and _CELL.match(text):
        yield from _of_notebook(path, text)
    elif path.suffix == ".py":
        yield from _of_module(path, text)
    else:
        lines = tuple(Line(n, line) for n, line in enumerate(text.splitlines(), 1))
        yield Passage(path, lines, path.stem)


def of_markdown(path: Path, lines: list[tuple[int, str]], heading: str = "") -> Iterator[Passage]:
    """Paragraphs, table rows and code blocks; `heading` is the one above the first of them."""
    block: list[Line] = []
    code = fenced = False
    for number, text in [*lines, (0, "")]:
        if _FENCE.match(text):
            yield from _made(path, block, heading, code or fenced)
            block, code, fenced = [], False, not fenced
            continue
        indented = not fenced and text.startswith("    ") and (code or not block)
        ends = not fenced and (not text.strip() or text.startswith("|") or indented != code)
        if ends or (not fenced and _HEADING.match(text)):
            yield from _made(path, block, heading, code or fenced)
            block, code = [], False
        if not fenced and _HEADING.match(text):
            heading = text
        if text.strip():
            block.append(Line(number, text))
            code = indented
    yield from _made(path, block, heading, code or fenced)


def _made(path: Path, block: list[Line], heading: str, code: bool) -> Iterator[Passage]:
    if block:
        yield Passage(path, tuple(block), heading, code)


def _of_notebook(path: Path, text: str) -> Iterator[Passage]:
    lines = text.splitlines()
    starts = [n for n, line in enumerate(lines) if _CELL.match(line)] + [len(lines)]
    heading = ""
    for start, end in itertools.pairwise(starts):
        match = _CELL.match(lines[start])
        cell = list(enumerate(lines[start + 1 : end], start + 2))
        if match and match["markdown"]:
            plain = [(n, re.sub(r"^# ?", "", line)) for n, line in cell]
            for passage in of_markdown(path, plain, heading):
                heading = passage.about
                yield passage
        else:
            source = "\n".join(line for _, line in cell)
            found = tuple(_strings(source, start + 1))
            if found:
                yield Passage(path, found, f"{heading}\n{source}")


def _of_module(path: Path, text: str) -> Iterator[Passage]:
    strings = list(_strings(text, 0))
    statements = ast.parse(text).body
    source = text.splitlines()
    start = 1
    for statement in statements:
        end = statement.end_lineno or statement.lineno
        inside = tuple(line for line in strings if start <= line.number <= end)
        if inside:
            named = "\n".join(source[start - 1 : end])
            yield Passage(path, inside, f"{path.stem}\n{named}")
        start = end + 1
    rest = tuple(line for line in strings if line.number >= start)
    if rest:
        yield Passage(path, rest, path.stem)


def _strings(source: str, offset: int) -> Iterator[Line]:
    """Strings and comments of Python; of a cell with IPython's own syntax, every line."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(source).readline))
    except (tokenize.TokenError, SyntaxError):
        yield from (Line(n + offset, text) for n, text in enumerate(source.splitlines(), 1))
        return
    for token in tokens:
        if token.type in _STRINGS or token.type == _MIDDLE:
            for n, text in enumerate(token.string.splitlines()):
                yield Line(token.start[0] + offset + n, text)
