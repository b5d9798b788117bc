"""A lab's notebook executed into a file, without a browser: `make run LAB=3`.

The run survives a closed browser and a lost connection, because it ignores SIGHUP and writes the file
after each cell.
"""

from __future__ import annotations

import signal
import time
from datetime import datetime
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from tools.lab.course_error import CourseError
from tools.lab.labs import KERNEL, find_lab
from utils.files import write_whole
from utils.profiles import ROOT

FOLDER = Path("records") / "notebooks"


def run_lab(name: str, root: Path = ROOT) -> Path:
    """Execute a lab's notebook from top to bottom, and return the file with its outputs.

    The learner's own notebook stays as it is.

    Args:
        name: Lab, as `find_lab` takes it.
        root: The course's folder.

    Raises:
        CourseError: There is no such lab, or a cell failed. The file then ends at that cell.
    """
    source = find_lab(name, root)
    target = root / FOLDER / f"{source.stem}-{datetime.now():%Y-%m-%d-%H%M%S}.ipynb"
    notebook: Any = nbformat.read(source, as_version=4)
    code = [number for number, cell in enumerate(notebook.cells) if cell.cell_type == "code"]
    began = time.monotonic()
    signal.signal(signal.SIGHUP, signal.SIG_IGN)

    def save(cell: Any, cell_index: int, **_: Any) -> None:
        write_whole(target, nbformat.writes(notebook))
        done = sum(number <= cell_index for number in code)
        print(f"  cell {done} of {len(code)} after {time.monotonic() - began:.0f} s", flush=True)

    print(f"Executing {source.name} into {target.relative_to(root)}. Ctrl-C stops it.", flush=True)
    client = NotebookClient(
        notebook,
        timeout=None,
        kernel_name=KERNEL,
        resources={"metadata": {"path": str(source.parent)}},
        on_cell_executed=save,
    )
    try:
        client.execute()
    except CellExecutionError as error:
        raise CourseError(
            f"A cell failed: {error.ename}: {error.evalue}\n"
            f"Everything up to that cell is in {target.relative_to(root)}."
        ) from None
    return target
