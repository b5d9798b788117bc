"""Judges one notebook: exercise by exercise, part by part, in worker processes that may die.

An exercise whose cell does not run, does not end or kills its process earns nothing and stops nobody:
a new worker takes its place, with the untouched cell where the bad one was.
"""

from __future__ import annotations

import ast
import contextlib
import random
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from tools.lab.judge.cells import HandedIn, LabCells, Note, Slot, names_in
from tools.lab.judge.hidden_tests import DEFAULT_SEED, GradedPart, Grading
from tools.lab.judge.seal import by_module, dotted, sealed_source, seals_of
from tools.lab.judge.session import LearnersError, RemoteAnswer, Session
from utils.checks import Check, CheckResult
from utils.checks.attempt import ExpectedKind, Stopped
from utils.checks.own_cell import same

_UNUSUAL_MODULES = """
    atexit builtins ctypes gc importlib inspect io multiprocessing nbgrader os pathlib pickle psutil
    resource shutil signal socket subprocess sys tempfile threading utils __main__
"""
_UNUSUAL_NAMES = "__import__ compile eval exec get_ipython globals open"


@dataclass(frozen=True)
class PartResult:
    """Result of one part: `message` gives the reason why it earned nothing."""

    title: str
    points: int
    score: int
    message: str = ""


@dataclass
class ExerciseResult:
    """Result of one exercise.

    Attributes:
        id: of the exercise.
        points: what it is worth.
        verdict: "right", "partly right", "wrong", "not finished", "not attempted" or "missing".
        message: the reason, in the exercise's own terms; "" when right.
        parts: part by part; empty where nothing could be judged.
        outputs: what the learner's cell showed (nbformat).
    """

    id: str
    points: int
    verdict: str = "wrong"
    message: str = ""
    parts: list[PartResult] = field(default_factory=list)
    outputs: list[dict[str, Any]] = field(default_factory=list)

    @property
    def score(self) -> int:
        """Points earned."""
        return sum(part.score for part in self.parts)


@dataclass
class Judgement:
    """Result of one notebook."""

    lab: str
    exercises: list[ExerciseResult] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)

    @property
    def score(self) -> int:
        """Points earned by exercises; written answers are not counted."""
        return sum(exercise.score for exercise in self.exercises)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Judgement:
        """Read `to_dict`'s output."""
        exercises = [
            ExerciseResult(**{**e, "parts": [PartResult(**p) for p in e["parts"]]})
            for e in values["exercises"]
        ]
        return cls(values["lab"], exercises, [Note(**note) for note in values["notes"]])


