"""A learner gets a fresh notebook at any time, and keeps the old one."""

import json

import nbformat
import pytest

from tools.authoring.build import read_labs
from tools.authoring.notebook import render
from tools.lab.__main__ import main
from tools.lab.fresh_lab import KEPT, keep_if_untouched

NAME = "lab-3.3.1-engine-benchmark.ipynb"


@pytest.fixture(scope="module")
def text():
    (lab,) = read_labs(only="3.3.1")
    return render(lab, solved=False)


@pytest.fixture
def course(tmp_path, text):
    (tmp_path / "labs").mkdir()
    (tmp_path / "labs" / NAME).write_text(text)
    return tmp_path


def change(course, work):
    path = course / "labs" / NAME
    notebook = nbformat.read(path, as_version=4)
    work({cell.id: cell for cell in notebook.cells}, notebook.cells)
    nbformat.write(notebook, path)
    return path.read_text()


def solve(by_id, cells):
    by_id["exercise-goodput"].source = "goodput = 1"
    by_id["prediction-vllm_gain"].source = "vllm_gain = 14"
    by_id["check-goodput"].outputs = [nbformat.v4.new_output("stream", text="✔")]
    by_id["check-goodput"].execution_count = 7
    cells.insert(3, nbformat.v4.new_code_cell("my = 'notes'"))


def fresh(course):
    return main(["--root", str(course), "fresh", "1"])


def test_work_is_kept_next_to_the_fresh_notebook(course, text, capsys):
    for number in (1, 2):
        changed = change(course, solve)
        assert fresh(course) == 0
        assert (course / "labs" / NAME).read_text() == text
        assert (course / "labs" / f"old-{number}-{NAME}").read_text() == changed
    assert f"Your own is now labs/old-2-{NAME}." in capsys.readouterr().out


def test_a_changed_cell_of_the_lab_comes_from_the_copy_that_was_kept(course, text):
    keep_if_untouched(course / "labs" / NAME, course)
    change(course, lambda by_id, cells: cells.pop(0))
    keep_if_untouched(course / "labs" / NAME, course)  # a changed one doesn't replace the copy
    assert fresh(course) == 0
    assert (course / "labs" / NAME).read_text() == text


@pytest.mark.parametrize("broken", ["", "{}", '{"cells": []}', "not JSON"])
def test_a_damaged_notebook_comes_from_the_copy_too(course, text, broken):
    keep_if_untouched(course / "labs" / NAME, course)
    (course / "labs" / NAME).write_text(broken)
    assert fresh(course) == 0
    assert (course / "labs" / NAME).read_text() == text


def test_without_a_way_nothing_is_changed(course, capsys):
    changed = change(course, lambda by_id, cells: cells.pop(0))
    assert fresh(course) == 2
    assert "Take the file from the release or the clone" in capsys.readouterr().err
    assert [path.name for path in (course / "labs").iterdir()] == [NAME]
    assert (course / "labs" / NAME).read_text() == changed
    assert not (course / KEPT).exists()


def test_old_copies_are_no_labs(course, capsys):
    change(course, solve)
    fresh(course)
    assert main(["--root", str(course), "open", "9", "--headless"]) == 2
    assert "old-" not in capsys.readouterr().err
    assert json.loads((course / "labs" / NAME).read_text())["cells"]
