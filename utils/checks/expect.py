"""Comparisons for checks.

Every function takes `what`, the thing in the exercise's own terms ("TTFT of the second request"),
and most take `hint`, a sentence that is added to the message ("Does the clock start when the
request was due?"). All raise CheckFailed.

The rule for types is the same in every exercise, so that a right answer in another style passes:

* For a list or a tuple, a list, a tuple or a NumPy array with the same items is right.
* For an integer, a float that is a whole number is right. NumPy's scalars count as Python's.
* Anything else has to be of exactly the expected type. Otherwise an object that equals everything would pass.

A message about a type leaves the hint out, because the hint explains a wrong value.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import reprlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import numpy as np

from utils.checks.failures import CheckFailed

_SCALARS = (bool, int, float, complex, str, bytes, type(None))
_brief = reprlib.Repr()
_brief.maxlist = _brief.maxtuple = _brief.maxdict = _brief.maxset = 8
_brief.maxstring = _brief.maxother = 100
_SEQUENCES = (list, tuple, np.ndarray)
SameNumber = Callable[[float, float], bool]
_passed: ContextVar[list[str] | None] = ContextVar("passed", default=None)


@contextmanager
def list_passed() -> Iterator[list[str]]:
    """Collect the `what` of each comparison in the body that holds."""
    found: list[str] = []
    token = _passed.set(found)
    try:
        yield found
    finally:
        _passed.reset(token)


class _TypeDifference(str):
    """Difference in type, which the hint of a case does not explain."""


def brief(value: object) -> str:
    """Return a short `repr` that survives any object."""
    try:
        return _brief.repr(value)
    except Exception as error:
        return f"<an object whose repr raises {type(error).__name__}>"


def expect(condition: bool, message: str) -> None:
    """Require a condition on values whose types were checked before.

    Raises:
        CheckFailed: it does not hold.
        TypeError: it is no bool, so the check itself is wrong.
    """
    if type(condition) not in (bool, np.bool_):
        raise TypeError(f"expect() takes a bool, not {type(condition).__name__}")
    if not condition:
        raise CheckFailed(message)


def expect_type(actual: object, kind: type, *, what: str, hint: str = "") -> None:
    """Require this type, by the module's rule for types."""
    difference = "" if _is(actual, kind) else _expected_type(actual, kind.__name__)
    _decide(what, difference, hint, actual)


def expect_equal(actual: object, expected: object, *, what: str, hint: str = "") -> None:
    """Require equal values of equal types: scalars, containers, dataclasses, enums, arrays.

    Raises:
        CheckFailed: with the place of the first difference.
        TypeError: `expected` is of a type this cannot compare.
    """
    _decide(what, _difference(actual, expected, "", None), hint, actual)


def expect_close(
    actual: object,
    expected: object,
    *,
    what: str,
    hint: str = "",
    rel: float = 1e-6,
    abs_: float = 1e-12,
) -> None:
    """Like `expect_equal`, but numbers may differ by `rel` (relative) or `abs_` (absolute)."""

    def same(a: float, b: float) -> bool:
        return (math.isnan(a) and math.isnan(b)) or math.isclose(a, b, rel_tol=rel, abs_tol=abs_)

    _decide(what, _difference(actual, expected, "", same), hint, actual)


def expect_raises(
    error: type[Exception], call: Callable[[], object], *, what: str, hint: str = ""
) -> None:
    """Require that `call()` raises `error`. An unfinished stub does not count as raising."""
    try:
        result = call()
    except (NotImplementedError, CheckFailed):
        raise
    except error:
        _decide(what, "", hint, None)
        return
    except Exception as other:
        raised = f"raised {type(other).__name__} ({other}), expected {error.__name__}"
        _decide(what, raised, hint, other)
        return
    returned = f"returned {brief(result)}, expected {error.__name__} to be raised"
    _decide(what, returned, hint, result)


def _decide(what: str, difference: str, hint: str, actual: object) -> None:
    """Note that a comparison holds, or raise `CheckFailed` with the difference."""
    passed = _passed.get()
    if not difference:
        if passed is not None:
            passed.append(what)
        return
    helps = hint and not isinstance(difference, _TypeDifference)
    raise CheckFailed(f"{what}: {difference}." + (f" {hint}" if helps else ""), actual=actual)


