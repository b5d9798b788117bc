'''Builds each lab's two notebooks, in solutions/ and labs/, from `solutions/lab-3.3.N-*.py`.

How to write a lab
==================
A lab is one Python file in jupytext's percent format. `# %% [markdown]` starts a markdown cell,
`# %%` a code cell. The first cell is markdown and begins with `# Lab 3.3.N: title`; the number
of exercises, minutes and points is added to it. Then, per exercise, three cells in this order:

    # %% [markdown]
    # Write `ttft`: seconds from the scheduled time to the first chunk with text.
    #
    # <details><summary>Hint</summary>
    #
    # The first chunk carries the role and no text.
    # </details>

    # %% exercise="ttft" title="Time to first token" minutes=10 difficulty=2 importance=3 points=3
    def ttft(scheduled: float, chunks: list[tuple[float, str]]) -> float:
        """Seconds from `scheduled` to the first chunk with text."""
        ### BEGIN SOLUTION
        return next(at for at, text in chunks if text) - scheduled
        ### END SOLUTION

    # %% check="ttft"
    ttft = checks.ttft(ttft)

* The **task** is the markdown cell right before the exercise. Its heading (number, title, difficulty,
  importance, minutes, points) comes from the marker line, so it has none of its own. Hints
  are folded `<details>`.
* The **exercise** holds one or more solution regions. In the learner's notebook a region becomes
  `raise NotImplementedError("Exercise ttft: ...")` at the same indentation. To show something
  else, put it below BEGIN on lines that start with `#:`; outside a function that is required,
  since a raised error would stop Run All:

      ### BEGIN SOLUTION
      #: bytes_per_token = ...
      bytes_per_token = 2 * layers * kv_heads * head_size * 2
      ### END SOLUTION

  `...` and `None` count as not attempted, in a value and (`...` only) in a function's result.
  So does the check's own reference object: a solution must not import it.
* A **worked example** is added to the task: the first short call that the check makes, and the
  reference's result.
* The **check** is one line, `name = checks.<exercise id>(name)`. `from utils.checks import
  lab_3_3_N as checks` is in the lab's first code cell; utils/checks/base.py explains how to write
  one. It may stand further down than the exercise, never above it.
* A **prediction** is a cell that the learner fills in before a measurement, ungraded. The
  variable has the prediction's id and is `None` in the learner's notebook:

      # %% prediction="speedup_at_32"
      ### BEGIN SOLUTION
      #: speedup_at_32 = None  # how many times the throughput of one request?
      speedup_at_32 = 14
      ### END SOLUTION

  After the measurement: `compare_prediction(speedup_at_32, measured, what="...", unit="x")` from
  utils.checks. It tells the learner if no prediction was made.
* A **written answer** is a markdown cell that a person grades, in nbgrader's formgrader. What stands
  between the markers is a model answer; the learner sees a line that asks for one. The cell before it
  asks the question:

      # %% [markdown] answer="why_not_more" points=2
      # ### BEGIN SOLUTION
      # The step is bound by arithmetic from there on.
      # ### END SOLUTION

* Other code cells hold at most 25 lines of code (blank lines and comments do not count); more
  belongs in a module. The only other key is `tags`, with `tags=["measures"]` for a cell that runs
  an engine (the tests want it to take time and to print) and `tags=["raises-exception"]` for one
  that shows an error.

Then: `python -m tools.authoring build`, and commit the .py and both .ipynb files. `build --check`
fails when they differ. Notebooks are never edited by hand; `build` refuses to overwrite one that
somebody ran or edited. Ids of cells do not change when a cell is inserted: exercises, checks,
tasks and predictions have theirs from the exercise, other cells from their own text.

While a lab is graded, only its first code cell and the exercises run: what an exercise uses comes from
there, from an earlier exercise, or from itself.

nbgrader's metadata (schema 3) is written too: exercise and prediction cells are solution cells,
check cells are grade cells with the exercise's points, answers are both, everything else is locked.
'''

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

from tools.authoring.exercises import Lab, read_lab
from tools.authoring.lab_source import read_source
from tools.authoring.lint_errors import Problem, SourceError
from tools.authoring.notebook import render, touched
from tools.lab.course_error import CourseError
from tools.lab.labs import GENERATED_BY, match, order
from utils.profiles import ROOT

_DIFF_LINES = 20


@dataclass(frozen=True)
class Drift:
    """One notebook that is not what its source makes.

    Attributes:
        path: the notebook.
        line: 1-based line of the first difference.
        reason: what is the matter, as the rest of a sentence about the file.
        diff: the difference, shortened.
    """

    path: Path
    line: int
    reason: str
    diff: str = ""


