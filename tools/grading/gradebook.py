"""The gradebook: nbgrader's, fed with the judge's findings.

nbgrader keeps the scores (SQLite), makes the feedback pages and the CSV file, and shows the course in
its formgrader. It executes nothing here: where its own autograder would run a notebook, `Verdicts` puts
in the judge's findings, as the outputs of the check cells.
"""

from __future__ import annotations

import json
import logging
import os
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nbformat import NotebookNode
from nbformat.v4 import new_markdown_cell
from nbgrader.apps.api import NbGraderAPI
from nbgrader.plugins.export import CsvExportPlugin
from nbgrader.preprocessors import (
    CheckCellMetadata,
    ComputeChecksums,
    LimitOutput,
    NbGraderPreprocessor,
    SaveAutoGrades,
    SaveCells,
)
from sqlalchemy.exc import SAWarning
from traitlets.config import Config

from tools.grading.submission_view import nodes, verdict_outputs
from tools.grading.verdict_files import Findings, read_findings
from tools.lab.course_error import CourseError
from tools.lab.judge.cells import as_text
from tools.lab.open_lab import path_with_tools

CONFIG = """# Read by nbgrader and its formgrader; written by `make grade`.
from tools.grading.gradebook import configure

configure(get_config())  # noqa: F821
"""


class GradebookError(CourseError):
    """Refusal of nbgrader; the message has the next step, or its log."""


def configure(config: Config, out: Path | None = None) -> Config:
    """Differences of this course's nbgrader; see the module.

    Args:
        config: nbgrader's.
        out: the course's folder; default, the current one.
    """
    config.Exchange.root = str((out or Path.cwd()) / "exchange")  # not used; it asks for one
    config.GenerateAssignment.preprocessors = [ComputeChecksums, SaveCells, CheckCellMetadata]
    config.Autograde.autograde_preprocessors = [
        Verdicts,
        LimitOutput,
        SaveAutoGrades,
        CheckCellMetadata,
    ]
    return config


class Verdicts(NbGraderPreprocessor):  # type: ignore[misc]
    """Puts the judge's findings into a notebook; takes the place of nbgrader's executor."""

    def preprocess(
        self, nb: NotebookNode, resources: dict[str, Any]
    ) -> tuple[NotebookNode, dict[str, Any]]:
        """See nbconvert; runs in the course's folder."""
        facts = resources["nbgrader"]
        found = read_findings(Path.cwd(), facts["student"], facts["assignment"])
        by_id = {exercise.id: exercise for exercise in found.judgement.exercises}
        for cell in nb.cells:
            role, _, key = cell.get("id", "").partition("-")
            if role == "exercise" and key in by_id:
                cell.outputs = nodes(by_id[key].outputs)
            elif role == "check" and key in by_id:
                cell.outputs = nodes(verdict_outputs(by_id[key]))
            elif role == "cell" and cell.cell_type == "code":
                cell.outputs = nodes(found.shown.get(cell.id, []))
        nb.cells.insert(1, _how_it_was_graded(found))
        return nb, resources


def _how_it_was_graded(found: Findings) -> NotebookNode:
    """Return a cell for the learner. It may quote the learner, so it is shown as text."""
    output = [note.learner for note in found.judgement.notes if note.learner]
    lines = ["### How this notebook was graded", ""]
    if found.readable:
        lines += [
            "Your exercises were run in the course's own copy of the lab. Their points stand below "
            "each check, part by part; parts are tried on other inputs than those of the check you "
            "have. Cells that start an engine were not run: what they show is what you handed in, "
            "and nobody has checked it.",
            "",
        ]
    if output:
        lines.append(as_text("\n".join(f"• {' '.join(text.split())}" for text in output)))
    cell: NotebookNode = new_markdown_cell("\n".join(lines))
    cell.id = "how-it-was-graded"
    return cell


