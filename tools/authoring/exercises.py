"""Meaning of a lab's marker lines: exercises, checks, predictions, and the rules they keep."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from tools.authoring.free_variables import names_from_elsewhere
from tools.authoring.lab_source import Cell, LabSource
from tools.authoring.lint_errors import Problem
from tools.authoring.solution_markers import Split, split_regions
from utils.checks.own_cell import defined_names

MAX_CODE_LINES = 25
MAX_STARS = 5
TAGS = ("measures", "raises-exception")
_BROKEN = "incorrectly_encoded_metadata"  # jupytext's key
_ID = re.compile(r"[a-z][a-z0-9_]{0,40}")
_KEYS = {
    "exercise": {"exercise", "title", "minutes", "difficulty", "importance", "points"},
    "check": {"check"},
    "prediction": {"prediction"},
    "answer": {"answer", "points"},
    "plain": {"tags"},
}
Refuse = Callable[[Cell, int, str, str], None]


@dataclass(frozen=True)
class Exercise:
    """The facts of one exercise.

    Attributes:
        id: Name of the exercise and of the learner's function.
        number: Place in the lab, from 1.
        title: Title without the number.
        minutes: Time for a learner.
        difficulty: 1 to 5 stars.
        importance: 1 to 5 stars. 5 means that later labs or an engineer's daily work build on it.
        points: Points of all parts.
    """

    id: str
    number: int
    title: str
    minutes: int
    difficulty: int
    importance: int
    points: int


@dataclass(frozen=True)
class Part:
    """A cell with its role in the lab.

    Attributes:
        role: "exercise", "check", "prediction", "answer" (written, graded by a person), "task" (the
            markdown before an exercise), "plain".
        id: id of the exercise, prediction or answer; "" for plain cells.
        kind: "code" or "markdown".
        solved: source in the instructors' notebook.
        stubbed: source in the learners' notebook.
        tags: Jupyter cell tags.
        exercise: the facts of the exercise that an exercise, task or check cell belongs to.
        points: what a written answer is worth.
    """

    role: str
    id: str
    kind: str
    solved: str
    stubbed: str
    tags: tuple[str, ...] = ()
    exercise: Exercise | None = None
    points: int = 0


@dataclass(frozen=True)
class Lab:
    """One lab, read and found free of faults (or with the `problems` that it has)."""

    source: LabSource
    parts: tuple[Part, ...]
    exercises: tuple[Exercise, ...]
    problems: tuple[Problem, ...]

    @property
    def answers(self) -> tuple[Part, ...]:
        """The written answers."""
        return tuple(part for part in self.parts if part.role == "answer")


def read_lab(source: LabSource) -> Lab:
    """Give every cell its role and collect every fault."""
    problems: list[Problem] = []

    def refuse(cell: Cell, offset: int, message: str, fix: str) -> None:
        line = cell.line if offset < 0 else cell.first_line + offset
        problems.append(Problem(source.path, line, message, fix))

    roles = [_role(cell, refuse) for cell in source.cells]
    exercises: dict[str, Exercise] = {}
    parts: list[Part] = []
    others: set[str] = set()  # ids of predictions and written answers
    for cell, role in zip(source.cells, roles, strict=True):
        id_ = str(cell.options.get(role, "")) if role != "plain" else ""
        if role != "plain" and not _ID.fullmatch(id_):
            refuse(cell, -1, f"{role}={id_!r} is not an id", "Use a Python name in lower case.")
        if role == "exercise":
            if id_ in exercises or id_ in others:
                refuse(cell, -1, f"the id {id_!r} is taken", "Give each exercise an id of its own.")
            exercises[id_] = _facts(cell, id_, len(exercises) + 1, refuse)
        if role in ("prediction", "answer"):
            if id_ in exercises or id_ in others:
                refuse(cell, -1, f"the id {id_!r} is taken", f"Give each {role} its own id.")
            others.add(id_)
        split = _split(cell, role, id_, refuse)
        tags = _tags(cell, refuse)
        points = _integer(cell, role, id_, "points", 100, refuse) if role == "answer" else 0
        part = Part(role, id_, cell.kind, split.solved, split.stubbed, tags, points=points)
        parts.append(part)
    parts = _join(source, parts, exercises, refuse)
    if not problems:
        _stands_alone(source, parts, refuse)
    problems.sort(key=lambda problem: problem.line)
    return Lab(source, tuple(parts), tuple(exercises.values()), tuple(problems))


def _role(cell: Cell, refuse: Refuse) -> str:
    roles = [role for role in ("exercise", "check", "prediction", "answer") if role in cell.options]
    if len(roles) > 1:
        refuse(cell, -1, f"a cell cannot be {' and '.join(roles)}", "Keep one of the keys.")
    role = roles[0] if roles else "plain"
    if cell.kind not in ("code", "markdown"):
        refuse(cell, -1, f"a {cell.kind} cell", "Use a code or a markdown cell.")
    if role == "answer" and cell.kind != "markdown":
        refuse(cell, -1, "an answer in a code cell", "Add `[markdown]` to the marker.")
    elif roles and role != "answer" and cell.kind != "code":
        refuse(cell, -1, f"a {role} in a markdown cell", "Remove `[markdown]` from the marker.")
    if _BROKEN in cell.options:
        message = f"the marker line does not parse at {cell.options[_BROKEN]!r}"
        refuse(cell, -1, message, 'Write key=value pairs, text in double quotes: title="...".')
        return role
    for key in sorted(set(cell.options) - _KEYS[role]):
        allowed = ", ".join(sorted(_KEYS[role]))
        refuse(cell, -1, f"unknown key {key!r} on a {role} cell", f"Allowed here: {allowed}.")
    return role


def _facts(cell: Cell, id_: str, number: int, refuse: Refuse) -> Exercise:
    def integer(key: str, maximum: int) -> int:
        return _integer(cell, "exercise", id_, key, maximum, refuse)

    title = cell.options.get("title")
    if not isinstance(title, str) or not title.strip():
        refuse(cell, -1, f"exercise {id_!r} has no title", 'Write title="..." on the marker line.')
    return Exercise(
        id_,
        number,
        str(title),
        integer("minutes", 120),
        integer("difficulty", MAX_STARS),
        integer("importance", MAX_STARS),
        integer("points", 100),
    )


def _integer(cell: Cell, role: str, id_: str, key: str, maximum: int, refuse: Refuse) -> int:
    """Return a whole number from 1 to `maximum` on the marker line."""
    value = cell.options.get(key)
    if type(value) is int and 1 <= value <= maximum:
        return value
    message = f"{role} {id_!r} has no {key}" if value is None else f"{key}={value!r}"
    refuse(cell, -1, message, f"Write {key}=N on the marker line, N from 1 to {maximum}.")
    return 1


def _tags(cell: Cell, refuse: Refuse) -> tuple[str, ...]:
    tags = cell.options.get("tags", [])
    tags = tags if isinstance(tags, list) else [tags]
    for tag in tags:
        if tag not in TAGS:
            refuse(cell, -1, f"unknown tag {tag!r}", f"Known tags: {', '.join(TAGS)}.")
    return tuple(str(tag) for tag in tags)


def _split(cell: Cell, role: str, id_: str, refuse: Refuse) -> Split:
    stub = f'raise NotImplementedError("Exercise {id_}: replace this line by your code")'
    if role == "prediction":
        stub = f"{id_} = None"
    elif role == "answer":
        stub = "*Write your answer here.*"
    faults: list[tuple[int, str, str]] = []
    split = split_regions(cell.source, stub, lambda *fault: faults.append(fault))
    for fault in faults:
        refuse(cell, *fault)
    if role in ("exercise", "prediction", "answer"):
        if not split.regions:
            fix = "Put `### BEGIN SOLUTION` and `### END SOLUTION` around what the learner writes."
            refuse(cell, -1, f"{role} {id_!r} has no solution region", fix)
        if not faults and role != "answer":
            _runs_untouched(cell, role, id_, split, refuse)
    elif split.regions:
        fix = 'Write exercise="..." on the marker line, or remove the markers.'
        refuse(cell, -1, f"a solution region in a {role} cell", fix)
    if role in ("plain", "check") and cell.kind == "code":
        code = [ln for ln in cell.source.splitlines() if ln.strip() and ln.strip()[0] != "#"]
        if len(code) > MAX_CODE_LINES:
            message = f"{len(code)} lines of code in one cell, more than {MAX_CODE_LINES}"
            refuse(cell, -1, message, "Move the mechanism to a module, keep the call.")
    return split


def _runs_untouched(cell: Cell, role: str, id_: str, split: Split, refuse: Refuse) -> None:
    """The untouched cell must run: it parses, and its default stubs wait inside functions."""
    try:
        tree = ast.parse(split.stubbed)
        ast.parse(split.solved)
    except SyntaxError as error:
        message = f"{role} {id_!r} does not parse: {error.msg}"
        fix = "Both the solution and the stub must be Python without magics; see `#:` stub lines."
        refuse(cell, -1, message, fix)
        return
    if role == "prediction":
        names = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
        if id_ not in names:
            refuse(cell, -1, f"no variable {id_!r} in its cell", f"Write `{id_} = ...` in it.")
        return
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    inside = [node for node in ast.walk(tree) if isinstance(node, functions)]
    for line in split.defaults:
        if not any(f.lineno < line <= (f.end_lineno or 0) for f in inside):
            message = f"the untouched cell of {id_!r} would stop Run All"
            fix = "Outside a function write a stub that runs: a line `#: name = ...` below BEGIN."
            refuse(cell, -1, message, fix)


def _stands_alone(source: LabSource, parts: list[Part], refuse: Refuse) -> None:
    """An exercise can be run with no more than the lab's first code cell and earlier exercises."""
    known: set[str] = set()
    first = True
    for cell, part in zip(source.cells, parts, strict=True):
        if part.kind == "code" and first:
            known |= defined_names(part.solved)
            first = False
        elif part.role == "exercise":
            used = names_from_elsewhere(part.solved) | names_from_elsewhere(part.stubbed)
            if used - known:
                lacking = ", ".join(sorted(used - known))
                message = f"exercise {part.id!r} uses {lacking} of a cell that is not graded"
                fix = "Define or import it in the lab's first code cell, or in the exercise."
                refuse(cell, -1, message, fix)
            known |= defined_names(part.solved)


