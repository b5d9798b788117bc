"""A Jupyter server, started as the course starts it."""

import contextlib
import os
import re
import signal
import subprocess
import time
from dataclasses import dataclass


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
