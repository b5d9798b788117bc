"""How lab 3.3.1, engine benchmark, is graded. Never released; tools/lab/judge/hidden_tests.py explains."""

from __future__ import annotations

import math
import random
import statistics
from collections.abc import Callable, Sequence
from itertools import accumulate, pairwise
from typing import Any

import numpy as np

from utils.benchmark import recommend
from utils.checks import expect_close, expect_equal, expect_type
from utils.checks import lab_3_3_1 as lab
from utils.checks.lab_3_3_1 import Events
from tools.lab.judge.hidden_tests import Grading, Wrong

_stream_metrics = lab.stream_metrics.reference
_open_loop_latencies = lab.open_loop_latencies.reference
_p99_of_runs = lab.p99_of_runs.reference
_goodput = lab.goodput.reference
_mean_interval = lab.mean_interval.reference
_decode_ceiling = lab.decode_ceiling.reference


def _chunks_as_tokens(sent: float, events: Events, completion_tokens: int) -> dict[str, float]:
    return _stream_metrics(sent, events, sum(bool(text) for _, text in events))


def _role_counts(sent: float, events: Events, completion_tokens: int) -> dict[str, float]:
    first = events[0][0] - sent
    right = _stream_metrics(sent, events, completion_tokens)
    return {**right, "ttft": first, "tpot": (right["e2el"] - first) / (completion_tokens - 1)}


def _first_token_too(sent: float, events: Events, completion_tokens: int) -> dict[str, float]:
    right = _stream_metrics(sent, events, completion_tokens)
    return {**right, "tpot": (right["e2el"] - right["ttft"]) / completion_tokens}


def _whole_latency(sent: float, events: Events, completion_tokens: int) -> dict[str, float]:
    right = _stream_metrics(sent, events, completion_tokens)
    return {**right, "tpot": right["e2el"] / max(1, completion_tokens - 1)}


def _drops_first(sent: float, events: Events, completion_tokens: int) -> dict[str, float]:
    times = [at for at, text in events[1:] if text]
    tpot = (times[-1] - times[0]) / (completion_tokens - 1) if completion_tokens > 1 else 0.0
    return {"ttft": times[0] - sent, "tpot": tpot, "e2el": times[-1] - sent}


def _clock_time(sent: float, events: Events, completion_tokens: int) -> dict[str, float]:
    right = _stream_metrics(sent, events, completion_tokens)
    return {**right, "ttft": right["ttft"] + sent}


def _strips(sent: float, events: Events, completion_tokens: int) -> dict[str, float]:
    return _stream_metrics(sent, [(at, text.strip()) for at, text in events], completion_tokens)


def _zero_for_one_chunk(sent: float, events: Events, completion_tokens: int) -> dict[str, float]:
    times = [at for at, text in events if text]
    ttft, e2el = times[0] - sent, times[-1] - sent
    tpot = (e2el - ttft) / (completion_tokens - 1) if len(times) > 1 else 0.0
    return {"ttft": ttft, "tpot": tpot, "e2el": e2el}


def _one_pass(sent: float, events: Events, completion_tokens: int) -> dict[str, np.float64]:
    first = last = None
    for at, text in events:
        if text != "":
            first, last = at if first is None else first, at
    return {
        "e2el": np.float64(last - sent),
        "tpot": np.float64(last - first) / max(completion_tokens - 1, 1),
        "ttft": np.float64(first - sent),
    }


def _filtered(sent: float, events: Events, completion_tokens: int) -> dict[str, float]:
    answered = list(filter(lambda event: len(event[1]) > 0, events))
    ttft, e2el = answered[0][0] - sent, answered[-1][0] - sent
    if completion_tokens == 1:
        return dict(ttft=ttft, e2el=e2el, tpot=0)
    return dict(ttft=ttft, e2el=e2el, tpot=(e2el - ttft) / (completion_tokens - 1))


