'''The framework of the checks.

A lab's file, `utils/checks/lab_3_3_N.py`, declares one check per exercise:

    @check(reference=ttft_of)
    def ttft(attempt: Callable[..., float]) -> None:
        """Examines the learner's `ttft(scheduled, chunks)`."""
        expect_close(attempt(0.0, CHUNKS), 0.25, what="TTFT of the example", hint="In seconds?")

The function's name is the exercise's id (its title and points are in the lab's source). Its
body receives the learner's function, class or value and reports faults with `expect_*`.
A function's arguments are deep copies, so a learner cannot change what the check compares with.
Learners have this file. The hidden parts of a grade, and the wrong solutions that must be refused, are in a
file that they don't have: `solutions/grading/lab_3_3_N.py` (tools/lab/judge/hidden_tests.py explains it).
'''

from __future__ import annotations

import copy
import inspect
import os
from collections.abc import Callable
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from utils.checks.attempt import (
    Calls,
    ExpectedKind,
    InputChanged,
    LearnerResult,
    LocalAnswer,
    Stopped,
    explain_exception,
)
from utils.checks.expect import list_passed
from utils.checks.failures import CheckFailed, NotAttempted, show
from utils.checks.own_cell import is_stub_cell, names_of_other_cells

GRADING = "COURSE_GRADING"
_GREEN, _AMBER = "#15803d", "#b45309"
_SHOWN_RIGHT = 3  # comparisons that hold, in the message of an answer that is not finished
_GO_ON = (
    "Change your cell, run it, then run this cell again. To go on without it, let your cell"
    " raise NotImplementedError (or be `...`) as it did at first: you get the reference."
)


@dataclass(frozen=True)
class CheckResult:
    """Result of a check.

    Attributes:
        verdict: "right", "wrong", "not finished" (parts still raise NotImplementedError) or
            "not attempted" (all of it is as it was handed out).
        message: in the exercise's own terms; "" when right.
        cause: of a wrong answer: "answer", "signature", "exception", "time" or "limit".
    """

    verdict: str
    message: str = ""
    cause: str = ""