class Judge:
    """Judges notebooks of one lab.

    Args:
        lab: its cells.
        checks: its checks, by exercise.
        start: starts a worker; takes the processor seconds that are spent already.
        root: The course's folder, for the sealed files.
        gradings: the hidden parts by exercise; without them (a learner's copy) the lab's own
            check is the only part.
        seed: of the hidden parts' inputs.
    """

    def __init__(
        self,
        lab: LabCells,
        checks: Mapping[str, Check],
        start: Callable[[float], Session],
        *,
        root: Path,
        gradings: Mapping[str, Grading] | None = None,
        seed: str = DEFAULT_SEED,
    ) -> None:
        self.lab, self.checks, self.start, self.root, self.seed = lab, checks, start, root, seed
        self.gradings = gradings or {}
        self.seals = {
            id_: self.gradings[id_].seals() if id_ in self.gradings else seals_of(check)
            for id_, check in checks.items()
        }

    def judge(self, handed: HandedIn) -> Judgement:
        """Judge what was handed in.

        Raises:
            RuntimeError: the grader itself does not work here (no worker comes up).
        """
        judgement = Judgement(self.lab.name, notes=list(handed.notes))
        worker = _Worker(self)
        try:
            for slot in self.lab.exercises:
                text = handed.texts.get(slot.cell)
                result = self._exercise(worker, slot, text, judgement.notes, handed)
                judgement.exercises.append(result)
                worker.lift(slot)
        finally:
            worker.close()
        return judgement

    def _exercise(
        self, worker: _Worker, slot: Slot, text: str | None, notes: list[Note], handed: HandedIn
    ) -> ExerciseResult:
        result = ExerciseResult(slot.id, slot.points)
        if text is None:
            result.verdict, result.message = "missing", "its cell was not handed in"
        elif same(text, slot.stub):
            result.verdict, result.message = "not attempted", "the cell is as it was"
        if text is None or same(text, slot.stub):
            worker.stand_in(slot)
            return result
        notes += _unusual(slot, text)
        try:
            result.outputs, error = worker.session().run(text)
            answer = worker.session().look(
                slot.variable, ExpectedKind.like(self.checks[slot.id].reference)
            )
        except Stopped as stopped:
            result.message = str(stopped)
            worker.stand_in(slot)
            return result
        if error is not None:
            result.outputs.append(_error_output(error))
        if answer is None:
            result.message = _no_answer(slot, error)
            worker.stand_in(slot)
        else:
            worker.keep(text, slot)
            self._parts(worker, slot, answer, result)
        if result.verdict == "right" and result.message:
            about = f"{slot.id}: right in every part, and the lab's own check refuses it"
            notes.append(Note(f"{slot.id}: {result.message}", about, slot.id))
        if worker.listens_now():
            learner = f"The cell of {slot.id} opened a port, which nobody could reach."
            notes.append(Note(learner, f"{slot.id}: listens on a port (in the sandbox)", slot.id))
        notes += _left_out(slot, f"{error} {result.message}", handed)
        worker.sweep()
        return result

    def _parts(
        self, worker: _Worker, slot: Slot, answer: RemoteAnswer, result: ExerciseResult
    ) -> None:
        check, grading = self.checks[slot.id], self.gradings.get(slot.id)
        own = GradedPart(
            "the lab's check", slot.points, lambda attempt, rng: check.examine(attempt)
        )
        outcomes: list[CheckResult] = []
        for part in grading.parts if grading else [own]:
            rng = grading.source(self.seed, part) if grading else random.Random()
            stopped = next((o for o in outcomes if o.cause in ("time", "limit")), None)
            if stopped is not None:
                outcomes.append(CheckResult("wrong", "not reached", "limit"))
            else:
                outcomes.append(worker.examine(check, answer, partial(part.examine, rng=rng)))
            right = outcomes[-1].verdict == "right"
            message = outcomes[-1].message
            result.parts.append(
                PartResult(part.title, part.points, part.points if right else 0, message)
            )
        verdicts = {outcome.verdict for outcome in outcomes}
        mixed = "partly right" if "right" in verdicts else "wrong"
        result.verdict = next(iter(verdicts)) if len(verdicts) == 1 else mixed
        result.message = next((o.message for o in outcomes if o.verdict != "right"), "")
        if grading and worker.alive and result.verdict != "not attempted":
            text = worker.examine(check, answer, check.examine)
            if text.verdict == "wrong":
                result.message = f"The lab's own check says: {text.message}"


