"""Links, anchors and names in documents and notebooks: each leads to something that is there."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

from tools.authoring.build import read_labs
from tools.authoring.exercises import Lab
from tools.authoring.lint_errors import Problem
from tools.authoring.markdown import LINK, Block, anchors, read_blocks
from tools.authoring.snippets import FOLDERS, check_shell, name_fault, path_fault
from utils.profiles import ROOT

_OUTSIDE = ("http://", "https://")
_HERE = re.compile(r"https?://(127\.0\.0\.1|localhost|\[::1\])")
_ARXIV = re.compile(r"arXiv:? ?(\d{4}\.\d{4,5})")
_DOTTED = re.compile(r"(?P<name>utils(?:\.\w+)+)(?:\(.*\))?", re.DOTALL)
_PATH = re.compile(rf"(?:{'|'.join(FOLDERS)})/[\w./*-]*")
_DOCUMENT = re.compile(r"[A-Z][A-Z_0-9]*\.md")
_LAB = re.compile(r"\b3\.3\.(\d+)\b")
_TO_COME = re.compile(r"\b3\.3\.\d+,? \(?to come")
_FIX = "Name what is there."


def check_links(path: Path, blocks: Sequence[Block], root: Path = ROOT) -> Iterator[Problem]:
    """Links and images that lead nowhere inside the course; links of a lab start from labs/."""
    folder = root / "labs" if path.suffix == ".py" else path.parent
    for block in blocks:
        for address in block.addresses:
            if address.startswith(_OUTSIDE):
                continue
            name, _, fragment = address.partition("#")
            target = folder / name if name else path
            if not target.exists():
                yield Problem(
                    path,
                    block.line,
                    f"a link leads nowhere: {address}",
                    "Is the file's name right?",
                )
            elif fragment and fragment not in _anchors(target):
                known = ", ".join(sorted(_anchors(target)))
                yield Problem(
                    path, block.line, f"there is no heading {address}", f"The anchors are: {known}."
                )


@cache
def _anchors(path: Path) -> frozenset[str]:
    if path.suffix != ".md":
        return frozenset()
    return frozenset(anchors(read_blocks(path.read_text(encoding="utf-8"))))


def outside_links(blocks: Sequence[Block]) -> set[str]:
    """Addresses on the network that blocks lead to; an arXiv number is one too."""
    links = {a for block in blocks for a in block.addresses if a.startswith(_OUTSIDE)}
    said = [LINK.sub("", block.text) for block in blocks if block.kind != "code"]
    links |= {f"https://arxiv.org/abs/{number}" for text in said for number in _ARXIV.findall(text)}
    return {link for link in links if not _HERE.match(link)}


def check_names(path: Path, block: Block, root: Path, *, learner: bool) -> Iterator[Problem]:
    """Commands, files, modules and labs in a block's prose that are not there."""
    found: list[str] = []
    for code in block.code_spans:
        if re.match(r"(?:[A-Z_]+=\S+ )*make [a-z]", code) or re.match(
            r"(?:\S*/)?python3? -m utils\.", code
        ):
            found += check_shell(code.replace("...", ""), root, learner=learner)
        elif named := _DOTTED.fullmatch(code):
            found.append(name_fault(named["name"], root))
        elif _PATH.fullmatch(code):
            found.append(path_fault(code, root, learner=learner))
        elif _DOCUMENT.fullmatch(code) and not (root / code).is_file():
            found.append(f"there is no {code}")
    text = LINK.sub("", block.text)
    labs = _labs(root)
    found += [
        f"there is no lab 3.3.{number}" for number in _LAB.findall(text) if number not in labs
    ]
    if stale := _TO_COME.search(text):
        found.append(f"it says {stale[0]!r}, and that lab is there")
    for reason in found:
        if reason:
            yield Problem(path, block.line, reason, _FIX)


@cache
def labs_of(root: Path) -> tuple[Lab, ...]:
    """The labs under `root`, read once."""
    return tuple(read_labs(root))


def _exercises(root: Path, number: str) -> frozenset[str]:
    return frozenset(
        exercise.id
        for lab in labs_of(root)
        if lab.source.number.endswith(f".{number}")
        for exercise in lab.exercises
    )


@cache
def _labs(root: Path) -> dict[str, int]:
    """Number of each lab (the last part), and how many sections it has."""
    return {
        lab.source.number.rpartition(".")[2]: max(
            (int(n) for part in lab.parts for n in re.findall(r"(?m)^## (\d+)\.", part.solved)),
            default=0,
        )
        for lab in labs_of(root)
    }


def check_sections(path: Path, blocks: Sequence[Block], root: Path = ROOT) -> Iterator[Problem]:
    """Sections and exercises that a lab does not have, below a heading that names the lab.

    Sections stand in a table's column "section", exercises in the paragraph on the quick path.
    """
    sections, exercises = 0, frozenset[str]()
    for block in blocks:
        if block.kind == "heading":
            lab = _LAB.search(block.text)
            sections = _labs(root).get(lab[1], 0) if lab else 0
            exercises = _exercises(root, lab[1]) if lab else frozenset()
        if exercises and block.text.startswith("**Quick path**"):
            path_taken = block.text.partition("**Deep path**")[0]
            for name in re.findall(r"`([a-z_]+)`", path_taken):
                if name not in exercises:
                    message = f"the lab has no exercise {name}"
                    yield Problem(
                        path, block.line, message, f"It has: {', '.join(sorted(exercises))}."
                    )
        if block.kind != "table" or not sections or "section" not in block.rows[0]:
            continue
        column = block.rows[0].index("section")
        for row in block.rows[1:]:
            if any(int(number) > sections for number in re.findall(r"\d+", row[column])):
                message = f"section {row[column]}: the lab has {sections}"
                yield Problem(path, block.line, message, "Has the lab changed?")
