"""Grading that is killed half-way and started again ends with the same gradebook; twice is the same too."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time

import psutil
import pytest

from tools.grading.grade import Options, grade, read_graded_labs
from tools.grading.gradebook import Gradebook, GradebookError
from tools.lab.course_error import CourseError
from tools.lab.judge.hidden_tests import DEFAULT_SEED, load_sample_class
from tools.lab.judge.sandbox import SandboxLimits
from utils.profiles import ROOT

pytestmark = pytest.mark.timeout(600)
STUDENTS = ("good", "partial", "untouched", "no-json", "check-doubled", "kills-its-kernel")


def contents(out):
    """All that a gradebook says, without its random ids and its clock."""
    with sqlite3.connect(out / "gradebook.db") as book:
        grades = book.execute(
            "select student.id, base_cell.name, grade.auto_score, grade.manual_score, "
            "grade.needs_manual_grade from grade join base_cell on grade.cell_id = base_cell.id "
            "join submitted_notebook on grade.notebook_id = submitted_notebook.id "
            "join submitted_assignment on submitted_notebook.assignment_id = submitted_assignment.id "
            "join student on submitted_assignment.student_id = student.id order by 1, 2"
        ).fetchall()
        cells = book.execute(
            "select name, max_score from grade_cells "
            "join base_cell on grade_cells.id = base_cell.id order by 1"
        ).fetchall()
        students = book.execute("select id from student order by 1").fetchall()
    feedback = sorted(p.relative_to(out).as_posix() for p in (out / "feedback").rglob("*.html"))
    return grades, cells, students, feedback, (out / "grades.csv").read_text()


@pytest.fixture(scope="module")
def submissions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    load_sample_class(ROOT).write_class(ROOT, folder / "all")
    for student in STUDENTS:
        shutil.copytree(folder / "all" / student, folder / "some" / student)
    return folder / "some"


@pytest.fixture(scope="module")
def undisturbed(submissions, tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    assert grade(ROOT, submissions, out) == 0
    return out


@pytest.mark.parametrize("moment", ["judged/*/*.json", "judged/*/*.entered"])
def test_killed_and_started_again(moment, submissions, undisturbed, tmp_path):
    out = tmp_path / "out"
    argv = [sys.executable, "-m", "tools.grading", "grade", str(submissions), str(out)]
    with (tmp_path / "log").open("w") as log:
        process = subprocess.Popen(argv, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)
    family = psutil.Process(process.pid)
    while not list(out.glob(moment)) and process.poll() is None:
        time.sleep(0.02)
    started = family.children(recursive=True)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    assert process.returncode == -signal.SIGKILL, (tmp_path / "log").read_text()
    _, left = psutil.wait_procs(started, timeout=10)
    assert left == []
    assert not (out / "grades.csv").exists()
    assert grade(ROOT, submissions, out) == 0
    assert contents(out) == contents(undisturbed)


def test_a_second_grading_does_nothing_again_and_changes_nothing(submissions, undisturbed, capsys):
    before = contents(undisturbed)
    stamps = {path: path.stat().st_mtime_ns for path in undisturbed.glob("judged/*/*")}
    pages = {path: path.stat().st_mtime_ns for path in undisturbed.glob("feedback/*/*/*")}
    assert grade(ROOT, submissions, undisturbed) == 0
    assert "6 notebooks, 6 of them judged before" in capsys.readouterr().out
    assert contents(undisturbed) == before
    assert {path: path.stat().st_mtime_ns for path in undisturbed.glob("judged/*/*")} == stamps
    assert {path: path.stat().st_mtime_ns for path in undisturbed.glob("feedback/*/*/*")} == pages


def test_same_submissions_get_same_grades(submissions, undisturbed, tmp_path):
    assert grade(ROOT, submissions, tmp_path / "out", Options(jobs=1)) == 0
    assert contents(tmp_path / "out") == contents(undisturbed)


@pytest.fixture
def two(submissions, tmp_path):
    for student in ("no-json", "untouched"):
        shutil.copytree(submissions / student, tmp_path / "two" / student)
    return tmp_path / "two"


def test_a_notebook_that_nbgrader_refuses_stops_nobody(two, tmp_path, monkeypatch, capsys):
    enter = Gradebook.enter

    def refuse_one(book, student, lab, notebook):
        if student == "no-json":
            raise GradebookError("nbgrader failed: no\nit cannot show this")
        enter(book, student, lab, notebook)

    monkeypatch.setattr(Gradebook, "enter", refuse_one)
    assert grade(ROOT, two, tmp_path / "out") == 1
    assert (
        "NOT GRADED no-json/lab-3.3.1-engine-benchmark: nbgrader failed: no\n"
        in capsys.readouterr().out
    )
    assert "it cannot show this" in (tmp_path / "out" / "report.html").read_text()
    assert list((tmp_path / "out" / "feedback").iterdir()) == [tmp_path / "out/feedback/untouched"]
    monkeypatch.setattr(Gradebook, "enter", enter)
    assert grade(ROOT, two, tmp_path / "out") == 0
    assert (tmp_path / "out" / "feedback" / "no-json").is_dir()


def test_a_notebook_that_takes_for_ever_stops_nobody(two, tmp_path, capsys):
    options = Options(limits=SandboxLimits(clock_s=0.0))
    assert grade(ROOT, two, tmp_path / "out", options) == 1
    assert "NOT GRADED: 0 s passed" in capsys.readouterr().out


def test_points_given_by_hand_survive_and_reach_the_feedback(submissions, undisturbed, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(undisturbed, out)
    with sqlite3.connect(out / "gradebook.db") as book:
        book.execute(
            "update grade set manual_score = 1.5, needs_manual_grade = 0 where id in (select grade.id "
            "from grade join base_cell on grade.cell_id = base_cell.id "
            "where base_cell.name = 'answer-recommendation' and grade.auto_score is null)"
        )
    before = contents(out)[0]
    given = {row[0] for row in before if row[3] == 1.5}
    assert given == {"good", "partial", "check-doubled", "kills-its-kernel"}
    assert grade(ROOT, submissions, out) == 0
    assert contents(out)[0] == before
    (page,) = (out / "feedback" / "good").rglob("*.html")
    assert "(Score: 19.5 / 20.0)" in page.read_text()
    assert "good,,,,19.5,0.0,19.5,20.0" in (out / "grades.csv").read_text()


def test_a_changed_submission_is_graded_anew(submissions, undisturbed, tmp_path):
    actual, out = tmp_path / "some", tmp_path / "out"
    shutil.copytree(submissions, actual)
    shutil.copytree(undisturbed, out)
    (good,) = (actual / "good").iterdir()
    shutil.copy(good, actual / "no-json" / good.name)
    assert grade(ROOT, actual, out) == 0
    before, after = ({row[:2]: row[2] for row in contents(o)[0]} for o in (undisturbed, out))
    changed = {
        student for (student, cell), score in after.items() if before[student, cell] != score
    }
    assert changed == {"no-json"}
    assert all(
        after["no-json", cell] == score for (who, cell), score in after.items() if who == "good"
    )


def test_another_seed_needs_another_folder(submissions, undisturbed):
    with pytest.raises(CourseError, match=f"graded with SEED={DEFAULT_SEED}"):
        grade(ROOT, submissions, undisturbed, Options(seed="autumn"))


def test_a_folder_of_other_things_is_left_alone(submissions, tmp_path):
    (tmp_path / "thesis.txt").write_text("mine")
    with pytest.raises(CourseError, match="holds other things than grades"):
        grade(ROOT, submissions, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["thesis.txt"]


def test_two_gradings_do_not_share_a_folder(submissions, undisturbed):
    argv = [
        sys.executable,
        "-c",
        "import fcntl, sys, time; f = open(sys.argv[1], 'w');"
        "fcntl.flock(f, fcntl.LOCK_EX); print('held', flush=True); time.sleep(60)",
    ]
    holder = subprocess.Popen([*argv, str(undisturbed / ".lock")], stdout=subprocess.PIPE)
    try:
        assert holder.stdout.readline() == b"held\n"
        with pytest.raises(CourseError, match="Another grading writes to"):
            grade(ROOT, submissions, undisturbed)
    finally:
        holder.kill()
        holder.wait()


def test_the_digest_of_a_lab_changes_with_what_grades_depend_on():
    one, other, bare = (
        read_graded_labs(ROOT, options)
        for options in (Options(seed="a"), Options(seed="b"), Options(seed="a", sandbox="none"))
    )
    assert one.keys() == other.keys() == bare.keys()
    for name in one:
        assert len({labs[name].digest for labs in (one, other, bare)}) == 3
