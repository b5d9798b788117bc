"""The course's documents, read with markdown-it-py."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

from tools.authoring.lab_source import read_source
from utils.profiles import ROOT

PARSER = MarkdownIt("commonmark").enable("table")
# Pages at the top for people who have a clone. They may name commands and files that a release lacks.
CONTRIBUTORS = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


@dataclass(frozen=True)
class Document:
    """A Markdown file, or the Markdown cells of a lab.

    Attributes:
        path: Its file.
        text: Its Markdown.
        folder: Folder that its relative links start from.
        learner: Whether a release has it.
    """

    path: Path
    text: str
    folder: Path
    learner: bool = True

    def __str__(self) -> str:
        return str(self.path.relative_to(ROOT))


def read_documents() -> list[Document]:
    """Read all documents and labs. The cards of models are generated, so they aren't among them."""
    found = []
    for path in sorted([*ROOT.glob("*.md"), *ROOT.glob("docker/*.md"), *ROOT.glob("docs/*.md")]):
        learner = path.name not in CONTRIBUTORS
        found.append(Document(path, path.read_text(), path.parent, learner))
    for path in sorted(ROOT.glob("solutions/*.md")):
        found.append(Document(path, path.read_text(), path.parent, learner=False))
    for path in sorted(ROOT.glob("solutions/lab-*.py")):
        cells = [cell.source for cell in read_source(path).cells if cell.kind == "markdown"]
        found.append(Document(path, "\n\n".join(cells), ROOT / "labs"))
    return found


def tokens(text: str) -> Iterator[Token]:
    """Yield a document's tokens, with those inside of each line of text."""
    for token in PARSER.parse(text):
        yield token
        yield from token.children or []


def code_blocks(text: str) -> list[tuple[str, str]]:
    """Return the language and the code of each block. An indented block has no language."""
    blocks = [token for token in tokens(text) if token.type in ("fence", "code_block")]
    return [(token.info.partition(" ")[0], token.content) for token in blocks]


def code_spans(text: str) -> list[str]:
    """Return the texts in backticks."""
    return [token.content for token in tokens(text) if token.type == "code_inline"]


def links(text: str) -> list[str]:
    """Return the addresses of links and images."""
    found = [token.attrs.get("href") or token.attrs.get("src") for token in tokens(text)]
    return [str(address) for address in found if address]


def headings(text: str) -> list[str]:
    """Return the headings without their markup."""
    parsed = PARSER.parse(text)
    return [
        "".join(child.content for child in parsed[at + 1].children or [])
        for at, token in enumerate(parsed)
        if token.type == "heading_open"
    ]


def anchors(text: str) -> list[str]:
    """Return the anchors of the headings, as GitHub makes them."""
    found: list[str] = []
    for heading in headings(text):
        slug = re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-")
        earlier = sum(
            re.fullmatch(rf"{re.escape(slug)}(-\d+)?", other) is not None for other in found
        )
        found.append(f"{slug}-{earlier}" if earlier else slug)
    return found
