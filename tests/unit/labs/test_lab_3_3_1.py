"""Selection guide of lab 3.3.1: differences, handicaps, failed requests and missing figures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from benchmark_records import engine, scaled

from utils.benchmark import ClosedLoop, Record
from utils.benchmark.intervals import difference_interval, repeat_interval
from utils.benchmark.recommend import best_for_api
from utils.engines import EngineError
from utils.labs.lab_3_3_1 import experiments
from utils.labs.lab_3_3_1.tables import Choice, guide, guide_table, ranked, rows
from utils.profiles import load_profile

FIGURES = {
    "output_throughput": 5.0,
    "total_token_throughput": 9.0,
    "median_ttft_ms": 5.0,
    "median_tpot_ms": 1.0,
    "start_seconds": 1.0,
    "memory_bytes": 1e9,
}


def row(label: str, concurrency: int = 32, **changes: Any) -> dict[str, Any]:
    """A row of three rounds; a change is one value for all of them, or a value for each."""
    rounds = {}
    for turn in range(3):
        one = dict(FIGURES)
        for key in FIGURES.keys() & changes.keys():
            value = changes[key]
            one[key] = value[turn] if isinstance(value, Sequence) else value
        rounds[turn] = one
    means = {key: float(np.mean([one[key] for one in rounds.values()])) for key in FIGURES}
    other = {key: changes[key] for key in changes.keys() - FIGURES.keys()}
    fixed = {"label": label, "concurrency": concurrency, "p95_ttft_ms": 5.0, "failed": 0}
    return {**fixed, "handicap": "", **means, **other, "rounds": rounds}


def by_use(choices: Sequence[Choice]) -> dict[str, Choice]:
    return {choice.use_case: choice for choice in choices}


def test_winner_by_a_hair_is_not_decided() -> None:
    pair = [
        row("A", median_ttft_ms=[50.0, 51.0, 49.0]),
        row("B", median_ttft_ms=[50.1, 50.2, 50.3]),
    ]
    chat = by_use(guide(pair, "A", 1000.0))["interactive chat"]
    assert (chat.winner, chat.runner_up, chat.verdict) == ("A", "B", "not decided")
    assert not chat.decided


def test_winner_of_single_runs_is_not_decided() -> None:
    pair = [row("A"), row("B", output_throughput=1.0)]
    for one in pair:
        one["rounds"] = {0: one["rounds"][0]}
    api = by_use(guide(pair, "A", 1000.0))["high-throughput API"]
    assert api.verdict == "not decided"
    assert "no interval" in api.difference


def test_clear_winner_is_named_with_runner_up_and_interval() -> None:
    fast = row("A", output_throughput=[110.0, 120.0, 130.0])
    slow = row("B", output_throughput=[100.0, 111.0, 119.0])
    api = by_use(guide([fast, slow, row("C")], "A", 1000.0))["high-throughput API"]
    assert (api.verdict, api.runner_up) == ("A", "B")
    expected = repeat_interval([10.0, 9.0, 11.0])
    assert api.difference == f"ahead by 10 tok/s ({expected.low:.3g} to {expected.high:.3g})"


def test_pairing_finds_what_a_shared_slow_phase_hides() -> None:
    first, second = [110.0, 80.0, 50.0], [100.0, 71.0, 39.0]
    assert difference_interval(first, second, paired=True).excludes_zero
    assert not difference_interval(first, second, paired=False).excludes_zero


def test_welch_interval_matches_the_textbook() -> None:
    a, b = [27.5, 21.0, 19.0, 23.6, 17.0, 17.9], [27.1, 22.0, 20.8, 23.4]
    found = difference_interval(a, b, paired=False)
    error = math.sqrt(np.var(a, ddof=1) / 6 + np.var(b, ddof=1) / 4)
    assert found.value == pytest.approx(np.mean(a) - np.mean(b))
    assert found.half_width == pytest.approx(2.32 * error, rel=0.02)  # t of about 7.7 degrees
    with pytest.raises(ValueError, match="as many values"):
        difference_interval(a, b, paired=True)
    assert math.isnan(difference_interval([1.0], [2.0], paired=False).low)


def test_difference_is_found_more_often_than_by_separate_intervals() -> None:
    source = np.random.default_rng(0)
    apart = shown = 0
    for _ in range(300):
        a, b = source.normal(0, 1, 3), source.normal(3, 1, 3)
        first, second = repeat_interval(a.tolist()), repeat_interval(b.tolist())
        apart += second.low > first.high
        shown += difference_interval(b.tolist(), a.tolist(), paired=False).excludes_zero
    assert apart < 0.35 * 300
    assert shown > 0.6 * 300


def test_handicapped_engine_is_shown_but_not_ranked() -> None:
    slow = row("SGLang", handicap="plain PyTorch", output_throughput=99.0, start_seconds=0.1,
               total_token_throughput=99.0, median_ttft_ms=0.1, memory_bytes=1.0)  # fmt: skip
    both = [row("A"), slow]
    assert [one["label"] for one in ranked(both)] == ["A"]
    choices = guide(both, best_for_api(ranked(both), 100), 100)
    assert [choice.winner for choice in choices] == ["A"] * 5
    assert by_use(choices)["high-throughput API"].not_ranked == "SGLang 99 tok/s"
    assert "shown but not ranked" in guide_table(choices).columns
    assert "shown but not ranked" not in guide_table(guide([row("A")], "A", 1)).columns


def test_guide_leaves_out_engine_with_failed_requests() -> None:
    nothing = dict.fromkeys(FIGURES, math.nan)
    both = [row("broken", failed=8, p95_ttft_ms=math.nan, **nothing), row("good")]
    assert best_for_api(both, 100) == "good"
    choices = guide(both, "good", 100)
    assert [choice.winner for choice in choices] == ["good"] * 5
    assert best_for_api(both[:1], 100) is None
    none = guide(both[:1], None, 100)
    assert [choice.verdict for choice in none] == ["none"] * 5
    assert len(guide_table(none)) == 5


def test_guide_leaves_row_without_figure_out_of_that_rule() -> None:
    both = [
        row("a", start_seconds=math.nan, memory_bytes=math.nan),
        row("b", median_ttft_ms=math.nan, output_throughput=9.0, p95_ttft_ms=math.nan),
    ]
    winners = {choice.use_case: choice.winner for choice in guide(both, "a", 100)}
    assert winners["development"] == winners["edge, CPU"] == "b"
    assert winners["interactive chat"] == winners["high-throughput API"] == "a"
    assert best_for_api(both, 100) == "a"


def test_guide_has_no_winner_without_rows() -> None:
    assert best_for_api([], 1) is None
    assert {choice.winner for choice in guide([], None, 1)} == {None}


def measured(label: str, turn: int, factor: float) -> Record:
    one = scaled(label, ClosedLoop(8), factor)
    summary = {**one.summary, "failed": 0}
    extra = {"start_seconds": 2.0 + turn, "memory_bytes": 10**9, "round": turn}
    return replace(one, summary=summary, extra=extra)


def test_rows_put_the_rounds_of_an_engine_together() -> None:
    records = [measured("A", turn, 1.0 + turn) for turn in (2, 0, 1)]
    (found,) = rows([*records, measured("B", 0, 1)])[:1]
    assert found["output_throughput"] == pytest.approx(200)
    assert found["rounds"][0]["output_throughput"] == 100
    assert found["rounds"][2]["start_seconds"] == 4
    assert math.isnan(found["p95_ttft_ms"])  # 9 requests are too few
    assert found["median_ttft_ms"] == pytest.approx(100)


class Fleet:
    """Stands for engines that answer `sweep`, or fail."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.reasons = {"Ollama": "Ollama is not installed"}

    def each(self, work: Any, *, turns: int, in_turn: bool) -> None:
        assert in_turn
        for turn in range(turns):
            for name in self.names:
                work(name, engine(), turn)


