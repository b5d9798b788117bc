"""Checks of lab 3.3.1, engine benchmark."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from utils.benchmark import recommend
from utils.checks import check, expect_close, expect_equal, expect_type

Events = list[tuple[float, str]]

# A role-only delta, two tokens in one chunk, an empty delta in the middle, an empty last one.
STREAM: Events = [
    (10.1, ""),
    (10.5, "The"),
    (10.6, " KV cache"),
    (10.65, ""),
    (10.9, "."),
    (11.4, ""),
]


def _stream_metrics(sent: float, events: Events, completion_tokens: int) -> dict[str, float]:
    times = [at for at, text in events if text]
    ttft, e2el = times[0] - sent, times[-1] - sent
    tpot = (e2el - ttft) / (completion_tokens - 1) if completion_tokens > 1 else 0.0
    return {"ttft": ttft, "tpot": tpot, "e2el": e2el}


def _ttft_hint(got: object) -> str:
    """Return the reason for a wrong TTFT of `STREAM` where it is known, else a question."""
    if got == STREAM[1][0]:
        return "This is the time of the first text, not the seconds since the request was sent."
    if isinstance(got, float) and math.isclose(got, STREAM[0][0] - 10.0):
        return "The role-only event is no token: wait for the first event that carries text."
    return "Is it in seconds, up to the first event that carries text?"


@check(reference=_stream_metrics)
def stream_metrics(attempt: Callable[[float, Events, int], dict[str, float]]) -> None:
    """Examine `stream_metrics(sent, events, completion_tokens)`."""
    got = attempt(10.0, STREAM, 5)
    expect_type(got, dict, what="what stream_metrics returns")
    expect_equal(sorted(got), ["e2el", "tpot", "ttft"], what="the keys")
    expect_close(got["ttft"], 0.5, what="TTFT", hint=_ttft_hint(got["ttft"]))
    expect_close(got["e2el"], 0.9, what="end-to-end latency", hint="Up to the last text.")
    expect_close(
        got["tpot"],
        0.1,
        what="TPOT of 5 tokens in 3 chunks",
        hint="(e2el - ttft) / (tokens - 1): the first token belongs to TTFT, and the number of "
        "tokens comes from usage, not from the chunks.",
    )
    single = attempt(0.0, [(0.0, ""), (0.25, "x"), (0.3, "")], 1)
    expect_close(single["tpot"], 0.0, what="TPOT of a one-token answer")
    expect_close(single["ttft"], 0.25, what="TTFT of a one-token answer")
    lines = attempt(0.0, [(0.0, ""), (0.1, "\n"), (0.4, "Yes"), (0.7, " \n"), (0.9, "")], 4)
    expect_close(
        lines,
        {"ttft": 0.1, "tpot": 0.2, "e2el": 0.7},
        what="metrics of an answer that begins and ends with a newline",
        hint="Any text that is not empty counts, a newline too: the engine computed a token for it.",
    )
    # One token whose text came in two pieces: TPOT has no formula here, TTFT and latency do.
    split = attempt(0.0, [(0.25, "x"), (0.5, "y")], 1)
    expect_close(split["ttft"], 0.25, what="TTFT of one token in two chunks")
    expect_close(split["e2el"], 0.5, what="end-to-end latency of one token in two chunks")


def _open_loop_latencies(arrivals: Sequence[float], service: float) -> list[float]:
    free, latencies = 0.0, []
    for due in arrivals:
        free = max(free, due) + service
        latencies.append(free - due)
    return latencies


@check(reference=_open_loop_latencies)
def open_loop_latencies(attempt: Callable[[Sequence[float], float], list[float]]) -> None:
    """Examine `open_loop_latencies(arrivals, service)`."""
    slow = attempt([1.0, 2.0, 3.0], 0.5)
    waits_only = isinstance(slow, list) and slow == [0.0, 0.0, 0.0]
    expect_close(
        slow,
        [0.5, 0.5, 0.5],
        what="latencies when requests come more slowly than they are served",
        hint="These are the waits. A latency includes the service."
        if waits_only
        else "Does an idle server start at once?",
    )
    expect_close(
        attempt([0.0, 0.1, 0.2, 0.3], 1.0),
        [1.0, 1.9, 2.8, 3.7],
        what="latencies of a burst of four",
        hint="Each waits for all before it, and the clock starts when it was due: a clock that "
        "starts when it is sent hides the wait (coordinated omission).",
    )
    expect_close(
        attempt([0.0, 0.1, 5.0], 1.0),
        [1.0, 1.9, 1.0],
        what="latencies around a pause",
        hint="After a pause the server is idle again.",
    )


def _p99_of_runs(runs: Sequence[Sequence[float]]) -> float:
    return float(np.percentile(np.concatenate([np.asarray(run) for run in runs]), 99))


@check(reference=_p99_of_runs)
def p99_of_runs(attempt: Callable[[Sequence[Sequence[float]]], float]) -> None:
    """Examine `p99_of_runs(runs)`."""
    small, large = [50.0] * 10, [float(x) for x in range(1, 991)]
    got = attempt([small, large])
    together = np.concatenate([small, large])
    one_percent = type(got) in (float, np.float64) and math.isclose(
        got, np.percentile(together, 0.99)
    )
    expect_close(
        got,
        _p99_of_runs([small, large]),
        what="p99 of a run of 10 requests and a run of 990",
        hint="This is the 0.99th percentile: numpy.percentile takes percent, so 99."
        if one_percent
        else "Did you put the requests together first? Percentiles do not average, because a run of "
        "10 would count as much as one of 990.",
    )
    expect_close(attempt([[3.0, 1.0, 2.0]]), 2.98, what="p99 of a single run [3, 1, 2]")


def _goodput(
    requests: Sequence[dict[str, Any]], duration: float, ttft_limit: float, tpot_limit: float
) -> float:
    good = [r for r in requests if r["ok"] and r["ttft"] <= ttft_limit and r["tpot"] <= tpot_limit]
    return len(good) / duration


REQUESTS = [
    {"ok": True, "ttft": 0.2, "tpot": 0.02},
    {"ok": True, "ttft": 0.5, "tpot": 0.02},
    {"ok": True, "ttft": 0.6, "tpot": 0.02},
    {"ok": True, "ttft": 0.2, "tpot": 0.06},
    {"ok": False, "ttft": 0.1, "tpot": 0.01},
    {"ok": True, "ttft": 0.3, "tpot": 0.05},
]


@check(reference=_goodput)
def goodput(attempt: Callable[[Sequence[dict[str, Any]], float, float, float], float]) -> None:
    """Examine `goodput(requests, duration, ttft_limit, tpot_limit)`."""
    expect_close(
        attempt(REQUESTS, 2.0, 0.55, 0.055),
        1.5,
        what="goodput of six requests in 2 s",
        hint="Good requests per second: not failed, and within both limits.",
    )
    expect_close(
        attempt(REQUESTS, 1.0, 0.5, 0.05),
        3.0,
        what="goodput with requests exactly at a limit",
        hint="A request at a limit meets it.",
    )
    expect_close(attempt(REQUESTS, 1.0, 0.01, 0.01), 0.0, what="goodput under limits none meets")
    unknown = [
        {"ok": True, "ttft": 0.2, "tpot": math.nan},
        {"ok": True, "ttft": math.nan, "tpot": 0.02},
    ]
    expect_close(
        attempt([*unknown, *REQUESTS], 2.0, 0.55, 0.055),
        1.5,
        what="goodput with two more requests, TPOT or TTFT of which is NaN (unknown)",
        hint="An unknown value does not meet a limit. With NaN every comparison is False, so "
        "`x <= limit` and `not x > limit` differ.",
    )


def _mean_interval(values: Sequence[float], t: float) -> tuple[float, float]:
    array = np.asarray(values)
    reach = t * array.std(ddof=1) / math.sqrt(len(array))
    return float(array.mean() - reach), float(array.mean() + reach)


@check(reference=_mean_interval)
def mean_interval(attempt: Callable[[Sequence[float], float], tuple[float, float]]) -> None:
    """Examine `mean_interval(values, t)`."""
    values = [100.0, 104.0, 99.0, 109.0]
    got = attempt(values, 3.182)
    expect_type(got, tuple, what="what mean_interval returns")
    expect_close(
        got,
        _mean_interval(values, 3.182),
        what="95 % interval of [100, 104, 99, 109] tok/s",
        hint="mean ± t × standard error; standard error = s / √n with s from n - 1.",
        rel=1e-6,
    )
    expect_close(attempt([5.0, 5.0], 12.706), (5.0, 5.0), what="interval of two equal values")
    nine = [100.0, 104.0, 99.0, 109.0, 101.0, 97.0, 103.0, 106.0, 99.0]
    expect_close(
        attempt(nine, 2.306),
        _mean_interval(nine, 2.306),
        what="95 % interval of nine values",
        hint="s is divided by √n, here by 3: more runs make the interval narrower.",
    )


def _decode_ceiling(
    bandwidth: float, weight_bytes: float, kv_bytes_per_token: float, context: int, batch: int
) -> float:
    return batch * bandwidth / (weight_bytes + batch * context * kv_bytes_per_token)


@check(reference=_decode_ceiling)
def decode_ceiling(attempt: Callable[[float, float, float, int, int], float]) -> None:
    """Examine `decode_ceiling(bandwidth, weight_bytes, kv_bytes_per_token, context, batch)`."""
    spark, llama = 273e9, 16.1e9
    expect_close(
        attempt(spark, llama, 131072, 0, 1),
        spark / llama,
        what="ceiling for Llama-3.1-8B in bf16 on a DGX Spark, batch 1, empty context",
        hint="Bytes per second over bytes per step.",
    )
    expect_close(
        attempt(spark, llama, 131072, 4096, 1),
        spark / (llama + 4096 * 131072),
        what="ceiling with 4,096 tokens in the KV cache",
        hint="Each step also reads the KV cache of every token before it.",
    )
    expect_close(
        attempt(spark, llama, 131072, 4096, 32),
        32 * spark / (llama + 32 * 4096 * 131072),
        what="ceiling for a batch of 32",
        hint="A step reads the weights once for the whole batch, every request's KV cache, and "
        "yields one token per request of the batch.",
    )


def _row(
    label: str, concurrency: int, throughput: float, ttft: float, failed: int = 0
) -> dict[str, Any]:
    return {
        "label": label,
        "concurrency": concurrency,
        "output_throughput": throughput,
        "p95_ttft_ms": ttft,
        "failed": failed,
    }


ROWS = [
    _row("slow and steady", 1, 90.0, 20.0),
    _row("slow and steady", 32, 300.0, 100.0),
    _row("fast", 1, 100.0, 10.0),
    _row("fast", 32, 900.0, 400.0),
    _row("fastest, late", 1, 990.0, 50.0),
    _row("fastest, late", 32, 950.0, 900.0),
    _row("fails", 32, 2000.0, 50.0, failed=3),
]


@check(reference=recommend.best_for_api)
def best_for_api(attempt: Callable[[Sequence[dict[str, Any]], float], str | None]) -> None:
    """Examine `best_for_api(rows, ttft_limit_ms)`."""
    what = "the engine for an API with p95 TTFT within 500 ms"
    got = attempt(ROWS, 500.0)
    hint = (
        "Only rows at the highest concurrency count, a run with failed requests is out, and so is "
        "one over the limit; then the highest output throughput wins."
    )
    expect_equal(got, "fast", what=what, hint=hint)
    expect_equal(attempt(ROWS, 400.0), "fast", what="the engine when one is exactly at the limit")
    expect_equal(attempt(ROWS, 1000.0), "fastest, late", what="the engine within 1,000 ms")
    highest = (
        "The highest concurrency is that of all rows, also of those over the limit. If no row there "
        "meets the limit, there is no engine to name."
    )
    what = "the answer when no engine meets the limit at 32, but one does at 1"
    expect_equal(attempt(ROWS, 10.0), None, what=what, hint=highest)
    failed_once = [*ROWS, _row("fast", 1, 0.0, 10.0, failed=1)]
    expect_equal(
        attempt(failed_once, 500.0),
        "fast",
        what="the engine when it had a failed run at 1 and a good one at 32",
        hint="A run with failed requests is out, and not the engine's other runs.",
    )
    more = [*ROWS, _row("fast", 64, 950.0, 450.0)]
    expect_equal(
        attempt(more, 500.0), "fast", what="the engine when one was tried at 64", hint=hint
    )
    expect_equal(
        attempt(ROWS[:1] + ROWS[2:3], 500.0),
        "fast",
        what="the engine when every row has concurrency 1",
        hint="The highest concurrency is that of the rows, not always 32.",
    )
    expect_equal(
        attempt([*ROWS, _row("fails", 64, 2000.0, 50.0, failed=3)], 500.0),
        None,
        what="the answer when the only run at 64 had failed requests",
        hint="The highest concurrency is that of all rows, a failed one too: nobody has shown "
        "that it holds at 64, so there is no engine to name.",
    )