stream_metrics = Grading(
    lab.stream_metrics,
    right={"one pass, NumPy scalars, other order": _one_pass, "filter, and the integer 0": _filtered},
    wrong={
        "counts chunks as tokens": Wrong(_chunks_as_tokens, says="TPOT"),
        "takes the role-only delta for a token": Wrong(_role_counts, says="TTFT"),
        "divides by all tokens": Wrong(_first_token_too, says="first token"),
        "TPOT from the whole latency": Wrong(_whole_latency, says="TPOT"),
        "divides by zero for one token": Wrong(
            lambda sent, events, completion_tokens: {
                **_stream_metrics(sent, events, completion_tokens),
                "tpot": (events[-2][0] - events[1][0]) / (completion_tokens - 1),
            },
            says="your code raised ZeroDivisionError",
        ),
        "drops the first event unseen": Wrong(_drops_first, says="TTFT of one token"),
        "time of the first text on the clock": Wrong(_clock_time, says="since the request was sent"),
        "takes a newline for no text": Wrong(_strips, says="newline"),
        "decides by chunks whether TPOT is 0": Wrong(
            _zero_for_one_chunk, says="your code raised ZeroDivisionError"
        ),
        "adds a key": Wrong(
            lambda sent, events, completion_tokens: {
                **_stream_metrics(sent, events, completion_tokens),
                "itl": 0.1,
            },
            says="the keys",
        ),
        "hard-coded to the example": lambda sent, events, completion_tokens: {
            "ttft": 0.5,
            "tpot": 0.1,
            "e2el": 0.9,
        },
    },
    twins=tuple(f"utils.benchmark.trace.RequestTrace.{name}" for name in ("ttft", "tpot", "e2el")),
)


def _stream(rng: random.Random, chunks: int) -> tuple[float, Events]:
    """A stream with a role-only event, empty ones, newlines, and `chunks` texts."""
    words = [rng.choice(["The", " KV", " cache", "\n", " ", ".", "\n\n"]) for _ in range(chunks)]
    texts = [""] * rng.randint(0, 1)  # half of the streams begin with text
    for word in words:
        texts += [""] * rng.randint(0, 2) + [word]
    texts += [""] * rng.randint(1, 2)
    sent = rng.uniform(0, 100)
    times = accumulate((rng.uniform(0.01, 0.5) for _ in texts), initial=sent)
    return sent, list(zip(list(times)[1:], texts, strict=True))


@stream_metrics.part("first and last text", points=1)
def _(attempt: Callable[..., dict[str, float]], rng: random.Random) -> None:
    for _ in range(12):
        chunks = rng.randint(2, 9)
        sent, events = _stream(rng, chunks)
        tokens = chunks + rng.randint(0, 9)
        got, wanted = attempt(sent, events, tokens), _stream_metrics(sent, events, tokens)
        expect_type(got, dict, what="what stream_metrics returns")
        expect_equal(sorted(got), ["e2el", "tpot", "ttft"], what="the keys")
        what = f"of a stream with {chunks} texts among {len(events)} events"
        expect_close(got.get("ttft"), wanted["ttft"], what=f"TTFT {what}")
        expect_close(got.get("e2el"), wanted["e2el"], what=f"end-to-end latency {what}")


@stream_metrics.part("time per output token", points=2)
def _(attempt: Callable[..., dict[str, float]], rng: random.Random) -> None:
    cases = [(rng.randint(2, 9), rng.randint(0, 9)) for _ in range(10)]
    for chunks, more in [*cases, (1, 0), (1, rng.randint(2, 9)), (2, -1), (3, -2)]:
        sent, events = _stream(rng, chunks)
        tokens = chunks + more
        got, wanted = attempt(sent, events, tokens), _stream_metrics(sent, events, tokens)
        expect_type(got, dict, what="what stream_metrics returns")
        what = f"TPOT of {tokens} tokens in {chunks} chunks"
        if tokens > 1 or chunks == 1:
            expect_close(got.get("tpot"), wanted["tpot"], what=what)
        else:  # one token whose text came in pieces: TPOT has no formula, the others do
            expect_close(got.get("e2el"), wanted["e2el"], what=f"latency of 1 token in {chunks} chunks")


