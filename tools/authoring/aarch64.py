"""`python -m tools.authoring.aarch64`: whether every package of the course has a wheel for aarch64.

Resolved from the package index's metadata, for the Linux of a DGX Spark (glibc 2.34 and newer), no downloads.
PyTorch's build depends on the machine and is chosen in `packages.py`; its version is checked here.
"""

from __future__ import annotations

import functools
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from tools.doctor import needs
from tools.setup.packages import TORCH, uv_settings
from tools.setup.setup_steps import CMAKE, NINJA, REQUIREMENTS

PYTHONS = tuple(f"{major}.{minor}" for major, minor in needs.PYTHONS)
PLATFORM = "aarch64-manylinux_2_34"
TIMEOUT_S = 120.0
# Not in a file of requirements, but installed by set-up.
BESIDE = (f"torch=={TORCH}", f"cmake=={CMAKE}", f"ninja=={NINJA}")
# What has no wheel for aarch64, and what is used instead.
INSTEAD = {
    "llama-cpp-python": "its source package: NATIVE=1 compiles llama.cpp, on every processor"
}
_UNREACHED = re.compile(r"error sending request|dns error|failed to fetch|timed out", re.IGNORECASE)


@dataclass(frozen=True)
class Resolved:
    """One set of packages on one version of Python.

    Attributes:
        name: Its file, or `set-up`.
        python: Version of Python.
        packages: How many have a wheel.
        fault: What the resolver says where one has none; empty: all have.
    """

    name: str
    python: str
    packages: int
    fault: str = ""

    @property
    def unreached(self) -> bool:
        """Whether the index did not answer, so that nothing is known."""
        return bool(_UNREACHED.search(self.fault))


def requirements() -> Iterator[tuple[str, str]]:
    """The sets of packages: name and text, without hashes and without what is built from source."""
    for path in sorted(REQUIREMENTS.glob("*.txt")):
        text = re.sub(r"\\\n|--hash=\S+", "", path.read_text(encoding="utf-8"))
        kept = [line for line in text.splitlines() if line.partition("==")[0] not in INSTEAD]
        if any("==" in line for line in kept):
            yield path.name, "\n".join(kept)
    yield "set-up", "\n".join(BESIDE)


@functools.cache
def _settings() -> tuple[list[str], dict[str, str]]:
    """What uv is to know of this machine's index: what pip is configured to."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)
    options, environment = uv_settings(answer.stdout, alone=True)
    return options, os.environ | environment


def resolve(name: str, text: str, python: str) -> Resolved:
    """Asks the index whether each pinned package of a set has a wheel for aarch64 and this Python."""
    options, environment = _settings()
    # uv looks for an interpreter of that version, for seconds, unless it is given one.
    command = [sys.executable, "-m", "uv", "pip", "compile", "--python", sys.executable]
    command += ["--quiet", "--no-header", "--no-annotate", "--no-deps", "--only-binary", ":all:"]
    command += ["--python-platform", PLATFORM, "--python-version", python, *options, "-"]
    try:
        answer = subprocess.run(
            command,
            input=text,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
            check=False,
            env=environment,
        )
    except subprocess.TimeoutExpired:
        return Resolved(name, python, 0, f"uv timed out after {TIMEOUT_S:.0f} s")
    if answer.returncode != 0:
        return Resolved(name, python, 0, answer.stderr.strip() or "uv gave no reason")
    return Resolved(name, python, sum("==" in line for line in answer.stdout.splitlines()))


def main() -> int:
    """Checks all sets and prints the result; exit status 1 if a package has no wheel."""
    jobs = [(name, text, python) for name, text in requirements() for python in PYTHONS]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda job: resolve(*job), jobs))
    faults = [each for each in found if each.fault and not each.unreached]
    for each in faults:
        print(f"{each.name}, Python {each.python}: {each.fault}", file=sys.stderr)
    if faults:
        print(
            "Take a version that has one, or name what is used instead: INSTEAD in "
            "tools/authoring/aarch64.py, and the table in docs/machines.md.",
            file=sys.stderr,
        )
    missed = sum(each.unreached for each in found)
    count = max((sum(e.packages for e in found if e.python == p) for p in PYTHONS), default=0)
    print(
        f"aarch64, Python {', '.join(PYTHONS)}: up to {count} packages, {len(faults)} sets with faults"
    )
    if missed:
        print(f"NOT CHECKED: the package index did not answer for {missed} of {len(found)} sets")
    for name, instead in INSTEAD.items():
        print(f"{name}: {instead}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
