"""`make lock`: pins the course environment in requirements/course.txt, from pyproject.toml.

One resolution for Linux and macOS, x86-64 and aarch64, Python 3.11 and newer (uv, universal). PyTorch is
left out, with the CUDA packages that its default build asks for: utils/setup/steps.py chooses its build.
"""

from __future__ import annotations

import re
import subprocess
import sys

from utils.setup.steps import REQUIREMENTS, ROOT

HEADER = "# Made by `make lock` from pyproject.toml (extra: test). Do not edit.\n"
_OF_CUDA_TORCH = re.compile(r"(nvidia-|cuda-|triton==)")


def main() -> None:
    """Resolves and writes the file, beside and then renamed."""
    command = [sys.executable, "-m", "uv", "pip", "compile", "--universal", "--quiet"]
    options = ["--python-version", "3.11.0", "--extra", "test", "--no-annotate", "--no-header"]
    left_out = ["--no-emit-package", "torch"]
    answer = subprocess.run(
        [*command, *options, *left_out, str(ROOT / "pyproject.toml")],
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode != 0:
        sys.exit(f"uv could not resolve the environment:\n{answer.stderr}")
    lines = [line for line in answer.stdout.splitlines() if not _OF_CUDA_TORCH.match(line)]
    partial = REQUIREMENTS / "course.txt.partial"
    partial.write_text(HEADER + "\n".join(lines) + "\n")
    partial.rename(REQUIREMENTS / "course.txt")
    print(f"requirements/course.txt: {len(lines)} packages")


if __name__ == "__main__":
    main()
