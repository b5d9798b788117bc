"""Runs set-up commands with one line of progress, a log file, and errors that name the next step."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from tools.setup.progress_line import Progress

TAIL_LINES = 12
FULL_DISK = (
    "The disk is full. Free some space (df -h .), then run the same command again: it starts this "
    "step afresh."
)


class SetupError(Exception):
    """A set-up step failed.

    Attributes:
        advice: Next step.
    """

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(f"{message}\n{advice}")
        self.advice = advice


class Halted(Exception):
    """A step was ended because another one failed, or because somebody pressed Ctrl-C."""


class Halt:
    """Ends the commands of several shells, in whichever threads they run, and lets none begin another."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        self._running: set[subprocess.Popen[str]] = set()
        self._called = False

    def start(self, begin: Callable[[], subprocess.Popen[str]]) -> subprocess.Popen[str]:
        """Start a command, in a process group of its own, with `begin`.

        Raises:
            Halted: It is too late for that.
        """
        with self._guard:
            self.check()
            process = begin()
            self._running.add(process)
            return process

    def ended(self, process: subprocess.Popen[str]) -> None:
        """Forget a command that has ended."""
        with self._guard:
            self._running.discard(process)

    def check(self) -> None:
        """Go on unless `call` was called.

        Raises:
            Halted: It was.
        """
        if self._called:
            raise Halted

    def call(self) -> None:
        """Kill every command that runs, with its children."""
        with self._guard:
            self._called = True
            for process in self._running:
                kill_group(process)


def kill_group(process: subprocess.Popen[str]) -> None:
    """Kill a command that leads a process group, and all of the group."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)


class Shell:
    """Runs commands one after the other; their output goes to `log`, their gist to one line.

    Args:
        title: Name of the step.
        log: File of its output.
        lock: File descriptor that commands inherit.
        progress: Shows what the step is doing; shells of several threads share one.
        halt: Ends the step from another thread.
    """

    def __init__(
        self,
        title: str,
        log: Path,
        lock: int | None = None,
        progress: Progress | None = None,
        halt: Halt | None = None,
    ) -> None:
        self.title = title
        self.log = log
        self._inherited = () if lock is None else (lock,)
        self._progress = progress or Progress()
        self._halt = halt or Halt()
        self._began = time.monotonic()
        self._last_line = ""
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")

    def say(self, text: str) -> None:
        """Show `text` as what the step is doing now."""
        self._last_line = text
        self._show(force=True)

    def finish(self) -> None:
        """Report that the step is ready, and its time."""
        took = time.monotonic() - self._began
        self._progress.finish(self.title, f"  {self.title}: ready after {took:.0f} s")

    def output(self, command: Sequence[str]) -> str:
        """Return the output of a short command; "" if it fails."""
        self._halt.check()
        try:
            return subprocess.run(
                command, capture_output=True, text=True, errors="replace", check=True, timeout=60
            ).stdout
        except (OSError, subprocess.SubprocessError):
            return ""

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Run `command` from the repository root to its end.

        Raises:
            SetupError: It exited with another code than 0; holds the last lines of its output.
            Halted: It was ended from another thread.
        """
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            process = self._halt.start(lambda: self._begin(command, environment or {}))
            ticker = threading.Thread(target=self._tick, args=(process,), daemon=True)
            ticker.start()
            try:
                assert process.stdout is not None
                for line in process.stdout:
                    log.write(line)
                    log.flush()
                    if line.strip() and not line.startswith("WARNING"):
                        self._last_line = line.strip()
                code = process.wait()
            except BaseException:
                kill_group(process)
                process.wait()
                raise
            finally:
                self._halt.ended(process)
        self._halt.check()
        if code != 0:
            raise SetupError(*self._explain(command, code))

    def _begin(
        self, command: Sequence[str], environment: Mapping[str, str]
    ) -> subprocess.Popen[str]:
        return subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            env={**os.environ, **environment},
            start_new_session=True,
            pass_fds=self._inherited,
        )

    def _tick(self, process: subprocess.Popen[str]) -> None:
        while process.poll() is None:
            self._show()
            time.sleep(0.5)

    def _show(self, force: bool = False) -> None:
        elapsed = time.monotonic() - self._began
        self._progress.show(self.title, elapsed, self._last_line, force=force)

    def _explain(self, command: Sequence[str], code: int) -> tuple[str, str]:
        everything = self.log.read_text()
        lines = [x for x in everything.splitlines() if not x.startswith("WARNING: Location")]
        tail = "\n".join("    " + line[:200] for line in lines[-TAIL_LINES:])
        message = f"{self.title}: `{' '.join(command)[:160]}` ended with code {code}:\n{tail}"
        return message, advice_for("\n".join(lines[-80:]), self.log)


def advice_for(output: str, log: Path) -> str:
    """Return the next step for a command that failed with `output`."""
    unreachable = (
        "The package index could not be reached. If you are behind a proxy, set HTTPS_PROXY. Run the "
        "same command again when the index can be reached."
    )
    hints = {
        "No space left on device": FULL_DISK,
        "Temporary failure in name resolution": unreachable,
        "Retrying (": unreachable,
        "ProxyError": unreachable,
        "Tunnel connection failed": unreachable,
        "IncompleteRead": "The download was cut off. Run the same command again.",
        "No matching distribution": "The package index has no such version for this Python and "
        "machine. Python 3.11 to 3.13 on Linux x86-64 or aarch64 have wheels for all.",
        "HASHES": "A downloaded file is not the one that was pinned: do not use it. Clear pip's "
        "cache (python3 -m pip cache purge) and try again; if it persists, report it.",
        "libgomp.so.1": "The library libgomp is missing. Install it (Debian, Ubuntu: the package "
        "libgomp1), then run the same command again.",
        "Killed": "The process was killed, most likely for want of memory: close other programs.",
    }
    for sign, hint in hints.items():
        if sign in output:
            return f"{hint}\nThe whole log: {log}"
    return f"The whole log: {log}. What was half made has been removed; run the same command again."