def test_failed_engine_is_left_out_of_measured_rounds(monkeypatch) -> None:
    calls: list[tuple[str, int]] = []

    def sweep(
        engine: Any, profile: Any, *, label: str, round_number: int, **_: Any
    ) -> list[Record]:
        calls.append((label, round_number))
        if label == "broken" and round_number == 1:
            raise EngineError("its process ended")
        return [measured(label, round_number, 1)]

    monkeypatch.setattr(experiments, "sweep", sweep)
    monkeypatch.setattr(experiments, "measure_prefill", lambda *_, **__: "fast")
    done = experiments.measure_rounds(Fleet(["A", "broken"]), load_profile("cpu"))  # type: ignore[arg-type]
    assert calls == [("A", 0), ("broken", 0), ("A", 1), ("broken", 1), ("A", 2)]
    assert len(done.records) == 4
    assert done.not_run == {"broken": "its process ended", "Ollama": "Ollama is not installed"}
    assert done.prefills == {"A": "fast", "broken": "fast"}


def test_top_level_has_five_waves_and_the_naive_server_fewer_levels() -> None:
    profile = load_profile("cpu")
    levels, counts = experiments.levels_of("vLLM", profile)
    assert counts[-1] >= 5 * levels[-1]
    assert experiments.levels_of("transformers", profile)[0] == levels[:-1]
    labels = list(experiments.variants(profile))
    assert labels[:3] == ["vLLM", "llama.cpp BF16", "llama.cpp Q8_0"]
    assert experiments.levels_of(labels[3], profile)[0] == levels[:1]