def _join(
    source: LabSource, parts: list[Part], exercises: dict[str, Exercise], refuse: Refuse
) -> list[Part]:
    """Tie tasks and checks to their exercises."""
    joined = list(parts)
    checked: set[str] = set()
    seen: set[str] = set()
    for i, (cell, part) in enumerate(zip(source.cells, parts, strict=True)):
        if part.role == "exercise":
            seen.add(part.id)
            facts = exercises[part.id]
            joined[i] = replace(part, exercise=facts)
            before = parts[i - 1] if i else None
            if before is None or before.kind != "markdown" or before.solved.startswith("#"):
                message = f"no task in front of exercise {part.id!r}"
                fix = "Put a markdown cell before it that tells the task, without a heading."
                refuse(cell, -1, message, fix)
            else:
                joined[i - 1] = replace(before, role="task", id=part.id, exercise=facts)
        elif part.role == "check":
            if part.id in checked:
                refuse(cell, -1, f"a second check of {part.id!r}", "Keep one check cell.")
            elif part.id not in seen:
                fix = f"Put a cell with exercise={part.id!r} above it."
                refuse(cell, -1, f"a check without an exercise: {part.id!r}", fix)
            elif not _is_check_call(part.solved, part.id):
                fix = f"Write one assignment in it, `name = checks.{part.id}(name)`."
                refuse(cell, -1, f"the check cell does not check {part.id!r}", fix)
            checked.add(part.id)
            joined[i] = replace(part, exercise=exercises.get(part.id))
    for cell, part in zip(source.cells, parts, strict=True):
        if part.role == "exercise" and part.id not in checked:
            fix = f"Add a cell `# %% check={part.id!r}` below it."
            refuse(cell, -1, f"exercise {part.id!r} has no check", fix)
    first = source.cells[0]
    if first.kind != "markdown" or not first.source.startswith("# "):
        refuse(first, -1, "the lab has no title", "Begin with a markdown cell, `# Lab 3.3.N: ...`.")
    return joined


def _is_check_call(source: str, id_: str) -> bool:
    try:
        body = ast.parse(source).body
    except SyntaxError:
        return False
    match body:
        case [
            ast.Assign(
                targets=[ast.Name(id=target)],
                value=ast.Call(
                    func=ast.Attribute(value=ast.Name(id="checks"), attr=attr),
                    args=[ast.Name(id=given)],
                    keywords=[],
                ),
            )
        ]:
            return attr == id_ and target == given
    return False
