"""The learner's texts are found in whatever was handed in; the rest is the instructors' own."""

import json

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.authoring.build import read_labs
from tools.authoring.notebook import render
from tools.lab.judge.cells import (
    LabCells,
    as_text,
    merge,
    names_in,
    pick,
    read_lab_cells,
)
from utils.checks.own_cell import defined_names, same
from utils.profiles import ROOT

(LAB,) = read_labs(ROOT, only="3.3.1")
STUBBED, SOLVED = (json.loads(render(LAB, solved=solved)) for solved in (False, True))
CELLS = read_lab_cells(STUBBED, LAB.source.stem)


def handed(notebook):
    return pick(json.dumps(notebook).encode(), CELLS)


def test_the_slots_of_a_lab():
    first = CELLS.exercises[0]
    assert [slot.id for slot in CELLS.exercises] == [e.id for e in LAB.exercises]
    assert [slot.points for slot in CELLS.exercises] == [e.points for e in LAB.exercises]
    assert (first.cell, first.variable) == ("exercise-stream_metrics", "stream_metrics")
    assert "NotImplementedError" in first.stub
    assert "checks.stream_metrics" in first.check
    assert {slot.id for slot in CELLS.others} == {"single_stream", "vllm_gain", "recommendation"}
    assert "from utils.profiles import load_profile" in CELLS.setup


def test_a_lab_travels_as_json():
    assert LabCells.from_dict(json.loads(json.dumps(CELLS.to_dict()))) == CELLS
    assert LabCells.from_dict(SOLVED["metadata"]["course"]["lab"]) == CELLS


def test_a_whole_notebook_needs_no_notes():
    found = handed(SOLVED)
    assert found.notes == []
    assert set(found.texts) == {slot.cell for slot in CELLS.slots}
    assert "times[-1] - sent" in found.texts["exercise-stream_metrics"]


def test_changes_in_other_cells_do_not_count():
    changed = json.loads(json.dumps(SOLVED))
    changed["metadata"] = {"kernelspec": {"name": "evil"}}
    for cell in changed["cells"]:
        if not cell["id"].startswith(("exercise", "prediction", "answer")):
            cell["source"] = "raise SystemExit"
            cell["outputs"] = [{"output_type": "error"}]
    merged = merge(CELLS, STUBBED, handed(changed).texts)
    for actual, expected in zip(merged["cells"], STUBBED["cells"], strict=True):
        if not actual["id"].startswith(("exercise", "prediction", "answer")):
            assert actual == expected
    assert merged["metadata"] == STUBBED["metadata"]
    nbformat.validate(merged)


def test_written_answers_are_merged_as_text():
    merged = merge(CELLS, STUBBED, {"answer-recommendation": "<b>[x](javascript:1)</b> $y$"})
    cell = next(c for c in merged["cells"] if c["id"] == "answer-recommendation")
    assert cell["source"] == as_text("<b>[x](javascript:1)</b> $y$")
    assert "<b>" not in cell["source"]
    untouched = merge(CELLS, STUBBED, {"answer-recommendation": "*Write your answer here.*\n"})
    assert untouched == STUBBED


def test_pieces_of_a_cell_are_joined_and_untouched_copies_do_not_count():
    notebook = json.loads(json.dumps(SOLVED))
    place = next(i for i, c in enumerate(notebook["cells"]) if c["id"] == "exercise-goodput")
    stub = next(c for c in STUBBED["cells"] if c["id"] == "exercise-goodput")
    notebook["cells"].insert(place + 1, {**stub, "id": "pasted"})
    assert "len(good) / duration" in handed(notebook).texts["exercise-goodput"]
    notebook["cells"].insert(place + 1, {**stub, "id": "another", "source": "goodput = 1"})
    found = handed(notebook)
    first, second = found.texts["exercise-goodput"].rsplit("\n\n", 1)
    assert "len(good) / duration" in first
    assert second == "goodput = 1"
    (note,) = found.notes
    assert note.exercise == "goodput"
    assert "there 3 times" in note.learner
    assert "there 3 times, 2 changed" in note.instructor


