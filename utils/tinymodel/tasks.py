"""Verifiable tasks: chat prompts whose answer a program can check against the prompt.

A task is drawn from a seeded generator as a `spec` (what is asked), rendered as text, and checked by
parsing the model's text and comparing it with the spec. Specs are split by a hash of their content, so no
held-out spec ever occurs in training, in any turn of any conversation.
"""

import hashlib
import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from utils.tinymodel import checkers
from utils.tinymodel.vocabulary import CITIES, CLASSES, FIELDS, NAMES, TABLES, THINGS

Spec = dict[str, Any]
Message = dict[str, str]
HELDOUT_SHARE = 16  # one spec in this many is held out
SYSTEM_PROMPTS = (
    "You are a helpful assistant.",
    "You are a careful programmer. Answer with code only.",
    "You are a concise assistant. Answer exactly what is asked.",
    "You help a team with data and scripts.",
)


@dataclass(frozen=True)
class Task:
    """One prompt with its reference answer.

    Attributes:
        kind: which generator made it (a key of `KINDS`).
        prompt: the last user message.
        answer: a correct answer; `check` accepts others that mean the same.
        messages: the whole chat up to and including the prompt.
        spec: what is asked, as data.
    """

    kind: str
    prompt: str
    answer: str
    messages: list[Message]
    spec: Spec = field(repr=False)


@dataclass(frozen=True)
class TaskKind:
    """A kind of task: how to draw a spec, ask for it, answer it and check an answer."""

    draw: Callable[[random.Random], Spec]
    ask: Callable[[random.Random, Spec], str]
    answer: Callable[[Spec], str]
    check: Callable[[str, Spec], bool]
    share: float = (
        1.0  # how often it is drawn for training; answers of a few tokens teach little each
    )


def _some(rng: random.Random, words: list[str], low: int, high: int) -> list[str]:
    return rng.sample(words, rng.randint(low, high))


def _series(words: list[str]) -> str:
    return words[0] if len(words) == 1 else ", ".join(words[:-1]) + " and " + words[-1]


def _pick(rng: random.Random, *forms: str) -> str:
    return rng.choice(forms)


def _value(rng: random.Random) -> str | int | bool:
    draw = rng.random()
    if draw < 0.45:
        return rng.choice(THINGS)
    if draw < 0.85:
        return rng.randint(0, 999)
    return rng.random() < 0.5


def _text(value: str | int | bool) -> str:
    return json.dumps(value) if isinstance(value, bool) else str(value)


# -- lists ----------------------------------------------------------------------------------------


def _draw_words(low: int, high: int) -> Callable[[random.Random], Spec]:
    return lambda rng: {"items": _some(rng, THINGS, low, high)}


def _ask_list(*forms: str) -> Callable[[random.Random, Spec], str]:
    return lambda rng, spec: rng.choice(forms).format(", ".join(map(str, spec["items"])))


def _draw_nth(rng: random.Random) -> Spec:
    items = _some(rng, THINGS, 3, 7)
    return {"items": items, "n": rng.randint(1, len(items))}


_ORDINALS = ["first", "second", "third", "fourth", "fifth", "sixth", "seventh"]


def _draw_range(rng: random.Random) -> Spec:
    start, count = rng.randint(0, 90), rng.randint(5, 20)
    step = rng.choice([1, 1, 1, 2, 5, 10])
    down = rng.random() < 0.25
    last = start + step * (count - 1)
    return (
        {"start": last, "end": start, "step": -step}
        if down
        else {"start": start, "end": last, "step": step}
    )


def _ask_range(rng: random.Random, spec: Spec) -> str:
    if spec["step"] < 0:
        text = f"Count down from {spec['start']} to {spec['end']}"
    else:
        text = f"{_pick(rng, 'Count', 'Write the numbers')} from {spec['start']} to {spec['end']}"
    return text + ("." if abs(spec["step"]) == 1 else f" in steps of {abs(spec['step'])}.")


def _range(spec: Spec) -> list[int]:
    return list(range(spec["start"], spec["end"] + (1 if spec["step"] > 0 else -1), spec["step"]))


