"""Which run of which notebook cell started an engine, so that running the cell again never doubles it.

A cell that is run again makes its engines before it lets go of the old ones, and on one GPU only one set
fits. Outside a notebook, every start stands for itself.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Protocol

from utils.engines.start_progress import running_kernel


class Stoppable(Protocol):
    """An engine, or several."""

    def stop(self) -> None:
        """Stop it; twice does no harm."""


@dataclass(frozen=True)
class CellRun:
    """One run of a cell.

    Attributes:
        cell: Identifier that JupyterLab gives the cell, or its text where the front end gives none.
        run: Identifier of the request that runs it.
    """

    cell: str
    run: str


_started: list[tuple[CellRun, weakref.ref[Stoppable]]] = []
_lock = threading.Lock()


def this_run() -> CellRun | None:
    """Return the run of the cell that calls this, or None outside a notebook."""
    shell = running_kernel()
    request = shell.get_parent() if shell is not None else None
    if not request or request.get("header", {}).get("msg_type") != "execute_request":
        return None
    cell = (request.get("metadata") or {}).get("cellId") or request["content"]["code"]
    return CellRun(str(cell), str(request["header"]["msg_id"]))


def stop_earlier(run: CellRun | None) -> None:
    """Stop what earlier runs of this run's cell started."""
    if run is None:
        return
    with _lock:
        earlier = [known for known in _started if known[0].cell == run.cell and known[0] != run]
        _started[:] = [known for known in _started if known not in earlier]
    for _, reference in earlier:
        if (old := reference()) is not None:
            old.stop()


def remember(engine: Stoppable, run: CellRun | None) -> None:
    """Remember that `run` starts `engine`."""
    if run is not None:
        with _lock:
            _started[:] = [known for known in _started if known[1]() is not None]
            _started.append((run, weakref.ref(engine)))