def test_an_answer_in_a_cell_behind_the_one_meant_for_it_is_taken():
    notebook = json.loads(json.dumps(STUBBED))
    place = next(i for i, c in enumerate(notebook["cells"]) if c["id"] == "answer-recommendation")
    actual = {"cell_type": "markdown", "id": "mine", "metadata": {}, "source": "I take vLLM."}
    notebook["cells"].insert(place + 1, actual)
    found = handed(notebook)
    assert found.texts["answer-recommendation"] == "I take vLLM."
    assert [note.instructor for note in found.notes] == [
        "recommendation: taken from the cell behind"
    ]
    del notebook["cells"][place]
    assert handed(notebook).texts["answer-recommendation"] == "I take vLLM."
    notebook["cells"].remove(actual)
    found = handed(notebook)
    assert "answer-recommendation" not in found.texts
    assert "no answer was found" in found.notes[0].learner


def test_cells_that_are_not_graded_are_kept_apart():
    notebook = json.loads(json.dumps(SOLVED))
    actual = {"cell_type": "code", "id": "mine", "metadata": {}, "source": "helper = 1"}
    shown = {"output_type": "stream", "name": "stdout", "text": "7 tok/s"}
    notebook["cells"].append({**actual, "outputs": [shown]})
    found = handed(notebook)
    assert "helper" in names_in(found.elsewhere)
    assert "goodput" not in names_in(found.elsewhere)
    assert found.shown["mine"] == [shown]


def test_unmarked_cells_are_found_by_definition_or_place():
    notebook = json.loads(json.dumps(SOLVED))
    for cell in notebook["cells"]:
        cell["metadata"] = {}
        del cell["id"]
    found = handed(notebook)
    assert len(found.texts) == len(CELLS.exercises) + len(CELLS.answers)
    assert "checks." not in "".join(found.texts.values())
    model_answer = next(c for c in SOLVED["cells"] if c["id"] == "answer-recommendation")
    assert found.texts["answer-recommendation"] == "".join(model_answer["source"])


def test_markdown_that_was_an_exercise_still_is():
    notebook = json.loads(json.dumps(SOLVED))
    cell = next(c for c in notebook["cells"] if c["id"] == "exercise-goodput")
    cell["cell_type"] = "markdown"
    found = handed(notebook)
    assert "len(good)" in found.texts["exercise-goodput"]
    assert "not a code cell any more" in found.notes[0].learner


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "it is empty"),
        (b"hello", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b"[1, 2]", "no notebook"),
        (b"{}", "no cells"),
        (b'{"nbformat": 4, "cells": 3}', "no cells"),
        (b'{"nbformat": 3}', "could not be read"),
        (b'{"nbformat": 2, "worksheets": 7}', "could not be read"),
        (b"[" * 100_000, "not JSON"),
        (b'{"a":' * 100_000, "not JSON"),
        (b"PK\x03\x04 a zip file", "not JSON"),
    ],
)
def test_files_that_are_no_notebooks(data, says):
    found = pick(data, CELLS)
    assert found.texts == {}
    (note,) = found.notes
    assert says in note.learner
    assert "Hand in the .ipynb file" in note.learner
    assert note.instructor.startswith("unreadable")


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_encodings_that_editors_write(encoding):
    assert pick(json.dumps(SOLVED, ensure_ascii=False).encode(encoding), CELLS).notes == []


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=9), inner, max_size=4)
    ),
    max_leaves=8,
)
cells = st.fixed_dictionaries(
    {},
    optional={
        "cell_type": st.sampled_from(["code", "markdown", "raw"]) | junk,
        "id": st.sampled_from(["exercise-goodput", "check-goodput", "cell-1"]) | junk,
        "source": st.sampled_from(["goodput = 1", "goodput = checks.goodput(goodput)", "def f("])
        | junk,
        "metadata": st.fixed_dictionaries({"nbgrader": junk}) | junk,
        "outputs": junk,
    },
)


@given(st.fixed_dictionaries({"cells": st.lists(cells | junk, max_size=6), "nbformat": junk}))
@settings(max_examples=300, deadline=None)
def test_no_notebook_however_broken_raises(notebook):
    found = handed(notebook)
    assert all(isinstance(text, str) for text in found.texts.values())
    nbformat.validate(merge(CELLS, STUBBED, found.texts))


def test_same_but_for_white_space():
    assert same("a = 1  \nb = 2\n\n", "a = 1\nb = 2")
    assert not same("a = 1\n  b = 2", "a = 1\nb = 2")


def test_defined_names():
    text = "import a.b, c as d\nfrom e import f\nx, (y, z) = 1, (2, 3)\ndef g(): q = 1\nclass H: r = 1\n"
    assert defined_names(text) == {"a", "d", "f", "x", "y", "z", "g", "H"}
    assert defined_names("def broken(") == set() == defined_names("\0")
