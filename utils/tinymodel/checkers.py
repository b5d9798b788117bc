"""Checks of an answer, one per format: parse the text, then compare its meaning with the spec.

Each function takes the model's text and a task's spec and returns whether they agree. A text that does not
parse may raise `ValueError` or `SyntaxError`; `tasks.check` counts that as wrong.
"""

import ast
import csv
import json
import re
import sqlite3
from typing import Any

import yaml

Spec = dict[str, Any]


def check_list(text: str, items: list[str]) -> bool:
    """Return whether the text is these items, separated by commas, spaces or lines."""
    return [part for part in re.split(r"[,\s]+", text.strip(" .\n")) if part] == items


def check_numbered(text: str, items: list[str]) -> bool:
    """Return whether the text is a numbered list of these items."""
    wanted = [[str(i), item] for i, item in enumerate(items, 1)]
    return [re.split(r"[.)]\s*", line.strip(), maxsplit=1) for line in text.splitlines()] == wanted


def _class(text: str, name: str) -> ast.ClassDef:
    found = [node for node in ast.parse(text).body if isinstance(node, ast.ClassDef)]
    if [node.name for node in found] != [name]:
        raise ValueError(f"not exactly one class {name}")
    return found[0]


def _mentions(node: ast.AST, owner: str) -> list[str]:
    """Return the attributes of `owner` that are read inside `node`, in order of appearance."""
    return [
        part.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Attribute)
        and isinstance(part.value, ast.Name)
        and part.value.id == owner
    ]


def check_class(text: str, spec: Spec) -> bool:
    """Return whether the text is a class that stores the fields and has the wanted methods over them."""
    node = _class(text, spec["name"])
    methods = {part.name: part for part in node.body if isinstance(part, ast.FunctionDef)}
    if set(methods) != {"__init__", *spec["methods"]}:
        return False
    init = methods["__init__"]
    if [a.arg for a in init.args.args] != ["self", *spec["fields"]]:
        return False
    if [ast.unparse(line) for line in init.body] != [f"self.{f} = {f}" for f in spec["fields"]]:
        return False
    shown = "__repr__" not in methods or (
        sorted(_mentions(methods["__repr__"], "self")) == sorted(spec["fields"])
        and spec["name"] in ast.unparse(methods["__repr__"])
    )
    compared = "__eq__" not in methods or all(
        sorted(_mentions(methods["__eq__"], owner)) == sorted(spec["fields"])
        for owner in ("self", "other")
    )
    return shown and compared


def check_dataclass(text: str, spec: Spec) -> bool:
    """Return whether the text is a dataclass with these fields and types, in order."""
    node = _class(text, spec["name"])
    if [ast.unparse(d).split("(")[0] for d in node.decorator_list] not in (
        ["dataclass"],
        ["dataclasses.dataclass"],
    ):
        return False
    wanted = [f"{name}: {kind}" for name, kind in spec["fields"]]
    return [ast.unparse(line) for line in node.body] == wanted


def check_function(text: str, spec: Spec) -> bool:
    """Return whether the text is a function of two arguments that returns the wanted result."""
    body = ast.parse(text).body
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        return False
    function = body[0]
    a, b = spec["args"]
    sign = {"sum": "+", "difference": "-", "product": "*", "quotient": "/"}[spec["operation"]]
    results = [f"return {a} {sign} {b}"] + ([f"return {b} {sign} {a}"] if sign in "+*" else [])
    return (
        function.name == spec["name"]
        and [arg.arg for arg in function.args.args] == [a, b]
        and [ast.unparse(line) for line in function.body][-1] in results
        and len(function.body) == 1
    )


def check_argparse(text: str, spec: Spec) -> bool:
    """Return whether a script declares exactly these options, types and defaults."""
    found = []
    for node in ast.walk(ast.parse(text)):
        if not (isinstance(node, ast.Call) and ast.unparse(node.func).endswith("add_argument")):
            continue
        given = {k.arg: k.value for k in node.keywords}
        name = ast.literal_eval(node.args[0]).removeprefix("--")
        if "action" in given:
            found.append([name, "flag", None])
        else:
            found.append([name, ast.unparse(given["type"]), ast.literal_eval(given["default"])])
    return found == spec["options"] and "parse_args()" in text


def check_sql_create(text: str, spec: Spec) -> bool:
    """Return whether sqlite makes the table with these columns and types from the statement."""
    return _sqlite(text, "", f"SELECT name, type FROM pragma_table_info('{spec['table']}')") == [
        tuple(column) for column in spec["columns"]
    ]


def check_sql_insert(text: str, spec: Spec) -> bool:
    """Return whether sqlite fills the table with these rows from the statement."""
    table = f"CREATE TABLE {spec['table']} ({', '.join(spec['columns'])})"
    rows = _sqlite(table, text, f"SELECT * FROM {spec['table']}")
    return rows == [tuple(row) for row in spec["rows"]]


def _sqlite(setup: str, statement: str, query: str) -> list[tuple[Any, ...]]:
    """Return the rows of `query` after the statements, in a database in memory."""
    database = sqlite3.connect(":memory:")
    try:
        for text in (setup, statement):
            database.execute(text or "SELECT 1")
        return database.execute(query).fetchall()
    except sqlite3.Error as error:
        raise ValueError(str(error)) from error
    finally:
        database.close()


def check_sql_equal(text: str, wanted: str) -> bool:
    """Return whether two statements differ only in white space, letter case and the last semicolon."""

    def parts(sql: str) -> list[str]:
        return re.findall(r"\w+|[^\s\w]", sql.rstrip("; \n").lower().replace(" asc", ""))

    return parts(text) == parts(wanted)


def check_json(text: str, spec: Spec) -> bool:
    """Return whether the text is a JSON object equal to the spec's data."""
    return check_json_equal(text, spec["data"])


def check_json_equal(text: str, wanted: Any) -> bool:
    """Return whether the text is JSON for `wanted`, with the same types (True is not 1)."""
    return json.dumps(json.loads(text), sort_keys=True) == json.dumps(wanted, sort_keys=True)


def check_yaml(text: str, spec: Spec) -> bool:
    """Return whether the text is YAML for the spec's data, with the same types."""
    try:
        found = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    return json.dumps(found, sort_keys=True) == json.dumps(spec["data"], sort_keys=True)


def _cells(spec: Spec) -> list[list[str]]:
    return [[str(cell) for cell in row] for row in [spec["columns"], *spec["rows"]]]


def check_markdown_table(text: str, spec: Spec) -> bool:
    """Return whether the text is one Markdown table with these columns and rows."""
    rows = [[c.strip() for c in line.strip().strip("|").split("|")] for line in text.splitlines()]
    if len(rows) < 2 or not all(re.fullmatch(r":?-+:?", cell) for cell in rows[1]):
        return False
    return len(rows[1]) == len(rows[0]) and [rows[0], *rows[2:]] == _cells(spec)


def check_csv(text: str, spec: Spec) -> bool:
    """Return whether the text is CSV with these columns and rows."""
    rows = csv.reader(text.splitlines(), skipinitialspace=True)
    return list(rows) == _cells(spec)
