"""Comparisons for checks. They look at exact types first: an object that equals everything fails.

Every function takes `what`, the thing in the exercise's own terms ("TTFT of the second request"),
and most take `hint`, a sentence that is added to the message ("Does the clock start when the
request was due?"). All raise CheckFailed.
"""

from __future__ import annotations

import dataclasses
import enum
import math
import reprlib
from collections.abc import Callable
from typing import Any

import numpy as np

from utils.checks.failures import CheckFailed

_SCALARS = (bool, int, float, complex, str, bytes, type(None))
_brief = reprlib.Repr()
_brief.maxlist = _brief.maxtuple = _brief.maxdict = _brief.maxset = 8
_brief.maxstring = _brief.maxother = 100
SameNumber = Callable[[float, float], bool]


def brief(value: object) -> str:
    """A short `repr` that survives any object."""
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
    """Require exactly this type; NumPy's scalars count as Python's."""
    if type(_plain(actual)) is not kind:
        _fail(what, _expected_type(actual, kind.__name__), hint)


def expect_equal(actual: object, expected: object, *, what: str, hint: str = "") -> None:
    """Require equal values of equal types: scalars, containers, dataclasses, enums, arrays.

    Raises:
        CheckFailed: with the place of the first difference.
        TypeError: `expected` is of a type this cannot compare.
    """
    difference = _difference(actual, expected, "", None)
    if difference:
        _fail(what, difference, hint)


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

    difference = _difference(actual, expected, "", same)
    if difference:
        _fail(what, difference, hint)


def expect_raises(
    error: type[Exception], call: Callable[[], object], *, what: str, hint: str = ""
) -> None:
    """Require that `call()` raises `error`. An unfinished stub does not count as raising."""
    try:
        result = call()
    except (NotImplementedError, CheckFailed):
        raise
    except error:
        return
    except Exception as other:
        raised = f"raised {type(other).__name__} ({other}), expected {error.__name__}"
        _fail(what, raised, hint)
    _fail(what, f"returned {brief(result)}, expected {error.__name__} to be raised", hint)


def _fail(what: str, difference: str, hint: str) -> None:
    raise CheckFailed(f"{what}: {difference}." + (f" {hint}" if hint else ""))


def _plain(value: Any) -> Any:
    exact = type(value).__module__ == "numpy" and isinstance(value, np.generic)
    return value.item() if exact else value


def _expected_type(actual: object, kind: str) -> str:
    if actual is None:
        return f"got None, expected {kind} (is a `return` missing?)"
    return f"got {brief(actual)} of type {type(actual).__name__}, expected {kind}"


def _difference(actual: Any, expected: Any, at: str, same: SameNumber | None) -> str:
    """The first difference in words, or "" when there is none."""
    actual, expected = _plain(actual), _plain(expected)
    where = f"at {at}: " if at else ""
    kind = type(expected)
    numbers = same is not None and kind in (int, float)
    if not (type(actual) is kind or (numbers and type(actual) in (int, float))):
        return where + _expected_type(actual, f"{kind.__name__} {brief(expected)}")
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
            sizes = f"{len(actual)} items, expected {len(expected)}"
            return f"{where}got {sizes}: {brief(actual)}"
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


def _first(differences: Any) -> str:
    return next((str(difference) for difference in differences if difference), "")


def _hashes_plainly(value: Any) -> bool:
    if type(value) in (tuple, frozenset):
        return all(map(_hashes_plainly, value))
    return type(value) in _SCALARS or isinstance(value, enum.Enum)
