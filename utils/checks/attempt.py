"""A learner's answer as a check meets it: guarded, limited in time, errors traced to its cell.

A check judges a `LearnerResult`. In a notebook that is a `LocalAnswer`, the learner's own object; while
grading it lives in another process (tools/lab/judge), and the check does not see the difference.
"""

from __future__ import annotations

import copy
import dis
import functools
import inspect
import linecache
import os
import signal
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType, FunctionType
from typing import Any, Protocol

from utils.checks.expect import brief, same_value

_CALLED = "it was called with"  # begins the note of an error that names the inputs


_SHOWN_VALUE = 300  # characters of a value that a message shows as it is
_KEPT_CALLS = 200
_STUB_OPERATIONS = {
    *("RESUME", "NOP", "PUSH_NULL", "PRECALL", "CALL", "CACHE", "COPY_FREE_VARS"),
    *("LOAD_CONST", "LOAD_GLOBAL", "LOAD_NAME", "RAISE_VARARGS", "RETURN_VALUE", "RETURN_CONST"),
}


class InputChanged(Exception):
    """The learner's function changed one of its arguments, which the exercise doesn't ask for."""


class Stopped(BaseException):
    """The answer was stopped from outside.

    Not an Exception: neither a learner's nor a check's `except Exception` may swallow it.

    Args:
        message: what happened, in the exercise's own terms.
        cause: as in `CheckResult`: "time", or "limit" (memory, processes, a process that died).
    """

    def __init__(self, message: str, cause: str) -> None:
        super().__init__(message)
        self.cause = cause


def out_of_time(seconds: float) -> Stopped:
    """Return the error that stops an answer without an end."""
    return Stopped(f"it did not finish in {seconds:g} s. Does a loop in it never end?", "time")


@dataclass(frozen=True)
class ExpectedKind:
    """Kind of object that an exercise asks for.

    Attributes:
        kind: "class", "function" or "value".
        parameters: names of a function's parameters.
    """

    kind: str
    parameters: tuple[str, ...] = ()

    @classmethod
    def like(cls, reference: Any) -> ExpectedKind:
        """Return the kind of thing that the reference is."""
        if isinstance(reference, type):
            return cls("class")
        if not callable(reference):
            return cls("value")
        return cls("function", tuple(inspect.signature(reference).parameters))


class LearnerResult(Protocol):
    """A learner's function, class or value for one exercise, in whichever process it is."""

    def empty(self) -> str:
        """Why it is no attempt at all, as the rest of "not attempted (...)", or ""."""

    def stubs(self) -> list[str]:
        """Return the names of its functions and methods that are still as they were handed out."""

    def untouched(self) -> bool:
        """Return whether all of it is still as it was handed out."""

    def fault(self, wanted: ExpectedKind) -> str:
        """Why it is not the kind of thing that was asked for, or ""."""

    def subject(self, copy_inputs: bool, unfinished: list[Exception]) -> Any:
        """Return the object that a check examines; errors of an unfinished stub are added to `unfinished`."""

    def limit(self, seconds: float) -> AbstractContextManager[None]:
        """Bound what the body may ask of the answer; raise `Stopped` beyond."""

    def place(self, error: BaseException) -> tuple[int, str]:
        """Number and text of the line of the learner's cell that raised, or (0, "")."""


