"""A learner's answer as a check meets it: guarded, limited in time, errors traced to its cell."""

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
from contextlib import contextmanager
from types import CodeType, FrameType
from typing import Any

from utils.checks.expect import brief


class OutOfTime(BaseException):
    """Not an Exception: a learner's `except Exception` must not swallow it."""


def signature_fault(learner: Any, reference: Any) -> str:
    """Why the answer is not the kind of thing that was asked for, or ""."""
    if isinstance(reference, type):
        return "" if isinstance(learner, type) else f"{brief(learner)} is not a class"
    if not callable(reference):
        return "it is a function; give its result" if inspect.isfunction(learner) else ""
    if not callable(learner) or isinstance(learner, type):
        return f"{brief(learner)} is not a function. Did a variable take its name?"
    wanted = list(inspect.signature(reference).parameters)
    try:
        given = list(inspect.signature(learner).parameters.values())
    except (TypeError, ValueError):
        return f"{brief(learner)} is not a Python function"
    names = [parameter.name for parameter in given]
    added = given[len(wanted) :]
    if names[: len(wanted)] != wanted or any(p.default is p.empty for p in added):
        return f"it takes ({', '.join(names)}), it should take ({', '.join(wanted)})"
    return ""


def guard(learner: Any, copy_inputs: bool, unfinished: list[NotImplementedError]) -> Any:
    """A function that hands on copies and notes an unfinished stub, whoever catches its error."""
    if not callable(learner) or isinstance(learner, type):
        return learner

    @functools.wraps(learner)
    def guarded(*args: object, **kwargs: object) -> object:
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
        return result

    return guarded


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
        raise OutOfTime

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


def blame(error: BaseException, learner: Any) -> str:
    """What an exception says about the answer, with the line of the learner's cell."""
    named = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    number, text = line_of(error, learner)
    if not number:
        return f"the check could not use what your code returned ({named})"
    return f"your code raised {named}, in line {number} of your cell: {text}"


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
