"""What each engine accepts: arguments, environment variables, metric names, recorded from the engine itself.

One JSON file an engine, with version, source and date. `python -m tools.authoring flags --record` makes those
of the engines that are installed here anew; without it, that command fails where a file is no longer what the
installed engine says. TensorRT-LLM's and Ollama's cannot be asked on a machine without them: theirs were read
from the sources that the files name.
"""

from __future__ import annotations

import difflib
import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
_SERIES = ("_bucket", "_sum", "_count")  # what a scrape has of one histogram


@dataclass(frozen=True)
class Option:
    """One option string of a program.

    Attributes:
        values: How many values follow, as argparse writes it: a number, `?`, `*` or `+`; 0 for a switch.
        choices: The only values there are; empty: any.
    """

    values: int | str = 1
    choices: tuple[str, ...] = ()


@dataclass(frozen=True)
class Accepted:
    """What one version of an engine accepts.

    Attributes:
        engine: Its name, as in `utils.engines`.
        version: Version that was asked or read.
        source: Where that was.
        date: When, as ISO date.
        programs: Command, as a person writes it, to its options.
        environment: Environment variables it reads.
        metrics: Names its Prometheus page can have, counters with `_total`.
        removed: Former options that it still names, with what it says about them.
    """

    engine: str
    version: str
    source: str
    date: str
    programs: Mapping[str, Mapping[str, Option]]
    environment: frozenset[str]
    metrics: frozenset[str]
    removed: Mapping[str, str]

    def has_metric(self, name: str) -> bool:
        """Whether a scrape can hold that name; of a histogram also its `_bucket`, `_sum`, `_count`."""
        whole = next((name.removesuffix(end) for end in _SERIES if name.endswith(end)), name)
        return name in self.metrics or whole in self.metrics


@functools.cache
def accepted(engine: str, folder: Path = FOLDER) -> Accepted:
    """What is recorded of one engine.

    Raises:
        FileNotFoundError: Nothing is recorded of it.
    """
    data = json.loads((folder / f"{engine}.json").read_text(encoding="utf-8"))
    return from_data(engine, data)


def from_data(engine: str, data: Mapping[str, Any]) -> Accepted:
    """The typed form of a file's, or an answer's, content."""
    programs = {
        program: {
            name: Option(entry.get("values", 1), tuple(entry.get("choices", ())))
            for name, entry in options.items()
        }
        for program, options in data["programs"].items()
    }
    return Accepted(
        engine,
        str(data["version"]),
        str(data.get("source", "")),
        str(data.get("date", "")),
        programs,
        frozenset(data["environment"]),
        frozenset(data["metrics"]),
        dict(data.get("removed", {})),
    )


def recorded(folder: Path = FOLDER) -> dict[str, Accepted]:
    """All that is recorded, by engine."""
    return {path.stem: accepted(path.stem, folder) for path in sorted(folder.glob("*.json"))}


def nearest(name: str, known: Mapping[str, Any] | frozenset[str]) -> str:
    """` Nearest: ....` for a name that is not among the known ones; empty if none comes close."""
    close = difflib.get_close_matches(name, sorted(known), n=1, cutoff=0.5)
    return f" Nearest: {close[0]}." if close else ""
