"""Tables of lab 3.3.3, and the guard that tells when its latencies can't be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pandas as pd

from utils.benchmark.engine_run import Run
from utils.labs.lab_3_3_3.experiments import empty_share, lag_at, latency_at, throughput_at


def sweep_table(runs: Sequence[Run]) -> pd.DataFrame:
    """Return throughput with its interval, latencies and failures by concurrency level."""
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
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("concurrency")


def speedup_table(runs: Sequence[Run], base: int, top: int) -> pd.DataFrame:
    """Return throughput and median latencies of two levels, and the factor between them."""
    columns: dict[str, dict[str, float]] = {}
    for level in (base, top):
        ttft, tpot, e2e = (
            latency_at(runs, level, f"median_{name}_ms") for name in ("ttft", "tpot", "e2el")
        )
        columns[f"{level} in flight"] = {
            "output tok/s": throughput_at(runs, level).value,
            "TPOT median (ms)": tpot,
            "TTFT median (ms)": ttft,
            "E2E median (ms)": e2e,
            "TTFT as a share of E2E": ttft / e2e,
        }
    low, high = columns
    frame = pd.DataFrame(columns)
    frame["factor"] = frame[high] / frame[low]
    return frame.round(2)


def busy_warning(runs: Sequence[Run], *levels: int) -> str:
    """Return a warning if the client was late by over a tenth of an answer, and "" otherwise."""
    worst = max(lag_at(runs, level) for level in levels)
    if worst < latency_at(runs, levels[0], "median_e2el_ms") / 10:
        return ""
    return (
        f"The client was late by up to {worst:.0f} ms, because something else kept this machine busy. "
        "Don't trust single latencies, and repeat the run on a quiet machine."
    )


def waves_table(continuous: Run, waves: Sequence[Run]) -> pd.DataFrame:
    """Return duration, throughput and empty places of the same requests, in waves and continuously."""
    rows = {
        name: {
            "requests": sum(len(run.result.traces) for run in runs),
            "seconds": round(sum(run.result.duration for run in runs), 2),
            "places empty": f"{empty_share(runs):.0%}",
        }
        for name, runs in (("in waves", waves), ("continuously", [continuous]))
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("sent")


def pressure_table(roomy: Run, others: Mapping[str, Run]) -> pd.DataFrame:
    """Return preemptions, cache usage and throughput of the same burst on caches of several sizes."""
    rows = {}
    for name, run in {"room for all": roomy, **others}.items():
        lost, peak = run.series.increase("preemptions"), run.series.peak("kv_usage")
        rows[name] = {
            "preemptions": "not reported" if lost is None else f"{lost:.0f}",
            "KV cache in use, at most": "not reported" if peak is None else f"{peak:.0%}",
            "output tok/s": round(run.throughput),
            "of the run with room": f"{run.throughput / roomy.throughput:.0%}",
        }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("KV cache")


def visits_table(order: str, predicted: Sequence[int], found: Sequence[int]) -> pd.DataFrame:
    """Return the predicted and the measured cached tokens of each visit to the assistants of `order`."""
    columns = {
        "assistant": list(order),
        "cached tokens (predicted)": predicted,
        "cached tokens (vLLM's usage)": found,
    }
    return pd.DataFrame(columns, index=pd.RangeIndex(1, len(order) + 1, name="visit"))


def modes_table(
    runs: Mapping[str, Sequence[Run]], start_seconds: Mapping[str, float], levels: Sequence[int]
) -> pd.DataFrame:
    """Return the time to start and the throughput of two ways of running the same engine.

    Args:
        runs: Measured runs of each mode, by its name.
        start_seconds: Seconds from launch to healthy, by the same names.
        levels: Concurrency levels that both modes measured.
    """
    rows = {
        mode: {
            "ready after (s)": round(start_seconds[mode]),
            **{f"{level} in flight (tok/s)": str(throughput_at(ran, level)) for level in levels},
        }
        for mode, ran in runs.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("mode")