def read_labs(root: Path = ROOT, only: str | None = None) -> list[Lab]:
    """Read the labs' sources under `root`, all of them or the one that `only` names.

    Raises:
        SourceError: a source breaks a rule; holds every fault of every file.
        CourseError: no such lab, or two sources of one number.
    """
    paths = sorted((root / "solutions").glob("*.py"), key=order)
    if only is not None:
        paths = [match(only, paths)]
    labs: list[Lab] = []
    problems: list[Problem] = []
    for path in paths:
        try:
            labs.append(read_lab(read_source(path)))
        except SourceError as error:
            problems += error.problems
    numbers: dict[str, Path] = {}
    for lab in labs:
        problems += lab.problems
        other = numbers.setdefault(lab.source.number, lab.source.path)
        if other != lab.source.path:
            message = f"lab {lab.source.number} has another source, {other.name}"
            problems.append(Problem(lab.source.path, 1, message, "Keep one of the two."))
    if problems:
        raise SourceError(problems)
    return labs


def build(root: Path = ROOT, only: str | None = None, *, force: bool = False) -> list[Path]:
    """Write the notebooks that are not what their sources make; all of them or none.

    Args:
        root: the course's folder.
        only: one lab, as `find_lab` takes it.
        force: overwrite a notebook that somebody ran or edited.

    Returns:
        The files written.

    Raises:
        SourceError: a source breaks a rule.
        CourseError: a notebook holds somebody's work.
    """
    stale = {path: text for path, text in _expected(root, only).items() if _text(path) != text}
    worked_in = [path for path in stale if (text := _text(path)) is not None and touched(text)]
    if worked_in and not force:
        names = "\n".join(f"    {path}" for path in worked_in)
        raise CourseError(
            f"Somebody ran or edited a generated notebook:\n{names}\n"
            f"Move your copy elsewhere, or overwrite it: {GENERATED_BY} --force"
        )
    beside = {path: path.with_name(f".{path.name}.{os.getpid()}.new") for path in stale}
    try:
        for path, new in beside.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            new.write_text(stale[path], encoding="utf-8")
        for path, new in beside.items():
            new.replace(path)
    finally:
        for new in beside.values():
            new.unlink(missing_ok=True)
    return list(stale)


def drift(root: Path = ROOT, only: str | None = None) -> list[Drift]:
    """Compare every notebook with a fresh build of its source; write nothing.

    Returns:
        One entry per notebook that is missing, stale, edited, or has no source.
    """
    expected = _expected(root, only)
    found = []
    for path, text in expected.items():
        actual = _text(path)
        if actual == text:
            continue
        if actual is None:
            found.append(Drift(path, 1, "is missing"))
            continue
        reason = touched(actual) or "is not what its source makes"
        found.append(Drift(path, _first_change(actual, text), reason, _diff(actual, text)))
    if only is None:
        for folder in ("labs", "solutions"):
            for path in sorted((root / folder).glob("lab-*.ipynb")):
                if path not in expected:
                    found.append(Drift(path, 1, "has no source under solutions/"))
    return found


def _expected(root: Path, only: str | None) -> dict[Path, str]:
    texts: dict[Path, str] = {}
    stems = [path.stem for path in sorted((root / "solutions").glob("*.py"), key=order)]
    for lab in read_labs(root, only):
        name = f"{lab.source.stem}.ipynb"
        later = stems[stems.index(lab.source.stem) + 1 :]
        following = f"{later[0]}.ipynb" if later else ""
        texts[root / "solutions" / name] = render(lab, solved=True, following=following)
        texts[root / "labs" / name] = render(lab, solved=False, following=following)
    return texts


def _text(path: Path) -> str | None:
    return path.read_text(encoding="utf-8") if path.exists() else None


def _first_change(actual: str, expected: str) -> int:
    pairs = zip_longest(actual.splitlines(), expected.splitlines())
    return next((i for i, (a, e) in enumerate(pairs, 1) if a != e), 1)


def _diff(actual: str, expected: str) -> str:
    changes: Iterable[str] = difflib.unified_diff(
        actual.splitlines(), expected.splitlines(), "the file", "its source makes", n=0, lineterm=""
    )
    lines = list(changes)
    more = len(lines) - _DIFF_LINES
    return "\n".join([*lines[:_DIFF_LINES], *([f"... {more} more lines"] if more > 0 else [])])
