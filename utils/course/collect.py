"""What is in the folder of submissions: `<student>/lab-3.3.N-*.ipynb`. Reads names, opens nothing."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from utils.course.problems import CourseError

_STUDENT = re.compile(r"\w[\w.@ -]{0,63}")
_LAB = re.compile(r"lab-3\.3\.\d+")


@dataclass(frozen=True)
class Submission:
    """One file that a student handed in; `student` and `lab` name it in the gradebook."""

    student: str
    lab: str
    path: Path

    def __str__(self) -> str:
        return f"{self.student}/{self.lab}"


@dataclass(frozen=True)
class Collected:
    """What was found: what can be graded, the students' names, and complaints about the rest."""

    submissions: tuple[Submission, ...]
    students: tuple[str, ...]
    complaints: tuple[str, ...]


def collect(folder: Path, labs: Iterable[str]) -> Collected:
    """Find the submissions of the given labs.

    Args:
        folder: one folder per student.
        labs: names of the labs, "lab-3.3.1-engine-benchmark".

    Raises:
        CourseError: there is no such folder, or no student in it.
    """
    if not folder.is_dir():
        raise CourseError(
            f"There is no folder {folder}. Put each student's files in {folder}/NAME/."
        )
    found: list[Submission] = []
    students: list[str] = []
    complaints: list[str] = []
    names = list(labs)
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name.startswith(".") or not (entry.is_dir() or entry.is_symlink()):
            continue
        if entry.is_symlink():
            complaints.append(f"{entry.name}: a link, not a folder; not followed")
        elif not _STUDENT.fullmatch(entry.name) or entry.name != entry.name.strip():
            complaints.append(
                f"{entry.name!r}: not graded; rename the folder (letters, digits, spaces, . _ @ -)"
            )
        else:
            students.append(entry.name)
            mine, said = _of_student(entry.name, Path(entry.path), names)
            found += mine
            complaints += said
    if not students:
        raise CourseError(
            f"No student's folder is in {folder}. It holds one folder per student, and in it the "
            "notebooks: NAME/lab-3.3.1-engine-benchmark.ipynb"
        )
    return Collected(tuple(found), tuple(students), tuple(complaints))


def _of_student(student: str, folder: Path, labs: list[str]) -> tuple[list[Submission], list[str]]:
    found: dict[str, Submission] = {}
    complaints: list[str] = []
    for path in sorted(folder.iterdir(), key=lambda path: (path.stem not in labs, path.name)):
        name = _LAB.match(path.name)
        if path.suffix != ".ipynb" or name is None:
            continue
        lab = next((lab for lab in labs if lab.startswith(name[0] + "-")), None)
        if not stat.S_ISREG(path.lstat().st_mode):
            complaints.append(f"{student}: {path.name} is no plain file; not graded")
        elif lab is None:
            complaints.append(f"{student}: {path.name} is no lab of this course; not graded")
        elif lab in found and path.stem != lab:
            complaints.append(f"{student}: {path.name} was not graded, {lab}.ipynb is there too")
        else:
            found[lab] = Submission(student, lab, path)
    if not found and not complaints:
        deeper = next(folder.rglob("lab-3.3.*.ipynb"), None)
        where = f"; move {deeper.relative_to(folder)} up into it" if deeper else ""
        complaints.append(f"{student}: no notebook of a lab in the folder{where}")
    return list(found.values()), complaints
