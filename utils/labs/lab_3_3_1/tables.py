"""Selection guide of lab 3.3.1, computed from records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from utils.benchmark.recommend import has_figures
from utils.benchmark.records import Record

FOLKLORE = {
    "development": "Ollama",
    "interactive chat": "SGLang",
    "high-throughput API": "vLLM",
    "batch processing": "TensorRT-LLM",
    "edge, CPU": "llama.cpp",
}


@dataclass(frozen=True)
class Choice:
    """Row of the selection guide.

    Attributes:
        use_case: Use of the engine.
        rule: Rule that chose the engine.
        winner: Label of the engine, or None if no engine meets the rule.
        value: Figure of the engine, with its unit.
        folklore: Engine that the usual table names.
    """

    use_case: str
    rule: str
    winner: str | None
    value: str
    folklore: str


def rows(records: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the figures of each closed-loop record that the selection guide uses.

    The keys are label, concurrency, output_throughput (tok/s), total_token_throughput (tok/s),
    p95_ttft_ms, median_tpot_ms, start_seconds, memory_bytes, failed.
    """
    keys = ("output_throughput", "total_token_throughput", "p95_ttft_ms", "failed")
    return [
        {
            "label": record.label,
            "concurrency": record.load["concurrency"],
            **{key: record.summary.get(key) for key in keys},
            "median_tpot_ms": record.summary.get("median_tpot_ms"),
            "start_seconds": record.extra.get("start_seconds"),
            "memory_bytes": record.extra.get("memory_bytes"),
        }
        for record in records
        if record.load.get("pattern") == "closed"
    ]


def guide(
    rows: Sequence[dict[str, Any]], api_winner: str | None, ttft_limit_ms: float
) -> list[Choice]:
    """Return the selection guide for the measured engines.

    A row with failed requests, or without the figure that a rule needs, doesn't take part in that rule.

    Args:
        rows: Figures from `rows`.
        api_winner: Result of `best_for_api`.
        ttft_limit_ms: Limit of p95 TTFT that `best_for_api` was called with, in milliseconds.
    """
    low = min((row["concurrency"] for row in rows), default=0)
    top = max((row["concurrency"] for row in rows), default=0)
    sound = [row for row in rows if not row["failed"]]
    single = [row for row in sound if row["concurrency"] == low]
    quick = _least(single, "start_seconds")
    chat = min(
        (row for row in single if has_figures(row, "p95_ttft_ms", "median_tpot_ms")),
        key=_answer_ms,
        default=None,
    )
    batch = max(
        (row for row in sound if has_figures(row, "total_token_throughput")),
        key=lambda row: row["total_token_throughput"],
        default=None,
    )
    small = _least(single, "memory_bytes")
    api = next((r for r in rows if r["label"] == api_winner and r["concurrency"] == top), None)
    none = "no record gives it"
    found = [
        (
            "development",
            "ready soonest",
            quick,
            f"{quick['start_seconds']:.1f} s" if quick else none,
        ),
        (
            "interactive chat",
            f"p95 TTFT + 50 tokens × median TPOT at {low} in flight",
            chat,
            f"{_answer_ms(chat):.0f} ms" if chat else none,
        ),
        (
            "high-throughput API",
            f"most output tok/s at {top} in flight with p95 TTFT ≤ {ttft_limit_ms:.0f} ms",
            api,
            f"{api['output_throughput']:.0f} tok/s"
            if api and has_figures(api, "output_throughput")
            else "none meets it",
        ),
        (
            "batch processing",
            "most tokens per second, prompts included, whatever the latency",
            batch,
            f"{batch['total_token_throughput']:.0f} tok/s" if batch else none,
        ),
        (
            "edge, CPU",
            "least memory",
            small,
            f"{small['memory_bytes'] / 1e9:.2f} GB" if small else none,
        ),
    ]
    return [
        Choice(use, rule, row["label"] if row else None, value, FOLKLORE[use])
        for use, rule, row, value in found
    ]


def guide_table(choices: Sequence[Choice]) -> pd.DataFrame:
    """Return the guide as a table."""
    return pd.DataFrame(
        [
            {
                "use case": choice.use_case,
                "rule": choice.rule,
                "your records say": choice.winner or "none",
                "figure": choice.value,
                "the usual table says": choice.folklore,
            }
            for choice in choices
        ]
    ).set_index("use case")


def _least(rows: Sequence[dict[str, Any]], key: str) -> dict[str, Any] | None:
    return min(
        (row for row in rows if has_figures(row, key)), key=lambda row: row[key], default=None
    )


def _answer_ms(row: dict[str, Any]) -> float:
    return float(row["p95_ttft_ms"] + 50 * row["median_tpot_ms"])
