"""Commands of docs/two-sparks.md, as bash passes them on."""

import re
import shlex
import subprocess
from functools import cache

from utils.profiles import ROOT

PAGE = ROOT / "docs/two-sparks.md"
HEAD, WORKER, LINK = "192.168.100.10", "192.168.100.11", "enp1s0f1np1"  # set on the page

# Prints the arguments of a command instead of running it. `grep` finds everything, so that no loop waits.
_STUBS = r"""
docker() { printf '%s\x1f' docker "$@" >&3; printf '\x1e' >&3; }
curl() { printf '%s\x1f' curl "$@" >&3; printf '\x1e' >&3; }
grep() { cat; }
exec 3>&1 >/dev/null
"""


def bash_blocks() -> list[str]:
    """Return the page's bash blocks, in order."""
    return re.findall(r"^```bash\n(.*?)^```$", PAGE.read_text(), flags=re.S | re.M)


@cache
def commands() -> tuple[tuple[str, ...], ...]:
    """Return the words of every `docker` and `curl` command, with the page's variables filled in.

    A script for `bash -c` is split into its words.
    """
    variables = "".join(b for b in bash_blocks() if re.match(r"(HEAD|MPI)=", b))
    found = []
    for block in bash_blocks():
        if "docker " not in block and "curl " not in block:
            continue
        done = subprocess.run(
            ["bash", "-eu", "-c", _STUBS + variables + block],
            capture_output=True,
            text=True,
            check=True,
            env={"HOME": "/home/me", "PATH": "/usr/bin:/bin"},
        )
        lines = [line.split("\x1f")[:-1] for line in done.stdout.split("\x1e") if line]
        for words in lines:
            inner = shlex.split(words.pop()) if words[-3:-1] == ["bash", "-c"] else []
            found.append((*words, *inner))
    return tuple(found)


def arguments_after(*start: str) -> list[list[str]]:
    """Return the arguments that follow `start` in each command that contains it."""
    found = []
    for words in commands():
        for place in range(len(words) - len(start) + 1):
            if words[place : place + len(start)] == start:
                found.append(list(words[place + len(start) :]))
    return found
