"""Selection guide of lab 3.3.1 with failed requests and missing figures."""

from __future__ import annotations

import math
from typing import Any

import pytest

from utils.benchmark.recommend import best_for_api
from utils.labs.lab_3_3_1.tables import guide, guide_table


def row(label: str, concurrency: int = 32, **changes: Any) -> dict[str, Any]:
    return {
        "label": label,
        "concurrency": concurrency,
        "output_throughput": 5.0,
        "total_token_throughput": 9.0,
        "p95_ttft_ms": 5.0,
        "median_tpot_ms": 1.0,
        "start_seconds": 1.0,
        "memory_bytes": 1e9,
        "failed": 0,
        **changes,
    }


FIGURES = ("output_throughput", "total_token_throughput", "p95_ttft_ms", "median_tpot_ms")


@pytest.mark.parametrize("missing", [None, math.nan])
def test_guide_leaves_out_engine_with_failed_requests(missing: float | None) -> None:
    failed = row("broken", failed=8, **dict.fromkeys(FIGURES, missing))
    rows = [failed, row("good")]
    assert best_for_api(rows, 100) == "good"
    choices = guide(rows, "good", 100)
    assert [choice.winner for choice in choices] == ["good"] * 5
    assert best_for_api([failed], 100) is None
    none = guide([failed], None, 100)
    assert [choice.winner for choice in none] == [None] * 5
    assert len(guide_table(none)) == 5


def test_guide_leaves_row_without_figure_out_of_that_rule() -> None:
    rows = [row("a", start_seconds=None, memory_bytes=None), row("b", p95_ttft_ms=None)]
    winners = {choice.use_case: choice.winner for choice in guide(rows, "a", 100)}
    assert winners["development"] == winners["edge, CPU"] == "b"
    assert winners["interactive chat"] == "a"
    assert best_for_api(rows, 100) == "a"


def test_guide_has_no_winner_without_rows() -> None:
    assert best_for_api([], 1) is None
    assert {choice.winner for choice in guide([], None, 1)} == {None}