class _Worker:
    """A session that is there when it is needed, with all cells so far."""

    def __init__(self, judge: Judge) -> None:
        self.judge = judge
        self._cells: list[tuple[str, str]] = []  # text that runs, and the untouched cell
        self._session: Session | None = None
        self._lifted: list[str] = []
        self._listens = False

    @property
    def alive(self) -> bool:
        return self._session is not None and not self._session.closed

    def session(self) -> Session:
        """Return the session; a new one where there is none, or where the last one died.

        Raises:
            Stopped: the notebook has used up its time.
            RuntimeError: no worker comes up, or the lab's first cell does not run.
        """
        while not (self.alive and self._session is not None):
            spent_s = self._session.spent_s if self._session is not None else 0.0
            self._session = session = self.judge.start(spent_s)
            self._prepare(session)
            for index, (text, _) in enumerate(self._cells):
                try:
                    session.run(text)
                except Stopped as stopped:  # it ran before, and does not now
                    self._blame(index, stopped)
                    break
        return self._session

    def _blame(self, index: int, stopped: Stopped) -> None:
        """Replace this cell by its stub. If it is the stub already, replace all, as one left a thread."""
        text, stub = self._cells[index]
        if text != stub:
            self._cells[index] = (stub, stub)
        elif any(text != stub for text, stub in self._cells):
            self._cells = [(stub, stub) for _, stub in self._cells]
        else:
            raise RuntimeError(f"the lab's untouched cells do not run: {stopped}") from stopped

    def _prepare(self, session: Session) -> None:
        try:
            _, error = session.run(self.judge.lab.setup, ours=True)
            gradings = self.judge.gradings.values()
            session.agree({kind for grading in gradings for kind in grading.returns})
            self._unseal(session, self._lifted)
        except Stopped as stopped:
            raise RuntimeError(f"the lab's first cell does not run: {stopped}") from stopped
        if error is not None:
            raise RuntimeError(f"the lab's first cell does not run: {error}")

    def keep(self, text: str, slot: Slot) -> None:
        """A cell that has run belongs to every later session."""
        self._cells.append((text, slot.stub))

    def stand_in(self, slot: Slot) -> None:
        """Let the untouched cell stand for one that does not run: later cells may name it."""
        self._cells.append((slot.stub, slot.stub))
        if self.alive:
            with contextlib.suppress(Stopped):  # the next session runs it
                self.session().run(slot.stub)

    def examine(
        self, check: Check, answer: RemoteAnswer, examine: Callable[[Any], None]
    ) -> CheckResult:
        """Let a check examine the answer."""
        if not self.alive:
            return CheckResult("wrong", "not reached", "limit")
        try:
            self.session().seed(0)
        except Stopped as stopped:
            return CheckResult("wrong", str(stopped), stopped.cause)
        return check.judge_answer(answer, examine)

    def listens_now(self) -> bool:
        """Return whether a port was opened since this was asked last."""
        before = self._listens
        self._listens = self.alive and self.session().listening()
        return self._listens and not before

    def sweep(self) -> None:
        """End a session in which an exercise left processes: the next one starts afresh."""
        if self.alive and self.session().strays():
            self.close()

    def lift(self, slot: Slot) -> None:
        """Bring back what was sealed for an exercise that is judged now."""
        seals = self.judge.seals[slot.id]
        self._lifted += seals
        if seals and self.alive:
            with contextlib.suppress(Stopped):  # the next session gets it
                self._unseal(self.session(), seals)

    def _unseal(self, session: Session, seals: Iterable[str]) -> None:
        """Give code back; the parts of the same module that are still sealed do not travel with it."""
        root = self.judge.root
        every = [seal for seals in self.judge.seals.values() for seal in seals]
        still = by_module(root, [seal for seal in every if seal not in self._lifted])
        for module, names in by_module(root, seals).items():
            source = sealed_source(root, module, still.get(module, []))
            session.unseal(dotted(module), names, source)

    def close(self) -> None:
        if self._session is not None:
            self._session.close()


def _error_output(error: LearnersError) -> dict[str, Any]:
    where = f" (line {error.line})" if error.line else ""
    return {
        "output_type": "error",
        "ename": error.name,
        "evalue": error.text,
        "traceback": [f"{error}{where}"],
    }


def _no_answer(slot: Slot, error: LearnersError | None) -> str:
    if error is None:
        return f"the cell does not define {slot.variable!r}"
    where = f", in line {error.line}" if error.line else ""
    return f"the cell does not run: it raised {error}{where}"


def _left_out(slot: Slot, message: str, handed: HandedIn) -> Iterable[Note]:
    """Yield a complaint about each missing name that a cell defines which isn't run."""
    if "NameError" not in message:
        return
    missing = (
        name for name in names_in(handed.elsewhere) if f"name {name!r} is not defined" in message
    )
    for name in islice(missing, 3):
        learner = (
            f"{name!r} is defined in a cell that is not run while a lab is graded. Put all that "
            f"{slot.id} needs into its own cell."
        )
        yield Note(learner, f"{slot.id}: uses {name!r} from a cell that is not graded", slot.id)


def _unusual(slot: Slot, text: str) -> Iterable[Note]:
    """Return names that no exercise needs, for a person to look at, but not those of the stub itself."""
    found = _unusual_uses(text) - _unusual_uses(slot.stub)
    if found:
        what = ", ".join(sorted(found))[:200]
        learner = (
            f"The cell of {slot.id} uses {what}. No exercise needs that; your instructor sees it."
        )
        yield Note(learner, f"{slot.id}: uses {what}", slot.id)


def _unusual_uses(text: str) -> set[str]:
    """Return the unusual modules, names and attributes that a cell uses."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return set()
    modules, names = set(_UNUSUAL_MODULES.split()), set(_UNUSUAL_NAMES.split())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names} & modules
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").split(".")[0]} & modules
        elif isinstance(node, ast.Name) and node.id in names:
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and re.fullmatch(r"__\w+__", node.attr):
            found |= {node.attr} - {"__init__", "__name__", "__class__", "__doc__"}
    return found
