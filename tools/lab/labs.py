"""The course's folder and its labs, for `make lab`, imported in no time."""

from __future__ import annotations

import re
from pathlib import Path

from tools.lab.course_error import CourseError
from utils.profiles import ROOT

LAB_FILE = re.compile(r"lab-(?P<number>3\.3\.\d+)-[a-z0-9-]+")
GENERATED_BY = "python -m tools.authoring build"
KERNEL = "module-3.3"  # of the notebooks, in every environment that runs them
KERNEL_TITLE = "Module 3.3"


def find_lab(name: str, root: Path = ROOT) -> Path:
    """Return the learners' notebook of a lab: "3", "3.3.3", "lab-3.3.3", a file name or a path.

    Raises:
        CourseError: no lab of that name; the message lists the right ones.
    """
    return match(name, sorted((root / "labs").glob("lab-*.ipynb"), key=order))


def match(name: str, paths: list[Path]) -> Path:
    """Return the one of `paths` that `name` means, as `find_lab` takes it.

    Raises:
        CourseError: none.
    """
    wanted = Path(name.strip()).name
    wanted = re.sub(r"\.(ipynb|py)$", "", wanted)
    for path in paths:
        number = order(path)[1]
        names = {path.stem, f"lab-3.3.{number}", f"3.3.{number}", str(number)}
        if wanted in names:
            return path
    known = "\n".join(f"    {order(path)[1]}  {path.stem}" for path in paths)
    raise CourseError(
        f"There is no lab {name!r}. These are the labs:\n{known}"
        if paths
        else f"There is no lab at all; make them: {GENERATED_BY}"
    )


def order(path: Path) -> tuple[bool, int, str]:
    """Return the key that sorts labs by their number, and other files after them."""
    name = LAB_FILE.fullmatch(path.stem)
    return (name is None, int(name["number"].rpartition(".")[2]) if name else 0, path.stem)


def count(number: int, noun: str) -> str:
    """Return a number with its noun, such as "1 point" or "3 points"."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
