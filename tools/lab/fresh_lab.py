"""A fresh notebook of a lab at any time, without git: `make fresh LAB=3`.

A lab's notebook carries its own untouched exercises, predictions and answers in its metadata, and a digest
of all its cells. A fresh copy is made from these. If cells that aren't the learner's were changed, it comes
from the copy that `make lab` keeps when it opens an untouched notebook.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tools.lab.course_error import CourseError
from tools.lab.labs import find_lab
from utils.files import write_whole
from utils.profiles import ROOT

KEPT = Path(".run") / "fresh"


def digest(cells: list[Any]) -> str:
    """Return a fingerprint of the parts of cells that a person could change: ids, kinds and sources."""
    facts = [(cell.get("id"), cell["cell_type"], _text(cell["source"])) for cell in cells]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


def keep_if_untouched(notebook: Path, root: Path = ROOT) -> None:
    """Keep a copy of a lab's notebook for `make_fresh`, if nobody has changed it yet."""
    text = notebook.read_text(encoding="utf-8")
    found = _read(text)
    if found is not None and _is_untouched(found):
        write_whole(root / KEPT / notebook.name, text)


def make_fresh(name: str, root: Path = ROOT) -> tuple[Path, Path]:
    """Put a fresh notebook in the place of a lab's, and keep the old one next to it.

    Args:
        name: Lab, as `find_lab` takes it.
        root: The course's folder.

    Returns:
        The fresh notebook, and the old one under its new name.

    Raises:
        CourseError: There is no such lab, or no way to a fresh notebook. Nothing was changed.
    """
    notebook = find_lab(name, root)
    fresh = _restored(notebook.read_text(encoding="utf-8"))
    if fresh is None:
        kept = root / KEPT / notebook.name
        if not kept.is_file():
            raise CourseError(
                f"{notebook.name} has changed cells that aren't exercises, and no untouched copy was kept."
                " Take the file from the release or the clone that you were given."
            )
        fresh = kept.read_text(encoding="utf-8")
    old = _free_name(notebook)
    notebook.rename(old)
    return write_whole(notebook, fresh), old


def _restored(text: str) -> str | None:
    """Return a notebook as it was handed out, or None if its own facts don't suffice for that."""
    notebook = _read(text)
    if notebook is None:
        return None
    stubs = _stubs(notebook)
    cells = []
    for cell in notebook["cells"]:
        if "nbgrader" not in cell.get("metadata", {}):
            continue  # a cell that the learner added
        if cell["cell_type"] == "code":
            cell |= {"execution_count": None, "outputs": []}
        source = stubs.get(cell.get("id"), _text(cell["source"]))
        cells.append(cell | {"source": source.splitlines(keepends=True)})
    restored = {**notebook, "cells": cells}
    if not _is_untouched(restored):
        return None
    return json.dumps(restored, indent=1, ensure_ascii=False, sort_keys=True) + "\n"


def _is_untouched(notebook: Mapping[str, Any]) -> bool:
    ran = any(cell.get("outputs") for cell in notebook["cells"])
    return not ran and digest(notebook["cells"]) == notebook["metadata"]["course"]["digest"]


def _read(text: str) -> dict[str, Any] | None:
    """Return a lab's notebook, or None if it isn't one any more."""
    try:
        notebook: dict[str, Any] = json.loads(text)
        _stubs(notebook)
        digest(notebook["cells"])
    except (ValueError, KeyError, TypeError, AttributeError):
        return None
    return notebook


def _stubs(notebook: Mapping[str, Any]) -> dict[str, str]:
    """Return the untouched text of each cell that a learner fills, by the cell's id."""
    lab = notebook["metadata"]["course"]["lab"]  # as `tools.lab.judge.cells.LabCells` writes it
    return {slot["cell"]: slot["stub"] for kind in ("exercises", "others") for slot in lab[kind]}


def _free_name(notebook: Path) -> Path:
    number = 1
    while (path := notebook.with_name(f"old-{number}-{notebook.name}")).exists():
        number += 1
    return path


def _text(source: str | list[str]) -> str:
    return source if isinstance(source, str) else "".join(source)