def _omits(arrivals: Sequence[float], service: float) -> list[float]:
    return [service for _ in arrivals]


def _never_idle(arrivals: Sequence[float], service: float) -> list[float]:
    return [(i + 1) * service - due + arrivals[0] for i, due in enumerate(arrivals)]


def _only_the_one_before(arrivals: Sequence[float], service: float) -> list[float]:
    waits = [max(0.0, a + service - b) for a, b in pairwise(arrivals)]
    return [service, *(wait + service for wait in waits)]


def _vectorised(arrivals: Sequence[float], service: float) -> np.ndarray:
    due, index = np.asarray(arrivals), np.arange(len(arrivals))
    return np.maximum.accumulate(due - index * service) + (index + 1) * service - due


def _in_tuples(arrivals: Sequence[float], service: float) -> tuple[float, ...]:
    return tuple(_open_loop_latencies(arrivals, service))


def _recursive(arrivals: Sequence[float], service: float, free: float = 0.0) -> list[float]:
    if not arrivals:
        return []
    done = max(free, arrivals[0]) + service
    return [done - arrivals[0], *_recursive(arrivals[1:], service, done)]


def _overwrites(arrivals: list[float], service: float) -> list[float]:
    free = 0.0
    for i, due in enumerate(arrivals):
        free = max(free, due) + service
        arrivals[i] = free - due
    return arrivals


open_loop_latencies = Grading(
    lab.open_loop_latencies,
    right={"vectorised": _vectorised, "a tuple": _in_tuples, "recursive": _recursive},
    wrong={
        "overwrites the arrivals": Wrong(_overwrites, says="changed its argument `arrivals`"),
        "counts from when the request was sent": Wrong(_omits, says="coordinated omission"),
        "the server is never idle": Wrong(_never_idle, says="idle"),
        "waits for the one request before only": Wrong(_only_the_one_before, says="burst"),
        "finish times instead of latencies": lambda arrivals, service: [
            due + latency
            for due, latency in zip(arrivals, _open_loop_latencies(arrivals, service), strict=True)
        ],
        "leaves out the service": Wrong(
            lambda arrivals, service: [
                max(0.0, round(latency - service, 9)) for latency in _open_loop_latencies(arrivals, service)
            ],
            says="includes the service",
        ),
    },
)


@open_loop_latencies.part("one burst", points=2)
def _(attempt: Callable[..., list[float]], rng: random.Random) -> None:
    for _ in range(8):
        service = rng.uniform(0.5, 2)
        arrivals = sorted(rng.uniform(0, service) for _ in range(rng.randint(3, 9)))
        what = f"latencies of {len(arrivals)} requests within {service:.2f} s, the time of one"
        expect_close(attempt(arrivals, service), _open_loop_latencies(arrivals, service), what=what)


@open_loop_latencies.part("bursts with pauses between them", points=1)
def _(attempt: Callable[..., list[float]], rng: random.Random) -> None:
    for _ in range(8):
        service, start, arrivals = rng.uniform(0.5, 2), 0.0, list[float]()
        for _ in range(3):
            burst = [start + rng.uniform(0, service) for _ in range(rng.randint(2, 4))]
            arrivals += sorted(burst)
            start += service * rng.uniform(6, 9)
        what = f"latencies of three bursts, {service:.2f} s each request"
        expect_close(attempt(arrivals, service), _open_loop_latencies(arrivals, service), what=what)


p99_of_runs = Grading(
    lab.p99_of_runs,
    right={
        "hstack": lambda runs: np.percentile(np.hstack(runs), 99),
        "quantile": lambda runs: np.quantile(np.concatenate(runs), 0.99),
        "chained": lambda runs: float(np.percentile([x for run in runs for x in run], 99)),
    },
    wrong={
        "0.99 in place of 99": Wrong(
            lambda runs: float(np.percentile(np.concatenate(runs), 0.99)), says="takes percent"
        ),
        "averages the runs' percentiles": Wrong(
            lambda runs: float(np.mean([np.percentile(run, 99) for run in runs])), says="average"
        ),
        "the worst run's percentile": lambda runs: float(max(np.percentile(run, 99) for run in runs)),
        "the maximum": lambda runs: float(max(max(run) for run in runs)),
        "the last run only": lambda runs: float(np.percentile(runs[-1], 99)),
        "the median": lambda runs: float(np.median(np.concatenate(runs))),
    },
)