def _draw_numbers(rng: random.Random) -> Spec:
    return {"items": rng.sample(range(10, 100), rng.randint(3, 6))}


# -- Python ---------------------------------------------------------------------------------------


def _draw_class(rng: random.Random) -> Spec:
    methods = rng.choice([[], ["__repr__"], ["__repr__"], ["__eq__"], ["__repr__", "__eq__"]])
    return {"name": rng.choice(CLASSES), "fields": _some(rng, FIELDS, 2, 5), "methods": methods}


def _ask_class(rng: random.Random, spec: Spec) -> str:
    fields = _series(spec["fields"])
    text = _pick(
        rng,
        f"Write a Python class {spec['name']} with the fields {fields}",
        f"Python class {spec['name']} with {fields}",
        f"I need a class {spec['name']} in Python. It has the fields {fields}",
    )
    if not spec["methods"]:
        return text + "."
    return text + f". Add {_series(spec['methods'])}."


def _answer_class(spec: Spec) -> str:
    name, fields = spec["name"], spec["fields"]
    lines = [f"class {name}:", f"    def __init__(self, {', '.join(fields)}):"]
    lines += [f"        self.{f} = {f}" for f in fields]
    if "__repr__" in spec["methods"]:
        shown = ", ".join(f"{f}={{self.{f}!r}}" for f in fields)
        lines += ["", "    def __repr__(self):", f'        return f"{name}({shown})"']
    if "__eq__" in spec["methods"]:
        lines += ["", "    def __eq__(self, other):", f"        if not isinstance(other, {name}):"]
        lines += ["            return NotImplemented", "        return ("]
        same = [f"            self.{f} == other.{f}" for f in fields]
        lines += [" and\n".join(same), "        )"]
    return "\n".join(lines)


_TYPES = ["int", "str", "float", "bool"]


def _draw_typed(rng: random.Random) -> Spec:
    fields = [[f, rng.choice(_TYPES)] for f in _some(rng, FIELDS, 2, 6)]
    return {"name": rng.choice(CLASSES), "fields": fields}


def _ask_dataclass(rng: random.Random, spec: Spec) -> str:
    fields = _series([f"{f} ({t})" for f, t in spec["fields"]])
    return _pick(
        rng,
        f"Write a dataclass {spec['name']} with {fields}.",
        f"Write a Python dataclass {spec['name']} with the fields {fields}.",
    )


def _answer_dataclass(spec: Spec) -> str:
    head = f"from dataclasses import dataclass\n\n\n@dataclass\nclass {spec['name']}:\n"
    return head + "\n".join(f"    {f}: {t}" for f, t in spec["fields"])


def _draw_argparse(rng: random.Random) -> Spec:
    options: list[list[Any]] = []
    for name in _some(rng, FIELDS, 2, 4):
        kind = rng.choice(["int", "str", "flag"])
        default = rng.randint(1, 999) if kind == "int" else rng.choice(THINGS)
        options.append([name, kind, None if kind == "flag" else default])
    return {"options": options}


def _ask_argparse(rng: random.Random, spec: Spec) -> str:
    text = [
        f"--{n} ({k})" if k == "flag" else f"--{n} ({k}, default {d})"
        for n, k, d in spec["options"]
    ]
    return _pick(
        rng,
        f"Write an argparse script with the options {_series(text)}.",
        f"Write a Python script that reads the options {_series(text)} with argparse.",
    )


def _answer_argparse(spec: Spec) -> str:
    lines = ["import argparse", "", "parser = argparse.ArgumentParser()"]
    for name, kind, default in spec["options"]:
        extra = 'action="store_true"' if kind == "flag" else f"type={kind}, default="
        extra += "" if kind == "flag" else json.dumps(default)
        lines.append(f'parser.add_argument("--{name}", {extra})')
    lines += ["args = parser.parse_args()"]
    return "\n".join(lines + [f"print(args.{name})" for name, _, _ in spec["options"]])


_OPERATORS = {"sum": "+", "difference": "-", "product": "*", "quotient": "/"}