@dataclass(frozen=True)
class Check:
    """One exercise's check; called in the notebook as `name = checks.<id>(name)`."""

    exercise: str
    examine: Callable[[Any], None]
    reference: Any
    limit_s: float
    copy_inputs: bool

    def __call__(self, learner: Any) -> Any:
        """Check the learner's answer.

        Returns:
            The learner's own when it is right, the reference when nothing was attempted.

        Raises:
            CheckFailed: it is wrong, or (NotAttempted) it is empty while grading.
        """
        if callable(learner) and learner is self.reference:
            outcome = CheckResult("not attempted", "this is the reference; run your own cell again")
        else:
            outcome = self.judge(learner)
            self._warn_of_other_cells(learner)
        if outcome.verdict == "right":
            show("✔", f"{self.exercise}: right.", _GREEN, folded=self._solution())
            return learner
        if outcome.verdict == "wrong":
            failure = CheckFailed(f"{self.exercise}: {outcome.message}\n{_GO_ON}", outcome.cause)
            failure.show()
            raise failure
        text = f"{self.exercise}: {outcome.verdict}, because {outcome.message}."
        if os.environ.get(GRADING) == "1":
            raise NotAttempted(text)
        show("○", f"{text} The notebook goes on with the course's own.", _AMBER)
        return self.reference if callable(self.reference) else copy.deepcopy(self.reference)

    @property
    def _lab(self) -> str:
        """Number of the lab whose module declares this check, such as "3.3.1"."""
        return self.examine.__module__.rpartition(".lab_")[2].replace("_", ".")

    def _solution(self) -> str:
        """Return the source of the reference, or "" where it is a value."""
        if not inspect.isfunction(self.reference) and not isinstance(self.reference, type):
            return ""
        return inspect.getsource(self.reference)

    def _warn_of_other_cells(self, learner: Any) -> None:
        """Show the names that the answer reads from cells that grading doesn't run."""
        names = [f"`{name}`" for name in names_of_other_cells(learner, self._lab)]
        if names and os.environ.get(GRADING) != "1":
            text = f"{self.exercise}: your code reads {' and '.join(names)} from another cell."
            advice = "Grading runs only this cell, so put everything it needs in it, imports too."
            show("△", f"{text} {advice}", _AMBER)

    def judge(self, learner: Any) -> CheckResult:
        """Find out what an answer is worth, without showing or raising anything."""
        result = self.judge_answer(LocalAnswer(learner), self.examine)
        if result.verdict == "not finished" and is_stub_cell(learner, self._lab, self.exercise):
            return CheckResult("not attempted", "your cell is as it was")
        return result

    def judge_answer(self, answer: LearnerResult, examine: Callable[[Any], None]) -> CheckResult:
        """Judge an answer, wherever it lives, by one examination."""
        if empty := answer.empty():
            return CheckResult("not attempted", empty)
        if fault := answer.fault(ExpectedKind.like(self.reference)):
            return CheckResult("wrong", fault, "signature")
        unfinished: list[Exception] = []
        with list_passed() as passed:
            outcome = self._examine(answer, examine, unfinished)
        if not unfinished:
            return outcome
        number, _ = answer.place(unfinished[0])
        where = f"line {number} of your cell" if number else "your code"
        if answer.untouched():
            return CheckResult("not attempted", f"{where} raises NotImplementedError")
        names = [f"`{name}`" for name in answer.stubs() if name]
        verb = "still raise" if len(names) > 1 else "still raises"
        reason = f"{' and '.join(names) or where} {verb} NotImplementedError"
        right = list(dict.fromkeys(passed))[-_SHOWN_RIGHT:]
        so_far = f". Right so far: {'; '.join(right)}" if right else ""
        return CheckResult("not finished", reason + so_far)

    def _examine(
        self,
        answer: LearnerResult,
        examine: Callable[[Any], None],
        unfinished: list[Exception],
    ) -> CheckResult:
        """Run an examination and turn whatever it raises into a result."""
        calls = None
        try:
            with answer.limit(self.limit_s):
                subject = answer.subject(self.copy_inputs, unfinished)
                if ExpectedKind.like(self.reference).kind == "function":
                    subject = calls = Calls(subject, self.copy_inputs)
                examine(subject)
        except NotImplementedError as error:
            unfinished.append(error)
        except CheckFailed as failure:
            returned = calls.that_returned(failure.actual) if calls else ""
            call = f"\nYour call: {self.exercise}{returned}" if returned else ""
            return CheckResult("wrong", f"{failure}{call}", failure.cause)
        except InputChanged as changed:
            return CheckResult("wrong", str(changed), "answer")
        except Stopped as stopped:
            return CheckResult("wrong", str(stopped), stopped.cause)
        except (Exception, SystemExit) as error:
            text = explain_exception(error, answer.place(error))
            return CheckResult("wrong", text, "exception")
        return CheckResult("right")


def check(
    *,
    reference: Any,
    limit_s: float = 20.0,
    copy_inputs: bool = True,
) -> Callable[[Callable[[Any], None]], Check]:
    """Declare the check of the exercise that the decorated function is named after.

    Args:
        reference: a right solution; a learner who attempted nothing goes on with it.
        limit_s: seconds the whole check may take before it counts as an endless loop.
        copy_inputs: hand a function deep copies of its arguments. Turn it off where arguments
            cannot be copied (a generator) or must be changed (a queue).
    """

    def declare(examine: Callable[[Any], None]) -> Check:
        return Check(examine.__name__, examine, reference, limit_s, copy_inputs)

    return declare


def checks_of(module: ModuleType) -> dict[str, Check]:
    """Return the checks that a lab's module declares, by their names."""
    return {name: value for name, value in vars(module).items() if isinstance(value, Check)}