@p99_of_runs.part("a single run", points=1)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    for _ in range(5):
        run = [rng.expovariate(1) for _ in range(rng.randint(20, 200))]
        expect_close(attempt([run]), _p99_of_runs([run]), what=f"p99 of one run of {len(run)}")


@p99_of_runs.part("runs of different lengths", points=1)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    for _ in range(5):
        sizes = [rng.randint(5, 400) for _ in range(4)]
        runs = [[rng.expovariate(1 / (i + 1)) for _ in range(n)] for i, n in enumerate(sizes)]
        rng.shuffle(runs)
        expect_close(attempt(runs), _p99_of_runs(runs), what=f"p99 of runs of {sizes} requests")


def _with_a_mask(
    requests: list[dict[str, Any]], duration: float, ttft_limit: float, tpot_limit: float
) -> np.float64:
    ok = np.array([request["ok"] for request in requests], bool)
    times = np.array(
        [
            [request["ttft"] if request["ok"] else 0, request["tpot"] if request["ok"] else 0]
            for request in requests
        ],
        float,
    )
    return (ok & (times.reshape(-1, 2) <= [ttft_limit, tpot_limit]).all(axis=1)).sum() / duration


def _counts_up(
    requests: list[dict[str, Any]], duration: float, ttft_limit: float, tpot_limit: float
) -> float:
    met = 0
    for request in requests:
        if not request["ok"]:
            continue
        met += request["ttft"] <= ttft_limit and request["tpot"] <= tpot_limit
    return met / duration


goodput = Grading(
    lab.goodput,
    right={"with a mask": _with_a_mask, "counts up": _counts_up},
    wrong={
        "counts failed requests": Wrong(
            lambda requests, duration, ttft_limit, tpot_limit: (
                sum(r["ttft"] <= ttft_limit and r["tpot"] <= tpot_limit for r in requests) / duration
            ),
            says="failed",
        ),
        "one limit is enough": lambda requests, duration, ttft_limit, tpot_limit: (
            sum(r["ok"] and (r["ttft"] <= ttft_limit or r["tpot"] <= tpot_limit) for r in requests) / duration
        ),
        "a share instead of a rate": Wrong(
            lambda requests, duration, ttft_limit, tpot_limit: (
                _goodput(requests, 1.0, ttft_limit, tpot_limit) / len(requests)
            ),
            says="per second",
        ),
        "looks at TTFT alone": lambda requests, duration, ttft_limit, tpot_limit: _goodput(
            requests, duration, ttft_limit, math.inf
        ),
        "below, not at, the limit": Wrong(
            lambda requests, duration, ttft_limit, tpot_limit: (
                sum(r["ok"] and r["ttft"] < ttft_limit and r["tpot"] < tpot_limit for r in requests)
                / duration
            ),
            says="at a limit",
        ),
        "takes an unknown value for a good one": Wrong(
            lambda requests, duration, ttft_limit, tpot_limit: (
                sum(r["ok"] and not r["ttft"] > ttft_limit and not r["tpot"] > tpot_limit for r in requests)
                / duration
            ),
            says="NaN",
        ),
    },
    twins=("utils.benchmark.stats.Slo.met_by",),
)


def _requests(rng: random.Random, count: int) -> list[dict[str, Any]]:
    return [
        {"ok": rng.random() < 0.8, "ttft": rng.uniform(0.1, 0.9), "tpot": rng.uniform(0.01, 0.09)}
        for _ in range(count)
    ]