class Gradebook:
    """nbgrader on one course folder.

    Args:
        out: the folder; `gradebook.db`, `submitted/`, `autograded/` and `feedback/` are made in it.
    """

    def __init__(self, out: Path) -> None:
        self.out = out
        os.environ["PATH"] = path_with_tools()
        (out / "nbgrader_config.py").write_text(CONFIG, encoding="utf-8")
        (out / "exchange").mkdir(exist_ok=True)
        config = configure(Config(), out)
        config.CourseDirectory.root = str(out)
        logging.getLogger("traitlets").setLevel(logging.ERROR)
        self._api = NbGraderAPI(config=config)
        self._api.log_level = logging.ERROR

    def add_lab(self, lab: str, notebook: str) -> None:
        """Make a lab known: its cells and points.

        Raises:
            GradebookError: its cells are not those that earlier submissions were graded with.
        """
        path = self.out / "source" / lab / f"{lab}.ipynb"
        if path.is_file() and path.read_text(encoding="utf-8") == notebook and self._knows(lab):
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(notebook, encoding="utf-8")
        self._do(lambda: self._api.generate_assignment(lab, force=True))

    def add_student(self, student: str) -> None:
        """Make a student known, also one who handed in nothing."""
        with self._api.gradebook as gradebook:
            gradebook.update_or_create_student(student)

    def _knows(self, lab: str) -> bool:
        with self._api.gradebook as gradebook:
            return any(a.name == lab and a.notebooks for a in gradebook.assignments)

    def enter(self, student: str, lab: str, notebook: Mapping[str, Any]) -> None:
        """Enter one submission: score, feedback. Its judgement must have been written.

        Raises:
            GradebookError: nbgrader failed.
        """
        path = self.out / "submitted" / student / lab / f"{lab}.ipynb"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(notebook, ensure_ascii=False), encoding="utf-8")
        self._do(lambda: self._api.autograde(lab, student, force=True))
        self.feedback(student, lab)

    def feedback(self, student: str, lab: str) -> None:
        """Write the feedback page of one submission anew."""
        self._do(lambda: self._api.generate_feedback(lab, student, force=True))

    def by_hand(self, student: str, lab: str) -> list[list[Any]]:
        """Return a person's entries for one submission: points, extra points, comments."""
        with self._api.gradebook as gradebook:
            submission = gradebook.find_submission(lab, student)
            rows = [
                [grade.name, grade.manual_score, grade.extra_credit]
                for notebook in submission.notebooks
                for grade in notebook.grades
            ]
            rows += [
                [comment.name, comment.manual_comment]
                for notebook in submission.notebooks
                for comment in notebook.comments
            ]
        return sorted((row for row in rows if any(row[1:])), key=str)

    def scores(self) -> dict[tuple[str, str], tuple[float, float, bool]]:
        """By student and lab: points, the most possible, and whether some await a person."""
        with self._api.gradebook as gradebook:
            return {
                (s.student.id, s.assignment.name): (s.score, s.max_score, s.needs_manual_grade)
                for assignment in gradebook.assignments
                for s in assignment.submissions
            }

    def export(self) -> Path:
        """Write `grades.csv`, nbgrader's own export."""
        path = self.out / "grades.csv"
        plugin = CsvExportPlugin()
        plugin.to, plugin.student, plugin.assignment = str(path), [], []
        with self._api.gradebook as gradebook:
            plugin.export(gradebook)
        return path

    def _do(self, step: Callable[[], Mapping[str, Any]]) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", SAWarning)  # nbgrader's sessions, under SQLAlchemy 2
            result = step()
        if not result["success"]:
            log = "\n".join(str(result.get(key, "")) for key in ("log", "error")).strip()
            if "Cannot add or remove cells" in log:
                raise GradebookError(
                    f"The cells of a lab have changed since {self.out} was begun, and submissions are "
                    "in its gradebook. Grade into another OUT, or with the course as it was."
                )
            last = log.splitlines()[-1] if log else "it does not say why"
            raise GradebookError(f"nbgrader failed: {last}\n{log[-3000:]}")
