"""Key that decides which runs are repeats of each other, for every table, plot, guide and report."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from utils.benchmark.record import Record
from utils.benchmark.records import without_duplicates

# Options that name one start of an engine, not its configuration.
_OF_ONE_START = re.compile(
    r"--(port|host|name|publish|label|cidfile|nccl-port|dist-init-addr|log-\w+|api-key)$|-[pl]$"
)

Condition = tuple[tuple[str, str], ...]


def load_text(record: Record) -> str:
    """Return a record's load in words: "8 in flight" or "4 requests/s"."""
    if record.load.get("pattern") == "open":
        return f"{record.load['request_rate']:g} requests/s"
    return f"{record.load.get('concurrency')} in flight"


def condition(record: Record) -> Condition:
    """Return the names and values of everything that repeats of one measurement have in common.

    The seeds of prompts aren't among them, because repeats use prompts that the engine hasn't seen.
    """
    load, workload = record.load, record.workload
    values = {
        "engine": record.label,
        "load": load_text(record),
        "weights": record.quantisation,
        "program": record.engine,
        "version": record.engine_version,
        "model": _model(record),
        "dtype": record.dtype,
        "profile": record.profile,
        "machine": _machine(record.host),
        "requests": _requests(record),
        "API": load.get("api"),
        "arrivals": load.get("burstiness"),
        "most in flight": load.get("max_concurrency"),
        "data set": workload.get("dataset"),
        "prompt": workload.get("prompt_length") or _length(workload.get("prompt_tokens")),
        "answer": workload.get("output_length") or _limits(workload.get("max_tokens")),
        "sampling": json.dumps(workload.get("sampling"), sort_keys=True),
        "settings": _settings(record.command),
        "ended": load.get("stopped"),
        "origin": record.origin,
        "handicap": "; ".join(record.handicaps),
    }
    return tuple((name, "" if value is None else str(value)) for name, value in values.items())


def repeats(records: Iterable[Record]) -> dict[Condition, list[Record]]:
    """Group records by condition, without duplicates, in the order of their first record."""
    groups: dict[Condition, list[Record]] = {}
    for record in without_duplicates(records):
        groups.setdefault(condition(record), []).append(record)
    return groups


def differing(conditions: Iterable[Condition]) -> list[str]:
    """Return the names of the values that aren't equal in all conditions."""
    found: dict[str, set[str]] = {}
    for one in conditions:
        for name, value in one:
            found.setdefault(name, set()).add(value)
    return [name for name, values in found.items() if len(values) > 1]


def series_names(records: Sequence[Record]) -> list[str]:
    """Return a name for each record that repeats and other loads of the same engine share.

    It is the label, followed by the values that differ between records of the same label.
    """
    conditions = [condition(record) for record in records]
    names = []
    for record, one in zip(records, conditions, strict=True):
        same = [other for other in conditions if dict(other)["engine"] == record.label]
        ignored = {"engine", "load", "requests", "most in flight", "ended"}
        values = [dict(one)[name] for name in differing(same) if name not in ignored]
        names.append(", ".join([record.label, *(value or "none" for value in values)]))
    return names


def _model(record: Record) -> str:
    name = PurePath(record.model).name if record.model.startswith(("/", ".")) else record.model
    return f"{name} ({record.model_sha256[:12]})" if record.model_sha256 else name


def _machine(host: Mapping[str, Any]) -> str:
    gpus = f", {', '.join(host['gpu'])}" if host.get("gpu") else ""
    return f"{host.get('cpu')}, {host.get('cores_usable', host.get('cores'))} cores{gpus}"


def _requests(record: Record) -> Any:
    """Return the number of requests that were planned; runs by duration have none."""
    if "planned" in record.load:
        return record.load["planned"]
    return record.load.get("num_prompts")  # schema 1


def _limits(limits: Sequence[int] | None) -> str | None:
    if not limits:
        return None
    return (
        f"{limits[0]} tokens" if limits[0] == limits[-1] else f"{limits[0]} to {limits[-1]} tokens"
    )


def _length(tokens: Mapping[str, float] | None) -> str | None:
    """Return a mean length with two digits, because repeats of one data set differ a little."""
    if not tokens:
        return None
    rounded = float(f"{tokens['mean']:.2g}")
    return f"about {rounded:g} tokens"


def _settings(command: Sequence[str]) -> str:
    """Return the options of a command that configure the engine."""
    kept: list[str] = []
    skip = False
    for word in command:
        option = word.partition("=")[0]
        if skip and not word.startswith("-"):
            skip = False
            continue
        skip = False
        if _OF_ONE_START.match(option):
            skip = "=" not in word
            continue
        kept.append(word)
    return " ".join(kept)
