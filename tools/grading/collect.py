"""Contents of the folder of submissions: `<student>/lab-3.3.N-*.ipynb`. Reads names, opens nothing."""

from __future__ import annotations

import re
import stat
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tools.lab.course_error import CourseError

_STUDENT = re.compile(r"\w[\w.@ -]{0,63}")
_LAB = re.compile(r"(lab-3\.3\.\d+)\b.*\.ipynb")
_MACHINES = ("__MACOSX", "desktop.ini", "Thumbs.db")  # left by unpacking, nobody's


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
    """Submissions that can be graded, the students' names, and complaints about the rest."""

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
    for path in _visible(folder):
        student = unicodedata.normalize("NFC", path.name)  # macOS writes ö as two characters
        if path.is_symlink():
            complaints.append(f"{_printable(path.name)}: a link; not followed")
        elif not path.is_dir():
            complaints.append(f"{_printable(path.name)}: not graded; it is in no student's folder")
        elif not _STUDENT.fullmatch(student) or student != student.strip():
            rule = "letters, digits, spaces, . _ @ -"
            complaints.append(f"{path.name!r}: not graded; rename the folder ({rule})")
        elif student in students:
            complaints.append(f"{path.name!r}: not graded; another folder has the same name")
        else:
            students.append(student)
            try:
                actual, text = _of_student(student, path, names)
            except OSError as error:
                file = _printable(str(error.filename))
                actual, text = [], [f"{student}: not graded; {error.strerror}: {file}"]
            found += actual
            complaints += text
    if not students:
        raise CourseError(
            f"No student's folder is in {folder}. It holds one folder per student, and in it the "
            "notebooks: NAME/lab-3.3.1-engine-benchmark.ipynb"
        )
    return Collected(tuple(found), tuple(students), tuple(complaints))


def _printable(name: str) -> str:
    """Return a file's name as it is, or, with characters that no terminal should get, as Python writes it."""
    return name if name.isprintable() else ascii(name)


def _visible(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if not path.name.startswith(".") and path.name not in _MACHINES:
            yield path


def _of_student(student: str, folder: Path, labs: list[str]) -> tuple[list[Submission], list[str]]:
    copies: dict[str, list[Path]] = {}
    complaints: list[str] = []
    for path in _visible(folder):
        name, number = _printable(path.name), _LAB.fullmatch(path.name)
        lab = next((lab for lab in labs if number and lab.startswith(number[1] + "-")), None)
        if lab is None:
            complaints.append(f"{student}: {name} is no lab of this course; not graded")
        elif not stat.S_ISREG(path.lstat().st_mode):
            complaints.append(f"{student}: {name} is no plain file; not graded")
        else:
            copies.setdefault(lab, []).append(path)
    found = []
    for lab, paths in copies.items():
        # The file as it was named; else the newest of its copies.
        taken = max(paths, key=lambda path: (path.stem == lab, path.stat().st_mtime, path.name))
        found.append(Submission(student, lab, taken))
        for other in paths:
            if other != taken:
                name, instead = _printable(other.name), _printable(taken.name)
                complaints.append(f"{student}: {name} was not graded, {instead} was")
    if not found:
        where = ""
        if deeper := next(folder.rglob("lab-3.3.*.ipynb"), None):
            where = f"; move {_printable(str(deeper.relative_to(folder)))} up into it"
        complaints.append(f"{student}: no notebook of a lab in the folder{where}")
    return found, complaints
