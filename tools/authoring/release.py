"""`make release`: writes the folder that learners get, from a list of its contents.

Notebooks are made anew from their sources. Everything written is searched for solutions before the
folder takes its name.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from tools.authoring.build import read_labs
from tools.authoring.check_selftest import modules
from tools.authoring.exercises import Lab
from tools.authoring.notebook import render
from tools.authoring.solution_markers import BEGIN, END
from tools.lab.course_error import CourseError
from tools.lab.judge.hidden_tests import load_gradings
from tools.lab.labs import count

MARK = "RELEASE.json"
FOLDERS = (
    *("docker", "docs", "models", "requirements", "utils"),  # and labs/, made anew
    *("tools/doctor", "tools/lab", "tools/setup"),
)
# and every *.md at the top
FILES = (".gitignore", "LICENSE", "Makefile", "pyproject.toml", "tools/__init__.py")
_NOT = ("__pycache__", "*.pyc", ".ipynb_checkpoints", "*.egg-info", "site")
_ROOM = 2  # a solution of fewer lines is found by chance


def write_release(root: Path, target: Path) -> list[str]:
    """Write `target`: all or nothing, in the place of an earlier release.

    Returns:
        Names of the answers that labs need to keep running, so that learners have them too.

    Raises:
        CourseError: the target holds something else (an earlier release may be replaced, if nobody
            worked in it), a source breaks a rule, or a solution was found in the released files.
    """
    labs = read_labs(root)
    within_reach = _needed_by_labs(root)
    if target.exists() and (others := _not_released(target)):
        shown = ", ".join(others[:5]) + (", ..." if len(others) > 5 else "")
        raise CourseError(
            f"{target} holds other things than a release, or one that somebody worked in: {shown}. "
            "Name another folder: TO=..."
        )
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{target.name}-", dir=target.parent) as scratch:
        beside = Path(scratch) / target.name
        _fill(root, beside, labs)
        if leaks := list(find_leaks(beside, labs)):
            raise CourseError(
                "Not released, because learners must not have this:\n" + "\n".join(leaks)
            )
        beside.chmod(0o755)
        if target.exists():
            target.replace(Path(scratch) / "earlier")
        beside.replace(target)
    return within_reach


def _fill(root: Path, folder: Path, labs: Iterable[Lab]) -> None:
    (folder / "labs").mkdir(parents=True)
    for lab in labs:
        text = render(lab, solved=False)
        (folder / "labs" / f"{lab.source.stem}.ipynb").write_text(text, encoding="utf-8")
    for name in FOLDERS:
        if (root / name).is_dir():
            shutil.copytree(root / name, folder / name, ignore=shutil.ignore_patterns(*_NOT))
    for name in FILES:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy2(root / name, folder / name)
    for path in root.glob("*.md"):
        shutil.copy2(path, folder / path.name)
    facts = {"made_by": "make release", "commit": commit(root), "files": _digests(folder)}
    (folder / MARK).write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def _digests(folder: Path) -> dict[str, str]:
    return {
        path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()[:16]
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path != folder / MARK
    }


def _not_released(folder: Path) -> list[str]:
    """Files in a folder that no release put there, or that were changed since."""
    if not folder.is_dir():
        return [folder.name]
    try:
        released = json.loads((folder / MARK).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return [path.name for path in folder.iterdir()]
    now = _digests(folder)
    return [name for name, digest in now.items() if released.get(name) != digest]


def commit(root: Path) -> str:
    """Return the commit, with a word about changes that are in none; "unknown" outside of a repository."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=12"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return answer.stdout.strip()


def find_leaks(folder: Path, labs: Iterable[Lab]) -> Iterator[str]:
    """Return the files of a folder that a learner must not have; `utils` is left to `_needed_by_labs`."""
    for name in ("solutions", "tests", "benchmarks", ".ci", ".git"):
        if (folder / name).exists():
            yield f"{name}/"
    solutions = {
        f"exercise {part.id} of {lab.source.stem}": lines
        for lab in labs
        for part in lab.parts
        if len(lines := solution_lines(part.solved)) >= _ROOM
    }
    for path in sorted(folder.rglob("*")):
        inside = path.relative_to(folder)
        if inside.parts[0] in ("utils", "models") or not path.is_file():
            continue
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.suffix == ".ipynb":
            cells = json.loads(text)["cells"]
            text = "\n".join("".join(cell["source"]) for cell in cells)
            if any(cell.get("outputs") for cell in cells):
                yield f"{inside}: holds outputs"
        if BEGIN in text:
            yield f"{inside}: holds the marker of a solution"
        here = _lines(text)
        for name, lines in solutions.items():
            if any(here[i : i + len(lines)] == lines for i in range(len(here))):
                yield f"{inside}: the solution of {name}"


def solution_lines(solved: str) -> list[str]:
    """Lines between a cell's markers, without white space and comments."""
    kept: list[str] = []
    inside = False
    for line in solved.splitlines():
        if line.strip() in (BEGIN, END):
            inside = line.strip() == BEGIN
        elif inside:
            kept.append(line)
    return _lines("\n".join(kept))


def _lines(text: str) -> list[str]:
    lines = ("".join(line.split("#")[0].split()) for line in text.splitlines())
    return [line for line in lines if line]


def _needed_by_labs(root: Path) -> list[str]:
    """Return the answers that stay in `utils`, because labs go on with the reference and plots use it."""
    names = [
        name
        for by_exercise in load_gradings(root).values()
        for grading in by_exercise.values()
        for name in grading.seals()
    ]
    return sorted({*(module.__name__ for module in modules().values()), *names})


def report_release(target: Path, within_reach: list[str]) -> None:
    """Print the written files, and the open points."""
    files = [path for path in target.rglob("*") if path.is_file()]
    size = sum(path.stat().st_size for path in files) / 2**20
    print(f"{target}: {count(len(files), 'file')}, {size:.0f} MB")
    print("Answers within a learner's reach, since the labs need them to keep running:")
    for name in within_reach:
        print(f"  {name}")
    print("While a submission is graded they are taken out (solutions/README.md).")
