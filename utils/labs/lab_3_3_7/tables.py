"""The measurements of lab 3.3.7 in words and tables, computed from the runs handed in."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from utils.labs.lab_3_3_7.experiments import FATES, Balanced, Day, Drained


def balance_table(runs: Sequence[Balanced]) -> pd.DataFrame:
    """One row for each policy."""
    rows = {
        run.policy: {
            "hit rate": f"{run.hit_rate:.1%}",
            "TTFT median (ms)": round(run.ttft_ms, 1),
            "requests by replica": ", ".join(f"{n}: {c}" for n, c in sorted(run.shares.items())),
        }
        for run in runs
    }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "policy (measured)"
    return frame


def explain_balance(turn: Balanced, affinity: Balanced) -> str:
    """What affinity bought, or did not."""
    points = 100 * (affinity.hit_rate - turn.hit_rate)
    times = turn.ttft_ms / affinity.ttft_ms
    words = (
        f"With prefix affinity {points:+.1f} points of prompt tokens were found in a cache; median "
        f"TTFT was {affinity.ttft_ms:.0f} ms against {turn.ttft_ms:.0f} ms ({times:.2f} times as fast)."
    )
    if times < 1.1:
        words += (
            " That is little or nothing: computing a beginning again is cheap here next to everything "
            "else that a first token takes, or the replicas' loads were too uneven."
        )
    return words


def fault_table(days: Sequence[Day]) -> pd.DataFrame:
    """One row for each fault: what clients saw, and what the gateway did about it."""
    rows = {}
    for day in days:
        whole = day.whole_after_s
        rows[day.what] = {
            **{fate: day.count(fate) for fate in FATES},
            "E2E median (ms)": round(day.e2e_ms(0.5)),
            "E2E p99 (ms)": round(day.e2e_ms(0.99)),
            "requests by engine": " / ".join(str(n) for _, n in sorted(day.shares.items())),
            "repeated, by reason": ", ".join(f"{r}: {n}" for r, n in day.retried.items()) or "none",
            "whole again (s)": "not within 10" if whole is None else round(whole, 1),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "fault (measured)"
    return frame


def explain_day(day: Day) -> str:
    """One fault in a sentence."""
    answered = day.count("answered")
    bad = len(day.traces) - answered
    words = f"{day.what}: {answered} of {len(day.traces)} requests had a whole answer"
    words += f", {bad} an error that says so" if bad else ", nobody saw an error"
    again = sum(day.retried.values())
    return words + (f"; {again} attempts were repeated unseen." if again else ".")


def drain_table(seen: Drained, phase: Callable[[float, int], str]) -> pd.DataFrame:
    """What was seen, beside what `phase(seconds, in_flight)` says should happen."""
    rows = [
        {
            "s since SIGTERM": round(at, 1),
            "streams running": seen.running_at(at),
            "your phase": phase(at, seen.running_at(at)),
            "/health/ready": ready or "no connection",
            "a new request": new or "no connection",
        }
        for at, ready, new in seen.moments
    ]
    step = max(1, len(rows) // 12)
    return pd.DataFrame(rows[::step]).set_index("s since SIGTERM")


def explain_drain(seen: Drained) -> str:
    """Who was cut off."""
    whole = sum(end is not None for end in seen.finished)
    return (
        f"{whole} of {len(seen.finished)} running streams ended whole, the last "
        f"{max((e for e in seen.finished if e is not None), default=0.0):.1f} s after SIGTERM; the process "
        f"ended after {seen.ended_s:.1f} s."
    )
