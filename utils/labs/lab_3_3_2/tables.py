"""Tables of lab 3.3.2."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean

import pandas as pd

from utils.benchmark.engine_run import Run
from utils.kvcache.replay import DrainedQueue
from utils.labs.lab_3_3_2.experiments import Hits, Point, Routed, Structured


def hits_table(
    predicted: Mapping[str, Mapping[str, float]], measured: Mapping[str, Mapping[str, Hits]]
) -> pd.DataFrame:
    """Return the predicted and the measured hit rate of each engine and workload."""
    rows = []
    for engine, by_workload in measured.items():
        for workload, hits in by_workload.items():
            rate = predicted[engine][workload]
            counted = "" if hits.counted is None else f"{hits.counted:.1%}"
            rows.append(
                {
                    "engine": engine,
                    "workload": workload,
                    "prompt tokens": sum(hits.prompt),
                    "predicted": f"{rate:.1%}",
                    "measured (usage)": f"{hits.rate:.1%}",
                    "its own counters": counted,
                    "difference, points": round(100 * (hits.rate - rate), 1),
                }
            )
    return pd.DataFrame(rows).set_index(["engine", "workload"])


def curve_table(curves: Mapping[str, Sequence[Point]]) -> pd.DataFrame:
    """Return TTFT and its speed-up over a cold prompt, by engine and cached share."""
    rows = [
        {
            "engine": engine,
            "cached": f"{point.fraction:.0%}",
            "TTFT median (ms)": round(1000 * point.median),
            "TTFT, lowest to highest (ms)": f"{1000 * min(point.ttft_s):.0f} to "
            f"{1000 * max(point.ttft_s):.0f}",
            "times as fast as cold": round(points[0].median / point.median, 2),
        }
        for engine, points in curves.items()
        for point in points
    ]
    return pd.DataFrame(rows).set_index(["engine", "cached"])


def crowd_table(crowds: Mapping[str, Sequence[Run]]) -> pd.DataFrame:
    """Return the throughput of each engine in each turn, and the mean, in output tokens per second."""
    rows = {}
    for engine, runs in crowds.items():
        turns = {f"turn {i}": round(run.throughput, 1) for i, run in enumerate(runs, 1)}
        rows[engine] = turns | {"mean": round(mean(run.throughput for run in runs), 1)}
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("output tok/s of")


def structured_table(answers: Mapping[str, Sequence[Structured]]) -> pd.DataFrame:
    """Return valid answers and the pace of decoding, by engine and constraint."""
    rows = []
    for engine, kinds in answers.items():
        free = next(one for one in kinds if one.kind == "free").result.summary()
        for one in kinds:
            summary = one.result.summary()
            sent = len(one.result.traces)
            pace = 1000 / summary["median_tpot_ms"] if summary["median_tpot_ms"] else float("nan")
            pace_free = 1000 / free["median_tpot_ms"]
            checked = "" if one.kind == "free" else f"{sent - len(one.faults)} of {sent}"
            rows.append(
                {
                    "engine": engine,
                    "constraint": one.kind,
                    "valid": checked,
                    "tokens a second, one request": round(pace, 1),
                    "of free": f"{pace / pace_free:.0%}",
                    "TTFT median (ms)": round(summary["median_ttft_ms"], 1),
                    "tokens an answer": round(summary["total_output_tokens"] / sent, 1),
                }
            )
    return pd.DataFrame(rows).set_index(["engine", "constraint"])


def pace_left(kinds: Sequence[Structured], kind: str) -> float:
    """Return the pace of decoding under a constraint over that of free decoding."""
    tpot = {one.kind: one.result.summary()["median_tpot_ms"] for one in kinds}
    return float(tpot["free"] / tpot[kind])


def orders_table(
    measured: Mapping[str, tuple[Hits, Sequence[int]]],
    replayed: Mapping[str, DrainedQueue],
    groups: Sequence[int],
) -> pd.DataFrame:
    """Return, by rule, the hit rates and when the request that shares nothing was served.

    Args:
        measured: Hits and order of service of each rule.
        replayed: Result of the learner's tree for each rule.
        groups: Group of each request, and -1 for the request that shares nothing.
    """
    stranger = groups.index(-1)
    rows = [
        {
            "rule": rule,
            "hit rate, measured": f"{hits.rate:.1%}",
            "hit rate, your tree": f"{replayed[rule].hit_rate:.1%}",
            "stranger came as number": stranger + 1,
            "served as number, measured": order.index(stranger) + 1,
            "served as number, your tree": replayed[rule].order.index(stranger) + 1,
        }
        for rule, (hits, order) in measured.items()
    ]
    return pd.DataFrame(rows).set_index("rule")


def routes_table(routed: Sequence[Routed]) -> pd.DataFrame:
    """Return hit rate, balance, TTFT and failures of each policy."""
    rows = []
    for one in routed:
        total = sum(one.shares)
        shares = {
            f"prompt tokens, worker {i}": f"{share / total:.0%}" if total else "unknown"
            for i, share in enumerate(one.shares, 1)
        }
        rows.append(
            {
                "policy": one.policy,
                "hit rate": f"{one.rate:.1%}",
                **shares,
                "TTFT median (ms)": round(one.result.summary()["median_ttft_ms"]),
                "failed": f"{one.failed} of {len(one.result.traces)}",
            }
        )
    return pd.DataFrame(rows).set_index("policy")


def lost_table(routed: Routed) -> pd.DataFrame:
    """Return the requests without a whole answer: how far each came, and its error."""
    rows = [
        {"request": trace.index, "chunks received": len(trace.chunk_times), "error": trace.error}
        for trace in routed.result.traces
        if not trace.ok
    ]
    return pd.DataFrame(rows, columns=["request", "chunks received", "error"]).set_index("request")


def dead_workers(routed: Routed) -> str:
    """Return the names of the workers that died during a run, or "none"."""
    died = [f"worker {i}" for i, share in enumerate(routed.shares, 1) if math.isnan(share)]
    return ", ".join(died) or "none"