class LocalAnswer:
    """An answer that lives in this process."""

    def __init__(self, learner: Any) -> None:
        self.learner = learner

    def empty(self) -> str:
        """See `LearnerResult`."""
        return why_empty(self.learner)

    def stubs(self) -> list[str]:
        """See `LearnerResult`."""
        return [name for name, code in self._written() if is_stub(code)]

    def untouched(self) -> bool:
        """See `LearnerResult`."""
        return all(is_stub(code) for _, code in self._written())

    def _written(self) -> Iterator[tuple[str, CodeType]]:
        kinds = self.learner.__mro__[:-1] if isinstance(self.learner, type) else [self.learner]
        for kind in kinds:
            for name, function in named_functions(kind):
                code = function.__code__
                if code.co_filename != "<string>":  # a dataclass's methods, which nobody wrote
                    yield name, code

    def fault(self, wanted: ExpectedKind) -> str:
        """See `LearnerResult`."""
        return signature_fault(self.learner, wanted)

    def subject(self, copy_inputs: bool, unfinished: list[Exception]) -> Any:
        """See `LearnerResult`."""
        return guard(self.learner, copy_inputs, unfinished)

    def limit(self, seconds: float) -> AbstractContextManager[None]:
        """See `LearnerResult`."""
        return time_limit(seconds)

    def place(self, error: BaseException) -> tuple[int, str]:
        """See `LearnerResult`."""
        return line_of(error, self.learner)


def why_empty(learner: Any) -> str:
    """Return the reason why a value isn't an attempt, or ""."""
    return "it is still ..." if learner is ... else "it is still None" if learner is None else ""


def signature_fault(learner: Any, wanted: ExpectedKind) -> str:
    """Why the answer is not the kind of thing that was asked for, or ""."""
    if wanted.kind == "class":
        return "" if isinstance(learner, type) else f"{brief(learner)} is not a class"
    if wanted.kind == "value":
        return "it is a function; give its result" if inspect.isfunction(learner) else ""
    if not callable(learner) or isinstance(learner, type):
        return f"{brief(learner)} is not a function. Did a variable take its name?"
    parameters = list(wanted.parameters)
    try:
        given = list(inspect.signature(learner).parameters.values())
    except (TypeError, ValueError):
        return f"{brief(learner)} is not a Python function"
    names = [parameter.name for parameter in given]
    added = given[len(parameters) :]
    if names[: len(parameters)] != parameters or any(p.default is p.empty for p in added):
        return f"it takes ({', '.join(names)}), it should take ({', '.join(parameters)})"
    return ""


def guard(learner: Any, copy_inputs: bool, unfinished: list[Exception]) -> Any:
    """Wrap a function: it gets copies of its arguments, and an unfinished stub is noted."""
    if not callable(learner) or isinstance(learner, type):
        return learner

    @functools.wraps(learner)
    def guarded(*args: object, **kwargs: object) -> object:
        given = args, kwargs
        # The answer may change what it is handed, and only copies leave the inputs as they were.
        described = "" if copy_inputs else described_call(*given)
        if copy_inputs:
            try:  # each by itself, so that two arguments that are one object don't change together
                args = tuple(map(copy.deepcopy, args))
                kwargs = {name: copy.deepcopy(value) for name, value in kwargs.items()}
            except TypeError as error:
                raise TypeError(f"{error}: this check needs copy_inputs=False") from error
        try:
            result = learner(*args, **kwargs)
            if result is ...:
                raise NotImplementedError("it returns ...")
        except NotImplementedError as error:
            unfinished.append(error)
            raise
        except Exception as error:
            error.add_note(f"{_CALLED} ({described or described_call(*given)})")
            raise
        if copy_inputs:
            refuse_changes(learner, given, (args, kwargs))
        return result

    return guarded


Given = tuple[tuple[object, ...], dict[str, object]]


def refuse_changes(learner: Any, before: Given, after: Given) -> None:
    """Compare a function's arguments before and after a call.

    Raises:
        InputChanged: One of them changed.
    """
    parameters = list(inspect.signature(learner).parameters)
    names = [*parameters[: len(before[0])], *before[1]]
    values = zip([*before[0], *before[1].values()], [*after[0], *after[1].values()], strict=True)
    for name, (old, new) in zip(names, values, strict=False):
        if not same_value(new, old):
            raise InputChanged(
                f"it changed its argument `{name}` from {brief(old)} to {brief(new)}."
                " Leave the arguments as they are, and build a new object instead."
            )


def described_call(args: tuple[object, ...], kwargs: dict[str, object]) -> str:
    """Return arguments as Python, shortened where they are long."""
    parts = [*map(repr_of, args), *(f"{name}={repr_of(value)}" for name, value in kwargs.items())]
    return ", ".join(parts)