@goodput.part("both limits, and failed requests", points=1)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    for _ in range(8):
        requests, duration = _requests(rng, rng.randint(20, 60)), rng.uniform(2, 20)
        limits = rng.uniform(0.3, 0.7), rng.uniform(0.03, 0.07)
        what = f"goodput of {len(requests)} requests in {duration:.1f} s"
        wanted = _goodput(requests, duration, *limits)
        expect_close(attempt(requests, duration, *limits), wanted, what=what)


@goodput.part("values at a limit, and unknown ones", points=1)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    for _ in range(8):
        requests, duration = _requests(rng, rng.randint(20, 60)), rng.uniform(2, 20)
        limits = {"ttft": rng.uniform(0.3, 0.7), "tpot": rng.uniform(0.03, 0.07)}
        good = {"ok": True, "ttft": 0.05, "tpot": 0.005}
        for key, limit in limits.items():
            requests += [{**good, key: limit}, {**good, key: math.nan}, {**good, key: math.nan}]
        rng.shuffle(requests)
        wanted = _goodput(requests, duration, *limits.values())
        what = f"goodput of {len(requests)} requests, some at a limit, some with NaN"
        expect_close(attempt(requests, duration, *limits.values()), wanted, what=what)


def _spread(values: Sequence[float], reach: float) -> tuple[float, float]:
    mean = float(np.mean(values))
    return mean - reach, mean + reach


def _by_statistics(values: Sequence[float], t: float) -> tuple[float, float]:
    reach = t * statistics.stdev(values) / math.sqrt(len(values))
    return statistics.fmean(values) - reach, statistics.fmean(values) + reach


def _by_hand(values: Sequence[float], t: float) -> tuple[float, float]:
    n = len(values)
    mean = sum(values) / n
    variance = sum((value - mean) ** 2 for value in values) / (n - 1)
    low, high = (mean + sign * t * (variance / n) ** 0.5 for sign in (-1, 1))
    return low, high


mean_interval = Grading(
    lab.mean_interval,
    right={"statistics": _by_statistics, "by hand": _by_hand},
    wrong={
        "standard deviation instead of standard error": Wrong(
            lambda values, t: _spread(values, t * float(np.std(values, ddof=1))),
            says="standard error",
        ),
        "divides by n, not n - 1": Wrong(
            lambda values, t: _spread(values, t * float(np.std(values)) / len(values) ** 0.5),
            says="n - 1",
        ),
        "divides by 2, whatever n": Wrong(
            lambda values, t: _spread(values, t * float(np.std(values, ddof=1)) / 2), says="nine"
        ),
        "divides by n / 2": Wrong(
            lambda values, t: _spread(values, t * float(np.std(values, ddof=1)) / (len(values) / 2)),
            says="nine",
        ),
        "leaves out t": lambda values, t: _spread(values, float(np.std(values, ddof=1)) / len(values) ** 0.5),
        "smallest and largest": lambda values, t: (min(values), max(values)),
        "around the median": lambda values, t: tuple(
            x - float(np.mean(values)) + float(np.median(values)) for x in _mean_interval(values, t)
        ),
    },
    twins=("utils.benchmark.intervals.repeat_interval",),
)


def _intervals(attempt: Callable[..., Any], rng: random.Random, sizes: Sequence[int]) -> None:
    for size in sizes:
        values, t = [rng.gauss(100, 8) for _ in range(size)], rng.uniform(2, 13)
        got, what = attempt(values, t), f"interval of {size} values, t = {t:.3f}"
        expect_type(got, tuple, what="what mean_interval returns")
        expect_close(got, _mean_interval(values, t), what=what, rel=1e-6)


@mean_interval.part("few runs", points=1)
def _(attempt: Callable[..., tuple[float, float]], rng: random.Random) -> None:
    _intervals(attempt, rng, (2, 3, 3, 5, 6))


@mean_interval.part("many runs", points=1)
def _(attempt: Callable[..., tuple[float, float]], rng: random.Random) -> None:
    _intervals(attempt, rng, [rng.randint(9, 60) for _ in range(5)])