def same_value(actual: object, expected: object) -> bool:
    """Tell whether two values are equal, where `expect_equal` can compare them; otherwise True."""
    try:
        return not _difference(actual, expected, "", None)
    except TypeError:
        return True


def _plain(value: Any) -> Any:
    exact = type(value).__module__ == "numpy" and isinstance(value, np.generic)
    return value.item() if exact else value


def _is(actual: object, kind: type) -> bool:
    """Tell whether a value counts as one of this type, by the module's rule."""
    given = type(_plain(actual))
    if kind in (list, tuple):
        return given in _SEQUENCES
    return given is kind or (kind is int and given is float and float(actual).is_integer())  # type: ignore[arg-type]


def _expected_type(actual: object, kind: str) -> str:
    if actual is None:
        return f"got None, expected {kind} (is a `return` missing?)"
    return _TypeDifference(f"got {brief(actual)} of type {type(actual).__name__}, expected {kind}")


def _difference(actual: Any, expected: Any, at: str, same: SameNumber | None) -> str:
    """Return the first difference in words, or "" when there is none."""
    actual, expected = _plain(actual), _plain(expected)
    where = f"at {at}: " if at else ""
    kind = type(expected)
    numbers = same is not None and kind in (int, float)
    if not (_is(actual, kind) or (numbers and type(actual) in (int, float))):
        if expected is None:
            return f"{where}got {brief(actual)}, expected None"
        difference = _expected_type(actual, f"{kind.__name__} {brief(expected)}")
        return type(difference)(where + difference)
    unequal = f"{where}got {brief(actual)}, expected {brief(expected)}"
    if numbers and same is not None:
        short, shorter = f"{actual:.6g}", f"{expected:.6g}"
        unequal = f"{where}got {short}, expected {shorter}" if short != shorter else unequal
        return "" if same(actual, expected) else unequal
    if kind in _SCALARS or isinstance(expected, enum.Enum):
        nan = kind is float and math.isnan(actual) and math.isnan(expected)
        return "" if nan or actual == expected else unequal
    if isinstance(expected, np.ndarray):
        return _array_difference(actual, expected, where, same)
    if isinstance(expected, (list, tuple)):
        if len(actual) != len(expected):
            items = "item" if len(actual) == 1 else "items"
            return f"{where}got {brief(actual)}, which has {len(actual)} {items}, expected {len(expected)}"
        pairs = zip(actual, expected, strict=True)
        return _first(_difference(a, e, f"{at}[{i}]", same) for i, (a, e) in enumerate(pairs))
    if isinstance(expected, dict):
        if not all(map(_hashes_plainly, actual)) or actual.keys() != expected.keys():
            return f"{where}got the keys {brief(list(actual))}, expected {brief(list(expected))}"
        return _first(_difference(actual[k], expected[k], f"{at}[{k!r}]", same) for k in expected)
    if isinstance(expected, (set, frozenset)):
        return "" if all(map(_hashes_plainly, actual)) and actual == expected else unequal
    if dataclasses.is_dataclass(expected):
        names = [field.name for field in dataclasses.fields(expected)]
        return _first(
            _difference(getattr(actual, name, None), getattr(expected, name), f"{at}.{name}", same)
            for name in names
        )
    raise TypeError(f"cannot compare {kind.__name__}; compare its parts, or convert it to a list")


def _array_difference(
    actual: Any,
    expected: np.ndarray[Any, Any],
    where: str,
    same: SameNumber | None,
) -> str:
    if actual.dtype.kind != expected.dtype.kind and same is None:
        return f"{where}got an array of {actual.dtype}, expected {expected.dtype}"
    if actual.shape != expected.shape:
        return f"{where}got an array of shape {actual.shape}, expected {expected.shape}"
    return _difference(actual.tolist(), expected.tolist(), "", same)


def _first(differences: Iterable[str]) -> str:
    return next((difference for difference in differences if difference), "")


def _hashes_plainly(value: Any) -> bool:
    if type(value) in (tuple, frozenset):
        return all(map(_hashes_plainly, value))
    return type(value) in _SCALARS or isinstance(value, enum.Enum)