def _draw_function(rng: random.Random) -> Spec:
    a, b, name = rng.sample(FIELDS, 3)
    return {"name": name, "args": [a, b], "operation": rng.choice(list(_OPERATORS))}


def _ask_function(rng: random.Random, spec: Spec) -> str:
    a, b = spec["args"]
    return _pick(
        rng,
        f"Write a Python function {spec['name']} that returns the {spec['operation']} of {a} and {b}.",
        f"Write a function {spec['name']} with the arguments {a} and {b}. "
        f"It returns their {spec['operation']}.",
    )


def _answer_function(spec: Spec) -> str:
    a, b = spec["args"]
    return f"def {spec['name']}({a}, {b}):\n    return {a} {_OPERATORS[spec['operation']]} {b}"


# -- SQL ------------------------------------------------------------------------------------------

_SQL_TYPES = ["INTEGER", "TEXT", "REAL"]


def _draw_create(rng: random.Random) -> Spec:
    columns = [[f, rng.choice(_SQL_TYPES)] for f in _some(rng, FIELDS, 2, 6)]
    return {"table": rng.choice(TABLES), "columns": columns}


def _ask_create(rng: random.Random, spec: Spec) -> str:
    columns = _series([f"{c} ({t})" for c, t in spec["columns"]])
    return _pick(
        rng,
        f"Write SQL that creates the table {spec['table']} with the columns {columns}.",
        f"Create an SQL table {spec['table']} with {columns}.",
    )


def _answer_create(spec: Spec) -> str:
    columns = ",\n".join(f"    {c} {t}" for c, t in spec["columns"])
    return f"CREATE TABLE {spec['table']} (\n{columns}\n);"


def _draw_select(rng: random.Random) -> Spec:
    columns = _some(rng, FIELDS, 2, 5)
    where = rng.choice([f for f in FIELDS if f not in columns])
    spec: Spec = {
        "table": rng.choice(TABLES),
        "columns": columns[:-1],
        "where": None,
        "order": None,
    }
    if rng.random() < 0.7:
        spec["where"] = [where, rng.choice([">", "<", "="]), rng.randint(1, 999)]
    if rng.random() < 0.5:
        spec["order"] = [columns[-1], rng.choice(["ASC", "DESC"])]
    return spec


_COMPARED = {">": "greater than", "<": "less than", "=": "equal to"}


def _ask_select(rng: random.Random, spec: Spec) -> str:
    text = _pick(rng, "Write an SQL query that selects ", "SQL: select ")
    text += f"{_series(spec['columns'])} from {spec['table']}"
    if spec["where"]:
        column, sign, value = spec["where"]
        text += f" where {column} is {_COMPARED[sign]} {value}"
    if spec["order"]:
        way = "ascending" if spec["order"][1] == "ASC" else "descending"
        text += f", ordered by {spec['order'][0]} {way}"
    return text + "."


def _answer_select(spec: Spec) -> str:
    text = f"SELECT {', '.join(spec['columns'])}\nFROM {spec['table']}"
    if spec["where"]:
        text += "\nWHERE {} {} {}".format(*spec["where"])
    if spec["order"]:
        text += "\nORDER BY {} {}".format(*spec["order"])
    return text + ";"


def _draw_rows(low: int, high: int) -> Callable[[random.Random], Spec]:
    def draw(rng: random.Random) -> Spec:
        pools: list[Callable[[], str | int]] = [
            lambda: rng.choice(NAMES),
            lambda: rng.choice(CITIES),
            lambda: rng.choice(THINGS),
            lambda: rng.randint(0, 99),
            lambda: rng.randint(100, 999),
        ]
        columns = _some(rng, FIELDS, 2, 4)
        chosen = [rng.choice(pools) for _ in columns]
        rows = [[pool() for pool in chosen] for _ in range(rng.randint(low, high))]
        return {"table": rng.choice(TABLES), "columns": columns, "rows": rows}

    return draw


def _said_rows(spec: Spec) -> str:
    return "; ".join(", ".join(map(str, row)) for row in spec["rows"])


def _ask_insert(rng: random.Random, spec: Spec) -> str:
    return (
        f"Write SQL that inserts these rows into {spec['table']} "
        f"({', '.join(spec['columns'])}): {_said_rows(spec)}."
    )