decode_ceiling = Grading(
    lab.decode_ceiling,
    right={
        "one request's share": lambda bandwidth, weight_bytes, kv_bytes_per_token, context, batch: (
            bandwidth / (weight_bytes / batch + context * kv_bytes_per_token)
        ),
        "from the step's time": lambda bandwidth, weight_bytes, kv_bytes_per_token, context, batch: (
            batch * (1 / (weight_bytes / bandwidth + batch * context * kv_bytes_per_token / bandwidth))
        ),
    },
    wrong={
        "forgets that a batch shares the weights": Wrong(
            lambda bandwidth, weight_bytes, kv_bytes_per_token, context, batch: (
                bandwidth / (weight_bytes + context * kv_bytes_per_token)
            ),
            says="batch",
        ),
        "forgets the KV cache": Wrong(
            lambda bandwidth, weight_bytes, kv_bytes_per_token, context, batch: (
                batch * bandwidth / weight_bytes
            ),
            says="KV cache",
        ),
        "reads the KV cache of one": lambda bandwidth, weight_bytes, kv_bytes_per_token, context, batch: (
            batch * bandwidth / (weight_bytes + context * kv_bytes_per_token)
        ),
        "per request": lambda bandwidth, weight_bytes, kv_bytes_per_token, context, batch: (
            _decode_ceiling(bandwidth, weight_bytes, kv_bytes_per_token, context, batch) / batch
        ),
        "bits for bytes": lambda bandwidth, weight_bytes, kv_bytes_per_token, context, batch: (
            _decode_ceiling(bandwidth, weight_bytes, kv_bytes_per_token, context, batch) / 8
        ),
    },
    twins=("utils.roofline.ceilings.decode_ceiling",),
)


def _ceilings(attempt: Callable[..., float], rng: random.Random, batches: Sequence[int]) -> None:
    for batch in batches:
        bandwidth, weights = rng.uniform(1e11, 4e12), rng.uniform(1e9, 1e11)
        kv, context = rng.randrange(10_000, 300_000), rng.randrange(500, 32_000)
        what = f"ceiling of a batch of {batch}, {context} tokens each"
        wanted = _decode_ceiling(bandwidth, weights, kv, context, batch)
        expect_close(attempt(bandwidth, weights, kv, context, batch), wanted, what=what)


@decode_ceiling.part("one request", points=1)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    _ceilings(attempt, rng, (1, 1, 1, 1))


@decode_ceiling.part("a batch", points=2)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    _ceilings(attempt, rng, [rng.randint(2, 256) for _ in range(6)])


def _top(rows: Sequence[dict[str, Any]], good: Callable[[dict[str, Any]], bool]) -> str | None:
    kept = [row for row in rows if good(row)]
    return max(kept, key=lambda row: row["output_throughput"])["label"] if kept else None


def _bars_labels(rows: Sequence[dict[str, Any]], ttft_limit_ms: float) -> str | None:
    barred = {row["label"] for row in rows if row["failed"]}
    return recommend.best_for_api([row for row in rows if row["label"] not in barred], ttft_limit_ms)


def _highest_of_the_rest(rows: Sequence[dict[str, Any]], ttft_limit_ms: float) -> str | None:
    good = [row for row in rows if row["p95_ttft_ms"] <= ttft_limit_ms and not row["failed"]]
    return recommend.best_for_api(good, ttft_limit_ms) if good else None


def _by_sorting(rows: list[dict[str, Any]], ttft_limit_ms: float) -> str | None:
    top = sorted({row["concurrency"] for row in rows})[-1]
    for row in sorted(rows, key=lambda row: row["output_throughput"], reverse=True):
        if row["concurrency"] == top and row["failed"] == 0 and not row["p95_ttft_ms"] > ttft_limit_ms:
            return str(row["label"])
    return None


