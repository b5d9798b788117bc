"""Self-test of every check and hidden part on the reference, other right solutions, stubs and wrong ones.

The lab's check must refuse a wrong solution with a helpful message, and on none of several seeds may it
earn all points of the hidden parts. Every function also gets two replayers. One has stored the answers
to the lab's check, and the other those to the hidden parts on another seed. Both must earn nothing.
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
from tools.authoring.replay_adversary import AnswerReplayer
from tools.lab.judge.hidden_tests import DEFAULT_SEED, Grading, load_gradings
from utils.checks import Check, checks_of
from utils.checks.attempt import LocalAnswer

MIN_WRONG = 3
MIN_RIGHT = 3  # with the reference
SEEDS = (DEFAULT_SEED, "spring", "autumn")
Gradings = Mapping[str, Mapping[str, Grading]]


@dataclass(frozen=True)
class CheckCase:
    """Result of one solution, given to one exercise's check and parts.

    Attributes:
        lab: Number of the lab.
        exercise: Id of the exercise.
        solution: Name of the solution.
        verdict: Verdict of the lab's check.
        points: Points of the hidden parts on the best seed, such as "2/3", or "" if they were not tried.
        message: Text that a learner would read.
        fault: Error of the check or of a part, or "".
    """

    lab: str
    exercise: str
    solution: str
    verdict: str
    points: str
    message: str
    fault: str


def modules() -> dict[str, ModuleType]:
    """Return the labs' check modules by number: "3.3.1" is utils.checks.lab_3_3_1."""
    names = sorted(m.name for m in pkgutil.iter_modules(utils.checks.__path__))
    return {
        name.removeprefix("lab_").replace("_", "."): importlib.import_module(f"utils.checks.{name}")
        for name in names
        if name.startswith("lab_")
    }


def try_module(
    lab: str, module: ModuleType, gradings: Mapping[str, Grading]
) -> Iterator[CheckCase]:
    """Try every check that a module declares."""
    for name, check in checks_of(module).items():
        yield from try_check(lab, name, check, gradings.get(name))


def try_check(lab: str, name: str, check: Check, grading: Grading | None) -> Iterator[CheckCase]:
    """Try one exercise's check and parts on everything they must accept or refuse."""
    case = partial(CheckCase, lab, name)
    if name != check.exercise:
        yield case("(declaration)", "", "", "", f"named {check.exercise!r} and {name!r}")
    if grading is None:
        yield case("(declaration)", "", "", "", "not graded: solutions/grading does not name it")
        return
    wrongs = grading.wrongs()
    if len(wrongs) < MIN_WRONG:
        fault = f"{len(wrongs)} wrong solutions, fewer than {MIN_WRONG}"
        yield case("(declaration)", "", "", "", fault)
    if len(grading.right) + 1 < MIN_RIGHT:
        fault = f"{len(grading.right) + 1} right solutions, fewer than {MIN_RIGHT}"
        yield case("(declaration)", "", "", "", fault)
    yield from _try_right(case, check, grading)
    for title, wrong in wrongs.items():
        answer = check.judge(wrong.solution)
        best = max(earned(grading, wrong.solution, seed) for seed in SEEDS)
        fault = ""
        if answer.verdict != "wrong":
            fault = "a wrong solution passes" if answer.verdict == "right" else "counts as empty"
        elif wrong.says and wrong.says not in answer.message:
            fault = f"the message does not say {wrong.says!r}"
        elif not wrong.says and answer.cause != "answer":
            fault = f"refused for its {answer.cause}, not for its answer (declare says=...)"
        elif best == grading.points:
            fault = "a wrong solution earns all points"
        yield case(title, answer.verdict, _of(best, grading), answer.message, fault)
    if callable(check.reference) and check.judge(check.reference).verdict == "right":
        yield from _try_stored(case, check, grading)


def _try_right(case: partial[CheckCase], check: Check, grading: Grading) -> Iterator[CheckCase]:
    for title, solution in {"reference": check.reference, **grading.right}.items():
        answer = check.judge(solution)
        worst = min(earned(grading, solution, seed) for seed in SEEDS)
        fault = "" if answer.verdict == "right" else "a right solution fails"
        if not fault and worst < grading.points:
            fault = "a right solution does not earn all points"
        yield case(title, answer.verdict, _of(worst, grading), answer.message, fault)
    stub = empty_stub(check.reference)
    empty, best = check.judge(stub), max(earned(grading, stub, seed) for seed in SEEDS)
    fault = "" if empty.verdict == "not attempted" else "the empty stub counts as an attempt"
    if not fault and best:
        fault = "the empty stub earns points"
    yield case("empty stub", empty.verdict, _of(best, grading), empty.message, fault)


def _try_stored(case: partial[CheckCase], check: Check, grading: Grading) -> Iterator[CheckCase]:
    replayer = AnswerReplayer(check.reference)
    check.judge(replayer.recorder())
    answer = check.judge(replayer.replayer())
    points = earned(grading, replayer.replayer(), SEEDS[0])
    fault = "" if answer.verdict == "right" else "stored answers do not pass the check"
    if not fault and points:
        fault = "a learner who stored the answers to the lab's check earns points"
    title = "stored answers to the check"
    yield case(title, answer.verdict, _of(points, grading), answer.message, fault)
    replayer = AnswerReplayer(check.reference)
    earned(grading, replayer.recorder(), SEEDS[1])
    points = earned(grading, replayer.replayer(), SEEDS[0])
    fault = "a learner who stored the answers of another seed earns points" if points else ""
    yield case("stored answers of another seed", "", _of(points, grading), "", fault)


def earned(grading: Grading, solution: Any, seed: str) -> int:
    """Return the points that a solution earns in the hidden parts."""
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
    """Return the solution of a learner who wrote nothing for this reference."""
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
    """Print the table of all trials, and with `messages` the messages of the wrong solutions.

    Returns:
        1 if a check or a part has a fault, else 0.
    """
    gradings = load_gradings(root)
    cases = [
        t
        for lab, module in modules().items()
        for t in try_module(lab, module, gradings.get(lab, {}))
    ]
    print("  lab   exercise                 the lab's check   hidden parts   solution")
    for t in cases:
        sign = "✘" if t.fault else "✔"
        print(f"{sign} {t.lab} {t.exercise:<24} {t.verdict:<17} {t.points:<14} {t.solution}")
        if t.message and (t.fault or (messages and t.verdict == "wrong")):
            print(f"      {t.message}")
        if t.fault:
            print(f"      FAULT: {t.fault}")
    missing = list(unmatched(root, gradings))
    for line in missing:
        print(f"✘ {line}")
    faults = sum(bool(t.fault) for t in cases) + len(missing)
    checks = len({(t.lab, t.exercise) for t in cases})
    print(f"\n{checks} checks, {len(cases)} trials, {faults} faults")
    return 1 if faults else 0


def unmatched(root: Path, gradings: Gradings) -> Iterator[str]:
    """Yield exercises without a check, checks without an exercise, and points that differ."""
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
