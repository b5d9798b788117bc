"""What an argparse parser accepts, and names of metrics in sources. Imported by the engines' own Pythons."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
from collections.abc import Iterable
from typing import Any


class _Refused(Exception):
    pass


def options(parser: argparse.ArgumentParser) -> dict[str, dict[str, Any]]:
    """Every option string: `values` (nargs; 0 for a switch), and `choices` where they are fixed."""
    found: dict[str, dict[str, Any]] = {}
    for action in parser._actions:
        takes = action.nargs if action.nargs is not None else 1
        for name in action.option_strings:
            entry: dict[str, Any] = {"values": takes}
            if action.choices is not None:
                entry["choices"] = sorted(str(choice) for choice in action.choices)
            found[name] = entry
    return dict(sorted(found.items()))


def reason(parser: argparse.ArgumentParser, argv: list[str]) -> str | None:
    """Why the parser refuses a command line; None: it accepts it. Nothing is printed, nothing ends."""

    def refuse(message: str) -> None:
        raise _Refused(message)

    parser.error = refuse  # type: ignore[method-assign, assignment]
    try:
        parser.parse_args(argv)
    except _Refused as error:
        return str(error)
    except (SystemExit, ValueError) as error:
        return f"{shlex.join(argv[:3])}...: {error}"
    return None


def metrics(texts: Iterable[str], prefix: str) -> list[str]:
    """Names of metrics in sources, as a scrape has them: what is made as a counter ends in `_total`."""
    quoted = re.compile(rf'"({prefix}[a-z0-9_]+)"')
    sources = [text for text in texts if f'"{prefix}' in text]
    names = {name for text in sources for name in quoted.findall(text)}
    made = {name: kind for text in sources for name, kind in _made(ast.parse(text), names)}
    counters = {name for name in names if made.get(name, False)}
    unclear = names - set(made)  # made from a table, or no metric
    totals = {name.removesuffix("_total") + "_total" for name in counters | unclear}
    return sorted((names - counters) | totals)


def _made(tree: ast.AST, names: set[str]) -> Iterable[tuple[str, bool]]:
    """Metrics that a call makes by name, and whether it makes a counter."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call):
            continue
        maker = getattr(node.func, "attr", getattr(node.func, "id", "")).lower()
        for value in [*node.args[:1], *(k.value for k in node.keywords if k.arg == "name")]:
            named = isinstance(value, ast.Constant) and value.value in names
            if named and any(kind in maker for kind in ("counter", "gauge", "histogram")):
                yield str(ast.literal_eval(value)), "counter" in maker
