"""Rule that chooses an engine for a high-throughput API from the figures of its runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any


def best_for_api(rows: Sequence[dict[str, Any]], ttft_limit_ms: float) -> str | None:
    """Return the label with the most output tokens per second within a TTFT limit.

    Args:
        rows: Figures of the runs: `label`, `concurrency`, `output_throughput`, `p95_ttft_ms`, `failed`.
        ttft_limit_ms: Limit of p95 TTFT, in milliseconds. A row at the limit meets it.

    Returns:
        Label, or None if no row at the highest concurrency meets the limit without failures.
    """
    top = max((row["concurrency"] for row in rows), default=None)
    good = [
        row
        for row in rows
        if row["concurrency"] == top
        and not row["failed"]
        and has_figures(row, "p95_ttft_ms", "output_throughput")
        and row["p95_ttft_ms"] <= ttft_limit_ms
    ]
    if not good:
        return None
    return str(max(good, key=lambda row: row["output_throughput"])["label"])


def has_figures(row: dict[str, Any], *keys: str) -> bool:
    """Return whether a row has a figure for every key. NaN and None aren't figures."""
    return all((v := row.get(key)) is not None and not math.isnan(v) for key in keys)
