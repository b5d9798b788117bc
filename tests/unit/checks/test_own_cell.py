"""A learner is told at once about names that grading won't have."""

import linecache

import pytest

from utils.checks import CheckFailed, lab_3_3_3, own_cell
from utils.checks.own_cell import given_names, names_of_other_cells
from utils.kvcache.blocks import OutOfBlocks


def cell(text, **namespace):
    """Run a cell as IPython does, where `linecache` knows its text."""
    name = f"<cell {hash(text)}>"
    linecache.cache[name] = (len(text), None, text.splitlines(keepends=True), name)
    exec(compile(text, name, "exec"), namespace)
    return namespace


CAPACITY = """
def capacity(budget_bytes, token_bytes, block_size, request_tokens):
    blocks = budget_bytes // (token_bytes * block_size)
    return blocks, blocks // math.ceil(request_tokens / block_size)
"""


def test_import_in_another_cell_is_told(capsys):
    import math

    capacity = cell(CAPACITY, math=math)["capacity"]
    assert lab_3_3_3.capacity(capacity) is capacity
    first, second = capsys.readouterr().out.splitlines()
    assert first.startswith("△ capacity: your code reads `math` from another cell.")
    assert second == "✔ capacity: right."


def test_import_in_the_same_cell_is_silent(capsys):
    capacity = cell("import math\n" + CAPACITY)["capacity"]
    lab_3_3_3.capacity(capacity)
    assert capsys.readouterr().out == "✔ capacity: right.\n"


def test_wrong_answer_is_warned_too(capsys):
    text = CAPACITY.replace("math.ceil(", "math.floor(")
    with pytest.raises(CheckFailed):
        import math

        lab_3_3_3.capacity(cell(text, math=math)["capacity"])
    assert "reads `math` from another cell" in capsys.readouterr().out


def test_names_that_grading_has_are_silent():
    text = (
        "def f(x):\n    return random.choice([capacity(x), sorted(x), [BlockTable for _ in x]])\n"
    )
    found = cell(text, random=1, capacity=1, BlockTable=1)["f"]
    assert {"random", "BlockTable", "capacity"} <= given_names("3.3.3")
    assert names_of_other_cells(found, "3.3.3") == []


def test_nested_functions_and_methods_are_read():
    text = "class A:\n    def f(self):\n        return [helper(x) for x in table]\n"
    found = cell(text, helper=1, table=[])["A"]
    assert names_of_other_cells(found, "3.3.3") == ["helper", "table"]


def test_without_a_notebook_nothing_is_said():
    found = cell("def f():\n    return helper\n", helper=1)["f"]
    assert names_of_other_cells(found, "3.3.99") == []


def test_stub_that_holds_some_code_already_is_not_begun():
    stub = next(e["stub"] for e in own_cell._facts("3.3.3")["exercises"] if e["id"] == "block_pool")
    namespace = {name: object for name in given_names("3.3.3")}
    namespace["OutOfBlocks"] = OutOfBlocks
    handed_out = cell(stub, **namespace)["BlockPool"]
    assert lab_3_3_3.block_pool.judge(handed_out).verdict == "not attempted"
    begun = cell(stub + "\n# begun\n", **namespace)["BlockPool"]
    assert lab_3_3_3.block_pool.judge(begun).verdict == "not finished"