def repr_of(value: object) -> str:
    """Return the whole `repr` of a small value, so that it can be pasted, else a short one."""
    try:
        whole = repr(value)
    except Exception:
        return brief(value)
    return whole if len(whole) <= _SHOWN_VALUE else brief(value)


class Calls:
    """The calls of a learner's function during a check, so that a message can show the one that failed."""

    def __init__(self, function: Any, copied: bool) -> None:
        self._function, self._copied = function, copied
        self._kept: deque[tuple[Given | str, object]] = deque(maxlen=_KEPT_CALLS)
        functools.update_wrapper(self, function)

    def __call__(self, *args: object, **kwargs: object) -> object:
        """Call the function and keep the arguments and the result."""
        given = (args, kwargs) if self._copied else described_call(args, kwargs)
        result = self._function(*args, **kwargs)
        self._kept.append((given, result))
        return result

    def that_returned(self, actual: object) -> str:
        """Return the call whose result is `actual` or holds it, as "(arguments) returned result".

        Returns:
            "" if several calls, none of them the last, may have returned it.
        """
        found = [call for call in self._kept if call[1] is actual or _holds(call[1], actual)]
        if not found and len(self._kept) == 1:
            found = list(self._kept)
        if not found or (len(found) > 1 and found[-1] is not self._kept[-1]):
            return ""
        given, result = found[-1]
        arguments = given if isinstance(given, str) else described_call(*given)
        return f"({arguments}) returned {repr_of(result)}"


def _holds(container: object, value: object) -> bool:
    if isinstance(container, dict):
        return any(each is value for each in container.values())
    if isinstance(container, (list, tuple)):
        return any(each is value for each in container)
    return False


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the body after `seconds`.

    By a timer signal, since a thread that loops for ever cannot be stopped; so only in the main
    thread, where notebooks and tests run. An outer timer (pytest-timeout's) is put back with the
    time that is left. Neither long C calls nor a loop around a bare `except:` are interrupted.
    """
    if threading.current_thread() is not threading.main_thread() or os.name != "posix":
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise out_of_time(seconds)

    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, interrupt)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            rest = max(0.001, left - (time.monotonic() - began))
            signal.setitimer(signal.ITIMER_REAL, rest, interval)


def explain_exception(error: BaseException, place: tuple[int, str]) -> str:
    """Describe an exception, with the line of the learner's cell and its inputs."""
    named = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    number, text = place
    if not number:
        return f"the check could not use what your code returned ({named})"
    notes = getattr(error, "__notes__", [])
    given = next((f" ({note})" for note in notes if str(note).startswith(_CALLED)), "")
    return f"your code raised {named}, in line {number} of your cell: {text}{given}"


def line_of(error: BaseException, learner: Any) -> tuple[int, str]:
    """Number and text of the innermost line of the learner's own cell; (0, "") if there is none."""
    codes = {function.__code__ for _, function in named_functions(learner)}
    files = {code.co_filename for code in codes}
    inside, number, file = False, 0, ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        inside = inside or frame.f_code in codes
        if inside and frame.f_code.co_filename in files:
            number, file = line, frame.f_code.co_filename
    return number, linecache.getline(file, number).strip()


def is_stub(code: CodeType) -> bool:
    """Tell whether code does nothing but raise NotImplementedError or return `...`."""
    operations = {instruction.opname for instruction in dis.get_instructions(code)}
    raises = set(code.co_names) == {"NotImplementedError"} or ... in code.co_consts
    return raises and operations <= _STUB_OPERATIONS


def named_functions(learner: Any) -> Iterator[tuple[str, FunctionType]]:
    """Yield a function as it was written, or a class's methods and properties with their names."""
    things = vars(learner).items() if isinstance(learner, type) else [("", learner)]
    for name, thing in things:
        function = inspect.unwrap(getattr(thing, "fget", None) or getattr(thing, "__func__", thing))
        if isinstance(function, FunctionType):
            yield name, function
