"""The common part of the two runtimes: a handle on something that serves and can be stopped."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import socket
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from utils.engines.engine_errors import EngineStartError, PortTaken, UnsupportedOption
from utils.profiles import ROOT

LOGS = ROOT / ".run"
KEPT_LOGS = 40
OLD_S = 86400.0  # what was written to within this time may belong to a running engine
_serial = itertools.count()


class Handle(Protocol):
    """An engine that a runtime has started.

    Attributes:
        command: Command that was run, for the record.
        log_path: File of its output.
        identity: Process id or container id.
    """

    command: Sequence[str]
    log_path: Path
    identity: str

    def exit_code(self) -> int | None:
        """Its exit code; None while it runs."""

    def process_ids(self) -> set[int]:
        """Return its processes, as this machine numbers them."""

    def memory_bytes(self) -> int:
        """Resident memory of all its processes, bytes; 0 once it ended."""

    def kill(self) -> None:
        """End it at once and without warning, for a lab that wants to see what happens then."""

    def freeze(self) -> None:
        """Suspend it in the middle of its work. Its connections stay open."""

    def thaw(self) -> None:
        """Let a suspended engine go on."""

    def stop(self) -> None:
        """End it and all it started; return when nothing is left. Twice does no harm."""


def wait_until_serves(
    handle: Handle,
    title: str,
    serves: Callable[[], bool],
    hint: str,
    *,
    timeout_s: float,
    poll_s: float,
) -> None:
    """Wait until a program of ours that isn't an engine serves.

    Args:
        handle: Handle of the program.
        title: Name for people.
        serves: Asks it; is called again and again.
        hint: Place to look at if it does not.
        timeout_s: Patience, s.
        poll_s: Between two questions.

    Raises:
        EngineStartError: It ended, or does not serve in time; holds the end of its log.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        code = handle.exit_code()
        if code is not None or time.monotonic() > deadline:
            what = f"ended with code {code}." if code is not None else "does not serve."
            log = handle.log_path
            raise EngineStartError(title, what, tail(log, 20), hint, log)
        if serves():
            return
        time.sleep(poll_s)


def free_port() -> int:
    """Return a TCP port of 127.0.0.1 that is free now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check_port(port: int) -> None:
    """Refuse a port in use, and a number that is not a port.

    Raises:
        PortTaken: Something listens there.
        UnsupportedOption: Not a whole number from 1 to 65535.
    """
    if not isinstance(port, int) or not 0 < port < 65536:
        raise UnsupportedOption(f"port={port!r} isn't a port: give a number from 1024 to 65535.")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            raise PortTaken(port) from None


def new_log(engine: str) -> Path:
    """Path of a new log file, in `.run` or, if that cannot be written, among the temporary files."""
    folder = LOGS
    try:
        folder.mkdir(exist_ok=True)
        _forget_old_logs(folder)
    except OSError:
        pass
    if not os.access(folder, os.W_OK):
        folder = Path(tempfile.gettempdir())
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return folder / f"{engine}-{stamp}-{os.getpid()}-{next(_serial)}.log"


def _forget_old_logs(folder: Path) -> None:
    logs = sorted(folder.glob("*.log"))  # the names of one engine sort by time
    for old in (*logs[:-KEPT_LOGS], *folder.glob("*.yml")):
        with contextlib.suppress(FileNotFoundError):
            if time.time() - old.stat().st_mtime > OLD_S:
                old.unlink()


_LOG_HEAD = re.compile(
    r"\x1b\[[0-9;]*m|^\([^)]*\) *|\b(INFO|WARNING|DEBUG) [\d-]+ [\d:]+ +|\[[\w.]+:\d+\] *"
    r"|^\[[\d-]+ [\d:]+\] +"
)

_MESSAGE = re.compile(r"INFO\b|^\d+\.\d+\.\d+\.\d+ I |^\[[\d-]{10} [\d:]{8}\] ")


def last_log_line(path: Path) -> str:
    """Return the last line of a log that its engine meant as a message, without colours, names and times."""
    text = [line for line in tail(path, 40).splitlines() if _MESSAGE.search(line)]
    line = text[-1] if text else "loading"
    for _ in range(2):
        line = _LOG_HEAD.sub("", line).strip()
    return line


def tail(path: Path, lines: int = 20, width: int = 240) -> str:
    """Return the last lines of a log, each cut to `width` characters."""
    if not path.is_file():
        return "(no log)"
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - 65536))
        text = file.read().decode(errors="replace")
    kept = [line.rstrip()[:width] for line in text.splitlines() if line.strip()]
    return "\n".join(kept[-lines:]) or "(the log is empty)"
