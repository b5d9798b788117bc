"""Selection guide of lab 3.3.1, computed from records."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from utils.benchmark.condition import repeats
from utils.benchmark.intervals import Interval, difference_interval
from utils.benchmark.recommend import has_figures
from utils.benchmark.records import Record
from utils.benchmark.report import number, pooled

FOLKLORE = {
    "development": "Ollama",
    "interactive chat": "SGLang",
    "high-throughput API": "vLLM",
    "batch processing": "TensorRT-LLM",
    "edge, CPU": "llama.cpp",
}
NOT_DECIDED = "not decided"

Row = dict[str, Any]
Score = Callable[[Mapping[str, float]], float]


@dataclass(frozen=True)
class Choice:
    """Row of the selection guide.

    Attributes:
        use_case: Use of the engine.
        rule: Rule that ranked the engines.
        winner: Label of the first engine, or None if no engine meets the rule.
        value: Its figure, the mean over the rounds, with its unit.
        runner_up: Label of the second engine, or None if there is no other.
        difference: Interval of the difference between the two, in words.
        decided: True if the interval excludes zero, so that another measurement would name the same winner.
        not_ranked: Figures of handicapped engines.
        folklore: Engine that the usual table names.
    """

    use_case: str
    rule: str
    winner: str | None
    value: str
    runner_up: str | None
    difference: str
    decided: bool
    not_ranked: str
    folklore: str

    @property
    def verdict(self) -> str:
        """Name of the winner if the records decide it."""
        if self.winner is None:
            return "none"
        return self.winner if self.decided else NOT_DECIDED


def rows(records: Sequence[Record]) -> list[Row]:
    """Return the figures of each engine and level that the selection guide uses, repeats put together.

    The keys are label, concurrency, output_throughput and total_token_throughput (tok/s, means over the
    rounds), p95_ttft_ms, median_ttft_ms and median_tpot_ms (over the requests of all rounds; NaN if there are
    too few), start_seconds, memory_bytes, failed, handicap (reason why the engine isn't ranked, or "") and
    rounds: the figures of each round.
    """
    closed = [record for record in records if record.load.get("pattern") == "closed"]
    return [_row(group) for group in repeats(closed).values()]


def ranked(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of engines without a handicap."""
    return [row for row in rows if not row["handicap"]]


def guide(rows: Sequence[Row], api_winner: str | None, ttft_limit_ms: float) -> list[Choice]:
    """Return the selection guide for the measured engines.

    A row with failed requests, or without the figure that a rule needs, doesn't take part in that rule. Nor
    does a handicapped engine, whose figure is shown apart.

    Args:
        rows: Figures from `rows`.
        api_winner: Result of `best_for_api`.
        ttft_limit_ms: Limit of p95 TTFT that `best_for_api` was called with, in milliseconds.
    """
    low = min((row["concurrency"] for row in rows), default=0)
    top = max((row["concurrency"] for row in rows), default=0)
    sound = [row for row in rows if not row["failed"]]
    single = [row for row in sound if row["concurrency"] == low]
    quick = [
        row for row in sound
        if row["concurrency"] == top
        and has_figures(row, "p95_ttft_ms")
        and row["p95_ttft_ms"] <= ttft_limit_ms
    ]  # fmt: skip
    api = (
        f"most output tok/s at {top} in flight with p95 TTFT ≤ {ttft_limit_ms:.0f} ms",
        quick,
        _figure("output_throughput"),
        "tok/s",
    )
    rules: dict[str, tuple[str, list[Row], Score, str]] = {
        "development": ("ready soonest", single, _figure("start_seconds", -1), "s"),
        "interactive chat": (
            f"median TTFT + 50 × median TPOT at {low} in flight",
            single,
            _answer_ms,
            "ms",
        ),
        "high-throughput API": api,
        "batch processing": (
            "most tokens per second, prompts included, whatever the latency",
            sound,
            _figure("total_token_throughput"),
            "tok/s",
        ),
        "edge, CPU": ("least memory", single, _figure("memory_bytes", -1e-9), "GB"),
    }
    found = []
    for use, (rule, candidates, score, unit) in rules.items():
        first = api_winner if use == "high-throughput API" else ""
        found.append(_choose(use, rule, candidates, score, unit, first))
    return found


def guide_table(choices: Sequence[Choice]) -> pd.DataFrame:
    """Return the guide as a table."""
    frame = pd.DataFrame(
        [
            {
                "use case": choice.use_case,
                "rule": choice.rule,
                "your records say": choice.verdict,
                "first": choice.winner or "none",
                "its figure": choice.value,
                "second": choice.runner_up or "none",
                "difference, 95 % interval": choice.difference,
                "shown but not ranked": choice.not_ranked,
                "the usual table says": choice.folklore,
            }
            for choice in choices
        ]
    ).set_index("use case")
    return frame if any(choice.not_ranked for choice in choices) else frame.drop(
        columns="shown but not ranked"
    )  # fmt: skip


def _row(group: Sequence[Record]) -> Row:
    rounds = {i: _figures(record) for i, record in enumerate(group)}
    if all("round" in record.extra for record in group):
        rounds = {record.extra["round"]: _figures(record) for record in group}
    means = {
        key: float(np.mean([figures[key] for figures in rounds.values()]))
        for key in next(iter(rounds.values()))
    }
    ttft, tpot = pooled(group, "ttft"), pooled(group, "tpot")
    return {
        **means,
        "label": group[0].label,
        "concurrency": group[0].load["concurrency"],
        "p95_ttft_ms": ttft.statistic("p95"),
        "median_ttft_ms": ttft.median,
        "median_tpot_ms": tpot.median,
        "failed": sum(record.summary["failed"] for record in group),
        "handicap": "; ".join(group[0].handicaps),
        "rounds": rounds,
    }


def _figures(record: Record) -> dict[str, float]:
    summary = record.summary
    keys = ("output_throughput", "total_token_throughput", "median_ttft_ms", "median_tpot_ms")
    found = {key: summary.get(key) for key in keys}
    found |= {key: record.extra.get(key) for key in ("start_seconds", "memory_bytes")}
    return {key: math.nan if value is None else float(value) for key, value in found.items()}


def _answer_ms(figures: Mapping[str, float]) -> float:
    return -(figures["median_ttft_ms"] + 50 * figures["median_tpot_ms"])


def _figure(key: str, factor: float = 1.0) -> Score:
    """Return a score from one figure; a negative factor makes less better."""
    return lambda figures: factor * figures[key]


def _choose(
    use: str,
    rule: str,
    rows: Sequence[Row],
    score: Score,
    unit: str,
    first: str | None,
) -> Choice:
    """Rank rows by the mean of a score over their rounds.

    Args:
        use: Use case.
        rule: Rule in words.
        rows: Rows that take part.
        score: Score of the figures of one round; more is better.
        unit: Unit of the score.
        first: Label that a learner's rule chose; "" takes the best.
    """
    scores = {
        (row["label"], row["concurrency"]): {
            turn: score(figures) for turn, figures in row["rounds"].items()
        }
        for row in rows
    }
    scores = {
        key: values
        for key, values in scores.items()
        if values and not any(math.isnan(value) for value in values.values())
    }
    handicapped = {(row["label"], row["concurrency"]) for row in rows if row["handicap"]}
    best: dict[str, dict[int, float]] = {}  # of each label its best level
    shown: dict[str, float] = {}
    for key, values in sorted(scores.items(), key=lambda item: -_mean(item[1])):
        if key in handicapped:
            shown.setdefault(key[0], _mean(values))
        else:
            best.setdefault(key[0], values)
    order = [label for label in best if label != first]
    winner = first if first in best else None
    if first == "" and order:
        winner = order.pop(0)
    elif winner is None:
        order = []
    runner_up = order[0] if winner is not None and order else None
    interval = None
    if winner is not None and runner_up is not None:
        interval = _difference(best[winner], best[runner_up])
    return Choice(
        use,
        rule,
        winner,
        _with_unit(_mean(best[winner]), unit) if winner is not None else "none meets it",
        runner_up,
        _interval_text(interval, unit),
        winner is not None and (interval is None or interval.low > 0),
        "; ".join(f"{label} {_with_unit(value, unit)}" for label, value in shown.items()),
        FOLKLORE[use],
    )


def _difference(first: Mapping[int, float], second: Mapping[int, float]) -> Interval:
    """Return the interval of the difference, in pairs if both were measured in the same rounds."""
    if set(first) == set(second):
        turns = sorted(first)
        pairs = [first[turn] for turn in turns], [second[turn] for turn in turns]
        return difference_interval(*pairs, paired=True)
    return difference_interval(list(first.values()), list(second.values()), paired=False)


def _interval_text(interval: Interval | None, unit: str) -> str:
    if interval is None:
        return "no other engine"
    ahead = f"ahead by {number(interval.value)} {unit}"
    if math.isnan(interval.low):
        return f"{ahead}, no interval from one run each"
    return f"{ahead} ({number(interval.low)} to {number(interval.high)})"


def _mean(values: Mapping[int, float]) -> float:
    return float(np.mean(list(values.values())))


def _with_unit(score: float, unit: str) -> str:
    return f"{number(abs(score))} {unit}"
