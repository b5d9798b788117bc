"""Ends an engine when the process that started it is gone, so that no kernel leaves an engine running.

Run as a file, so that it loads nothing of the course. `watchdog.py process PARENT PIDFILE -- COMMAND...`
runs the command in a process group of its own and passes on its exit code; `watchdog.py container PARENT
NAME` watches a container. Both end what they watch when PARENT is no longer their parent (it died, even
by SIGKILL) or on SIGTERM.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

import psutil

POLL_S = 0.25
ORPHAN_S = 30.0  # how long the container of a dead parent is looked for, seconds
CONFLICT = 409  # HTTP status of the daemon
GRACE_S = float(os.environ.get("COURSE_STOP_GRACE_S", "10"))  # from SIGTERM to SIGKILL, seconds

_stop_asked = False


def _ask_stop(number: int, frame: FrameType | None) -> None:
    global _stop_asked
    _stop_asked = True


def _orphaned(parent: int) -> bool:
    return os.getppid() != parent


def end_group(leader: int, grace_s: float = GRACE_S) -> None:
    """End a process, its group and its descendants: SIGTERM, then SIGKILL after `grace_s` seconds."""
    family: list[psutil.Process] = []
    try:
        head = psutil.Process(leader)
        family = [head, *head.children(recursive=True)]
    except psutil.NoSuchProcess:
        pass
    for number in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(leader, number)
        for process in family:
            try:
                process.send_signal(number)
            except psutil.NoSuchProcess:
                continue
        _, family = psutil.wait_procs(family, timeout=grace_s)
        if not family and not _group_alive(leader):
            return


def _group_alive(leader: int) -> bool:
    try:
        os.killpg(leader, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return any(_in_group(p, leader) for p in psutil.process_iter())


def _in_group(process: psutil.Process, group: int) -> bool:
    try:
        return os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE
    except (ProcessLookupError, psutil.NoSuchProcess):
        return False


def watch_process(parent: int, pid_file: str, command: Sequence[str]) -> int:
    """Run `command` until it or the parent ends, and return its exit code (128 + signal number).

    The engine's process id is written to `pid_file`, because the engine has to be ended even if the
    watchdog itself is killed.
    """
    engine = subprocess.Popen(command, start_new_session=True, stdin=subprocess.DEVNULL)
    with open(pid_file, "w") as file:
        file.write(str(engine.pid))
    while engine.poll() is None and not _stop_asked and not _orphaned(parent):
        time.sleep(POLL_S)
    ended_by_itself = engine.poll()
    end_group(engine.pid)
    code = engine.wait()
    if ended_by_itself is None:
        return 0
    return code if code >= 0 else 128 - code


def remove_container(client: Any, name: str) -> bool:
    """Remove a container and its unnamed volumes, running or not.

    Args:
        client: Client of the docker daemon.
        name: The container's.

    Returns:
        True if there was one.
    """
    import docker

    try:
        client.containers.get(name).remove(force=True, v=True)
    except docker.errors.NotFound:
        return False
    except docker.errors.APIError as error:
        if error.status_code != CONFLICT:  # somebody else is just removing it
            raise
    return True


def watch_container(parent: int, name: str) -> int:
    """Wait until the parent is gone, then remove the container.

    It may not be there yet (the daemon finishes what a dead client asked for), and the daemon itself may be
    about to start again: both are waited for.
    """
    while not _stop_asked:
        if _orphaned(parent):
            return _remove_in_the_end(name)
        time.sleep(POLL_S)
    return 0


def _remove_in_the_end(name: str) -> int:
    import docker
    import requests

    deadline = time.monotonic() + ORPHAN_S
    while time.monotonic() < deadline:
        with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
            if remove_container(docker.from_env(), name):
                return 0
        time.sleep(POLL_S)
    return 1


def main(arguments: Sequence[str]) -> int:
    """Command line; see the module's docstring."""
    signal.signal(signal.SIGTERM, _ask_stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    kind, parent, *rest = arguments
    if kind == "container":
        return watch_container(int(parent), rest[0])
    assert kind == "process" and rest[1] == "--", f"unknown arguments {arguments}"
    return watch_process(int(parent), rest[0], rest[2:])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
