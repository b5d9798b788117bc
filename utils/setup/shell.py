"""Runs set-up commands with one line of progress, a log file, and errors that name the next step."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

TAIL_LINES = 12
QUIET_INTERVAL_S = 20.0
FULL_DISK = (
    "The disk is full. Free some space (df -h .), then run the same command again: it starts this "
    "step afresh."
)


class SetupError(Exception):
    """A set-up step failed.

    Attributes:
        advice: What to do next.
    """

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(f"{message}\n{advice}")
        self.advice = advice


class Shell:
    """Runs commands one after the other; their output goes to `log`, their gist to one line."""

    def __init__(self, title: str, log: Path, lock: int | None = None) -> None:
        """Args: what the step is called, where its output goes, and the lock that commands inherit."""
        self.title = title
        self.log = log
        self._inherited = () if lock is None else (lock,)
        self._began = time.monotonic()
        self._last_line = ""
        self._last_shown = 0.0
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text("")

    def say(self, text: str) -> None:
        """Shows `text` as what the step is doing now."""
        self._last_line = text
        self._show(force=True)

    def run(self, command: Sequence[str], environment: Mapping[str, str] | None = None) -> None:
        """Runs `command` from the repository root to its end.

        Raises:
            SetupError: It exited with another code than 0; holds the last lines of its output.
        """
        with self.log.open("a") as log:
            log.write(f"$ {' '.join(command)}\n")
            log.flush()
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                stdin=subprocess.DEVNULL,
                text=True,
                errors="replace",
                env={**os.environ, **(environment or {})},
                start_new_session=True,
                pass_fds=self._inherited,
            )
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
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
                raise
        if code != 0:
            raise SetupError(*self._explain(command, code))

    def _tick(self, process: subprocess.Popen[str]) -> None:
        while process.poll() is None:
            self._show()
            time.sleep(0.5)

    def _show(self, force: bool = False) -> None:
        elapsed = time.monotonic() - self._began
        line = f"  {self.title} ... {elapsed:4.0f} s  {self._last_line}"
        if sys.stdout.isatty():
            width = max(20, os.get_terminal_size().columns - 1)
            print(f"\r{line[:width]:<{width}}", end="", flush=True)
        elif force or elapsed - self._last_shown >= QUIET_INTERVAL_S:
            self._last_shown = elapsed
            print(line[:110], flush=True)

    def _explain(self, command: Sequence[str], code: int) -> tuple[str, str]:
        everything = self.log.read_text()
        lines = [x for x in everything.splitlines() if not x.startswith("WARNING: Location")]
        tail = "\n".join("    " + line[:200] for line in lines[-TAIL_LINES:])
        message = f"{self.title}: `{' '.join(command)[:160]}` ended with code {code}:\n{tail}"
        return message, advice_for("\n".join(lines[-80:]), self.log)


def advice_for(output: str, log: Path) -> str:
    """The next step for a command that failed with `output`."""
    unreachable = "The package index could not be reached. Run the same command again when it can."
    hints = {
        "No space left on device": FULL_DISK,
        "Temporary failure in name resolution": unreachable,
        "Retrying (": unreachable,
        "No matching distribution": "The package index has no such version for this Python and "
        "machine. Python 3.11 to 3.13 on Linux x86-64 or aarch64 have wheels for all.",
        "HASHES": "A downloaded file is not the one that was pinned: do not use it. Clear pip's "
        "cache (python3 -m pip cache purge) and try again; if it persists, report it.",
        "Killed": "The process was killed, most likely for want of memory: close other programs.",
    }
    for sign, hint in hints.items():
        if sign in output:
            return f"{hint}\nThe whole log: {log}"
    return f"The whole log: {log}. What was half made has been removed; run the same command again."
