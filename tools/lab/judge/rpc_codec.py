"""Values between the grader and the process that runs a learner's code.

Plain data only: JSON, no pickle, so that data from the learner's side can hold values and
nothing that acts. Exact types survive (a `bool` is no `int`, a NumPy scalar no `float`). Objects of
classes of `utils` cross by value where the receiver has agreed to the class; whatever else the
learner's side holds (its own classes, generators, functions) stays there, and a *handle* crosses.

Identity is kept within one call. The grader sends arguments, the other side calls the learner's
function and sends the arguments back as they are afterwards; decoding *updates the grader's own
objects*, so a function that changes a list in place has changed it here too (call by copy-restore;
Birrell and Nelson, "Implementing remote procedure calls", 1984, name the idea).
"""

from __future__ import annotations

import base64
import enum
import json
import math
import sys
from collections import deque
from collections.abc import Callable
from typing import Any, Protocol

import numpy as np

MAX_BYTES = 16 << 20
# What reading a forged message may raise.
UNREADABLE = (LookupError, TypeError, ValueError, AttributeError, OverflowError, RecursionError)
_MAX_DEPTH = 60
_MAX_ITEMS = 4_000_000  # of a value, written out: lists in lists can share their items
_EXACT_INT = 1 << 62


class WireError(ValueError):
    """A message that does not follow the protocol, or a value that cannot cross."""


class Handles(Protocol):
    """Object that stays on the learner's side, and is named by a number."""

    def give(self, thing: object) -> dict[str, Any]:
        """Describe an object that stays here (or a handle that came from there)."""

    def take(self, described: dict[str, Any]) -> object:
        """Return the object that a description means, or its proxy."""


def to_bytes(message: object) -> bytes:
    """Return one message: its length in 4 bytes, then JSON.

    Raises:
        WireError: it is too large.
    """
    text = json.dumps(message, separators=(",", ":")).encode()
    if len(text) > MAX_BYTES:
        raise WireError(f"a value of {len(text) / 2**20:.0f} MiB is too large to be looked at")
    return len(text).to_bytes(4, "big") + text


def from_bytes(text: bytes) -> dict[str, Any]:
    """Return the message that follows the length.

    Raises:
        WireError: it is no JSON object.
    """
    try:
        message = json.loads(text.decode())
        message = _readable(message) if b"\\ud" in text.lower() else message
    except (ValueError, RecursionError) as error:
        raise WireError(f"no JSON: {error}") from error
    if not isinstance(message, dict):
        raise WireError("no JSON object")
    return message