def _best_so_far(rows: list[dict[str, Any]], ttft_limit_ms: float) -> str | None:
    top, best = max(row["concurrency"] for row in rows), None
    for row in rows:
        fits = row["p95_ttft_ms"] <= ttft_limit_ms and row["concurrency"] >= top and not row["failed"]
        if fits and (best is None or row["output_throughput"] > best["output_throughput"]):
            best = row
    return best and best["label"]


best_for_api = Grading(
    lab.best_for_api,
    right={"by sorting": _by_sorting, "the best so far": _best_so_far},
    wrong={
        "one failed run bars an engine at every level": Wrong(_bars_labels, says="other runs"),
        "filters, then looks for the highest concurrency": Wrong(
            _highest_of_the_rest, says="highest concurrency"
        ),
        "ignores the limit": Wrong(
            lambda rows, ttft_limit_ms: _top(
                rows, lambda row: row["concurrency"] == 32 and not row["failed"]
            ),
            says="limit",
        ),
        "looks at every concurrency": Wrong(
            lambda rows, ttft_limit_ms: _top(
                rows, lambda row: row["p95_ttft_ms"] <= ttft_limit_ms and not row["failed"]
            ),
            says="highest concurrency",
        ),
        "counts runs with failures": Wrong(
            lambda rows, ttft_limit_ms: _top(
                rows, lambda row: row["concurrency"] == 32 and row["p95_ttft_ms"] <= ttft_limit_ms
            ),
            says="failed",
        ),
        "assumes 32": lambda rows, ttft_limit_ms: _top(
            rows,
            lambda row: (
                row["concurrency"] == 32 and row["p95_ttft_ms"] <= ttft_limit_ms and not row["failed"]
            ),
        ),
        "drops failed runs, then looks for the highest concurrency": Wrong(
            lambda rows, ttft_limit_ms: recommend.best_for_api(
                [row for row in rows if not row["failed"]], ttft_limit_ms
            ),
            says="all rows",
        ),
        "below, not at, the limit": Wrong(
            lambda rows, ttft_limit_ms: recommend.best_for_api(
                [row for row in rows if row["p95_ttft_ms"] != ttft_limit_ms], ttft_limit_ms
            ),
            says="at the limit",
        ),
        "lowest TTFT": lambda rows, ttft_limit_ms: min(
            (r for r in rows if r["concurrency"] == 32 and not r["failed"]),
            key=lambda row: row["p95_ttft_ms"],
        )["label"],
    },
)


def _rows(rng: random.Random, failing: float) -> list[dict[str, Any]]:
    """Engines at several levels; each fails with probability `failing`."""
    levels = sorted(rng.sample(range(1, 200), 3))
    return [
        {
            "label": f"engine {name}",
            "concurrency": level,
            "output_throughput": rng.uniform(100, 900) + 5 * (200 - level),
            "p95_ttft_ms": rng.uniform(50, 1500),
            "failed": rng.randint(1, 5) if rng.random() < failing else 0,
        }
        for name in "ABCDE"
        for level in rng.sample(levels, rng.randint(2, 3))
    ]


def _choices(attempt: Callable[..., Any], rng: random.Random, failing: float, none: bool) -> None:
    tried = 0
    while tried < 30:
        rows = _rows(rng, failing)
        rng.shuffle(rows)
        p95s = [row["p95_ttft_ms"] for row in rows]
        limit = rng.choice([rng.uniform(100, 1400), rng.choice(p95s), max(p95s)])
        wanted = recommend.best_for_api(rows, limit)
        if wanted is not None or none:
            tried += 1
            what = f"the engine of {len(rows)} rows, p95 of TTFT within {limit:.0f} ms"
            expect_equal(attempt(rows, limit), wanted, what=what)


@best_for_api.part("the fastest within the limit, at the highest concurrency", points=2)
def _(attempt: Callable[..., str | None], rng: random.Random) -> None:
    _choices(attempt, rng, 0.0, none=False)


@best_for_api.part("runs with failed requests, and no engine within the limit", points=1)
def _(attempt: Callable[..., str | None], rng: random.Random) -> None:
    _choices(attempt, rng, 0.5, none=True)