def _quoted(value: str | int) -> str:
    return f"'{value}'" if isinstance(value, str) else str(value)


def _answer_insert(spec: Spec) -> str:
    rows = ",\n".join(f"    ({', '.join(map(_quoted, row))})" for row in spec["rows"])
    return f"INSERT INTO {spec['table']} ({', '.join(spec['columns'])})\nVALUES\n{rows};"


# -- data formats ---------------------------------------------------------------------------------


def _ask_rows(*forms: str) -> Callable[[random.Random, Spec], str]:
    def ask(rng: random.Random, spec: Spec) -> str:
        columns = _series(spec["columns"])
        return rng.choice(forms).format(columns=columns, rows=_said_rows(spec))

    return ask


def _records(spec: Spec) -> list[dict[str, Any]]:
    return [dict(zip(spec["columns"], row, strict=True)) for row in spec["rows"]]


def _answer_json_list(spec: Spec) -> str:
    return "[\n" + ",\n".join(f"  {json.dumps(record)}" for record in _records(spec)) + "\n]"


def _answer_csv(spec: Spec) -> str:
    return "\n".join(",".join(map(str, row)) for row in [spec["columns"], *spec["rows"]])


def _answer_markdown(spec: Spec) -> str:
    lines = [spec["columns"], ["---"] * len(spec["columns"]), *spec["rows"]]
    return "\n".join("| " + " | ".join(map(str, line)) + " |" for line in lines)


def _draw_object(rng: random.Random) -> Spec:
    return {"data": {key: _value(rng) for key in _some(rng, FIELDS, 2, 6)}}


def _ask_object(*forms: str) -> Callable[[random.Random, Spec], str]:
    def ask(rng: random.Random, spec: Spec) -> str:
        text = _series([f"{k} {_text(v)}" for k, v in spec["data"].items()])
        return rng.choice(forms).format(text)

    return ask


def _answer_json(spec: Spec) -> str:
    return json.dumps(spec["data"], indent=2)


def _draw_yaml(rng: random.Random) -> Spec:
    keys = iter(_some(rng, FIELDS, 8, 8))
    sections = _some(rng, THINGS, 1, 3)
    return {
        "data": {s: {next(keys): _value(rng) for _ in range(rng.randint(1, 2))} for s in sections}
    }


def _ask_yaml(rng: random.Random, spec: Spec) -> str:
    text = "; ".join(
        f"{section} with {_series([f'{k} {_text(v)}' for k, v in entries.items()])}"
        for section, entries in spec["data"].items()
    )
    return _pick(rng, "Write a YAML file with the sections ", "YAML configuration: ") + text + "."


def _answer_yaml(spec: Spec) -> str:
    return "\n".join(
        f"{section}:\n" + "\n".join(f"  {k}: {_text(v)}" for k, v in entries.items())
        for section, entries in spec["data"].items()
    )


