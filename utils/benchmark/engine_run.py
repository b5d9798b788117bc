"""Measured run of an engine: a load, the engine's own metrics meanwhile, and one record."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from utils.benchmark import (
    ClosedLoop,
    LoadResult,
    Record,
    Request,
    RequestTrace,
    make_record,
    run,
    write_record,
)
from utils.benchmark.engine_clients import benchmark_client
from utils.benchmark.sweep import prompts
from utils.benchmark.workload import Source, fresh_seed
from utils.engines import EngineError, RunningEngine
from utils.profiles import Profile
from utils.telemetry import Sampler, Series


@dataclass(frozen=True)
class Run:
    """One measured run.

    Attributes:
        result: Result of the load generator.
        series: Readings of the engine's metrics meanwhile.
        record: Record that was written to `records/`.
    """

    result: LoadResult
    series: Series
    record: Record

    @property
    def concurrency(self) -> int:
        """Requests in flight."""
        return int(self.record.load["concurrency"])

    @property
    def throughput(self) -> float:
        """Output tokens per second."""
        return float(self.record.summary["output_throughput"])

    def milliseconds(self, metric: str) -> float:
        """Return a latency of the summary, such as `median_tpot_ms`.

        It is NaN where the run has too few requests for that percentile.
        """
        value = self.record.summary[metric]
        return math.nan if value is None else float(value)


def make_requests(
    profile: Profile, count: int, seed: int | None = None, spread: float = 0.0
) -> list[Request]:
    """Return requests of the profile's lengths with random prompts, so that no prefix is shared.

    Args:
        profile: Profile that gives the lengths.
        count: Number of requests.
        seed: Same seed, same prompts and lengths. None takes one that no engine has seen.
        spread: Output lengths vary evenly in `output_tokens * (1 ± spread)`.

    Returns:
        Requests for ``/v1/completions``; each answer has exactly its ``max_tokens``.
    """
    seed = fresh_seed() if seed is None else seed
    rng = random.Random(seed)
    low, high = (round(profile.load.output_tokens * (1 + sign * spread)) for sign in (-1, 1))
    requests = prompts(profile, count, seed=seed)
    lengths = f"{low} to {high} tokens" if spread else f"{low} tokens"
    source = replace(requests[0].source, output_length=lengths) if requests else Source()
    return [
        replace(request, max_tokens=rng.randint(low, high), source=source) for request in requests
    ]


def require_success(traces: Sequence[RequestTrace]) -> None:
    """Raise EngineError, with the first error, if a request failed."""
    errors = [trace.error for trace in traces if not trace.ok]
    if errors:
        raise EngineError(f"{len(errors)} requests failed, the first with: {errors[0]}")


def measure(
    engine: RunningEngine,
    profile: Profile,
    requests: Sequence[Request],
    concurrency: int,
    label: str,
    warmup: int = 0,
    extra: dict[str, Any] | None = None,
) -> Run:
    """Send requests at a fixed concurrency, sample the engine meanwhile, and write a record.

    Args:
        engine: Engine that serves.
        profile: Machine's profile.
        requests: Requests, sent in this order.
        concurrency: Requests in flight.
        label: Runs of the same label and concurrency are repeats.
        warmup: Requests sent before the clock starts.
        extra: Further plain values for the record.

    Returns:
        The run.
    """
    if not engine.running():
        raise EngineError(
            f"This {engine.spec.title} was stopped (a later section does that): run the cell that "
            "launches it again, then this one."
        )
    client = benchmark_client(engine)
    with Sampler(engine) as sampler:
        result = run(
            client,
            requests,
            ClosedLoop(concurrency),
            warmup=make_requests(profile, warmup),
            label=f"{label}, {concurrency} at once",
            alive=engine.running,
        )
    series = sampler.series
    telemetry = series.to_dict()
    record = make_record(result, engine, profile, label=label, telemetry=telemetry, extra=extra)
    write_record(record)
    return Run(result, series, record)
