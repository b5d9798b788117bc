"""Every fault of a lab's source is refused with file, line and next step."""

from pathlib import Path

import pytest

from tools.authoring.exercises import read_lab
from tools.authoring.lab_source import read_source
from tools.authoring.lint_errors import Problem, SourceError

HEAD = "# %% [markdown]\n# # Lab 3.3.9: A sample\n\n"
TASK = "# %% [markdown]\n# Write `f`.\n\n"
MARKER = '# %% exercise="f" title="Eff" minutes=5 difficulty=2 importance=3 points=3\n'
BODY = "def f(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION\n\n"
CHECK = '# %% check="f"\nf = checks.f(f)\n\n'
GOOD = HEAD + TASK + MARKER + BODY + CHECK


def problems(tmp_path: Path, text: str, name: str = "lab-3.3.9-sample.py") -> tuple[Problem, ...]:
    path = tmp_path / name
    path.write_text(text)
    try:
        return read_lab(read_source(path)).problems
    except SourceError as error:
        return error.problems


def only_problem(tmp_path: Path, text: str) -> Problem:
    found = problems(tmp_path, text)
    assert len(found) == 1, "\n".join(map(str, found))
    return found[0]


def line_of(text: str, fragment: str) -> int:
    return 1 + next(i for i, line in enumerate(text.splitlines()) if fragment in line)


def test_a_good_lab_has_no_problems(tmp_path):
    assert problems(tmp_path, GOOD) == ()


BODIES = {
    "unclosed": ("def f(x):\n    ### BEGIN SOLUTION\n    return x\n\n", "BEGIN", "never closed"),
    "nested": (
        "def f(x):\n    ### BEGIN SOLUTION\n    y = x\n     ### BEGIN SOLUTION\n    return y\n"
        "    ### END SOLUTION\n\n",
        "     ### BEGIN",
        "inside another",
    ),
    "stray": (
        "def f(x):\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION\n"
        "    ### END SOLUTION  \n\n",
        "SOLUTION  ",
        "without a beginning",
    ),
    "empty": (
        "def f(x):\n    ### BEGIN SOLUTION\n    # only a comment\n    ### END SOLUTION\n    return x\n",
        "BEGIN",
        "empty solution region",
    ),
    "misspelt": (
        "def f(x):\n    # begin solution\n    ### BEGIN SOLUTION\n    return x\n"
        "    ### END SOLUTION\n\n",
        "# begin solution",
        "not a marker",
    ),
    "stub outside": (
        "def f(x):\n    #: pass\n    ### BEGIN SOLUTION\n    return x\n    ### END SOLUTION\n\n",
        "#: pass",
        "outside a solution region",
    ),
}


@pytest.mark.parametrize("name", BODIES)
def test_bad_regions_are_refused_at_their_line(tmp_path, name):
    body, fragment, words = BODIES[name]
    text = HEAD + TASK + MARKER + body + CHECK
    found = only_problem(tmp_path, text)
    assert (found.line, words in found.message) == (line_of(text, fragment), True), str(found)
    assert found.fix


@pytest.mark.parametrize(
    "key", ["minutes=5 ", "difficulty=2 ", "importance=3 ", "points=3", 'title="Eff" ']
)
def test_a_missing_fact_is_refused(tmp_path, key):
    text = GOOD.replace(key, "")
    found = only_problem(tmp_path, text)
    assert found.line == line_of(text, "exercise=")
    assert f"no {key.partition('=')[0]}" in found.message


@pytest.mark.parametrize("key", ["minutes=0", "minutes=5.5", 'minutes="5"', "minutes=true"])
def test_a_fact_that_is_no_count_is_refused(tmp_path, key):
    assert "minutes=" in only_problem(tmp_path, GOOD.replace("minutes=5", key)).message


def test_an_exercise_without_a_check_is_refused(tmp_path):
    found = only_problem(tmp_path, HEAD + TASK + MARKER + BODY)
    assert "has no check" in found.message
    assert found.line == 7


def test_a_check_without_an_exercise_is_refused(tmp_path):
    text = GOOD + '# %% check="g"\ng = checks.g(g)\n'
    found = only_problem(tmp_path, text)
    assert "without an exercise: 'g'" in found.message
    assert found.line == line_of(text, 'check="g"')


def test_a_check_above_its_exercise_is_refused(tmp_path):
    text = HEAD + CHECK + TASK + MARKER + BODY
    assert "without an exercise" in only_problem(tmp_path, text).message