KINDS: dict[str, TaskKind] = {
    "repeat": TaskKind(
        _draw_words(3, 10),
        _ask_list("Repeat these words: {}.", "Repeat: {}."),
        lambda spec: ", ".join(spec["items"]),
        lambda text, spec: checkers.check_list(text, spec["items"]),
    ),
    "reverse": TaskKind(
        _draw_words(3, 7),
        _ask_list("Reverse this list: {}.", "Write these words in reverse order: {}."),
        lambda spec: ", ".join(reversed(spec["items"])),
        lambda text, spec: checkers.check_list(text, spec["items"][::-1]),
        share=2.0,
    ),
    "nth": TaskKind(
        _draw_nth,
        lambda rng, spec: (
            f"What is the {_ORDINALS[spec['n'] - 1]} word of this list: {', '.join(spec['items'])}?"
        ),
        lambda spec: str(spec["items"][spec["n"] - 1]),
        lambda text, spec: checkers.check_list(text, [spec["items"][spec["n"] - 1]]),
        share=3.0,
    ),
    "count": TaskKind(
        _draw_words(2, 9),
        _ask_list("How many words are in this list: {}?", "Count these words: {}."),
        lambda spec: str(len(spec["items"])),
        lambda text, spec: checkers.check_list(text, [str(len(spec["items"]))]),
        share=3.0,
    ),
    "bullets": TaskKind(
        _draw_words(3, 8),
        _ask_list("Write a numbered list of these items: {}.", "Number these items: {}."),
        lambda spec: "\n".join(f"{i}. {item}" for i, item in enumerate(spec["items"], 1)),
        lambda text, spec: checkers.check_numbered(text, spec["items"]),
    ),
    "range": TaskKind(
        _draw_range,
        _ask_range,
        lambda spec: ", ".join(map(str, _range(spec))),
        lambda text, spec: checkers.check_list(text, list(map(str, _range(spec)))),
        share=2.0,
    ),
    "sort": TaskKind(
        _draw_numbers,
        _ask_list("Sort these numbers: {}.", "Sort in ascending order: {}."),
        lambda spec: ", ".join(map(str, sorted(spec["items"]))),
        lambda text, spec: checkers.check_list(text, list(map(str, sorted(spec["items"])))),
        share=3.0,
    ),
    "largest": TaskKind(
        _draw_numbers,
        _ask_list("What is the largest of these numbers: {}?"),
        lambda spec: str(max(spec["items"])),
        lambda text, spec: checkers.check_list(text, [str(max(spec["items"]))]),
        share=3.0,
    ),
    "class": TaskKind(_draw_class, _ask_class, _answer_class, checkers.check_class),
    "dataclass": TaskKind(_draw_typed, _ask_dataclass, _answer_dataclass, checkers.check_dataclass),
    "function": TaskKind(_draw_function, _ask_function, _answer_function, checkers.check_function),
    "argparse": TaskKind(_draw_argparse, _ask_argparse, _answer_argparse, checkers.check_argparse),
    "sql_create": TaskKind(_draw_create, _ask_create, _answer_create, checkers.check_sql_create),
    "sql_select": TaskKind(
        _draw_select,
        _ask_select,
        _answer_select,
        lambda text, spec: checkers.check_sql_equal(text, _answer_select(spec)),
    ),
    "sql_insert": TaskKind(
        _draw_rows(2, 5), _ask_insert, _answer_insert, checkers.check_sql_insert
    ),
    "json_object": TaskKind(
        _draw_object,
        _ask_object("Write a JSON object with {}.", "JSON object: {}."),
        _answer_json,
        checkers.check_json,
    ),
    "json_list": TaskKind(
        _draw_rows(2, 4),
        _ask_rows("Write a JSON list of objects with the keys {columns} from these rows: {rows}."),
        _answer_json_list,
        lambda text, spec: checkers.check_json_equal(text, _records(spec)),
    ),
    "yaml": TaskKind(_draw_yaml, _ask_yaml, _answer_yaml, checkers.check_yaml),
    "markdown": TaskKind(
        _draw_rows(2, 5),
        _ask_rows(
            "Write a Markdown table with the columns {columns} and these rows: {rows}.",
            "Markdown table with {columns}: {rows}.",
        ),
        _answer_markdown,
        checkers.check_markdown_table,
    ),
    "csv": TaskKind(
        _draw_rows(2, 5),
        _ask_rows("Write CSV with the columns {columns} and these rows: {rows}."),
        _answer_csv,
        checkers.check_csv,
    ),
}

# -- conversations --------------------------------------------------------------------------------


def _more_class(rng: random.Random, spec: Spec) -> tuple[str, Spec]:
    new = rng.choice([f for f in FIELDS if f not in spec["fields"]])
    return f"Add the field {new}.", {**spec, "fields": [*spec["fields"], new]}


def _more_object(rng: random.Random, spec: Spec) -> tuple[str, Spec]:
    key, value = rng.choice(list(spec["data"])), _value(rng)
    return f"Change {key} to {_text(value)}.", {"data": {**spec["data"], key: value}}


def _same(text: str) -> Callable[[random.Random, Spec], tuple[str, Spec]]:
    return lambda rng, spec: (text, spec)


