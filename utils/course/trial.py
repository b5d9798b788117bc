"""Tries every check on the reference, the empty stub and the named wrong solutions."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import utils.checks
from utils.checks.base import Check
from utils.course.build import read_labs

LEAST_WRONG = 3


@dataclass(frozen=True)
class Trial:
    """One solution given to one check; `fault` is "" when the check did its duty."""

    lab: str
    exercise: str
    solution: str
    verdict: str
    message: str
    fault: str


def modules() -> dict[str, ModuleType]:
    """The labs' check modules by number: "3.3.1" is utils.checks.lab_3_3_1."""
    names = sorted(m.name for m in pkgutil.iter_modules(utils.checks.__path__))
    return {
        name.removeprefix("lab_").replace("_", "."): importlib.import_module(f"utils.checks.{name}")
        for name in names
        if name.startswith("lab_")
    }


def try_module(lab: str, module: ModuleType) -> Iterator[Trial]:
    """Try every check that a module declares."""
    for name, check in vars(module).items():
        if isinstance(check, Check):
            yield from try_check(lab, name, check)


def try_check(lab: str, name: str, check: Check) -> Iterator[Trial]:
    """Try one check on everything it must accept or refuse."""

    def trial(solution: str, verdict: str, message: str, fault: str) -> Trial:
        return Trial(lab, name, solution, verdict, message, fault)

    if name != check.exercise:
        yield trial("(declaration)", "", "", f"named {check.exercise!r} and {name!r}")
    if len(check.wrong) < LEAST_WRONG:
        fault = f"{len(check.wrong)} wrong solutions, fewer than {LEAST_WRONG}"
        yield trial("(declaration)", "", "", fault)
    right = check.judge(check.reference)
    fault = "" if right.verdict == "right" else "the reference fails"
    yield trial("reference", right.verdict, right.message, fault)
    empty = check.judge(empty_stub(check.reference))
    fault = "" if empty.verdict == "not attempted" else "the empty stub counts as an attempt"
    yield trial("empty stub", empty.verdict, empty.message, fault)
    for title, wrong in check.wrong.items():
        found = check.judge(wrong.solution)
        fault = ""
        if found.verdict != "wrong":
            fault = "a wrong solution passes" if found.verdict == "right" else "counts as empty"
        elif wrong.says and wrong.says not in found.message:
            fault = f"the message does not say {wrong.says!r}"
        elif not wrong.says and found.cause != "answer":
            fault = f"refused for its {found.cause}, not for its answer (declare says=...)"
        yield trial(title, found.verdict, found.message, fault)


def empty_stub(reference: Any) -> Any:
    """What a learner who wrote nothing hands in for this reference."""
    if isinstance(reference, type):
        members = {n: empty_stub(v) for n, v in vars(reference).items() if inspect.isfunction(v)}
        return type(reference.__name__, (), members)
    if not callable(reference):
        return ...

    def stub(*args: object, **kwargs: object) -> object:
        raise NotImplementedError("the empty stub")

    stub.__signature__ = inspect.signature(reference)  # type: ignore[attr-defined]
    return stub


def report(root: Path, *, messages: bool = False) -> int:
    """Print the table of all trials, on request with the messages of the wrong solutions.

    Returns:
        1 when any check failed its duty, else 0.
    """
    trials = [t for lab, module in modules().items() for t in try_module(lab, module)]
    for t in trials:
        sign = "✘" if t.fault else "✔"
        print(f"{sign} {t.lab} {t.exercise:<24} {t.verdict:<14} {t.solution}")
        if t.message and (t.fault or (messages and t.verdict == "wrong")):
            print(f"      {t.message}")
        if t.fault:
            print(f"      FAULT: {t.fault}")
    missing = list(unmatched(root))
    for line in missing:
        print(f"✘ {line}")
    faults = sum(bool(t.fault) for t in trials) + len(missing)
    checks = len({(t.lab, t.exercise) for t in trials})
    print(f"\n{checks} checks, {len(trials)} trials, {faults} faults")
    return 1 if faults else 0


def unmatched(root: Path) -> Iterator[str]:
    """Exercises of the labs without a declared check, and checks without an exercise."""
    declared = {
        (lab, name)
        for lab, module in modules().items()
        for name, check in vars(module).items()
        if isinstance(check, Check)
    }
    written = {(lab.source.number, e.id) for lab in read_labs(root) for e in lab.exercises}
    for lab, name in sorted(written - declared):
        module = f"utils/checks/lab_{lab.replace('.', '_')}.py"
        yield f"{lab} {name}: the lab has this exercise, {module} no check of it"
    for lab, name in sorted(declared - written):
        yield f"{lab} {name}: checked, but no exercise of the lab"