def test_a_second_check_is_refused(tmp_path):
    assert "second check" in only_problem(tmp_path, GOOD + CHECK).message


def test_duplicate_exercise_ids_are_refused(tmp_path):
    text = GOOD + TASK + MARKER + BODY
    found = only_problem(tmp_path, text)
    assert "is taken" in found.message
    assert found.line > line_of(text, "check=")


def test_a_prediction_cannot_take_an_exercises_id(tmp_path):
    prediction = '# %% prediction="f"\n### BEGIN SOLUTION\nf = 3\n### END SOLUTION\n'
    assert "is taken" in only_problem(tmp_path, GOOD + prediction).message


@pytest.mark.parametrize(
    "call",
    ["checks.f(f)", "f = checks.g(f)", "g = checks.f(f)", "f = checks.f(g)", "f = f", "f = ("],
)
def test_a_check_cell_that_does_not_check_is_refused(tmp_path, call):
    text = GOOD.replace("f = checks.f(f)", call)
    assert "does not check 'f'" in only_problem(tmp_path, text).message


def test_a_long_code_cell_is_refused_and_a_long_exercise_is_not(tmp_path):
    lines = "".join(f"x{i} = {i}\n\n# a comment\n" for i in range(26))
    text = GOOD + "# %%\n" + lines
    found = only_problem(tmp_path, text)
    assert found.line == line_of(text, "checks.f") + 2
    assert "26 lines" in found.message
    assert problems(tmp_path, GOOD.replace("def f(x):\n", lines + "def f(x):\n")) == ()
    assert problems(tmp_path, GOOD + "# %%\n" + lines.replace("x25 = 25\n", "")) == ()


@pytest.mark.parametrize(
    ("marker", "words"),
    [
        ('# %% colour="red"', "unknown key 'colour'"),
        ("# %% a free title", "unknown key 'title'"),
        ('# %% exercise="g" check="g"', "cannot be exercise and check"),
        ('# %% tags=["skip-execution"]', "unknown tag 'skip-execution'"),
        ("# %% [markdown] minutes=3", "unknown key 'minutes'"),
        ("# %% [raw]", "a raw cell"),
        ("# %% x=[", "does not parse"),
    ],
)
def test_unknown_metadata_is_refused_at_its_line(tmp_path, marker, words):
    text = GOOD + f"{marker}\n# text\n"
    found = problems(tmp_path, text)
    assert any(words in p.message and p.line == line_of(text, marker) for p in found), found


@pytest.mark.parametrize("id_", ["F", "two words", "9lives", "a-b", ""])
def test_an_id_that_is_no_name_is_refused(tmp_path, id_):
    text = GOOD.replace('exercise="f"', f'exercise="{id_}"')
    assert any("is not an id" in p.message for p in problems(tmp_path, text))


def test_an_exercise_without_region_is_refused(tmp_path):
    text = HEAD + TASK + MARKER + "def f(x):\n    return x\n\n" + CHECK
    assert "has no solution region" in only_problem(tmp_path, text).message


def test_a_region_in_a_plain_cell_is_refused(tmp_path):
    text = GOOD + "# %%\n### BEGIN SOLUTION\nx = 1\n### END SOLUTION\n"
    assert "region in a plain cell" in only_problem(tmp_path, text).message


@pytest.mark.parametrize("task", ["", "# %% [markdown]\n# ## Heading\n\n", "# %%\nx = 1\n\n"])
def test_an_exercise_needs_a_task_without_heading(tmp_path, task):
    text = HEAD + "# %%\npass\n\n" + task + MARKER + BODY + CHECK
    assert "no task in front" in only_problem(tmp_path, text).message


def test_a_stub_that_would_stop_run_all_is_refused(tmp_path):
    body = "### BEGIN SOLUTION\nf = 3\n### END SOLUTION\n\n"
    text = HEAD + TASK + MARKER + body + CHECK
    assert "would stop Run All" in only_problem(tmp_path, text).message
    given = text.replace("f = 3\n", "#: f = ...\nf = 3\n")
    assert problems(tmp_path, given) == ()


def test_a_stub_that_is_not_python_is_refused(tmp_path):
    text = GOOD.replace("    return x\n", "    #: return (\n    return x\n")
    assert "does not parse" in only_problem(tmp_path, text).message


def test_a_prediction_must_name_its_variable(tmp_path):
    text = (
        GOOD + '# %% prediction="guess"\n### BEGIN SOLUTION\n#: g = None\ng = 2\n### END SOLUTION\n'
    )
    assert "no variable 'guess'" in only_problem(tmp_path, text).message


