"""Every branch on the device, the runtime or the profile has tests that take both sides."""

import ast
from functools import cache

import pytest
import yaml
from device_branches import ROOT, branches, find_branches

LIST = ROOT / "tests" / "unit" / "device_branches.yaml"
LISTED = yaml.safe_load(LIST.read_text(encoding="utf-8"))


@cache
def names_of_tests(name):
    """Return the names of the test functions of a file, none if there is no such file."""
    path = ROOT / name
    tree = ast.parse(path.read_text(encoding="utf-8")) if path.is_file() else ast.Module([])
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


def test_list_has_each_branch_of_the_code():
    listed = {place: sorted(expressions) for place, expressions in LISTED.items()}
    found = {place: sorted(expressions) for place, expressions in find_branches().items()}
    assert found == listed, f"Add the new branch and its tests to {LIST.relative_to(ROOT)}."


@pytest.mark.parametrize("place", LISTED)
def test_both_sides_have_tests_that_exist(place):
    for expression, sides in LISTED[place].items():
        assert sides.keys() == {True, False}, expression  # YAML reads `yes` and `no` so
        for test in [*sides[True], *sides[False]]:
            file, _, name = test.partition("::")
            assert name in names_of_tests(file), f"{expression}: there is no test {test}"
        assert sides[True], expression
        assert sides[False], expression


@pytest.mark.parametrize(
    "branch",
    [
        "device == 'cuda'",
        "options.device != 'cpu'",
        "target.device.type == 'cuda'",
        "'docker' == profile.runtime",
        "engine.profile.name == 'spark'",
        "profile.name in ('cuda', 'spark')",
        "x.is_cuda",
        "torch.cuda.is_available()",
    ],
)
def test_branch_is_found_by_its_syntax(branch):
    source = f"class A:\n    def f(self):\n        return 1 if {branch} else 2\n"
    assert list(branches(source)) == [("A.f", branch)]


@pytest.mark.parametrize("other", ["device == wanted", "engine.name == 'vllm'", "kind.type == 'x'"])
def test_other_comparison_is_no_branch(other):
    assert list(branches(f"x = {other}")) == []
