"""`make page`: the terminal output in the instructors' page, made by the commands that it shows."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from pathlib import Path

from tools.lab.course_error import CourseError

PAGE = Path("solutions") / "README.md"
_BLOCK = re.compile(
    r"(<!-- output of: (?P<command>.+?) -->\n```text\n)(?P<output>.*?)(```\n)", re.DOTALL
)
_FOLDER = re.compile(r"(?<=[A-Z]=)(class|practice)\b")


def fresh_page(root: Path) -> str:
    """The page with every output made anew, in folders of its own.

    Raises:
        CourseError: a command of the page fails.
    """
    text = (root / PAGE).read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as scratch:

        def made(block: re.Match[str]) -> str:
            output = _run(block["command"], root, scratch)
            return block[1] + output + block[4]

        return _BLOCK.sub(made, text)


def _run(command: str, root: Path, scratch: str) -> str:
    here = _FOLDER.sub(lambda name: f"{scratch}/{name[0]}", command)
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("MAKE", "MFLAGS"))}
    answer = subprocess.run(
        ["sh", "-c", f"{here} 2>&1"],
        cwd=root,
        env=inherited,
        capture_output=True,
        text=True,
        check=False,
    )
    if answer.returncode:
        raise CourseError(f"{command} of {PAGE} fails:\n{answer.stdout}")
    return re.sub(
        r"bubblewrap [\d.]+\d", "bubblewrap 0.8.0", answer.stdout.replace(f"{scratch}/", "")
    )


def write_page(root: Path) -> None:
    """Write the page anew."""
    (root / PAGE).write_text(fresh_page(root), encoding="utf-8")
