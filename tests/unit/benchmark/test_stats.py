"""Statistics: vLLM's keys and definitions, failures, missing usage, goodput, intervals."""

from __future__ import annotations

import ast
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from utils.benchmark import (
    RequestTrace,
    Slo,
    bootstrap_interval,
    percentile,
    repeat_interval,
    summarise,
)
from utils.benchmark.intervals import student_t_quantile
from utils.profiles import ROOT

VLLM = ROOT / ".engines/vllm/lib/python3.11/site-packages/vllm/benchmarks/serve.py"


def trace(index: int = 0, **values: object) -> RequestTrace:
    """Sent at 1, first token at 1.2, chunks to 2.0, 5 tokens in 3 chunks."""
    defaults: dict[str, object] = {
        "index": index,
        "scheduled": 0.5,
        "sent": 1.0,
        "first_token": 1.2,
        "chunk_times": (1.2, 1.5, 2.0),
        "finished": 2.0,
        "prompt_tokens": 10,
        "completion_tokens": 5,
    }
    return RequestTrace(**(defaults | values))  # type: ignore[arg-type]


FAILED = trace(9, error="HTTP 500", finished=60.0, completion_tokens=None, prompt_tokens=None)


def test_definitions() -> None:
    one = trace()
    assert one.ttft() == pytest.approx(0.2)
    assert one.ttft("scheduled") == pytest.approx(0.7)
    assert one.e2el() == pytest.approx(1.0)
    assert one.e2el("scheduled") == pytest.approx(1.5)
    assert one.tpot == pytest.approx((1.0 - 0.2) / 4)
    assert one.itls == pytest.approx((0.3, 0.5))


def test_summary_of_a_run() -> None:
    summary = summarise([trace(0), trace(1, finished=3.0), FAILED], 10.0)
    assert (summary.completed, summary.failed) == (2, 1)
    assert (summary.total_input_tokens, summary.total_output_tokens) == (20, 10)
    assert summary["request_throughput"] == pytest.approx(0.2)
    assert summary["output_throughput"] == pytest.approx(1.0)
    assert summary["total_token_throughput"] == pytest.approx(3.0)
    assert summary["mean_e2el_ms"] == pytest.approx(1500)
    assert summary["mean_ttft_ms"] == pytest.approx(200)
    assert summary["mean_itl_ms"] == pytest.approx(400)
    assert summary["mean_tpot_ms"] == pytest.approx((200 + 450) / 2)
    assert summary.tokens_per_chunk == pytest.approx(10 / 6)
    assert summary.max_concurrent_requests == 3
    assert math.isnan(summary["request_goodput"])
    assert summary.request_goodput is None
    with pytest.raises(KeyError, match="p42_ttft_ms"):
        summary["p42_ttft_ms"]


@pytest.mark.parametrize("p", [50, 90, 95, 99])
def test_percentiles_are_numpys(p: int) -> None:
    rng = np.random.default_rng(0)
    ends = rng.exponential(2, 137) + 1
    traces = [trace(i, finished=float(end)) for i, end in enumerate(ends)]
    expected = np.percentile((ends - 1) * 1000, p)
    assert summarise(traces, 1.0)[f"p{p}_e2el_ms"] == pytest.approx(expected)
    assert percentile(ends, p) == pytest.approx(np.percentile(ends, p))
    assert math.isnan(percentile([], p))


def test_a_failed_request_is_in_no_latency() -> None:
    alone, beside = summarise([trace()], 5.0), summarise([trace(), FAILED], 5.0)
    for name in ("ttft", "tpot", "itl", "e2el"):
        assert getattr(alone, name) == getattr(beside, name)
    assert beside.failed == 1
    assert alone["output_throughput"] == beside["output_throughput"]


def test_missing_usage_makes_token_counts_unknown_not_wrong() -> None:
    missing = trace(1, usage_missing=True, completion_tokens=None, prompt_tokens=None)
    summary = summarise([trace(0), missing], 2.0)
    assert summary.usage_missing == 1
    assert summary.completed == 2
    assert math.isnan(summary["output_throughput"])
    assert math.isnan(summary.total_output_tokens)
    assert summary.tpot.count == 1
    assert summary.ttft.count == 2


def test_nothing_succeeded() -> None:
    summary = summarise([FAILED], 2.0)
    assert summary.completed == 0
    assert math.isnan(summary["p99_ttft_ms"])
    assert summary["request_throughput"] == 0
    assert summary["output_throughput"] == 0
    with pytest.raises(ValueError, match="duration"):
        summarise([trace()], 0.0)


def test_one_token_answers_have_no_tpot() -> None:
    single = trace(completion_tokens=1, chunk_times=(1.2,), finished=1.2)
    assert math.isnan(single.tpot)
    assert summarise([single], 1.0).tpot.count == 0
    assert Slo(tpot_ms=1).met_by(single)


