"""The process runtime: an engine as a child of a watchdog that outlives neither its kernel nor its engine."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil

from utils import loopback
from utils.engines import watchdog
from utils.profiles import ROOT

# OpenMP threads that spin at a barrier starve whatever shares the cores, the benchmark's client for one:
# with another busy process on 2 cores, llama.cpp decoded 4 times faster when its threads sleep instead.
SHARED_CORES = {"OMP_WAIT_POLICY": "PASSIVE", "PYTHONUNBUFFERED": "1"}


class ProcessHandle:
    """An engine running as a local process. See `runtime.Handle`."""

    def __init__(self, command: Sequence[str], environment: Mapping[str, str], log: Path) -> None:
        self.command: Sequence[str] = tuple(command)
        self.log_path = log
        self._pid_file = log.with_suffix(".pid")
        watch = [
            sys.executable,
            watchdog.__file__,
            "process",
            str(os.getpid()),
            str(self._pid_file),
            "--",
        ]
        with log.open("wb") as output:
            self._watchdog = subprocess.Popen(
                [*watch, *command],
                stdout=output,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                env={**os.environ, **loopback.no_proxy(os.environ), **SHARED_CORES, **environment},
                cwd=ROOT,
                start_new_session=True,
            )
        self.identity = str(self._watchdog.pid)

    def exit_code(self) -> int | None:
        """Return the engine's exit code (128 + signal number for a signal); None while it runs."""
        return self._watchdog.poll()

    def process_ids(self) -> set[int]:
        """Return the ids of the engine's processes."""
        with contextlib.suppress(psutil.NoSuchProcess):
            return {p.pid for p in psutil.Process(self._watchdog.pid).children(recursive=True)}
        return set()

    def memory_bytes(self) -> int:
        """Memory of the engine's processes, bytes; pages that they share count once (Linux: PSS)."""
        total = 0
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._watchdog.pid).children(recursive=True):
                with contextlib.suppress(psutil.Error):
                    used = process.memory_full_info()
                    total += getattr(used, "pss", 0) or used.uss
        return total

    def kill(self) -> None:
        """Kill the engine's processes, as the kernel does when memory runs out; `stop` cleans up."""
        with contextlib.suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self._watchdog.pid).children(recursive=True):
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.kill()

    def freeze(self) -> None:
        """Suspend the engine's processes (SIGSTOP)."""
        for process in psutil.Process(self._watchdog.pid).children(recursive=True):
            process.suspend()

    def thaw(self) -> None:
        """Let the engine's processes go on (SIGCONT)."""
        for process in psutil.Process(self._watchdog.pid).children(recursive=True):
            process.resume()

    def stop(self) -> None:
        """Ask the watchdog to end the engine, and end both by force if it doesn't or was killed itself."""
        if self._watchdog.poll() is None:
            self._watchdog.send_signal(signal.SIGTERM)
            try:
                self._watchdog.wait(timeout=2 * watchdog.GRACE_S + 5)
            except subprocess.TimeoutExpired:
                watchdog.end_group(self._watchdog.pid, grace_s=1)
                self._watchdog.wait()
        elif self._watchdog.returncode < 0 and self._pid_file.exists():
            watchdog.end_group(int(self._pid_file.read_text() or 0))
        self._pid_file.unlink(missing_ok=True)
