"""What the two runtimes have in common: a handle on something that serves and can be stopped."""

from __future__ import annotations

import itertools
import os
import re
import socket
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from utils.engines.errors import PortTaken
from utils.setup.steps import ROOT

LOGS = ROOT / ".run"
KEPT_LOGS = 40
_serial = itertools.count()


class Handle(Protocol):
    """An engine that a runtime has started.

    Attributes:
        command: What was run, for the record.
        log_path: Where its output goes.
        identity: Process id or container id.
    """

    command: Sequence[str]
    log_path: Path
    identity: str

    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""

    def memory_bytes(self) -> int:
        """Resident memory of all its processes, bytes; 0 once it ended."""

    def stop(self) -> None:
        """Ends it and all it started; returns when nothing is left. Twice does no harm."""


def free_port() -> int:
    """A TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> None:
    """Refuses a port in use.

    Raises:
        PortTaken: Something listens there.
    """
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise PortTaken(port) from None


def new_log(engine: str) -> Path:
    """Path of a new log file; the oldest logs beyond a few dozen are removed."""
    LOGS.mkdir(exist_ok=True)
    for old in sorted(LOGS.glob("*.log"), key=lambda p: p.stat().st_mtime)[:-KEPT_LOGS]:
        old.unlink(missing_ok=True)
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return LOGS / f"{engine}-{stamp}-{os.getpid()}-{next(_serial)}.log"


_LOG_HEAD = re.compile(
    r"\x1b\[[0-9;]*m|^\([^)]*\) *|\b(INFO|WARNING|DEBUG) [\d-]+ [\d:]+ +|\[[\w.]+:\d+\] *"
)


def gist(path: Path) -> str:
    """The last line of a log without colours, process names and times."""
    line = tail(path, 1)
    for _ in range(2):
        line = _LOG_HEAD.sub("", line).strip()
    return line


def tail(path: Path, lines: int = 20, width: int = 240) -> str:
    """The last lines of a log, each cut to `width` characters."""
    if not path.is_file():
        return "(no log)"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        text = file.read().decode(errors="replace")
    kept = [line.rstrip()[:width] for line in text.splitlines() if line.strip()]
    return "\n".join(kept[-lines:]) or "(the log is empty)"
