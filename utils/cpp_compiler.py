"""The C++ compiler of this machine, which labs build engine files and a decoder step with."""

from __future__ import annotations

import os
import shutil
import subprocess

NAMES = ("g++", "clang++", "c++")
INSTALL = (
    "Debian, Ubuntu: apt install g++; Fedora: dnf install gcc-c++; macOS: xcode-select --install"
)


class NoCompilerError(RuntimeError):
    """Missing C++ compiler; the message tells how to install one."""


def find_compiler() -> str:
    """Return the path of the C++ compiler: that of the variable CXX, or the first of `NAMES`.

    Raises:
        NoCompilerError: There is none.
    """
    wanted = [os.environ["CXX"]] if os.environ.get("CXX") else list(NAMES)
    for name in wanted:
        if found := shutil.which(name):
            return found
    raise NoCompilerError(
        f"There is no C++ compiler ({', '.join(wanted)}). Install one ({INSTALL}), or set CXX to its path."
    )


def compiler_version(path: str) -> str:
    """Return the first line of a compiler's version, or "" if it doesn't start."""
    try:
        answer = subprocess.run([path, "--version"], capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.partition("\n")[0].strip()
