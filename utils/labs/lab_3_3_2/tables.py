"""The measurements of lab 3.3.2 in words and tables, computed from the runs handed in."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import mean

import pandas as pd

from utils.benchmark.engine_run import Run
from utils.kvcache.replay import Served
from utils.labs.lab_3_3_2.experiments import Hits, Point, Routed, Structured

Rates = Mapping[str, Mapping[str, float]]
NOISE_POINTS = 0.5
TARGET_POINTS = 5.0


def hits_table(
    predicted: Mapping[str, Mapping[str, float]], measured: Mapping[str, Mapping[str, Hits]]
) -> pd.DataFrame:
    """One row per engine and workload: predicted, measured, counted by the engine, and the difference."""
    rows = []
    for engine, by_workload in measured.items():
        for workload, hits in by_workload.items():
            said = predicted[engine][workload]
            counted = "" if hits.counted is None else f"{hits.counted:.1%}"
            rows.append(
                {
                    "engine": engine,
                    "workload": workload,
                    "prompt tokens": sum(hits.prompt),
                    "predicted": f"{said:.1%}",
                    "measured (usage)": f"{hits.rate:.1%}",
                    "its own counters": counted,
                    "difference, points": round(100 * (hits.rate - said), 1),
                }
            )
    return pd.DataFrame(rows).set_index(["engine", "workload"])


def explain_hits(predicted: Rates, measured: Mapping[str, Mapping[str, Hits]]) -> str:
    """Per engine: the worst difference from the prediction; where it is large, what can be the cause."""
    words = []
    for engine, by_workload in measured.items():
        off = {name: 100 * (h.rate - predicted[engine][name]) for name, h in by_workload.items()}
        worst = max(off, key=lambda name: abs(off[name]))
        words.append(f"{engine}: at most {abs(off[worst]):.1f} points from your tree ({worst}).")
        if off[worst] < -TARGET_POINTS:
            words.append(
                "  It found less: requests whose common prefix was still being computed, memory that was "
                "needed for others (evictions), or pages of another size than you assumed."
            )
        elif off[worst] > TARGET_POINTS:
            words.append(
                "  It found more than these prompts share: it had seen them before. Start it again."
            )
        elif abs(off[worst]) > NOISE_POINTS:
            words.append(
                "  Differences of a few tokens: prompts that happen to begin with the same word as "
                "something that is cached from before, or the end of a page."
            )
    return "\n".join(words)


def explain_cold(cold: Point, warm: Point) -> str:
    """TTFT cold against warm."""
    return (
        f"Nothing cached: TTFT {1000 * cold.median:.0f} ms. {warm.fraction:.0%} cached: "
        f"{1000 * warm.median:.0f} ms, {warm.median / cold.median:.2f} of it (measured, medians of "
        f"{len(cold.ttft_s)} and {len(warm.ttft_s)} requests)."
    )


def curve_table(curves: Mapping[str, Sequence[Point]]) -> pd.DataFrame:
    """One row per engine and share: TTFT, and how many times as fast as with nothing cached."""
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


def explain_crowds(crowds: Mapping[str, Sequence[Run]]) -> str:
    """Throughput of many requests behind one system prompt, by engine."""
    words = []
    pace = {}
    for name, runs in crowds.items():
        pace[name] = mean(run.throughput for run in runs)
        each = ", ".join(f"{run.throughput:.0f}" for run in runs)
        words.append(f"{name}: {pace[name]:.0f} output tok/s (measured; {each})")
    with_cache, without = pace.get("SGLang"), pace.get("SGLang, no radix cache")
    if with_cache and without:
        words.append(f"The radix cache makes {with_cache / without:.2f} times the throughput here.")
    return "\n".join(words)


def structured_table(answers: Mapping[str, Sequence[Structured]]) -> pd.DataFrame:
    """One row per engine and constraint: valid answers, and the pace of decoding."""
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
    """Pace of decoding under a constraint over that of free decoding, from the median TPOT."""
    tpot = {one.kind: one.result.summary()["median_tpot_ms"] for one in kinds}
    return float(tpot["free"] / tpot[kind])


def explain_orders(
    measured: Mapping[str, tuple[Hits, Sequence[int]]],
    replayed: Mapping[str, Served],
    groups: Sequence[int],
) -> str:
    """Per rule: hit rate measured and derived, and when the one who shares nothing was served."""
    stranger = groups.index(-1)
    words = []
    for name, (hits, order) in measured.items():
        said = replayed[name]
        words.append(
            f"{name}: hit rate {hits.rate:.1%} (measured), {said.hit_rate:.1%} (your tree); the request "
            f"that shares nothing came as number {stranger + 1} and was served as number "
            f"{order.index(stranger) + 1} (measured), {said.order.index(stranger) + 1} (your tree)."
        )
    return "\n".join(words)


def explain_routes(routed: Sequence[Routed]) -> str:
    """Per policy: hit rate, balance between the workers, and TTFT."""
    words = []
    for one in routed:
        total = sum(one.shares)
        split = " : ".join(f"{share / total:.0%}" for share in one.shares) if total else "unknown"
        ttft = one.result.summary()["median_ttft_ms"]
        words.append(
            f"{one.policy}: hit rate {one.rate:.1%}, prompt tokens {split}, TTFT median {ttft:.0f} ms, "
            f"{one.failed} of {len(one.result.traces)} failed (measured)."
        )
    return "\n".join(words)


def explain_death(routed: Routed) -> str:
    """What became of the requests when a worker was killed."""
    traces = routed.result.traces
    cut = [trace for trace in traces if not trace.ok]
    died = [f"worker {i + 1}" for i, share in enumerate(routed.shares) if math.isnan(share)]
    words = [
        f"{', '.join(died) or 'No worker'} died: {len(traces) - len(cut)} of {len(traces)} requests were "
        f"answered, {len(cut)} not (measured)."
    ]
    words += [
        f"  after {len(trace.chunk_times)} chunks of the answer: {trace.error}" for trace in cut
    ]
    return "\n".join(words)
