"""The build: one source, two notebooks, always the same bytes, and drift that is noticed."""

import ast
import json
from pathlib import Path

import nbformat
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tools.authoring.__main__ import main
from tools.authoring.build import build, drift, read_labs
from tools.authoring.exercises import read_lab
from tools.authoring.lab_source import read_source
from tools.authoring.lint_errors import SourceError
from tools.authoring.notebook import render
from tools.lab.course_error import CourseError
from tools.lab.judge.cells import LabCells, read_lab_cells
from tools.lab.labs import KERNEL, find_lab
from utils.profiles import ROOT

SOURCE = '''\
# %% [markdown]
# # Lab 3.3.9: A sample
#
# Story.

# %%
from utils.checks import lab_3_3_9 as checks

# %% [markdown]
# Write `f`.
#
# <details><summary>Hint</summary>
#
# Try it.
# </details>

# %% exercise="f" title="Eff" minutes=5 difficulty=2 importance=3 points=3
def f(x):
    """Twice `x`."""
    scale = 2
    ### BEGIN SOLUTION
    return scale * x
    ### END SOLUTION


def helper():
    ### BEGIN SOLUTION
    #: if True:
    #:     return ...  # your code
    return 1
    ### END SOLUTION


# %% check="f"
f = checks.f(f)

# %% prediction="guess"
### BEGIN SOLUTION
guess = 14
### END SOLUTION

# %% [markdown]
# Why twice?

# %% [markdown] answer="why" points=2
# ### BEGIN SOLUTION
# Because `scale` is 2.
# ### END SOLUTION

# %% tags=["measures"]
print(f(2))
'''


@pytest.fixture
def course(tmp_path: Path) -> Path:
    (tmp_path / "solutions").mkdir()
    (tmp_path / "solutions" / "lab-3.3.9-sample.py").write_text(SOURCE)
    return tmp_path