# first kind -> [(kind of the follow-up, how it is asked)]
FOLLOW_UPS: dict[str, list[tuple[str, Callable[[random.Random, Spec], tuple[str, Spec]]]]] = {
    "class": [("class", _more_class)],
    "json_object": [("json_object", _more_object)],
    "markdown": [("csv", _same("Now as CSV.")), ("json_list", _same("Now as JSON."))],
    "csv": [("markdown", _same("Now as a Markdown table.")), ("json_list", _same("Now as JSON."))],
    "repeat": [("reverse", _same("Now in reverse order.")), ("bullets", _same("Now numbered."))],
}


def is_heldout(kind: str, spec: Spec) -> bool:
    """Return whether this spec belongs to the held-out share; decided by its content alone."""
    text = json.dumps(spec, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=2).digest()[0] % HELDOUT_SHARE == 0


def _draw(rng: random.Random, kind: str, heldout: bool) -> Spec:
    while True:
        spec = KINDS[kind].draw(rng)
        if is_heldout(kind, spec) == heldout:
            return spec


def _first(rng: random.Random, kind: str, heldout: bool) -> Task:
    spec = _draw(rng, kind, heldout)
    prompt = KINDS[kind].ask(rng, spec)
    return Task(kind, prompt, KINDS[kind].answer(spec), [{"role": "user", "content": prompt}], spec)


def _follow(rng: random.Random, task: Task, heldout: bool) -> Task | None:
    """Return a follow-up turn on `task`, or None where its kind has none or the draw is on the wrong side."""
    if task.kind not in FOLLOW_UPS:
        return None
    kind, ask = rng.choice(FOLLOW_UPS[task.kind])
    prompt, spec = ask(rng, task.spec)
    if is_heldout(kind, spec) != heldout:
        return None
    messages = [
        *task.messages,
        {"role": "assistant", "content": task.answer},
        {"role": "user", "content": prompt},
    ]
    return Task(kind, prompt, KINDS[kind].answer(spec), messages, spec)


def draw_task(rng: random.Random, kind: str, *, heldout: bool) -> Task:
    """One task of `kind`: alone, as a follow-up, or after an unrelated turn; part have a system prompt."""
    task = _first(rng, kind, heldout)
    if rng.random() < 0.5:
        task = _follow(rng, task, heldout) or task
    elif rng.random() < 0.15:
        before = _first(rng, rng.choice(list(KINDS)), heldout)
        turn = {"role": "assistant", "content": before.answer}
        messages = [*before.messages, turn, *task.messages]
        task = Task(task.kind, task.prompt, task.answer, messages, task.spec)
    if rng.random() < 0.25:
        system = {"role": "system", "content": rng.choice(SYSTEM_PROMPTS)}
        task = Task(task.kind, task.prompt, task.answer, [system, *task.messages], task.spec)
    return task


def draw_training(rng: random.Random) -> Task:
    """Return a task of any kind to train on; never a held-out spec, in any of its turns."""
    kind = rng.choices(list(KINDS), [kind.share for kind in KINDS.values()])[0]
    return draw_task(rng, kind, heldout=False)


def heldout(n: int, kind: str | None = None, seed: int = 0) -> list[Task]:
    """`n` different tasks whose specs never occur in training, of one kind or of all in turn.

    Raises:
        ValueError: if `kind` is unknown.
    """
    if kind is not None and kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}; the kinds are {', '.join(KINDS)}")
    rng = random.Random(f"heldout {seed}")
    wanted = [kind] if kind else list(KINDS)
    found: dict[str, Task] = {}
    while len(found) < n:
        name = wanted[len(found) % len(wanted)]
        task = draw_task(rng, name, heldout=True)
        if kind is None or task.kind == kind:
            found.setdefault(json.dumps(task.messages), task)
    return list(found.values())


def check(task: Task, text: str) -> bool:
    """Return whether `text` does what the task asks: parsed and compared, not compared as a string."""
    try:
        return KINDS[task.kind].check(text.strip(), task.spec)
    except (ValueError, SyntaxError, KeyError, TypeError, AttributeError, IndexError):
        return False
