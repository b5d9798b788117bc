"""Comparisons follow one rule for types, at every depth, and show the first difference."""

import dataclasses
import enum
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.checks import CheckFailed, expect, expect_close, expect_equal, expect_raises, expect_type
from utils.checks.expect import brief

SCALARS = st.one_of(
    st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.binary(max_size=5), st.none()
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
    ),
    max_leaves=8,
)


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        ((1, 2), [1, 2]),
        ([1, 2], (1, 2)),
        (np.array([0.5, 0.5]), [0.5, 0.5]),
        (np.array([[True, False]]), [[True, False]]),
        ([[1, 2], (3, 4)], [(1, 2), (3, 4)]),
        (512.0, 512),
        (np.float64(512), 512),
        ([np.int64(1), 2.0], [1, 2]),
        ({"b": 2, "a": 1}, {"a": 1, "b": 2}),
    ],
)
def test_right_answer_in_another_style_passes(actual, expected):
    expect_equal(actual, expected, what="it")
    expect_close(actual, expected, what="it")


def test_hint_does_not_explain_a_type():
    with pytest.raises(CheckFailed) as caught:
        expect_equal("512", 512, what="bytes", hint="A key and a value?")
    assert str(caught.value) == "bytes: got '512' of type str, expected int 512."


@dataclasses.dataclass
class Point:
    x: object
    y: object = 0


class Colour(enum.Enum):
    RED = 1
    BLUE = 2


class Anything:
    def __eq__(self, other):
        return True

    def __hash__(self):
        return hash(3)


@given(VALUES)
def test_every_value_equals_itself(value):
    expect_equal(value, value, what="it")
    expect_close(value, value, what="it")


@pytest.mark.parametrize(
    ("actual", "expected", "says"),
    [
        (1, 2, "it: got 1, expected 2."),
        (True, 1, "got True of type bool, expected int 1"),
        (1.5, 1, "of type float, expected int 1"),
        (3, None, "it: got 3, expected None."),
        (None, 1, "is a `return` missing?"),
        ({1, 2}, [1, 2], "of type set, expected list"),
        ([1, 2], [1, 2, 3], "got [1, 2], which has 2 items, expected 3"),
        ([1, [2, 9]], [1, [2, 3]], "at [1][1]: got 9, expected 3"),
        ({"a": [1]}, {"a": [2]}, "at ['a'][0]: got 1, expected 2"),
        ({"b": 1}, {"a": 1}, "got the keys ['b'], expected ['a']"),
        ({1, 2}, {1, 3}, "got {1, 2}, expected {1, 3}"),
        (Point(1), Point(2), "at .x: got 1, expected 2"),
        (Colour.RED, Colour.BLUE, "expected <Colour.BLUE"),
        (np.array([1, 2]), np.array([1, 3]), "at [1]: got 2, expected 3"),
        (np.zeros((2, 1)), np.zeros((1, 2)), "array of shape (2, 1), expected (1, 2)"),
        (np.zeros(2, dtype=int), np.zeros(2), "got an array of int64, expected float64"),
        ([1, 2], np.array([1, 2]), "of type list, expected ndarray"),
        (float("nan"), 1.0, "got nan, expected 1.0"),
        (0.1 + 0.2, 0.3, "got 0.30000000000000004, expected 0.3"),
    ],
)
def test_differences_are_told(actual, expected, says):
    with pytest.raises(CheckFailed) as caught:
        expect_equal(actual, expected, what="it")
    assert says in str(caught.value)


EVIL = Anything()


@pytest.mark.parametrize(
    ("actual", "expected"),
    [
        (EVIL, 3),
        ([EVIL], [3]),
        ((1, EVIL), (1, 3)),
        ({"a": EVIL}, {"a": 3}),
        ({EVIL: 1}, {3: 1}),
        ({(EVIL,): 1}, {(3,): 1}),
        ({EVIL}, {3}),
        (frozenset([EVIL]), frozenset([3])),
        (Point(EVIL), Point(3)),
        (EVIL, Colour.RED),
        (np.array([EVIL], dtype=object), np.array([3])),
        (EVIL, 3.0),
        (type("str", (str,), {"__eq__": lambda self, other: True})("x"), "y"),
    ],
)
@pytest.mark.parametrize("compare", [expect_equal, expect_close])
def test_an_object_that_equals_everything_fails_at_every_depth(actual, expected, compare):
    with pytest.raises(CheckFailed):
        compare(actual, expected, what="it")


def test_numpys_scalars_count_as_pythons():
    expect_equal(np.float64(0.5), 0.5, what="it")
    expect_equal([np.int64(3)], [3], what="it")
    expect_type(np.bool_(True), bool, what="it")


def test_close_forgives_rounding_and_int_for_float_but_no_bool():
    expect_close(0.1 + 0.2, 0.3, what="it")
    expect_close(2, 2.0, what="it")
    expect_close([0.1 + 0.2, 1], (lambda: [0.3, 1.0])(), what="it")
    expect_close(np.array([0.1 + 0.2]), np.array([0.3]), what="it")
    expect_close(102.0, 100.0, rel=0.05, what="it")
    for actual in (True, "1.0", None, 1.001, math.nan, math.inf):
        with pytest.raises(CheckFailed):
            expect_close(actual, 1.0, what="it")


def test_numbers_are_told_in_as_many_digits_as_it_takes():
    for actual, expected, says in [
        (0.1 + 0.2, 0.4, "got 0.3, expected 0.4."),
        (1.0000001, 1.0, "got 1.0000001, expected 1.0."),
        (12_345_678.0, 2, "got 1.23457e+07, expected 2."),
    ]:
        with pytest.raises(CheckFailed) as caught:
            expect_close(actual, expected, what="it", rel=1e-9)
        assert says in str(caught.value)


def test_the_hint_is_part_of_the_message():
    with pytest.raises(CheckFailed, match=r"it: got 1, expected 2\. Off by one\?$"):
        expect_equal(1, 2, what="it", hint="Off by one?")


def test_expect_takes_bools_only():
    expect(True, "fine")
    expect(np.bool_(True), "fine")
    with pytest.raises(CheckFailed, match="no"):
        expect(False, "no")
    for condition in (EVIL, 1, None, "yes"):
        with pytest.raises(TypeError):
            expect(condition, "no")


def test_expect_type_is_exact():
    expect_type([], list, what="it")
    for value, kind in [(True, int), (type("L", (list,), {})(), list), (None, list)]:
        with pytest.raises(CheckFailed, match=f"expected {kind.__name__}"):
            expect_type(value, kind, what="it")


def test_expect_raises():
    expect_raises(KeyError, lambda: {}["a"], what="it")
    with pytest.raises(CheckFailed, match="returned 3, expected KeyError"):
        expect_raises(KeyError, lambda: 3, what="it")
    with pytest.raises(CheckFailed, match="raised ZeroDivisionError"):
        expect_raises(KeyError, lambda: 1 / 0, what="it")


def test_an_unfinished_stub_does_not_count_as_raising():
    def stub():
        raise NotImplementedError("a RuntimeError, as it happens")

    with pytest.raises(NotImplementedError):
        expect_raises(RuntimeError, stub, what="it")


def test_incomparable_value_is_authors_fault():
    with pytest.raises(TypeError, match="cannot compare object"):
        expect_equal(object(), object(), what="it")


def test_brief_survives_any_object():
    class Hostile:
        def __repr__(self):
            raise ValueError

    Hostile.__name__ = "int"
    assert len(brief("x" * 10_000)) < 200
    assert len(brief(list(range(10_000)))) < 200
    assert "repr" in brief(Hostile()) or "instance" in brief(Hostile())
