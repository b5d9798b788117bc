"""Checks of documents and labs: `python -m tools.authoring docs`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.authoring.exercises import Lab
from tools.authoring.external_links import PAGE as LINKS
from tools.authoring.external_links import check_page
from tools.authoring.generated_tables import check_prep
from tools.authoring.lab_structure_lint import check_axes, check_craft
from tools.authoring.lint_errors import Problem
from tools.authoring.markdown import Block, read_blocks
from tools.authoring.messages import PAGE as TROUBLESHOOTING
from tools.authoring.messages import check_messages
from tools.authoring.number_sources_lint import check_claims
from tools.authoring.references import (
    check_links,
    check_names,
    check_sections,
    labs_of,
    outside_links,
)
from tools.authoring.snippets import check_code
from utils.profiles import ROOT

# Pages at the top for people who have a clone: they name commands and files that a release doesn't have.
CONTRIBUTORS = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md")


@dataclass(frozen=True)
class Document:
    """A document, or the markdown of a lab.

    Attributes:
        path: its file.
        blocks: what it says, in order.
        learner: for each block, whether a release has it.
    """

    path: Path
    blocks: tuple[Block, ...]
    learner: tuple[bool, ...]


def read_document(path: Path, *, learner: bool = True) -> Document:
    """Read a document; what stands between `<!-- instructors -->` and its end is not for learners."""
    blocks = read_blocks(path.read_text(encoding="utf-8"))
    shown: list[bool] = []
    here = learner
    for block in blocks:
        if "instructors" in block.comments:
            here = False
        shown.append(here)
        if "/instructors" in block.comments:
            here = learner
    return Document(path, tuple(blocks), tuple(shown))


def read_lab_document(lab: Lab) -> Document:
    """The markdown cells of a lab as one document, with the lines of its source."""
    cells = [cell for cell in lab.source.cells if cell.kind == "markdown"]
    blocks = [block for cell in cells for block in read_blocks(cell.source, cell.first_line)]
    return Document(lab.source.path, tuple(blocks), (True,) * len(blocks))


def documents(root: Path = ROOT) -> list[Document]:
    """All documents of the course, and its labs. The cards of models are records, and cited as such."""
    outside = [path for folder in (".", "docker", "docs") for path in root.glob(f"{folder}/*.md")]
    pages = [read_document(path, learner=path.name not in CONTRIBUTORS) for path in sorted(outside)]
    inside = sorted(p for p in (root / "solutions").glob("*.md") if p != root / LINKS)
    pages += [read_document(path, learner=False) for path in inside]
    return pages + [read_lab_document(lab) for lab in labs_of(root)]


def check_documents(root: Path = ROOT) -> list[Problem]:
    """Every fault of documents and labs, file by file."""
    found = documents(root)
    problems = [problem for document in found for problem in _faults(document, root)]
    problems += [problem for lab in labs_of(root) for problem in check_craft(lab)]
    problems += [*check_axes(root), *check_prep(root)]
    return problems + check_page(all_outside_links(found), root)


def _faults(document: Document, root: Path) -> Iterator[Problem]:
    path, blocks = document.path, document.blocks
    yield from check_claims(path, blocks, root)
    yield from check_links(path, blocks, root)
    yield from check_sections(path, blocks, root)
    if path.name == TROUBLESHOOTING:
        yield from check_messages(path, blocks, root)
    for block, learner in zip(blocks, document.learner, strict=True):
        if block.kind == "code" and path.suffix == ".md":
            yield from check_code(path, block, root, learner=learner)
        elif block.kind != "code":
            yield from check_names(path, block, root, learner=learner)


def all_outside_links(found: list[Document]) -> dict[str, set[str]]:
    """Each address on the network, and the files that lead to it."""
    links: dict[str, set[str]] = {}
    for document in found:
        for link in outside_links(document.blocks):
            links.setdefault(link, set()).add(document.path.name)
    return links
