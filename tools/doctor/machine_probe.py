"""The machine as the doctor asks it: commands, files, free disk. A test hands in a recorded one."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from tools.setup.setup_steps import Step
from utils.profiles import ProfileError

TIMEOUT_S = 15.0


@dataclass(frozen=True)
class CommandResult:
    """Result of a command.

    Attributes:
        code: Its exit code; None: it does not exist, or did not end in time.
        text: Its output.
        error: Text of its error output, or the reason why there is no exit code.
    """

    code: int | None
    text: str = ""
    error: str = ""

    @property
    def fine(self) -> bool:
        """True if it ended well."""
        return self.code == 0

    @property
    def missing(self) -> bool:
        """True if there is no such program."""
        return self.code is None and not self.error

    @property
    def words(self) -> str:
        """All that it said, in one line."""
        return " ".join(f"{self.text} {self.error}".split())


class Probe:
    """This machine.

    Attributes:
        environment: Environment variables.
        home: The user's folder.
        python: Version of the Python that runs this, and that set-up would use.
    """

    def __init__(self) -> None:
        self.environment: Mapping[str, str] = os.environ
        self.home = str(Path.home())
        self.python: tuple[int, ...] = tuple(sys.version_info[:3])

    def run(self, command: Sequence[str]) -> CommandResult:
        """Run a command that only reads, for at most `TIMEOUT_S` seconds."""
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                text=True,
                errors="replace",
                timeout=TIMEOUT_S,
                stdin=subprocess.DEVNULL,
                check=False,
            )
        except subprocess.TimeoutExpired:
            return CommandResult(None, error=f"did not answer within {TIMEOUT_S:.0f} s")
        except OSError:
            return CommandResult(None)
        return CommandResult(done.returncode, done.stdout, done.stderr)

    def run_all(self, commands: Mapping[str, Sequence[str]]) -> dict[str, CommandResult]:
        """Run all at the same time, and return their results by the same names."""
        with ThreadPoolExecutor(len(commands)) as pool:
            return dict(zip(commands, pool.map(self.run, commands.values())))  # noqa: B905 (3.9)

    def read(self, path: str) -> str | None:
        """Return a file's text; None: there is none, or it may not be read."""
        try:
            return Path(path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def exists(self, path: str) -> bool:
        """Return whether there is such a file or folder, as far as this user may see."""
        return os.path.exists(path)

    def free_bytes(self, path: str) -> float | None:
        """Free disk at `path`, or at the nearest folder above it that exists."""
        place = Path(path)
        while not place.exists() and place != place.parent:
            place = place.parent
        try:
            return float(shutil.disk_usage(place).free)
        except OSError:
            return None

    def has_module(self, name: str) -> bool:
        """Return whether the Python that runs this has a module."""
        return find_spec(name) is not None

    def done(self, step: Step) -> bool:
        """Return whether a set-up step is complete.

        A wrong COURSE_PROFILE or COURSE_LOAD is a diagnosis of its own, and no step is complete then.
        """
        try:
            return step.done()
        except ProfileError:
            return False
