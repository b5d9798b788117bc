"""`make run` executes a notebook into a file, cell by cell."""

import nbformat
import pytest

from tools.lab.__main__ import main


@pytest.fixture
def course(tmp_path):
    (tmp_path / "labs").mkdir()
    return tmp_path


def execute(course, *sources):
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    notebook = nbformat.v4.new_notebook(cells=cells)
    path = course / "labs" / "lab-3.3.9-sample.ipynb"
    nbformat.write(notebook, path)
    before = path.read_bytes()
    code = main(["--root", str(course), "run", "9"])
    assert path.read_bytes() == before, "the learner's own notebook stays as it is"
    (target,) = (course / "records" / "notebooks").iterdir()
    done = nbformat.read(target, as_version=4)
    return code, ["".join(o.get("text", "") for o in cell.outputs) for cell in done.cells]


def test_outputs_are_in_a_file_of_their_own(course, capsys):

    texts = execute(course, "x = 6 * 7", "import os; print(x, os.path.basename(os.getcwd()))")
    assert texts == (0, ["", "42 labs\n"])
    assert "cell 2 of 2 after" in capsys.readouterr().out


def test_a_failing_cell_keeps_what_came_before(course, capsys):
    code, texts = execute(course, "print('measured')", "1 / 0", "print('never')")
    assert (code, texts) == (2, ["measured\n", "", ""])
    error = capsys.readouterr().err
    assert "A cell failed: ZeroDivisionError: division by zero" in error
    assert "Everything up to that cell is in records/notebooks/" in error