def load(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def cell(notebook, id_):
    return next(c for c in notebook.cells if c.id == id_)


def test_both_notebooks_are_written(course):
    name = "lab-3.3.9-sample.ipynb"
    assert build(course) == [course / "solutions" / name, course / "labs" / name]
    lab, solved = load(course / "labs" / name), load(course / "solutions" / name)
    for notebook in (lab, solved):
        nbformat.validate(notebook)
        assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
        assert notebook.metadata.kernelspec.name == KERNEL
        for c in notebook.cells:
            if c.cell_type == "code":
                assert (c.outputs, c.execution_count) == ([], None)
    assert [c.id for c in lab.cells] == [c.id for c in solved.cells]
    text = (course / "labs" / name).read_text()
    assert text.endswith("}\n") and not text.endswith("\n\n")


def test_the_learner_gets_stubs_and_the_instructor_the_solution(course):
    build(course)
    lab = load(course / "labs" / "lab-3.3.9-sample.ipynb")
    solved = load(course / "solutions" / "lab-3.3.9-sample.ipynb")
    assert cell(lab, "exercise-f").source == (
        'def f(x):\n    """Twice `x`."""\n    scale = 2\n'
        '    raise NotImplementedError("Exercise f: replace this line by your code")\n\n\n'
        "def helper():\n    if True:\n        return ...  # your code"
    )
    assert cell(lab, "prediction-guess").source == "guess = None"
    source = cell(solved, "exercise-f").source
    assert cell(lab, "answer-why").source == "*Write your answer here.*"
    assert "`scale` is 2" in cell(solved, "answer-why").source
    assert "return scale * x" in source and "### BEGIN SOLUTION" in source and "#:" not in source
    ast.parse(source)


def test_the_facts_of_an_exercise_come_from_its_marker(course):
    build(course)
    lab = load(course / "labs" / "lab-3.3.9-sample.ipynb")
    task = cell(lab, "task-f").source
    assert task.startswith(
        "### Exercise 1: Eff\n\n*difficulty ★★☆☆☆ · importance ★★★☆☆ · about 5 minutes · 3 points*"
        "\n\nWrite `f`."
    )
    assert "<details>" in task
    assert lab.cells[0].source.endswith(
        "*1 exercise · about 5 minutes of your own work · 3 points, and 2 points for 1 written answer*"
    )


def test_nbgraders_metadata(course):
    build(course)
    lab = load(course / "labs" / "lab-3.3.9-sample.ipynb")
    ids = [c.metadata.nbgrader.grade_id for c in lab.cells]
    assert len(set(ids)) == len(ids)
    for c in lab.cells:
        meta = dict(c.metadata.nbgrader)
        assert meta.pop("grade_id") == c.id
        assert (meta.pop("schema_version"), meta.pop("task")) == (3, False)
        if c.id in ("exercise-f", "prediction-guess"):
            assert meta == {"grade": False, "solution": True, "locked": False}
        elif c.id == "answer-why":
            assert meta == {"grade": True, "solution": True, "locked": False, "points": 2}
        elif c.id == "check-f":
            assert meta == {"grade": True, "solution": False, "locked": True, "points": 3}
        else:
            assert meta == {"grade": False, "solution": False, "locked": True}
    assert lab.cells[-2].metadata.tags == ["measures"]


def test_both_notebooks_hold_the_untouched_lab(course):
    build(course)
    name = "lab-3.3.9-sample.ipynb"
    fresh, solved = (load(course / folder / name) for folder in ("labs", "solutions"))
    cells = read_lab_cells(fresh, "lab-3.3.9-sample")
    assert "NotImplementedError" in cells.exercises[0].stub
    for notebook in (fresh, solved):
        assert LabCells.from_dict(notebook.metadata.course.lab) == cells


def test_a_second_build_writes_nothing(course):
    build(course)
    assert build(course) == []
    assert drift(course) == []
    assert not [p for p in course.rglob("*") if p.name.startswith(".")]


@pytest.mark.parametrize("folder", ["labs", "solutions"])
def test_drift_is_noticed_with_place_and_diff(course, folder, capsys):
    build(course)
    path = course / folder / "lab-3.3.9-sample.ipynb"
    text = path.read_text()
    assert text.count("Try it.") == 1
    path.write_text(text.replace("Try it.", "Try it!"))
    (found,) = drift(course)
    assert (found.path, found.reason) == (path, "was edited by hand")
    assert "Try it!" in path.read_text().splitlines()[found.line - 1]
    assert "Try it!" in found.diff and "Try it." in found.diff
    assert main(["--root", str(course), "build", "--check"]) == 1
    output = capsys.readouterr().out
    assert f"{folder}/lab-3.3.9-sample.ipynb:{found.line} was edited by hand" in output
    assert "python -m tools.authoring build" in output
    assert path.read_text() != text, "--check must not write"


def test_stored_outputs_are_drift(course):
    build(course)
    path = course / "labs" / "lab-3.3.9-sample.ipynb"
    notebook = load(path)
    notebook.cells[-1].outputs = [nbformat.v4.new_output("stream", text="4\n")]
    nbformat.write(notebook, path)
    assert drift(course)[0].reason == "was run: it holds outputs"


def test_a_changed_source_is_drift_and_builds_without_force(course):
    build(course)
    source = course / "solutions" / "lab-3.3.9-sample.py"
    source.write_text(SOURCE.replace("Story.", "Another story."))
    assert [d.reason for d in drift(course)] == ["is not what its source makes"] * 2
    assert len(build(course)) == 2
    assert drift(course) == []


def test_missing_and_orphaned_notebooks_are_drift(course):
    build(course)
    lab = course / "labs" / "lab-3.3.9-sample.ipynb"
    lab.rename(course / "labs" / "lab-3.3.8-old.ipynb")
    assert {(d.path.name, d.reason) for d in drift(course)} == {
        ("lab-3.3.9-sample.ipynb", "is missing"),
        ("lab-3.3.8-old.ipynb", "has no source under solutions/"),
    }


def test_a_learners_work_is_not_overwritten(course, capsys):
    build(course)
    path = course / "labs" / "lab-3.3.9-sample.ipynb"
    actual = path.read_text().replace("raise NotImplementedError", "return 2 * x  # mine")
    path.write_text(actual)
    assert main(["--root", str(course), "build"]) == 2
    assert "--force" in capsys.readouterr().err
    assert path.read_text() == actual
    assert build(course, force=True) == [path]
    assert drift(course) == []


def test_nothing_is_written_when_a_source_is_refused(course, capsys):
    (course / "solutions" / "lab-3.3.10-bad.py").write_text("# %%\nx = 1\n")
    with pytest.raises(SourceError, match=r"lab-3\.3\.10-bad\.py:1: the lab has no title"):
        build(course)
    assert not (course / "labs").exists()
    assert main(["--root", str(course), "build"]) == 2
    assert "lab-3.3.10-bad.py:1:" in capsys.readouterr().err


def test_a_failed_write_leaves_every_notebook_as_it_was(course, monkeypatch):
    build(course)
    before = {p: p.read_bytes() for p in course.rglob("*.ipynb")}
    (course / "solutions" / "lab-3.3.9-sample.py").write_text(SOURCE.replace("Story", "Tale"))
    write, calls = Path.write_text, []

    def full(self, *args, **kwargs):
        calls.append(self)
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return write(self, *args, **kwargs)

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(OSError, match="No space"):
        build(course)
    assert {p: p.read_bytes() for p in course.rglob("*.ipynb")} == before
    assert not list(course.rglob(".*"))


def test_one_lab_alone(course):
    other = SOURCE.replace("3.3.9", "3.3.10")
    (course / "solutions" / "lab-3.3.10-other.py").write_text(other)
    assert {p.stem for p in build(course, "10")} == {"lab-3.3.10-other"}
    assert [lab.source.number for lab in read_labs(course)] == ["3.3.9", "3.3.10"]
    with pytest.raises(CourseError, match=r"no lab '4'.*\n.*9  lab-3.3.9-sample"):
        build(course, "4")


def test_two_sources_of_one_number_are_refused(course):
    (course / "solutions" / "lab-3.3.9-twin.py").write_text(SOURCE)
    with pytest.raises(SourceError, match="has another source"):
        build(course)


@pytest.mark.parametrize(
    "name",
    [
        "9",
        "3.3.9",
        "lab-3.3.9",
        "lab-3.3.9-sample",
        "lab-3.3.9-sample.ipynb",
        "labs/lab-3.3.9-sample.ipynb",
    ],
)
def test_a_lab_is_found_by_any_of_its_names(course, name):
    build(course)
    assert find_lab(name, course) == course / "labs" / "lab-3.3.9-sample.ipynb"


@pytest.mark.parametrize("name", ["", "3", "3.3", "3.3.99", "sample", "../9x"])
def test_a_wrong_lab_is_refused_with_the_right_ones(course, name):
    build(course)
    with pytest.raises(CourseError) as caught:
        find_lab(name, course)
    assert f"no lab {name!r}" in str(caught.value)
    assert "9  lab-3.3.9-sample" in str(caught.value)


def test_a_course_without_labs_says_how_to_make_them(tmp_path):
    with pytest.raises(CourseError, match=r"python -m tools\.authoring build"):
        find_lab("1", tmp_path)


def test_list_shows_exercises_and_sums(course, capsys):
    assert main(["--root", str(course), "list"]) == 0
    output = capsys.readouterr().out
    assert "lab-3.3.9-sample: 1 exercise, 5 min, 5 points" in output
    assert "1. Eff" in output and "★★" in output


NEW_CELLS = ["# %%\nnew = 1\n\n", "# %% [markdown]\n# New.\n\n", "# %% [markdown]\n# Story.\n\n"]


@pytest.mark.parametrize("new", NEW_CELLS)
@pytest.mark.parametrize("place", range(1, 6))
def test_inserting_a_cell_keeps_the_other_ids(course, new, place):
    parts = SOURCE.split("# %%")[1:]
    at = 2 if place == 3 else place  # nothing comes between a task and its exercise
    text = "".join(["# %%" + p for p in parts[:at]] + [new] + ["# %%" + p for p in parts[at:]])
    before = ids(course, SOURCE)
    after = ids(course, text)
    assert [i for i in after if i in before] == before
    assert len(after) == len(before) + 1


def ids(course: Path, text: str) -> list[str]:
    path = course / "solutions" / "lab-3.3.9-sample.py"
    path.write_text(text)
    cells = json.loads(render(read_lab(read_source(path)), solved=False))["cells"]
    return [c["id"] for c in cells if not c["id"].startswith("heading-")]  # one may go, see below


def test_prediction_and_answer_get_a_heading_in_the_table_of_contents(course):
    text = SOURCE.replace("# %% prediction", "# %% [markdown]\n# How many?\n\n# %% prediction")
    for source, where in ((SOURCE, "heading-guess"), (text, "")):
        path = course / "solutions" / "lab-3.3.9-sample.py"
        path.write_text(source)
        cells = json.loads(render(read_lab(read_source(path)), solved=False))["cells"]
        at = [cell["id"] for cell in cells].index("prediction-guess")
        assert cells[at - 1]["source"][-1] == "#### Your prediction"
        assert not where or cells[at - 1]["id"] == where


def test_lab_says_how_to_work_and_what_comes_next(course):
    lab = read_lab(read_source(course / "solutions" / "lab-3.3.9-sample.py"))
    for following, words in (("", "This was the last lab"), ("x.ipynb", "[x.ipynb](x.ipynb)")):
        cells = json.loads(render(lab, solved=False, following=following))["cells"]
        assert cells[1]["id"] == "how-this-lab-works"
        assert cells[-1]["id"] == "next-lab"
        assert words in cells[-1]["source"][-1]


def test_task_shows_a_call_of_its_check():
    (lab,) = read_labs(only="3.3.3")
    cells = json.loads(render(lab, solved=False))["cells"]
    (task,) = [cell for cell in cells if cell["id"] == "task-capacity"]
    text = "".join(task["source"])
    assert ">>> capacity(1000, 10, 4, 8)\n(25, 12)\n" in text
    assert text.index("**Example**") < text.index("<details>")


def test_equal_cells_get_different_ids(course):
    text = SOURCE + "\n# %%\nx = 1\n\n# %%\nx = 1\n"
    found = ids(course, text)
    assert len(set(found)) == len(found)


WORDS = st.text(alphabet="abcdefgh ★é\"'#\\", min_size=1, max_size=20)


@st.composite
def labs(draw):
    """A lab with the learner's own lines before, between and after solution regions."""
    text, kept, hidden = ["# %% [markdown]\n# # Lab 3.3.9: T\n\n"], [], []
    for number in range(draw(st.integers(0, 4))):
        if draw(st.booleans()):
            words = f"plain {number} " + draw(WORDS).replace("\\", "").replace("#", "").strip()
            text.append(f"# %% [markdown]\n# {words}\n\n")
            kept.append(words)
        text.append("# %% [markdown]\n# Task.\n\n")
        text.append(
            f'# %% exercise="e{number}" title="T" minutes=1 difficulty=1 importance=3 points=1\n'
        )
        for part in range(draw(st.integers(1, 3))):
            own = f"own_{number}_{part} = {draw(WORDS)!r}"
            secret = f"secret_{number}_{part} = {draw(WORDS)!r}"
            text.append(f"def f{part}(x):\n    {own}\n    ### BEGIN SOLUTION\n")
            if draw(st.booleans()):
                stub = f"stub_{number}_{part} = ..."
                text.append(f"    #: {stub}\n")
                kept += [own, stub]
            else:
                kept += [own, f'raise NotImplementedError("Exercise e{number}']
            text.append(f"    {secret}\n    ### END SOLUTION\n    return x\n\n\n")
            kept.append("return x")
            hidden.append(secret)
        text.append(f'# %% check="e{number}"\nf0 = checks.e{number}(f0)\n\n')
    return "".join(text), kept, hidden


@settings(max_examples=60, deadline=None)
@given(labs())
def test_round_trip(tmp_path_factory, lab):
    text, kept, hidden = lab
    path = tmp_path_factory.mktemp("lab") / "lab-3.3.9-sample.py"
    path.write_text(text, encoding="utf-8")
    read = read_lab(read_source(path))
    assert read.problems == ()
    learners, solved = render(read, solved=False), render(read, solved=True)
    assert learners == render(read_lab(read_source(path)), solved=False)
    sources = ["".join(c["source"]) for c in json.loads(learners)["cells"]]
    at, joined = 0, "\n".join(sources)
    for line in kept:
        at = joined.index(line, at) + 1
    for secret in hidden:
        assert secret not in joined
        assert secret in "\n".join("".join(c["source"]) for c in json.loads(solved)["cells"])
    for c in json.loads(learners)["cells"]:
        if c["cell_type"] == "code":
            ast.parse("".join(c["source"]))


def test_the_committed_notebooks_are_fresh():
    assert [f"{d.path.name}: {d.reason}\n{d.diff}" for d in drift(ROOT)] == []
