"""The measured runs of lab 3.3.3: an engine under load, its own metrics beside it, one record each."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import mean, median
from typing import Any, TypeVar

import pandas as pd

from utils.benchmark import (
    Client,
    ClosedLoop,
    Interval,
    LoadResult,
    Record,
    Request,
    make_record,
    repeat_interval,
    run,
    write_record,
)
from utils.benchmark.sweep import WARMUP_SEED, prompts
from utils.engines import EngineError, RunningEngine
from utils.engines.fleet import Fleet
from utils.kvcache.scheduler import Job
from utils.profiles import Profile
from utils.telemetry import Sampler, Series

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """One measured run.

    Attributes:
        result: What the load generator saw.
        series: What the engine said meanwhile.
        record: What was written to ``records/``.
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
        """A latency of the summary, such as ``median_tpot_ms``."""
        return float(self.record.summary[metric])


def make_requests(
    profile: Profile, count: int, seed: int = 0, spread: float = 0.0
) -> list[Request]:
    """Requests of the profile's lengths with random prompts, so that no prefix is shared.

    Args:
        profile: Gives the lengths.
        count: How many.
        seed: Same seed, same prompts and lengths.
        spread: Output lengths vary evenly in ``output_tokens x (1 - spread ... 1 + spread)``.

    Returns:
        Requests for ``/v1/completions``; each answer has exactly its ``max_tokens``.
    """
    rng = random.Random(seed)
    low, high = (round(profile.load.output_tokens * (1 + sign * spread)) for sign in (-1, 1))
    requests = prompts(profile, count, seed=seed)
    return [replace(request, max_tokens=rng.randint(low, high)) for request in requests]


def as_jobs(requests: Sequence[Request], profile: Profile) -> list[Job]:
    """The same requests for the simulator: all arrive at time 0."""
    prompt = profile.load.prompt_tokens
    return [Job(i, 0.0, prompt, request.max_tokens) for i, request in enumerate(requests)]


def measure(
    engine: RunningEngine,
    profile: Profile,
    requests: Sequence[Request],
    concurrency: int,
    label: str,
    warmup: int = 0,
    extra: dict[str, Any] | None = None,
) -> Run:
    """Sends requests at a fixed concurrency, samples the engine meanwhile, writes a record.

    Args:
        engine: What serves.
        profile: Where.
        requests: What is sent, in this order.
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
    client = Client(engine.base_url, engine.model, api="completions")
    with Sampler(engine) as sampler:
        result = run(
            client,
            requests,
            ClosedLoop(concurrency),
            warmup=make_requests(profile, warmup, seed=WARMUP_SEED + concurrency),
            label=f"{label}, {concurrency} at once",
            alive=engine.running,
        )
    series = sampler.series
    telemetry = series.to_dict()
    record = make_record(result, engine, profile, label=label, telemetry=telemetry, extra=extra)
    write_record(record)
    return Run(result, series, record)


def sweep(engine: RunningEngine, profile: Profile, levels: Sequence[int], label: str) -> list[Run]:
    """Measures each concurrency level ``profile.load.repeats`` times, the levels in turn.

    Taking turns spreads a slow phase of the machine over all levels; no prompt occurs twice.
    """
    runs = []
    for repeat in range(profile.load.repeats):
        for level in levels:
            count = profile.load.requests_at(level)
            requests = make_requests(profile, count, seed=1000 * repeat + level)
            warmup = level if repeat == 0 else 0
            runs.append(measure(engine, profile, requests, level, label, warmup))
    return runs


def waves(
    engine: RunningEngine, profile: Profile, requests: Sequence[Request], size: int, label: str
) -> list[Run]:
    """Sends requests in waves: the next one leaves when the slowest of the last has come back.

    A static batch as its users see it. What is left out is padding: the engine computes nothing for
    a request that has ended.
    """
    starts = range(0, len(requests), size)
    return [
        measure(engine, profile, requests[start : start + size], size, label) for start in starts
    ]


def throughput_at(runs: Sequence[Run], level: int) -> Interval:
    """Mean output tokens per second at a level over its repeats, with a 95 % interval."""
    return repeat_interval([one.throughput for one in runs if one.concurrency == level])


def latency_at(runs: Sequence[Run], level: int, metric: str) -> float:
    """A latency of the summary at a level, in milliseconds, median over the repeats."""
    return median(one.milliseconds(metric) for one in runs if one.concurrency == level)


def lag_at(runs: Sequence[Run], level: int) -> float:
    """The client's worst own delay at a level, in milliseconds: latencies are uncertain by it."""
    return max(1000 * one.result.client_lag for one in runs if one.concurrency == level)


def sweep_table(runs: Sequence[Run]) -> pd.DataFrame:
    """One row per concurrency level: throughput with its interval, latencies, what failed."""
    rows = {}
    for level in sorted({one.concurrency for one in runs}):
        here = [one.record.summary for one in runs if one.concurrency == level]
        rows[level] = {
            "output tok/s": str(throughput_at(runs, level)),
            "TTFT median (ms)": round(latency_at(runs, level, "median_ttft_ms"), 1),
            "TPOT median (ms)": round(latency_at(runs, level, "median_tpot_ms"), 2),
            "E2E p99 (ms)": round(latency_at(runs, level, "p99_e2el_ms"), 1),
            "requests": sum(summary["completed"] for summary in here),
            "failed": sum(summary["failed"] for summary in here),
            "client late by, worst (ms)": round(lag_at(runs, level), 1),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "concurrency"
    return frame


def same_answers(first: Run, second: Run) -> float:
    """Share of requests that got the same text in two runs of the same requests, 0 to 1."""
    pairs = list(zip(first.result.traces, second.result.traces, strict=True))
    return mean(a.text == b.text for a, b in pairs)


def run_variants(
    profile: Profile,
    variants: Mapping[str, Mapping[str, Any]],
    work: Callable[[str, RunningEngine], T],
) -> tuple[dict[str, T], dict[str, str]]:
    """Starts vLLM with several sets of options, and does the same work on each in turn.

    Returns:
        What ``work`` returned, by variant; and why a variant did not run, in words.
    """
    with Fleet(profile, variants) as fleet:
        found = fleet.each(lambda name, engine, turn: work(name, engine))
    results = {name: once[0] for name, once in found.items()}
    return results, fleet.reasons


def too_slow_to_compile(engine: RunningEngine, profile: Profile) -> str:
    """Why the compiled twin of an eager engine is not started here, in words; "" if it is.

    On a CPU a first compiled start took about three times as long as an eager one (measured on two
    cores, 24 layers). Where that would take more than 40 % of what the profile allows a notebook, it
    is left out.
    """
    expected_s = 3 * engine.start_seconds
    if expected_s <= 0.4 * profile.time_budget_s:
        return ""
    return (
        f"not run here: the eager engine took {engine.start_seconds:.0f} s to start, so compiling "
        f"may take {expected_s:.0f} s of the {profile.time_budget_s:.0f} s that profile "
        f"{profile.name!r} allows a notebook. Run it when the machine is quiet."
    )
