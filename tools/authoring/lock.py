"""`make lock`: pins requirements/course.txt and site.txt, from pyproject.toml.

One resolution for Linux and macOS, x86-64 and aarch64, Python 3.11 and newer (uv, universal). PyTorch is
left out, with the CUDA packages that its default build asks for: set-up chooses its build.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys

from tools.setup.setup_steps import REQUIREMENTS
from utils.files import write_whole
from utils.profiles import ROOT

_OF_CUDA_TORCH = re.compile(r"(nvidia-|cuda-|triton==)")
LOCKS = {
    "course.txt": ("extra: test", ["--extra", "test", str(ROOT / "pyproject.toml")]),
    "site.txt": ("group: site", ["--group", f"{ROOT / 'pyproject.toml'}:site"]),
}


def main() -> None:
    """Resolve and write the files; an argument is refused, because a run changes the pins."""
    argparse.ArgumentParser(prog="python -m tools.authoring.lock", description=__doc__).parse_args()
    for name in LOCKS:
        lock(name)


def lock(name: str) -> None:
    """Resolve and write one file of `LOCKS`."""
    what, of = LOCKS[name]
    command = [sys.executable, "-m", "uv", "pip", "compile", "--universal", "--quiet"]
    options = ["--python-version", "3.11.0", "--no-annotate", "--no-header"]
    answer = subprocess.run(
        [*command, *options, "--no-emit-package", "torch", *of],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        sys.exit(f"uv could not resolve {name}:\n{answer.stderr}")
    lines = [line for line in answer.stdout.splitlines() if not _OF_CUDA_TORCH.match(line)]
    header = f"# Made by `make lock` from pyproject.toml ({what}). Do not edit.\n"
    write_whole(REQUIREMENTS / name, header + "\n".join(lines) + "\n")
    print(f"requirements/{name}: {len(lines)} packages")


if __name__ == "__main__":
    main()
