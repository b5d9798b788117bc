"""A learner's answer as a check meets it: guarded, limited in time, errors traced to its cell.

A check judges a `LearnerResult`. In a notebook that is a `LocalAnswer`, the learner's own object; while
grading it lives in another process (tools/lab/judge), and the check does not see the difference.
"""

from __future__ import annotations

import copy
import functools
import inspect
import linecache
import os
import signal
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any, Protocol

from utils.checks.expect import brief

_CALLED = "it was called with"  # begins the note of an error that names the inputs


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
    """What an answer that does not end is stopped with."""
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
        """The kind of thing that the reference is."""
        if isinstance(reference, type):
            return cls("class")
        if not callable(reference):
            return cls("value")
        return cls("function", tuple(inspect.signature(reference).parameters))


class LearnerResult(Protocol):
    """A learner's function, class or value for one exercise, in whichever process it is."""

    def empty(self) -> str:
        """Why it is no attempt at all, as the rest of "not attempted (...)", or ""."""

    def fault(self, wanted: ExpectedKind) -> str:
        """Why it is not the kind of thing that was asked for, or ""."""

    def subject(self, copy_inputs: bool, unfinished: list[Exception]) -> Any:
        """What a check examines; errors of an unfinished stub are added to `unfinished`."""

    def limit(self, seconds: float) -> AbstractContextManager[None]:
        """Bounds what the body may ask of the answer; raises `Stopped` beyond."""

    def place(self, error: BaseException) -> tuple[int, str]:
        """Number and text of the line of the learner's cell that raised, or (0, "")."""


class LocalAnswer:
    """An answer that lives in this process."""

    def __init__(self, learner: Any) -> None:
        self.learner = learner

    def empty(self) -> str:
        """See `LearnerResult`."""
        return why_empty(self.learner)

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
    """A function that hands on copies and notes an unfinished stub, whoever catches its error."""
    if not callable(learner) or isinstance(learner, type):
        return learner

    @functools.wraps(learner)
    def guarded(*args: object, **kwargs: object) -> object:
        given = args, kwargs
        # The answer may change what it is handed, and only copies leave the inputs as they were.
        described = "" if copy_inputs else _described(*given)
        if copy_inputs:
            try:
                args, kwargs = copy.deepcopy((args, kwargs))
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
            error.add_note(f"{_CALLED} ({described or _described(*given)})")
            raise
        return result

    return guarded


def _described(args: tuple[object, ...], kwargs: dict[str, object]) -> str:
    return ", ".join([*map(brief, args), *(f"{k}={brief(v)}" for k, v in kwargs.items())])


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
    codes = set(_codes(learner))
    files = {code.co_filename for code in codes}
    inside, number, file = False, 0, ""
    for frame, line in traceback.walk_tb(error.__traceback__):
        inside = inside or frame.f_code in codes
        if inside and frame.f_code.co_filename in files:
            number, file = line, frame.f_code.co_filename
    return number, linecache.getline(file, number).strip()


def _codes(learner: Any) -> Iterator[CodeType]:
    for thing in vars(learner).values() if isinstance(learner, type) else [learner]:
        function = getattr(thing, "fget", None) or getattr(thing, "__func__", thing)
        code = getattr(inspect.unwrap(function), "__code__", None)
        if isinstance(code, CodeType):
            yield code
