"""A class of good, partial, untouched and hostile submissions gets the grades it deserves."""

import csv
import html
import re
import sqlite3

import pytest

from tools.authoring.build import read_labs
from tools.grading.verdict_files import read_findings
from tools.lab.judge.hidden_tests import load_sample_class
from utils.profiles import ROOT

pytestmark = pytest.mark.timeout(1200)
SAMPLES = load_sample_class(ROOT).SAMPLES
LABS = {lab.source.number: lab for lab in read_labs(ROOT)}


def expected_points(sample):
    exercises = LABS[sample.lab].exercises
    everywhere = sample.scores.get("*")
    return {
        e.id: sample.scores.get(e.id, e.points if everywhere is None else everywhere)
        for e in exercises
    }


def judged(graded_class, student):
    lab = LABS[SAMPLES[student].lab].source.stem
    return read_findings(graded_class.out, student, lab).judgement


def test_the_class_is_large_and_has_every_kind():
    assert len(SAMPLES) >= 20
    assert set(LABS) == {sample.lab for sample in SAMPLES.values()}


@pytest.mark.parametrize("student", SAMPLES)
def test_each_exercise_gets_the_points_it_deserves(student, graded_class):
    sample = SAMPLES[student]
    judgement = judged(graded_class, student)
    got = {exercise.id: exercise.score for exercise in judgement.exercises}
    wanted = expected_points(sample)
    reasons = {
        e.id: (e.verdict, e.message) for e in judgement.exercises if got[e.id] != wanted[e.id]
    }
    assert got == wanted, reasons


@pytest.mark.parametrize("student", SAMPLES)
def test_the_learner_reads_why(student, graded_class):
    sample = SAMPLES[student]
    lab = LABS[sample.lab].source.stem
    page = (graded_class.out / "feedback" / student / lab / f"{lab}.html").read_text()
    text = html.unescape(re.sub(r"<[^>]+>", "", page))
    assert sample.learner in text
    total = sum(expected_points(sample).values())
    assert f"(Score: {total}.0 / " in text


@pytest.mark.parametrize("student", SAMPLES)
def test_the_instructor_reads_what_to_look_at(student, graded_class):
    sample = SAMPLES[student]
    notes = [note.instructor for note in judged(graded_class, student).notes]
    assert any(sample.instructor in note for note in notes) or not sample.instructor
    if student.startswith(("good", "untouched")):
        assert notes == []
    report = html.unescape((graded_class.out / "report.html").read_text())
    assert f">{student}</a>" in report
    assert all(note in report for note in notes)


def test_nbgraders_gradebook_holds_the_same_points(graded_class):
    with sqlite3.connect(graded_class.out / "gradebook.db") as book:
        rows = book.execute(
            "select student.id, grade_cells.name, grade.auto_score from grade "
            "join base_cell as grade_cells on grade.cell_id = grade_cells.id "
            "join submitted_notebook on grade.notebook_id = submitted_notebook.id "
            "join submitted_assignment on submitted_notebook.assignment_id = submitted_assignment.id "
            "join student on submitted_assignment.student_id = student.id"
        ).fetchall()
    found = {(student, cell): score for student, cell, score in rows}
    for student, sample in SAMPLES.items():
        for exercise, points in expected_points(sample).items():
            assert found[student, f"check-{exercise}"] == points, (student, exercise)


def test_the_csv_file_has_a_line_for_everybody(graded_class):
    with (graded_class.out / "grades.csv").open() as file:
        rows = {(row["student_id"], row["assignment"]): row for row in csv.DictReader(file)}
    for student, sample in SAMPLES.items():
        row = rows[student, LABS[sample.lab].source.stem]
        assert float(row["score"]) == sum(expected_points(sample).values())


def test_nothing_that_a_browser_would_run_gets_through(graded_class):
    lab = LABS["3.3.1"].source.stem
    page = (graded_class.out / "feedback" / "scripts" / lab / f"{lab}.html").read_text()
    assert page.count("document.title") >= 3, "message, answer and code are shown, as text"
    assert "<script>document.title" not in page
    assert "<img src=x" not in page
    assert 'href="javascript:' not in page
    autograded = (graded_class.out / "autograded" / "scripts" / lab / f"{lab}.ipynb").read_text()
    assert "text/html" not in autograded


def test_written_answers_wait_for_a_person(graded_class):
    with sqlite3.connect(graded_class.out / "gradebook.db") as book:
        rows = book.execute(
            "select student.id, grade.needs_manual_grade, grade.auto_score from grade "
            "join base_cell on grade.cell_id = base_cell.id "
            "join submitted_notebook on grade.notebook_id = submitted_notebook.id "
            "join submitted_assignment on submitted_notebook.assignment_id = submitted_assignment.id "
            "join student on submitted_assignment.student_id = student.id "
            "where base_cell.name = 'answer-recommendation'"
        ).fetchall()
    found = {student: (bool(waits), score) for student, waits, score in rows}
    assert found["good"] == (True, None)
    assert found["untouched"] == (False, 0.0), "who wrote nothing needs no reader"


def test_the_protections_are_named(graded_class):
    report = (graded_class.out / "report.html").read_text()
    for words in ("bubblewrap", "no network but its own loopback", "no other submission"):
        assert words in report
