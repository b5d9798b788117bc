"""Tries every check and every hidden part: on the reference, the empty stub, and wrong solutions.

A wrong solution must be refused by the lab's check, in words that help, and must not earn all points
of the hidden parts, on any of several seeds. Two more wrong solutions come with every function: one
that stored the answers to the lab's check, one that stored those to the hidden parts on another seed.
They earn nothing.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import utils.checks
from tools.authoring.build import read_labs
from tools.authoring.replay_adversary import Memory
from tools.lab.judge.hidden_tests import DEFAULT_SEED, Grading, load_gradings
from utils.checks import Check, checks_of
from utils.checks.attempt import LocalAnswer

LEAST_WRONG = 3
SEEDS = (DEFAULT_SEED, "spring", "autumn")
Gradings = Mapping[str, Mapping[str, Grading]]


@dataclass(frozen=True)
class Trial:
    """One solution given to one exercise's check and parts.

    Attributes:
        lab: number.
        exercise: id.
        solution: its name.
        verdict: of the lab's check.
        points: earned of the hidden parts, the most on any seed, as "2/3"; "" if not tried.
        message: what a learner would read.
        fault: "" when check and parts did their duty.
    """

    lab: str
    exercise: str
    solution: str
    verdict: str
    points: str
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


def try_module(lab: str, module: ModuleType, gradings: Mapping[str, Grading]) -> Iterator[Trial]:
    """Try every check that a module declares."""
    for name, check in checks_of(module).items():
        yield from try_check(lab, name, check, gradings.get(name))


def try_check(lab: str, name: str, check: Check, grading: Grading | None) -> Iterator[Trial]:
    """Try one exercise's check and parts on everything they must accept or refuse."""
    trial = partial(Trial, lab, name)
    if name != check.exercise:
        yield trial("(declaration)", "", "", "", f"named {check.exercise!r} and {name!r}")
    if grading is None:
        yield trial("(declaration)", "", "", "", "not graded: solutions/grading does not name it")
        return
    wrongs = grading.wrongs()
    if len(wrongs) < LEAST_WRONG:
        fault = f"{len(wrongs)} wrong solutions, fewer than {LEAST_WRONG}"
        yield trial("(declaration)", "", "", "", fault)
    yield from _try_right(trial, check, grading)
    for title, wrong in wrongs.items():
        found = check.judge(wrong.solution)
        most = max(earned(grading, wrong.solution, seed) for seed in SEEDS)
        fault = ""
        if found.verdict != "wrong":
            fault = "a wrong solution passes" if found.verdict == "right" else "counts as empty"
        elif wrong.says and wrong.says not in found.message:
            fault = f"the message does not say {wrong.says!r}"
        elif not wrong.says and found.cause != "answer":
            fault = f"refused for its {found.cause}, not for its answer (declare says=...)"
        elif most == grading.points:
            fault = "a wrong solution earns all points"
        yield trial(title, found.verdict, _of(most, grading), found.message, fault)
    if callable(check.reference) and check.judge(check.reference).verdict == "right":
        yield from _try_stored(trial, check, grading)


def _try_right(trial: partial[Trial], check: Check, grading: Grading) -> Iterator[Trial]:
    right = check.judge(check.reference)
    least = min(earned(grading, check.reference, seed) for seed in SEEDS)
    fault = "" if right.verdict == "right" else "the reference fails"
    if not fault and least < grading.points:
        fault = "the reference does not earn all points"
    points = _of(least, grading)
    yield trial("reference", right.verdict, points, right.message, fault)
    stub = empty_stub(check.reference)
    empty, most = check.judge(stub), max(earned(grading, stub, seed) for seed in SEEDS)
    fault = "" if empty.verdict == "not attempted" else "the empty stub counts as an attempt"
    if not fault and most:
        fault = "the empty stub earns points"
    yield trial("empty stub", empty.verdict, _of(most, grading), empty.message, fault)


def _try_stored(trial: partial[Trial], check: Check, grading: Grading) -> Iterator[Trial]:
    memory = Memory(check.reference)
    check.examine(memory.recorder())
    found = check.judge(memory.replayer())
    points = earned(grading, memory.replayer(), SEEDS[0])
    fault = "" if found.verdict == "right" else "stored answers do not even pass the check"
    if not fault and points:
        fault = "who stored the answers to the lab's check earns points"
    title = "stored answers to the check"
    yield trial(title, found.verdict, _of(points, grading), found.message, fault)
    memory = Memory(check.reference)
    earned(grading, memory.recorder(), SEEDS[1])
    points = earned(grading, memory.replayer(), SEEDS[0])
    fault = "who stored the answers of another seed earns points" if points else ""
    yield trial("stored answers of another seed", "", _of(points, grading), "", fault)


def earned(grading: Grading, solution: Any, seed: str) -> int:
    """Points that a solution earns of the hidden parts."""
    points = 0
    for part in grading.parts:
        rng = grading.source(seed, part)
        examine = partial(part.examine, rng=rng)
        outcome = grading.check.judge_answer(LocalAnswer(solution), examine)
        points += part.points if outcome.verdict == "right" else 0
    return points


def _of(points: int, grading: Grading) -> str:
    return f"{points}/{grading.points}"


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
        1 when any check or part failed its duty, else 0.
    """
    gradings = load_gradings(root)
    trials = [
        t
        for lab, module in modules().items()
        for t in try_module(lab, module, gradings.get(lab, {}))
    ]
    print("  lab   exercise                 the lab's check   hidden parts   solution")
    for t in trials:
        sign = "✘" if t.fault else "✔"
        print(f"{sign} {t.lab} {t.exercise:<24} {t.verdict:<17} {t.points:<14} {t.solution}")
        if t.message and (t.fault or (messages and t.verdict == "wrong")):
            print(f"      {t.message}")
        if t.fault:
            print(f"      FAULT: {t.fault}")
    missing = list(unmatched(root, gradings))
    for line in missing:
        print(f"✘ {line}")
    faults = sum(bool(t.fault) for t in trials) + len(missing)
    checks = len({(t.lab, t.exercise) for t in trials})
    print(f"\n{checks} checks, {len(trials)} trials, {faults} faults")
    return 1 if faults else 0


def unmatched(root: Path, gradings: Gradings) -> Iterator[str]:
    """Exercises without a check, checks without an exercise, points that do not add up."""
    declared = {(lab, name) for lab, module in modules().items() for name in checks_of(module)}
    written = {
        (lab.source.number, e.id): e.points for lab in read_labs(root) for e in lab.exercises
    }
    for lab, name in sorted(written.keys() - declared):
        module = f"utils/checks/lab_{lab.replace('.', '_')}.py"
        yield f"{lab} {name}: the lab has this exercise, {module} no check of it"
    for lab, name in sorted(declared - written.keys()):
        yield f"{lab} {name}: checked, but no exercise of the lab"
    for lab, by_exercise in gradings.items():
        for name, grading in by_exercise.items():
            points = written.get((lab, name))
            if points is None:
                yield f"{lab} {name}: graded, but no exercise of the lab"
            elif points != grading.points:
                yield f"{lab} {name}: worth {points} in the lab, its parts {grading.points} points"
