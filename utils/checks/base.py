'''The framework of the checks.

A lab's file, `utils/checks/lab_3_3_N.py`, declares one check per exercise:

    @check(
        reference=ttft_of,
        wrong={
            "counts the chunk that only carries the role": first_chunk,
            "starts when the request left, not when it was due": Wrong(late, says="scheduled"),
            "returns milliseconds": lambda scheduled, chunks: 1000 * ttft_of(scheduled, chunks),
        },
    )
    def ttft(attempt: Callable[..., float]) -> None:
        """Examines the learner's `ttft(scheduled, chunks)`."""
        expect_close(attempt(0.0, CHUNKS), 0.25, what="TTFT of the example", hint="In seconds?")

The function's name is the exercise's id (its title and points stand in the lab's source). Its
body receives the learner's function, class or value and says what is wrong with `expect_*`.
A function's arguments are deep copies, so a learner cannot change what the check compares with.
`python -m utils.course checks` tries it on the reference, the empty stub and the wrong solutions.
'''

from __future__ import annotations

import copy
import functools
import inspect
import os
import signal
import threading
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from types import CodeType, FrameType
from typing import Any

from utils.checks.expect import brief
from utils.checks.failures import CheckFailed, NotAttempted, show

GRADING = "COURSE_GRADING"
_GREEN, _AMBER = "#15803d", "#b45309"
_GO_ON = (
    "Change your cell, run it, then run this cell again. To go on without it, let your cell"
    " raise NotImplementedError (or be `...`) as it did at first: you get the reference."
)


@dataclass(frozen=True)
class Wrong:
    """A wrong solution that must be refused with a message that contains `says`."""

    solution: Any
    says: str = ""


@dataclass(frozen=True)
class Outcome:
    """What a check found.

    Attributes:
        verdict: "right", "wrong" or "not attempted".
        message: in the exercise's own terms; "" when right.
        cause: of a wrong answer: "answer", "signature", "exception" or "time".
    """

    verdict: str
    message: str = ""
    cause: str = ""


class _OutOfTime(BaseException):
    """Not an Exception: a learner's `except Exception` must not swallow it."""


@dataclass(frozen=True)
class Check:
    """One exercise's check; called in the notebook as `name = checks.<id>(name)`."""

    exercise: str
    examine: Callable[[Any], None]
    reference: Any
    wrong: Mapping[str, Wrong]
    limit_s: float
    copy_inputs: bool

    def __call__(self, learner: Any) -> Any:
        """Check the learner's answer.

        Returns:
            The learner's own when it is right, the reference when nothing was attempted.

        Raises:
            CheckFailed: it is wrong, or (NotAttempted) it is empty while grading.
        """
        outcome = self.judge(learner)
        if outcome.verdict == "right":
            show("✔", f"{self.exercise}: right.", _GREEN)
            return learner
        if outcome.verdict == "wrong":
            raise CheckFailed(f"{self.exercise}: {outcome.message}\n  {_GO_ON}", outcome.cause)
        if os.environ.get(GRADING) == "1":
            raise NotAttempted(f"{self.exercise}: not attempted ({outcome.message}).")
        text = f"{self.exercise}: not attempted ({outcome.message}): going on with the reference."
        show("○", text, _AMBER)
        return self.reference if callable(self.reference) else copy.deepcopy(self.reference)

    def judge(self, learner: Any) -> Outcome:
        """Find out what an answer is worth, without showing or raising anything."""
        if learner is None or learner is ...:
            return Outcome("not attempted", f"it is still {'...' if learner is ... else 'None'}")
        if fault := _signature_fault(learner, self.reference):
            return Outcome("wrong", fault, "signature")
        unfinished: list[NotImplementedError] = []
        subject = _guard(learner, self.copy_inputs, unfinished)
        outcome = Outcome("right")
        try:
            with _time_limit(self.limit_s):
                self.examine(subject)
        except NotImplementedError as error:
            unfinished.append(error)
        except CheckFailed as failure:
            outcome = Outcome("wrong", str(failure), failure.cause)
        except _OutOfTime:
            message = f"it did not finish in {self.limit_s:g} s. Does a loop in it never end?"
            outcome = Outcome("wrong", message, "time")
        except (Exception, SystemExit) as error:
            outcome = Outcome("wrong", _blame(error, learner), "exception")
        if unfinished:
            line = _line(unfinished[0], learner)
            where = f"line {line.lineno} of your cell" if line else "your code"
            return Outcome("not attempted", f"{where} raises NotImplementedError")
        return outcome


def check(
    *,
    reference: Any,
    wrong: Mapping[str, Any],
    limit_s: float = 20.0,
    copy_inputs: bool = True,
) -> Callable[[Callable[[Any], None]], Check]:
    """Declare the check of the exercise that the decorated function is named after.

    Args:
        reference: a right solution; a learner who attempted nothing goes on with it.
        wrong: wrong solutions by name, at least three; plain, or `Wrong(solution, says="...")`
            to require words of the message. One that raises or never ends needs `says`.
        limit_s: seconds the whole check may take before it counts as an endless loop.
        copy_inputs: hand a function deep copies of its arguments. Turn it off where arguments
            cannot be copied (a generator) or must be changed (a queue).
    """
    named = {
        name: solution if isinstance(solution, Wrong) else Wrong(solution)
        for name, solution in wrong.items()
    }

    def declare(examine: Callable[[Any], None]) -> Check:
        return Check(examine.__name__, examine, reference, named, limit_s, copy_inputs)

    return declare


def _signature_fault(learner: Any, reference: Any) -> str:
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


def _guard(learner: Any, copy_inputs: bool, unfinished: list[NotImplementedError]) -> Any:
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
def _time_limit(seconds: float) -> Iterator[None]:
    """Interrupt the body after `seconds`.

    By the interval timer, since a thread that loops for ever cannot be stopped; so only in the
    main thread, where notebooks and tests run. The timer keeps firing, for a loop that swallows
    everything, and an outer timer (pytest-timeout's) is put back with the time that is left.
    """
    if threading.current_thread() is not threading.main_thread() or os.name != "posix":
        yield
        return

    def interrupt(signum: int, frame: FrameType | None) -> None:
        raise _OutOfTime

    began = time.monotonic()
    handler = signal.signal(signal.SIGALRM, interrupt)
    left, interval = signal.setitimer(signal.ITIMER_REAL, seconds, 0.2)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, handler)
        if left:
            rest = max(0.001, left - (time.monotonic() - began))
            signal.setitimer(signal.ITIMER_REAL, rest, interval)


def _blame(error: BaseException, learner: Any) -> str:
    named = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    line = _line(error, learner)
    if line is None:
        return f"the check could not use what your code returned ({named})"
    return f"your code raised {named}, in line {line.lineno} of your cell: {line.line}"


def _line(error: BaseException, learner: Any) -> traceback.FrameSummary | None:
    """The innermost line of the learner's own cell in an error's traceback."""
    files = {code.co_filename for code in _codes(learner)}
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename in files]
    return frames[-1] if frames else None


def _codes(learner: Any) -> Iterator[CodeType]:
    for thing in vars(learner).values() if isinstance(learner, type) else [learner]:
        function = getattr(thing, "fget", None) or getattr(thing, "__func__", thing)
        code = getattr(function, "__code__", None)
        if isinstance(code, CodeType):
            yield code
