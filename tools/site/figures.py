"""Figures of executed notebooks: described while they are drawn, then files with that text as `alt`."""

from __future__ import annotations

import base64
import hashlib
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nbformat import NotebookNode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STARTUP = """\
from tools.site.figures import describe_figures
describe_figures()
"""


def write_startup(ipython: Path) -> None:
    """Fills a folder for IPYTHONDIR, so that a kernel says what each figure shows, as plain text."""
    folder = ipython / "profile_default" / "startup"
    folder.mkdir(parents=True)
    (folder / "figures.py").write_text(_STARTUP, encoding="utf-8")


def describe_figures() -> None:
    """In a kernel: from now on, the plain text beside a figure's picture describes it.

    A method, since IPython drops what is registered for figures when it chooses their format.
    """
    from matplotlib.figure import Figure

    kind: Any = Figure
    kind._repr_pretty_ = lambda self, printer, cycle: printer.text(words(self))


def words(figure: Figure) -> str:
    """What a figure shows: its label where the course gave it one, else what is written in it."""
    if label := str(figure.get_label()):
        return label
    title = figure.get_suptitle()
    parts = [f"{title}."] if title else []
    for axes in figure.axes:
        facts = [axes.get_title(), f"x: {axes.get_xlabel()}", f"y: {axes.get_ylabel()}"]
        if legend := axes.get_legend():
            facts.append("shown: " + ", ".join(text.get_text() for text in legend.get_texts()))
        parts.append("; ".join(fact for fact in facts if fact and not fact.endswith(": ")) + ".")
    return "Plot. " + " ".join(part for part in parts if part != ".")


def to_files(notebook: NotebookNode, folder: Path, address: str) -> None:
    """Moves the pictures in a notebook's outputs into files, and shows them with their text as `alt`.

    Args:
        notebook: changed in place.
        folder: where files go, named by their content.
        address: of `folder`, seen from the notebook's page.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            data = output.get("data", {})
            if "image/png" not in data:
                continue
            picture = base64.b64decode(data["image/png"])
            name = f"{hashlib.sha256(picture).hexdigest()[:16]}.png"
            (folder / name).write_bytes(picture)
            alt = escape(" ".join(data.get("text/plain", "").split()))
            size = 'width="{}" height="{}"'.format(*_size(picture))
            shown = f'<img class="figure" alt="{alt}" src="{address}/{name}" {size}>'
            output.data = {"text/html": shown}


def _size(png: bytes) -> tuple[int, int]:
    """Width and height in pixels: the first 8 bytes of the header chunk."""
    return int.from_bytes(png[16:20]), int.from_bytes(png[20:24])