class Codec:
    """Encodes and decodes the values of one call, keeping identities.

    Args:
        handles: what crosses by name.
        classes: classes of `utils` whose objects may cross by value. Encoding adds to them on
            the grader's side (`agree=True`): what it sends, it takes back.
        agree: whether encoding may agree to new classes.
    """

    def __init__(self, handles: Handles, classes: set[type], *, agree: bool) -> None:
        self.handles = handles
        self.classes = classes
        self.agree = agree
        self._by_number: dict[int, Any] = {}
        self._numbers: dict[int, int] = {}  # by id(); _by_number keeps the objects alive
        self._written: set[int] = set()
        self._items = 0  # of what is decoded so far, written out
        self._items_of: dict[int, int] = {}

    # ---- to the wire

    def encode(self, value: Any) -> Any:
        """Return a value as JSON; objects that were encoded or decoded before keep their numbers.

        Raises:
            WireError: nested too deeply, or (on the grader's side) of a type that cannot cross.
        """
        self._written = set()
        return self._encode(value, 0)

    def _encode(self, value: Any, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise WireError("nested too deeply")
        kind = type(value)
        if value is None or kind is bool or kind is str:
            return value
        if kind is int:
            return value if -_EXACT_INT < value < _EXACT_INT else {"t": "int", "v": hex(value)}
        if kind is float:
            return value if math.isfinite(value) else {"t": "float", "v": repr(value)}
        if value is ...:
            return {"t": "dots"}
        if kind is complex:
            return {"t": "complex", "v": [repr(value.real), repr(value.imag)]}
        if kind is bytes:
            return {"t": "bytes", "v": base64.b64encode(value).decode()}
        if kind is tuple or kind is frozenset:
            return {"t": kind.__name__, "v": [self._encode(item, depth + 1) for item in value]}
        if isinstance(value, np.generic) and _plain_dtype(value.dtype):
            return {"t": "scalar", **_raw(np.asarray(value))}
        if isinstance(value, enum.Enum) and self._known(kind):
            return {"t": "enum", "c": _name(kind), "v": value.name}
        return self._encode_object(value, kind, depth)

    def _encode_object(self, value: Any, kind: type, depth: int) -> Any:
        """Encode an object that has an identity."""
        crosses = kind in (list, dict, set, deque) or _plain_array(value) or self._known(kind)
        if not crosses:
            return {"t": "handle", **self.handles.give(value)}
        number = self._numbers.get(id(value))
        if number is None:
            number = len(self._by_number)
            self._numbers[id(value)], self._by_number[number] = number, value
        if number in self._written:
            return {"t": "same", "n": number}
        self._written.add(number)

        def each(items: Any) -> list[Any]:
            return [self._encode(item, depth + 1) for item in items]

        node: dict[str, Any] = {"n": number}
        if kind is dict:
            return node | {"t": "dict", "k": each(value.keys()), "v": each(value.values())}
        if kind is deque:
            return node | {"t": "deque", "m": value.maxlen, "v": each(value)}
        if kind in (list, set):
            return node | {"t": kind.__name__, "v": each(value)}
        if isinstance(value, np.ndarray):
            return node | {"t": "array", **_raw(value)}
        state = vars(value)
        return node | {"t": "object", "c": _name(kind), "k": list(state), "v": each(state.values())}

    def _known(self, kind: type) -> bool:
        if kind not in self.classes and self.agree and _of_course(kind):
            self.classes.add(kind)
        return kind in self.classes

    # ---- from the wire

    def decode(self, node: Any) -> Any:
        """Return the value of a node. Objects of this call are updated and come back themselves.

        Raises:
            WireError: it does not follow the protocol, or names a class nobody agreed to.
        """
        try:
            return self._decode(node, 0)
        except WireError:
            raise
        except UNREADABLE as error:
            raise WireError(f"{type(error).__name__}: {error}") from error

    def _decode(self, node: Any, depth: int) -> Any:
        if depth > _MAX_DEPTH:
            raise WireError("nested too deeply")
        self._items += 1
        if self._items > _MAX_ITEMS:
            raise WireError(f"more than {_MAX_ITEMS} items")
        if type(node) is not dict:
            if isinstance(node, list):
                raise WireError("a list that is none")
            return node

        def each(nodes: Any) -> list[Any]:
            return [self._decode(item, depth + 1) for item in nodes]

        kind = node["t"]
        simple: dict[str, Callable[[], Any]] = {
            "int": lambda: int(node["v"], 16),
            "float": lambda: float(node["v"]),
            "dots": lambda: ...,
            "complex": lambda: complex(*map(float, node["v"])),
            "bytes": lambda: base64.b64decode(node["v"], validate=True),
            "tuple": lambda: tuple(each(node["v"])),
            "frozenset": lambda: frozenset(each(node["v"])),
            "scalar": lambda: _from_raw(node)[()],
            "enum": lambda: self._class(node["c"])[node["v"]],  # type: ignore[index]
            "handle": lambda: self.handles.take(node),
            "same": lambda: self._again(node["n"]),
        }
        if kind in simple:
            return simple[kind]()
        return self._decode_object(node, kind, each)

    def _decode_object(
        self, node: dict[str, Any], kind: str, each: Callable[[Any], list[Any]]
    ) -> Any:
        """Make (or find) the object first, then fill it, because its contents may point back to it."""
        number, before = node["n"], self._items
        fresh = number not in self._by_number
        actual: Any = None if fresh else self._by_number[number]
        if fresh:
            actual = self._empty(node, kind)
            self._by_number[number], self._numbers[id(actual)] = actual, number
        elif type(actual) is not type(self._empty(node, kind)):
            raise WireError("an object that changed its type")
        if kind == "array":
            array = _from_raw(node)
            if array.shape != actual.shape or array.dtype != actual.dtype:
                raise WireError("an array that changed its shape")
            actual[...] = array
        elif kind == "list":
            actual[:] = each(node["v"])
        elif kind == "object":
            state = dict(zip(node["k"], each(node["v"]), strict=True))
            if fresh or not _frozen(actual):  # what cannot change is not changed from afar
                _fill(actual, state)
        else:
            items = each(node["v"])
            keys = each(node["k"]) if kind == "dict" else []
            actual.clear()
            actual.update(zip(keys, items, strict=True)) if kind == "dict" else (
                actual.update(items) if kind == "set" else actual.extend(items)
            )
        self._items_of[number] = self._items - before
        return actual

    def _again(self, number: int) -> Any:
        self._items += self._items_of.get(number, 0)
        return self._by_number[number]

    def _empty(self, node: dict[str, Any], kind: str) -> Any:
        if kind == "array":
            return np.zeros_like(_from_raw(node))
        if kind == "deque":
            return deque(maxlen=node["m"])
        if kind == "object":
            return object.__new__(self._class(node["c"]))
        return {"list": list, "dict": dict, "set": set}[kind]()

    def _class(self, name: str) -> type:
        found = next((kind for kind in self.classes if _name(kind) == name), None)
        if found is None and not self.agree:  # the learner's side takes whatever the grader sends
            found = _find(name)
            self.classes.add(found)
        if found is None:
            raise WireError(f"nobody agreed to {name!r:.80}")
        return found


def _fill(target: Any, state: dict[str, Any]) -> None:
    if not all(isinstance(name, str) and name.isidentifier() for name in state):
        raise WireError("no names of attributes")
    vars(target).clear()
    vars(target).update(state)


def _frozen(value: Any) -> bool:
    parameters = getattr(type(value), "__dataclass_params__", None)
    return bool(parameters and parameters.frozen)


def _name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _find(name: str) -> type:
    module, _, qualname = name.partition(":")
    __import__(module)
    found: Any = sys.modules[module]
    for part in qualname.split("."):
        found = getattr(found, part)
    if not isinstance(found, type):
        raise WireError(f"{name} is no class")
    return found


def _of_course(kind: type) -> bool:
    """Return a class of the course whose objects are no more than their attributes."""
    plain = kind.__module__.startswith("utils.") and not issubclass(kind, BaseException)
    return plain and (issubclass(kind, enum.Enum) or kind.__dictoffset__ != 0)


def _readable(node: Any) -> Any:
    """JSON whose strings UTF-8 has bytes for: half a surrogate pair can stand in JSON alone."""
    if isinstance(node, dict):
        return {_readable(key): _readable(value) for key, value in node.items()}
    if isinstance(node, list):
        return [_readable(item) for item in node]
    return node.encode("utf-8", "backslashreplace").decode() if isinstance(node, str) else node


def _plain_dtype(dtype: np.dtype[Any]) -> bool:
    return dtype.kind in "biufc" and not dtype.hasobject


def _plain_array(value: object) -> bool:
    return type(value) is np.ndarray and _plain_dtype(value.dtype)


def _raw(array: np.ndarray[Any, Any]) -> dict[str, Any]:
    data = base64.b64encode(np.ascontiguousarray(array).tobytes()).decode()
    return {"d": array.dtype.str, "s": list(array.shape), "b": data}


def _from_raw(node: dict[str, Any]) -> np.ndarray[Any, Any]:
    dtype = np.dtype(node["d"])
    if not _plain_dtype(dtype):
        raise WireError("an array of objects")
    data = base64.b64decode(node["b"], validate=True)
    return np.frombuffer(data, dtype).reshape(node["s"]).copy()
