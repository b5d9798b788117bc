"""Measured runs of lab 3.3.3: sweeps over concurrency, waves of requests, variants of vLLM's options."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import mean, median
from typing import Any, TypeVar

import pandas as pd

from utils.benchmark import Interval, Request, repeat_interval
from utils.benchmark.engine_run import Run, make_requests, measure
from utils.engines import RunningEngine
from utils.engines.fleet import Fleet
from utils.kvcache.scheduler import Job
from utils.profiles import Profile

T = TypeVar("T")


def as_jobs(requests: Sequence[Request], profile: Profile) -> list[Job]:
    """The same requests for the simulator: all arrive at time 0."""
    prompt = profile.load.prompt_tokens
    return [Job(i, 0.0, prompt, request.max_tokens) for i, request in enumerate(requests)]


def sweep(engine: RunningEngine, profile: Profile, levels: Sequence[int], label: str) -> list[Run]:
    """Measures each concurrency level `profile.load.repeats` times, the levels in turn.

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
        What `work` returned, by variant; and why a variant did not run, in words.
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
