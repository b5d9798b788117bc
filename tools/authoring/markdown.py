"""Reads markdown into blocks that know their line, for the checks of documents and notebooks."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count as counting

from markdown_it import MarkdownIt
from markdown_it.token import Token

_PARSER = MarkdownIt("commonmark").enable("table")
_COMMENT = re.compile(r"<!--(.*?)-->", re.DOTALL)
_TAG = re.compile(r"<[^>]*>")
LINK = re.compile(r"⟦([^⟧]*)⟧")


@dataclass(frozen=True)
class Block:
    """A piece of a document that a reader takes in at once.

    Attributes:
        kind: "heading", "text" (a paragraph, also in a list), "table", "code", "html" or "comment".
        line: 1-based line in the file.
        text: what a reader sees; code spans keep their backticks, a link's or image's address stands
            behind its text as ⟦address⟧. Of code: the code.
        comments: what stands in HTML comments in it.
        info: language of a fenced code block; "" of an indented one.
        rows: cells of a table, the header first.
    """

    kind: str
    line: int
    text: str
    comments: tuple[str, ...] = ()
    info: str = ""
    rows: tuple[tuple[str, ...], ...] = ()

    @property
    def code_spans(self) -> list[str]:
        """What stands in backticks."""
        return [] if self.kind == "code" else re.findall(r"`([^`]+)`", self.text)

    @property
    def addresses(self) -> list[str]:
        """Where its links and images lead."""
        return [] if self.kind == "code" else LINK.findall(self.text)


def read_blocks(text: str, first_line: int = 1) -> list[Block]:
    """The blocks of a document, in order; `first_line` is the line of its first one in the file."""
    tokens = _PARSER.parse(text)
    return list(_blocks(tokens, first_line))


def _blocks(tokens: Sequence[Token], first_line: int) -> Iterator[Block]:
    inside = ""
    rows: list[list[Token]] = []
    start = 0
    for token in tokens:
        line = first_line + (token.map[0] if token.map else 0)
        match token.type:
            case "heading_open":
                inside = "heading"
            case "table_open":
                inside, rows, start = "table", [], line
            case "tr_open":
                rows.append([])
            case "table_close":
                yield _table(rows, start)
                inside = ""
            case "inline" if inside == "table":
                rows[-1].append(token)
            case "inline":
                shown, comments = _shown(token)
                yield Block(inside or "text", line, shown, comments)
                inside = ""
            case "fence" | "code_block":
                yield Block("code", line, token.content, info=token.info.strip().split(" ")[0])
            case "html_block":
                yield _html(token.content, line)


def _table(rows: Sequence[Sequence[Token]], line: int) -> Block:
    shown = [[_shown(cell) for cell in row] for row in rows]
    cells = tuple(tuple(text for text, _ in row) for row in shown)
    comments = tuple(comment for row in shown for _, said in row for comment in said)
    return Block("table", line, "\n".join(" | ".join(row) for row in cells), comments, rows=cells)


def _html(content: str, line: int) -> Block:
    comments = tuple(comment.strip() for comment in _COMMENT.findall(content))
    shown = _TAG.sub(" ", _COMMENT.sub("", content)).strip()
    return Block("html" if shown or not comments else "comment", line, shown, comments)


def _shown(inline: Token) -> tuple[str, tuple[str, ...]]:
    """Text of an inline token as `Block.text` describes it, and its comments."""
    parts: list[str] = []
    comments: list[str] = []
    addresses: list[str] = []
    for token in inline.children or []:
        match token.type:
            case "text":
                parts.append(token.content)
            case "softbreak" | "hardbreak":
                parts.append(" ")
            case "strong_open" | "strong_close":
                parts.append("**")
            case "code_inline":
                parts.append(f"`{token.content}`")
            case "link_open":
                addresses.append(str(token.attrs["href"]))
            case "link_close":
                parts.append(f"⟦{addresses.pop()}⟧")
            case "image":
                parts.append(f"{token.content}⟦{token.attrs['src']}⟧")
            case "html_inline":
                comments += [comment.strip() for comment in _COMMENT.findall(token.content)]
    return "".join(parts), tuple(comments)


def anchors(blocks: Sequence[Block]) -> set[str]:
    """The anchors of a document's headings, as GitHub makes them."""
    found: set[str] = set()
    for block in blocks:
        if block.kind == "heading":
            slug = anchor(block.text)
            if slug in found:
                slug = next(f"{slug}-{n}" for n in counting(1) if f"{slug}-{n}" not in found)
            found.add(slug)
    return found


def anchor(heading: str) -> str:
    """A heading's anchor: lower case, blanks as hyphens, without signs."""
    words = re.sub(r"[^\w\- ]", "", LINK.sub("", heading).lower())
    return words.strip().replace(" ", "-")
