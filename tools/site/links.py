"""What is wrong with a folder of HTML pages: dead links, pictures without words, parts from elsewhere."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

_NEEDED = {"script": "src", "img": "src", "iframe": "src", "source": "src"}


@dataclass
class Page(HTMLParser):
    """What other pages and the reader's browser ask of one page.

    Attributes:
        ids: names that a link can end in.
        links: addresses that a reader can follow.
        needed: addresses that the browser loads.
        silent: pictures without alternative text, by address.
    """

    ids: set[str] = field(default_factory=set)
    links: list[str] = field(default_factory=list)
    needed: list[str] = field(default_factory=list)
    silent: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Takes down what a tag names."""
        values = {key: value or "" for key, value in attrs}
        self.ids |= {values[key] for key in ("id", "name") if values.get(key)}
        if tag == "a" and "href" in values:
            self.links.append(values["href"])
        elif tag == "link" and values.get("rel") in ("stylesheet", "icon", "preload"):
            self.needed.append(values.get("href", ""))
        elif values.get(_NEEDED.get(tag, "")):
            self.needed.append(values[_NEEDED[tag]])
        words = values.get("alt", "").strip()
        if tag == "img" and (not words or words.startswith("<")):  # Python's name of an object
            self.silent.append(values.get("src", "")[:80])


def read_pages(folder: Path) -> dict[Path, Page]:
    """Every page below `folder`, by its path."""
    pages: dict[Path, Page] = {}
    for path in sorted(folder.resolve().rglob("*.html")):
        page = pages[path] = Page()
        page.feed(path.read_text(encoding="utf-8"))
    return pages


def faults(folder: Path) -> Iterator[str]:
    """One line for each thing that is wrong, page first; addresses elsewhere are not asked."""
    pages = read_pages(folder)
    for path, page in pages.items():
        name = path.relative_to(folder.resolve())
        for address in page.links:
            if not urlsplit(address).scheme and (fault := _dead(address, path, pages)):
                yield f"{name}: a link leads to {address}: {fault}"
        for address in page.needed:
            parts = urlsplit(address)
            if parts.netloc:
                yield f"{name}: needs the network for {address}"
            elif not parts.scheme and (fault := _dead(address, path, pages)):
                yield f"{name}: needs {address}: {fault}"
        for address in page.silent:
            yield f"{name}: a picture without alternative text: {address}"


def _dead(address: str, path: Path, pages: dict[Path, Page]) -> str:
    """Why an address inside of the site leads nowhere; "" if it leads somewhere."""
    parts = urlsplit(address)
    target = (path.parent / unquote(parts.path)).resolve() if parts.path else path
    if target.is_dir():
        target = target / "index.html"
    if not target.is_file():
        return "no such file"
    anchor = unquote(parts.fragment)
    if anchor and target in pages and anchor not in pages[target].ids:
        return "no such place on that page"
    return ""