ANSWER = "### BEGIN SOLUTION\n# Because.\n# ### END SOLUTION\n"


def test_a_written_answer_is_markdown_with_points(tmp_path):
    good = GOOD + '# %% [markdown] answer="why" points=2\n# ' + ANSWER
    assert problems(tmp_path, good) == ()
    assert "no points" in only_problem(tmp_path, good.replace(" points=2", "")).message
    code = good.replace("# %% [markdown] answer", "# %% answer")
    assert "an answer in a code cell" in problems(tmp_path, code)[0].message
    assert "is taken" in only_problem(tmp_path, good.replace('"why"', '"f"')).message
    without = good.replace("# ### BEGIN SOLUTION\n", "").replace("# ### END SOLUTION\n", "")
    assert "has no solution region" in only_problem(tmp_path, without).message


SETUP = "# %%\nimport math\n\nfrom a.b import c as d\n\nscale = 2\n\n"
LATER = '# %% tags=["measures"]\nmeasured = 3\n\n'


@pytest.mark.parametrize(
    "body",
    [
        "return math.sqrt(d * scale)",
        "rows = [len(y) for y in x]\n    return sum(rows, start=scale)",
        "def inner(z):\n        return z + x\n    return inner(scale)",
        "import json\n    return json.dumps(x)",
    ],
)
def test_an_exercise_may_use_the_first_code_cell_and_its_own(tmp_path, body):
    text = HEAD + SETUP + LATER + TASK + MARKER + BODY.replace("return x", body) + CHECK
    assert problems(tmp_path, text) == ()


@pytest.mark.parametrize("body", ["return measured * x", "return [measured for _ in x]"])
def test_an_exercise_may_not_use_what_is_not_run_while_grading(tmp_path, body):
    text = HEAD + SETUP + LATER + TASK + MARKER + BODY.replace("return x", body) + CHECK
    found = only_problem(tmp_path, text)
    assert "exercise 'f' uses measured of a cell that is not graded" in found.message
    assert found.line == line_of(text, "exercise=")


def test_an_exercise_may_use_an_earlier_one(tmp_path):
    second = (TASK + MARKER + BODY + CHECK).replace('"f"', '"g"').replace("checks.f", "checks.g")
    second = second.replace("def f(x)", "def g(x: f)").replace("f = checks.g(f)", "g = checks.g(g)")
    assert problems(tmp_path, GOOD + second) == ()


def test_a_lab_without_title_is_refused(tmp_path):
    found = only_problem(tmp_path, GOOD.replace("# # Lab", "# Lab"))
    assert (found.line, found.message) == (1, "the lab has no title")


def test_text_that_is_not_cells_is_refused(tmp_path):
    assert "no cell" in only_problem(tmp_path, "x = 1\n").message
    assert "no cell" in only_problem(tmp_path, "").message
    assert "jupytext reads" in only_problem(tmp_path, "x = 1\n" + GOOD).message
    inside = GOOD.replace("return x", 'return """\n# %% no marker\n"""')
    assert "jupytext reads" in only_problem(tmp_path, inside).message


def test_text_that_jupytext_cannot_read_is_refused(tmp_path):
    header = "# ---\n# jupyter:\n#   kernelspec:\n#     name: python3\n# ---\n\n"
    assert "jupytext cannot read it" in only_problem(tmp_path, header + GOOD).message
    path = tmp_path / "lab-3.3.9-sample.py"
    path.write_bytes(GOOD.encode() + b"# \xff\n")
    with pytest.raises(SourceError, match="jupytext cannot read it: 'utf-8' codec"):
        read_source(path)


def test_a_jupytext_header_is_no_cell(tmp_path):
    header = "# ---\n# jupyter:\n#   jupytext:\n#     formats: py:percent\n# ---\n\n"
    assert problems(tmp_path, header + GOOD) == ()


def test_a_file_name_that_is_no_labs_is_refused(tmp_path):
    assert "not the name of a lab" in problems(tmp_path, GOOD, "helper.py")[0].message


def test_every_fault_is_reported_in_order(tmp_path):
    text = GOOD.replace("minutes=5 ", "").replace("points=3", "") + '# %% colour="red"\nx = 1\n'
    found = problems(tmp_path, text)
    assert len(found) == 3
    assert [p.line for p in found] == sorted(p.line for p in found)
    assert (
        str(found[-1])
        .splitlines()[0]
        .endswith(
            f"lab-3.3.9-sample.py:{line_of(text, 'colour')}: unknown key 'colour' on a plain cell"
        )
    )