def test_goodput_needs_every_objective() -> None:
    traces = [
        trace(0),
        trace(1, first_token=1.9, chunk_times=(1.9, 2.0)),
        trace(2, finished=9.0),
        FAILED,
    ]
    assert summarise(traces, 2.0, slo=Slo(ttft_ms=500))["request_goodput"] == 1.0
    assert summarise(traces, 2.0, slo=Slo(e2el_ms=1500))["request_goodput"] == 1.0
    both = Slo(ttft_ms=500, e2el_ms=1500)
    assert summarise(traces, 2.0, slo=both)["request_goodput"] == 0.5
    # From when it was due, another 500 ms have passed.
    assert summarise(traces, 2.0, slo=both, clock="scheduled")["request_goodput"] == 0.0
    assert summarise(traces, 2.0, slo=Slo())["request_goodput"] == 1.5


def test_unknown_value_misses_objective() -> None:
    assert not Slo(tpot_ms=1e9).met_by(trace(completion_tokens=None))
    assert not Slo(ttft_ms=1e9).met_by(trace(first_token=None, chunk_times=()))


def test_peak_tokens_weighs_chunks_by_usage() -> None:
    one = trace(chunk_times=(1.1, 1.2, 2.5, 2.6), completion_tokens=40, finished=2.6)
    assert summarise([one], 2.0).max_output_tokens_per_s == pytest.approx(20)


def test_result_keys_are_those_of_vllm_bench_serve() -> None:
    """Against the installed vLLM where there is one, else against the keys it had at 0.32.0."""
    keys = {
        "duration", "completed", "failed", "total_input_tokens", "total_output_tokens",
        "request_throughput", "request_goodput", "output_throughput", "total_token_throughput",
        "max_output_tokens_per_s", "max_concurrent_requests",
    }  # fmt: skip
    ours = set(summarise([trace()], 1.0).to_dict())
    assert keys <= ours
    for metric in ("ttft", "tpot", "itl", "e2el"):
        for statistic in ("mean", "median", "std", "p50", "p90", "p99"):
            assert f"{statistic}_{metric}_ms" in ours
    if VLLM.exists():
        tree = ast.parse(VLLM.read_text())
        dicts = [node for node in ast.walk(tree) if isinstance(node, ast.Dict)]
        found = [{k.value for k in node.keys if isinstance(k, ast.Constant)} for node in dicts]
        assert any(keys <= names for names in found)


@pytest.mark.parametrize(
    ("p", "degrees", "value"),
    [
        (0.975, 1, 12.7062),
        (0.975, 2, 4.30265),
        (0.975, 4, 2.77645),
        (0.95, 9, 1.83311),
        (0.995, 29, 2.75639),
        (0.975, 200, 1.97190),
    ],
)
def test_student_t_against_tables(p: float, degrees: int, value: float) -> None:
    assert student_t_quantile(p, degrees) == pytest.approx(value, rel=1e-4)


def test_interval_over_repeats() -> None:
    interval = repeat_interval([10.0, 12.0, 14.0])
    assert interval.value == 12
    assert interval.count == 3
    assert interval.half_width == pytest.approx(4.30265 * 2 / math.sqrt(3), rel=1e-4)
    assert "12 ± 5" in str(interval)
    single = repeat_interval([10.0])
    assert math.isnan(single.low)
    assert "no interval" in str(single)
    with pytest.raises(ValueError, match="no values"):
        repeat_interval([math.nan])
    with pytest.raises(ValueError, match="confidence"):
        repeat_interval([1.0], 95)


def test_intervals_cover_as_often_as_they_say() -> None:
    rng = np.random.default_rng(3)
    runs = rng.normal(100, 5, (1500, 4))
    hits = sum(i.low <= 100 <= i.high for i in (repeat_interval(list(run)) for run in runs))
    assert hits / 1500 == pytest.approx(0.95, abs=0.02)


def test_bootstrap_interval() -> None:
    rng = np.random.default_rng(4)
    values = list(rng.normal(50, 10, 400))
    interval = bootstrap_interval(values, np.mean)
    expected = 1.96 * 10 / math.sqrt(400)
    assert interval.half_width == pytest.approx(expected, rel=0.15)
    assert interval.low < interval.value < interval.high
    assert bootstrap_interval(values, np.mean) == interval
    assert bootstrap_interval(values, lambda v: float(np.percentile(v, 99))).value > 70


@given(st.lists(st.floats(0.001, 100), min_size=1, max_size=40))
def test_any_latencies_give_an_ordered_summary(latencies: list[float]) -> None:
    traces = [trace(i, finished=1 + value) for i, value in enumerate(latencies)]
    summary = summarise(traces, 1.0)
    cuts = [summary[f"p{p}_e2el_ms"] for p in (50, 90, 95, 99)]
    shown = [cut for cut in cuts if not math.isnan(cut)]
    assert shown == sorted(shown)
    assert max(shown, default=0) <= summary["max_e2el_ms"]
    assert summary["max_e2el_ms"] <= max(latencies) * 1000 + 1e-6
