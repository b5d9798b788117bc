"""`make links`: asks every address on the network that documents and labs lead to, and writes down when.

CI has no network but its package index: it checks that the list is complete, not that addresses answer.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path

import httpx

from tools.authoring.lint_errors import Problem

PAGE = Path("solutions") / "LINKS.md"
NEVER = "never"
_ROW = re.compile(
    r"^\| <(?P<link>[^>]+)> \| (?P<where>[^|]*) \| (?P<day>[^|]*) \| (?P<answer>[^|]*) \|$",
    re.MULTILINE,
)
_HEAD = """# Links that lead out of the course

<!-- Written by `make links`. Do not edit. -->

Each address in documents and labs, when it was last asked, and what it answered. `make links` asks them
all; without a network it keeps what it knows. *never*: nobody has asked it since it was written down.

| link | in | last checked | answer |
|---|---|---|---|
"""


@dataclass(frozen=True)
class Checked:
    """When an address was last asked, as an ISO date or "never", and what it answered."""

    day: str = NEVER
    answer: str = ""


def read_page(root: Path) -> dict[str, Checked]:
    """What is known of each address."""
    path = root / PAGE
    text = path.read_text(encoding="utf-8") if path.is_file() else ""
    return {row["link"]: Checked(row["day"], row["answer"].strip()) for row in _ROW.finditer(text)}


def page(links: Mapping[str, set[str]], known: Mapping[str, Checked]) -> str:
    """The page: `links` maps an address to the names of the files that lead to it."""
    rows = []
    for link in sorted(links):
        checked = known.get(link, Checked())
        where = ", ".join(sorted(links[link]))
        rows.append(f"| <{link}> | {where} | {checked.day} | {checked.answer} |\n")
    return _HEAD + "".join(rows)


def check_page(links: Mapping[str, set[str]], root: Path) -> list[Problem]:
    """The page's fault, if it lists other addresses than those there are."""
    path = root / PAGE
    held = path.read_text(encoding="utf-8") if path.is_file() else ""
    if held == page(links, read_page(root)):
        return []
    return [
        Problem(
            path, 1, "the list of outside links is not that of the documents", "Run: make links"
        )
    ]


def ask(link: str) -> str | None:
    """What an address answers: "200", "404", ...; None where there is no network."""
    try:
        answer = httpx.get(link, follow_redirects=True, timeout=20)
    except httpx.HTTPError:
        return None
    return str(answer.status_code)


def write_page(
    links: Mapping[str, set[str]], root: Path, asked: Callable[[str], str | None] = ask
) -> tuple[int, list[str]]:
    """Ask every address and write the page.

    Returns:
        How many answered, and those that answered with an error.
    """
    known, today = read_page(root), date.today().isoformat()
    answers = {link: asked(link) for link in sorted(links)}
    fresh = {link: Checked(today, answer) for link, answer in answers.items() if answer is not None}
    (root / PAGE).write_text(page(links, known | fresh), encoding="utf-8")
    wrong = [f"{link}: {c.answer}" for link, c in fresh.items() if not c.answer.startswith("2")]
    return len(fresh), wrong
