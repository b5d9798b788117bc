"""A Jupyter server, started as the course starts it, and what it has left running."""

import contextlib
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass

import psutil

MARK = "COURSE_TEST_RUN"


@dataclass(frozen=True)
class Served:
    """A running server: its process, its address, the page that it shows first, with its token."""

    process: subprocess.Popen
    base: str
    page: str
    token: str


@contextlib.contextmanager
def serving(command, cwd, log, env=None):
    """Starts a Jupyter server; Ctrl-C ends it."""
    with log.open("w") as out:
        server = subprocess.Popen(
            command,
            stdout=out,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env={**os.environ, **(env or {})},
        )
    try:
        found = None
        for _ in range(300):
            found = re.search(r"(http://127\.0\.0\.1:\d+)/\S+?token=(\w+)", log.read_text())
            if found or server.poll() is not None:
                break
            time.sleep(0.2)
        assert found, log.read_text()
        yield Served(server, found[1], found[0], found[2])
    finally:
        server.send_signal(signal.SIGINT)
        try:
            server.wait(30)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def survivors(mark, patience_s=5.0, but=()):
    """Processes whose environment holds `mark`, after some time to end.

    Args:
        mark: value of the variable MARK that their ancestor was started with.
        patience_s: seconds that they have.
        but: words; a process that has one in its command line may stay.
    """
    deadline = time.monotonic() + patience_s
    while (found := marked(mark, but)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return found


def marked(mark, but=()):
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.environ().get(MARK) != mark or process.status() == psutil.STATUS_ZOMBIE:
                continue
            if not any(word in " ".join(process.cmdline()) for word in but):
                found.append(process)
    return found
