"""A small lab goes the whole way: built, run untouched, solved, wrong, endless, half done."""

import shutil
from pathlib import Path

import nbformat
import pytest

from tools.authoring.build import build

SAMPLE = Path(__file__).parent / "sample"
NAME = "lab-3.3.99-sample.ipynb"
STUB = 'raise NotImplementedError("Exercise ttft: replace this line by your code")'


@pytest.fixture
def course(tmp_path: Path) -> Path:
    source = tmp_path / "solutions" / "lab-3.3.99-sample.py"
    source.parent.mkdir()
    shutil.copy(SAMPLE / source.name, source)
    for path in build(tmp_path):
        shutil.copy(SAMPLE / "sample_checks.py", path.parent)
    return tmp_path


def write_answer(course: Path, code: str) -> Path:
    path = course / "labs" / NAME
    notebook = nbformat.read(path, as_version=4)
    cell = next(c for c in notebook.cells if c.id == "exercise-ttft")
    assert STUB in cell.source
    cell.source = cell.source.replace(STUB, code)
    nbformat.write(notebook, path)
    return path


def last_code(ran):
    return [id_ for id_, cell in ran.cells.items() if cell["cell_type"] == "code"][-1]


def test_untouched_it_runs_through_on_the_references(course, run_notebook):
    ran = run_notebook(course / "labs" / NAME)
    assert (ran.error, ran.left_running) == ("", [])
    assert "○ ttft: not attempted, because line 3 of your cell raises" in ran.printed("check-ttft")
    assert "○ kv_bytes: not attempted" in ran.printed("check-kv_bytes")
    (measuring,) = ran.tagged("measures")
    assert "12288 bytes, 1.0 s" in ran.printed(measuring)
    assert 0.1 <= ran.took(measuring) < 5
    assert "No prediction was made" in ran.printed(last_code(ran))


def test_solved_it_passes_every_check_while_grading(course, run_notebook):
    ran = run_notebook(course / "solutions" / NAME, grading=True)
    assert ran.error == ""
    for id_ in ran.with_role("check"):
        assert ran.printed(id_) == f"✔ {id_.removeprefix('check-')}: right."
    assert "predicted 0.1 s, measured 0.1" in ran.printed(last_code(ran))


def test_untouched_it_fails_loudly_while_grading(course, run_notebook):
    ran = run_notebook(course / "labs" / NAME, grading=True)
    assert "ttft: not attempted" in ran.error


def test_wrong_answer_is_explained_without_a_traceback(course, run_notebook):
    ran = run_notebook(write_answer(course, "return 1000 * (chunks[1][0] - scheduled)"))
    shown = ran.printed("check-ttft")
    assert "✘ ttft: TTFT of the example: got 500, expected 0.5. In seconds?" in shown
    assert "Your call: ttft(10.0, [" in shown
    assert "Not right yet. The reason is above" in ran.error
    assert "framework" not in shown
    assert "Traceback" not in shown
    assert ran.printed("check-kv_bytes") == "", "Run All stops at the wrong answer"


def test_a_crash_points_at_the_learners_line(course, run_notebook):
    ran = run_notebook(write_answer(course, "first = chunks[7]\n    return first[0]"))
    assert "IndexError" in ran.printed("check-ttft")
    assert "in line 3 of your cell: first = chunks[7]" in ran.printed("check-ttft")


def test_an_endless_loop_is_stopped_in_the_kernel(course, run_notebook):
    ran = run_notebook(write_answer(course, "while True: pass"))
    assert "did not finish in 1 s" in ran.printed("check-ttft")
    assert 1 <= ran.took("check-ttft") < 10


def test_a_right_answer_of_the_learners_own_goes_on(course, run_notebook):
    answer = "return min(at for at, text in chunks if text) - scheduled"
    ran = run_notebook(write_answer(course, answer))
    assert ran.error == ""
    assert ran.printed("check-ttft") == "✔ ttft: right."
    assert "not attempted" in ran.printed("check-kv_bytes")


def test_a_process_that_outlives_its_notebook_is_found(course, run_notebook):
    start = 'import subprocess\n    subprocess.Popen(["sleep", "30"], start_new_session=True)'
    ran = run_notebook(write_answer(course, start))
    commands = [process.cmdline() for process in ran.left_running]
    for process in ran.left_running:
        process.kill()
    assert commands == [["sleep", "30"]]
