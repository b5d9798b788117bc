"""Judges one notebook: exercise by exercise, part by part, in worker processes that may die.

An exercise whose cell does not run, does not end or kills its process earns nothing and stops nobody:
a new worker takes its place, with the untouched cell where the bad one was.
"""

from __future__ import annotations

import ast
import random
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from utils.checks import Check, Outcome
from utils.checks.attempt import Stopped, Wanted
from utils.grading.cells import HandedIn, LabCells, Note, Slot, defined_names, same
from utils.grading.declare import DEFAULT_SEED, Grading, Part
from utils.grading.seal import by_module, dotted, sealed_source
from utils.grading.session import LearnersError, RemoteAnswer, Session

_UNUSUAL_MODULES = """
    atexit builtins ctypes gc importlib inspect io multiprocessing nbgrader os pathlib pickle psutil
    resource shutil signal socket subprocess sys tempfile threading utils __main__
"""
_UNUSUAL_NAMES = "__import__ compile eval exec get_ipython globals open"


@dataclass(frozen=True)
class PartResult:
    """What came of one part: `message` says why it earned nothing."""

    title: str
    points: int
    score: int
    message: str = ""


@dataclass
class ExerciseResult:
    """What came of one exercise.

    Attributes:
        id: of the exercise.
        points: what it is worth.
        verdict: "right", "partly right", "wrong", "not attempted" or "missing".
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
    """What came of one notebook."""

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
        """Reads `to_dict`'s output."""
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
        gradings: the hidden parts by exercise; without them (a learner's copy) the lab's own
            check is the only part.
        root: the course's folder, for what is sealed.
        seed: of the hidden parts' inputs.
    """

    def __init__(
        self,
        lab: LabCells,
        checks: Mapping[str, Check],
        start: Callable[[float], Session],
        *,
        gradings: Mapping[str, Grading] | None = None,
        root: Path,
        seed: str = DEFAULT_SEED,
    ) -> None:
        self.lab, self.checks, self.start = lab, checks, start
        self.gradings, self.root, self.seed = gradings, root, seed

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
                worker.lift(self._grading(slot))
        finally:
            worker.close()
        return judgement

    def _grading(self, slot: Slot) -> Grading | None:
        return self.gradings.get(slot.id) if self.gradings is not None else None

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
                slot.variable, Wanted.like(self.checks[slot.id].reference)
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
        if worker.listens_now():
            learner = f"The cell of {slot.id} opened a port, which nobody could reach."
            notes.append(Note(learner, f"{slot.id}: listens on a port (in the sandbox)", slot.id))
        notes += _left_out(slot, f"{error} {result.message}", handed)
        worker.sweep()
        return result

    def _parts(
        self, worker: _Worker, slot: Slot, answer: RemoteAnswer, result: ExerciseResult
    ) -> None:
        check, grading = self.checks[slot.id], self._grading(slot)
        own = Part("the lab's check", slot.points, lambda attempt, rng: check.examine(attempt))
        outcomes: list[Outcome] = []
        for part in grading.parts if grading else [own]:
            rng = grading.source(self.seed, part) if grading else random.Random()
            stopped = next((o for o in outcomes if o.cause in ("time", "limit")), None)
            if stopped is not None:
                outcomes.append(Outcome("wrong", "not reached", "limit"))
            else:
                outcomes.append(worker.examine(check, answer, partial(part.examine, rng=rng)))
            right = outcomes[-1].verdict == "right"
            message = outcomes[-1].message
            result.parts.append(
                PartResult(part.title, part.points, part.points if right else 0, message)
            )
        verdicts = {outcome.verdict for outcome in outcomes}
        if verdicts == {"right"}:
            result.verdict = "right"
            return
        result.verdict = "partly right" if "right" in verdicts else "wrong"
        if verdicts == {"not attempted"}:
            result.verdict = "not attempted"
        result.message = next(o.message for o in outcomes if o.verdict != "right")
        if grading and worker.alive and result.verdict != "not attempted":
            said = worker.examine(check, answer, check.examine)
            if said.verdict == "wrong":
                result.message = said.message


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
        """The session; a new one where there is none, or where the last one died.

        Raises:
            Stopped: the notebook has used up its time.
            RuntimeError: no worker comes up, or the lab's first cell does not run.
        """
        while not (self.alive and self._session is not None):
            spent_s = self._session.spent_s if self._session is not None else 0.0
            self._session = session = self.judge.start(spent_s)
            self._prepare(session)
            for index, (text, stub) in enumerate(self._cells):
                try:
                    session.run(text)
                except Stopped:  # it ran before, and does not now
                    self._cells[index] = (stub, stub)
                    break
        return self._session

    def _prepare(self, session: Session) -> None:
        try:
            _, error = session.run(self.judge.lab.setup, ours=True)
            gradings = self.judge.gradings or {}
            session.agree({kind for grading in gradings.values() for kind in grading.returns})
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
            self.session().run(slot.stub)

    def examine(
        self, check: Check, answer: RemoteAnswer, examine: Callable[[Any], None]
    ) -> Outcome:
        """Let a check examine the answer."""
        if not self.alive:
            return Outcome("wrong", "not reached", "limit")
        try:
            self.session().seed(0)
        except Stopped as stopped:
            return Outcome("wrong", str(stopped), stopped.cause)
        return check.judge_answer(answer, examine)

    def listens_now(self) -> bool:
        """Whether a port was opened since this was asked last."""
        before = self._listens
        self._listens = self.alive and self.session().listening()
        return self._listens and not before

    def sweep(self) -> None:
        """End a session in which an exercise left processes: the next one starts afresh."""
        if self.alive and self.session().strays():
            self.close()

    def lift(self, grading: Grading | None) -> None:
        """Bring back what was sealed for an exercise that is judged now."""
        if grading is not None and grading.seals():
            self._lifted += grading.seals()
            if self.alive:
                self._unseal(self.session(), grading.seals())

    def _unseal(self, session: Session, seals: Iterable[str]) -> None:
        """Give code back; what is still sealed of the same module does not travel with it."""
        root, gradings = self.judge.root, self.judge.gradings or {}
        every = [seal for grading in gradings.values() for seal in grading.seals()]
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


def _left_out(slot: Slot, said: str, handed: HandedIn) -> Iterable[Note]:
    """A name that only a cell of the learner's own defines."""
    if "NameError" not in said:
        return
    for name in sorted(set().union(*map(defined_names, handed.others))):
        if repr(name) in said:
            yield Note(
                f"{name!r} is defined in a cell of your own. Only the exercises' cells are graded: "
                f"put it into the cell of {slot.id}.",
                f"{slot.id}: uses {name!r} from a cell that the learner added",
                slot.id,
            )


def _unusual(slot: Slot, text: str) -> Iterable[Note]:
    """What no exercise needs, for a person to look at."""
    try:
        tree = ast.parse(text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return
    modules, names = set(_UNUSUAL_MODULES.split()), set(_UNUSUAL_NAMES.split())
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names} & modules
        elif isinstance(node, ast.ImportFrom):
            found |= {(node.module or "").split(".")[0]} & modules
        elif isinstance(node, ast.Name) and node.id in names:
            found.add(node.id)
        elif isinstance(node, ast.Attribute) and node.attr.startswith("__"):
            found |= {node.attr} - {"__init__", "__name__", "__class__", "__doc__"}
    if found:
        what = ", ".join(sorted(found))[:200]
        learner = (
            f"The cell of {slot.id} uses {what}. No exercise needs that; your instructor sees it."
        )
        yield Note(learner, f"{slot.id}: uses {what}", slot.id)
