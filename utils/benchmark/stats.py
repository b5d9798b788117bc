"""Statistics of a run, with the result keys of `vllm bench serve` (vLLM 0.32.0)."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from utils.benchmark.trace import Clock, RequestTrace

PERCENTILES = (50, 90, 95, 99)
METRICS = ("ttft", "tpot", "itl", "e2el")


@dataclass(frozen=True, slots=True)
class Slo:
    """Service-level objectives: a request is good if it meets every limit that is set.

    Attributes:
        ttft_ms: Limit of the time to first token.
        tpot_ms: Limit of the time per output token.
        e2el_ms: Limit of the end-to-end latency.
    """

    ttft_ms: float | None = None
    tpot_ms: float | None = None
    e2el_ms: float | None = None

    def met_by(self, trace: RequestTrace, clock: Clock = "sent") -> bool:
        """Return whether a request succeeded within every limit.

        A value that is unknown (NaN) does not meet a limit, except the time per output token of
        a one-token answer, which vLLM takes as 0.
        """
        tpot = 0.0 if trace.completion_tokens == 1 else trace.tpot
        values = (trace.ttft(clock), tpot, trace.e2el(clock))
        limits = (self.ttft_ms, self.tpot_ms, self.e2el_ms)
        return trace.ok and all(
            limit is None or value * 1000 <= limit
            for value, limit in zip(values, limits, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Latency:
    """One latency metric over one or several runs, in ms; NaN where nothing could be measured."""

    mean: float
    median: float
    std: float
    percentiles: Mapping[int, float]
    maximum: float
    count: int

    @classmethod
    def of(cls, seconds: Iterable[float]) -> Latency:
        """From values in seconds; NaNs are left out."""
        values = np.array([value for value in seconds if not math.isnan(value)]) * 1000
        if not values.size:
            return cls(
                math.nan, math.nan, math.nan, dict.fromkeys(PERCENTILES, math.nan), math.nan, 0
            )
        cuts = np.percentile(values, PERCENTILES)
        return cls(
            mean=float(values.mean()),
            median=float(np.median(values)),
            std=float(values.std()),
            percentiles={p: float(v) for p, v in zip(PERCENTILES, cuts, strict=True)},
            maximum=float(values.max()),
            count=int(values.size),
        )

    def statistic(self, name: str) -> float:
        """Return "mean", "median", "std", "max" or a percentile such as "p95".

        A percentile that there are too few values for (see `supported`) is NaN.
        """
        if name.startswith("p"):
            percentile = int(name[1:])
            return self.percentiles[percentile] if supported(percentile, self.count) else math.nan
        return float(self.maximum if name == "max" else getattr(self, name))


def supported(percentile: float, count: int) -> bool:
    """Return whether `count` values are enough for a percentile: at least one of them lies beyond it.

    The 99th percentile of 50 values is their maximum in disguise.
    """
    return count > 0 and percentile / 100 <= 1 - 1 / count + 1e-12


@dataclass(frozen=True, slots=True)
class Summary:
    """A run in numbers. Indexing takes the keys of `vllm bench serve`: `summary["p99_ttft_ms"]`.

    Throughputs are per second of the run's duration and count only requests that succeeded.
    Token totals and token throughputs are NaN if any success lacks its usage block: they would be
    too low without saying so.

    Attributes:
        duration: s.
        completed, failed: Requests.
        total_input_tokens, total_output_tokens: From `usage`.
        request_throughput: 1/s.
        request_goodput: Requests per second within every objective; None without objectives.
        output_throughput, total_token_throughput: tok/s.
        max_output_tokens_per_s: Highest rate over any second of the run, or over all of it if that is higher.
        max_concurrent_requests: Most requests in flight at one moment.
        ttft, tpot, itl, e2el: Latencies, ms.
        clock: Beginning of latency, "sent" or "scheduled".
        usage_missing: Successes without a usage block.
        resends: Number of times a request was sent again on a fresh connection.
        cached_tokens: Prompt tokens from the prefix cache; None if the engine does not tell.
        tokens_per_chunk: Completion tokens per chunk with text; far from 1, ITL is not per token.
    """

    duration: float
    completed: int
    failed: int
    total_input_tokens: float
    total_output_tokens: float
    request_throughput: float
    request_goodput: float | None
    output_throughput: float
    total_token_throughput: float
    max_output_tokens_per_s: float
    max_concurrent_requests: int
    ttft: Latency
    tpot: Latency
    itl: Latency
    e2el: Latency
    clock: Clock
    usage_missing: int
    resends: int
    cached_tokens: int | None
    tokens_per_chunk: float

    def to_dict(self) -> dict[str, Any]:
        """Return flat values under vLLM's keys, and ours, such as `clock`.

        `n_ttft` is the number of requests that the TTFT rests on, `n_itl` the number of gaps. A percentile
        that they are too few for (see `supported`) is NaN.
        """
        flat: dict[str, Any] = {}
        for field in fields(self):
            value = getattr(self, field.name)
            if not isinstance(value, Latency):
                flat[field.name] = value
        for name in METRICS:
            latency: Latency = getattr(self, name)
            for statistic in ("mean", "median", "std", "max", *(f"p{p}" for p in PERCENTILES)):
                flat[f"{statistic}_{name}_ms"] = latency.statistic(statistic)
            flat[f"n_{name}"] = latency.count
        return flat

    def __getitem__(self, key: str) -> float:
        flat = {k: v for k, v in self.to_dict().items() if not isinstance(v, str)}
        if key not in flat:
            raise KeyError(f"no result key {key!r}; there are: {', '.join(flat)}")
        return math.nan if flat[key] is None else flat[key]


def summarise(
    traces: Sequence[RequestTrace],
    duration: float,
    *,
    slo: Slo | None = None,
    clock: Clock = "sent",
) -> Summary:
    """Statistics over all requests of a run.

    Args:
        traces: Every request, the failed ones too.
        duration: Length of the run, s.
        slo: Objectives for goodput.
        clock: Count latency from "sent" or "scheduled".

    Raises:
        ValueError: If the duration is not positive.
    """
    if not duration > 0:
        raise ValueError(f"duration must be positive, not {duration}")
    good = [trace for trace in traces if trace.ok]
    inputs = _total(trace.prompt_tokens for trace in good)
    outputs = _total(trace.completion_tokens for trace in good)
    chunks = sum(len(trace.chunk_times) for trace in good)
    cached = [trace.cached_tokens for trace in good if trace.cached_tokens is not None]
    return Summary(
        duration=duration,
        completed=len(good),
        failed=len(traces) - len(good),
        total_input_tokens=inputs,
        total_output_tokens=outputs,
        request_throughput=len(good) / duration,
        request_goodput=(
            None if slo is None else sum(slo.met_by(trace, clock) for trace in good) / duration
        ),
        output_throughput=outputs / duration,
        total_token_throughput=(inputs + outputs) / duration,
        max_output_tokens_per_s=_peak_tokens(good, outputs / duration),
        max_concurrent_requests=_peak_concurrency(traces),
        ttft=Latency.of(trace.ttft(clock) for trace in good),
        tpot=Latency.of(trace.tpot for trace in good),
        itl=Latency.of(gap for trace in good for gap in trace.itls),
        e2el=Latency.of(trace.e2el(clock) for trace in good),
        clock=clock,
        usage_missing=sum(trace.usage_missing for trace in good),
        resends=sum(trace.resends for trace in traces),
        cached_tokens=sum(cached) if cached else None,
        tokens_per_chunk=outputs / chunks if chunks else math.nan,
    )


def percentile(values: Iterable[float], p: float) -> float:
    """Return the p-th percentile (0 to 100), linear between values as numpy and vLLM do; NaN if empty."""
    array = np.array([value for value in values if not math.isnan(value)])
    return float(np.percentile(array, p)) if array.size else math.nan


def _total(counts: Iterable[int | None]) -> float:
    total = 0
    for count in counts:
        if count is None:
            return math.nan
        total += count
    return total


def _peak_tokens(traces: Sequence[RequestTrace], average: float) -> float:
    """Return the most tokens in any second, but at least the average of a run.

    A request's tokens are spread evenly over its chunks. vLLM counts in aligned seconds, which gives a peak
    below the average in short runs (vllm-project/vllm#50677).
    """
    timed = [trace for trace in traces if trace.chunk_times]
    if not timed or any(trace.completion_tokens is None for trace in timed):
        return math.nan
    times = np.concatenate([np.array(trace.chunk_times) for trace in timed])
    weights = np.concatenate(
        [
            np.full(len(trace.chunk_times), (trace.completion_tokens or 0) / len(trace.chunk_times))
            for trace in timed
        ]
    )
    order = np.argsort(times)
    times, total = times[order], np.concatenate([[0.0], np.cumsum(weights[order])])
    ends = np.searchsorted(times, times + 1.0)
    peak = float((total[ends] - total[:-1]).max())
    return peak if math.isnan(average) else max(peak, average)


def _peak_concurrency(traces: Sequence[RequestTrace]) -> int:
    edges = sorted(
        [(trace.sent, 1) for trace in traces] + [(trace.finished, -1) for trace in traces]
    )
    return int(max(np.cumsum([step for _, step in edges]), default=0))
