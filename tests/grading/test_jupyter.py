"""JupyterLab as learners and instructors open it: the Validate button, the formgrader."""

import json
import shutil
import sys
import time
import urllib.error
import urllib.request

import pytest
from lab_server import serving

from tools.grading.grade import grade
from tools.lab.course_error import CourseError
from tools.lab.judge.hidden_tests import load_sample_class
from tools.lab.open_lab import formgrader_command, jupyter_command
from utils.profiles import ROOT

pytestmark = pytest.mark.timeout(300)
STUDENTS = (
    "good",
    "partial",
    "untouched",
    "check-edited",
    "marks-missing",
    "helper-in-own-cell",
    "cut-off",
)


def asker(served):
    """A function that asks the server: (path, body or None) -> (status, text)."""

    def ask(path, body=None):
        request = urllib.request.Request(
            served.base + path,
            data=None if body is None else json.dumps(body).encode(),
            headers={
                "Authorization": f"token {served.token}",
                "Content-Type": "application/json",
            },
        )
        try:
            with urllib.request.urlopen(request, timeout=120) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

    return ask


@pytest.fixture(scope="module")
def lab_server(tmp_path_factory):
    """The course as `make lab` opens it, with some learners' notebooks in labs/."""
    folder = tmp_path_factory.mktemp("served")
    (folder / "labs").mkdir()
    samples = load_sample_class(ROOT)
    samples.write_class(ROOT, folder / "class")
    for student in STUDENTS:
        (path,) = (folder / "class" / student).iterdir()
        shutil.copy(path, folder / "labs" / f"{student}.ipynb")
    command = jupyter_command(folder / "labs" / "good.ipynb", headless=True, root=folder)
    with serving(command, ROOT, folder / "log") as served:
        yield asker(served)


def validate(ask, name):
    status, text = ask("/assignments/validate", {"path": f"labs/{name}.ipynb"})
    assert status == 200
    return json.loads(text)


def test_a_right_notebook_passes_without_an_engine(lab_server):
    began = time.monotonic()
    assert validate(lab_server, "good") == {"success": True, "value": {}}
    assert time.monotonic() - began < 60


def test_validate_reports_faults_in_terms_of_exercise(lab_server):
    failed = validate(lab_server, "partial")["value"]["failed"]
    assert failed[0]["source"] == "4 of 7 exercises right (2, 3, 6, 7), 11 of 18 points"
    assert failed[0]["raw_error"].startswith("Not attempted yet: 4.")
    text = {entry["source"]: entry["raw_error"] for entry in failed[1:]}
    assert list(text) == ["Exercise 1: Metrics from a raw stream", "Exercise 5: How sure are you?"]
    assert "the first token belongs to TTFT" in text["Exercise 1: Metrics from a raw stream"]


def test_an_untouched_notebook_does_not_pass_on_the_references(lab_server):
    (total,) = validate(lab_server, "untouched")["value"]["failed"]
    assert total["source"].startswith("0 of 7 exercises right, 0 of ")
    assert total["raw_error"] == (
        "Not attempted yet: 1, 2, 3, 4, 5, 6, 7. The written answer 'recommendation' is still empty."
    )


def test_an_edited_check_is_not_the_one_that_judges(lab_server):
    _, failed = validate(lab_server, "check-edited")["value"]["failed"]
    assert failed["raw_error"].startswith("wrong: ")
    assert "The original was used." in failed["raw_error"]


def test_lost_marks_do_not_matter_here(lab_server):
    assert validate(lab_server, "marks-missing") == {"success": True, "value": {}}


def test_a_cell_that_is_not_run_while_a_lab_is_graded_is_named(lab_server):
    _, failed = validate(lab_server, "helper-in-own-cell")["value"]["failed"]
    assert "Put all that p99_of_runs needs into its own cell" in failed["raw_error"]


def test_a_notebook_that_is_no_lab_says_so(lab_server):
    answer = validate(lab_server, "cut-off")
    assert answer["success"] is False
    assert "fresh copy of the lab" in answer["value"]


def test_paths_outside_the_course_are_refused(lab_server):
    assert lab_server("/assignments/validate", {"path": "../../etc/passwd"})[0] == 403


def test_learners_see_only_validate_button_of_nbgrader(lab_server):
    from nbgrader import __version__

    status, text = lab_server(f"/nbgrader_version?version={__version__}")
    assert (status, json.loads(text)) == (200, {"success": True})
    for path in ("/formgrader", "/assignments", "/formgraders"):
        assert lab_server(path)[0] == 404, path


def test_the_formgrader_opens_on_a_graded_class(tmp_path):
    samples = load_sample_class(ROOT)
    samples.write_class(ROOT, tmp_path / "all")
    for student in ("good", "scripts"):
        shutil.copytree(tmp_path / "all" / student, tmp_path / "some" / student)
    out = tmp_path / "out"
    assert grade(ROOT, tmp_path / "some", out) == 0
    command = formgrader_command(out, headless=True)
    with serving([sys.executable, *command[1:]], out, tmp_path / "log") as served:
        ask = asker(served)
        status, text = ask("/formgrader/gradebook")
        assert status == 200
        assert "Manual Grading" in text
        lab = "lab-3.3.1-engine-benchmark"
        status, text = ask(f"/formgrader/api/submitted_notebooks/{lab}/{lab}")
        entries = {entry["student"]: entry for entry in json.loads(text)}
        assert status == 200
        assert set(entries) == {"good", "scripts"}
        assert entries["good"]["needs_manual_grade"]
        assert entries["good"]["score"] == 18
        status, page = ask(f"/formgrader/submissions/{entries['scripts']['id']}")
        assert status == 200
        assert "answer-recommendation" in page
        assert "<script>document.title" not in page
        assert 'href="javascript:' not in page
        answer = next(
            g
            for g in json.loads(
                ask(f"/formgrader/api/grades?submission_id={entries['good']['id']}")[1]
            )
            if g["name"] == "answer-recommendation"
        )
        assert (answer["auto_score"], answer["max_score"]) == (None, 2.0)


def test_the_formgrader_needs_a_gradebook(tmp_path):
    from tools.lab.open_lab import open_formgrader

    with pytest.raises(CourseError, match="holds no gradebook"):
        open_formgrader(tmp_path, headless=True)
