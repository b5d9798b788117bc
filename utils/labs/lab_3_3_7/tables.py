"""Tables of lab 3.3.7."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from utils.labs.lab_3_3_7.experiments import OUTCOMES, DrainRun, FaultRun, PolicyRun


def balance_table(runs: Sequence[PolicyRun]) -> pd.DataFrame:
    """Return one row per policy: hit rate, TTFT and each replica's share."""
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


def fault_table(runs: Sequence[FaultRun]) -> pd.DataFrame:
    """Return one row per fault: how requests ended for clients, and the gateway's retries."""
    rows = {}
    for run in runs:
        whole = run.whole_after_s
        rows[run.what] = {
            **{outcome: run.count(outcome) for outcome in OUTCOMES},
            "E2E median (ms)": round(run.e2e_ms(0.5)),
            "E2E p99 (ms)": round(run.e2e_ms(0.99)),
            "requests by engine": " / ".join(str(n) for _, n in sorted(run.shares.items())),
            "repeated, by reason": ", ".join(f"{r}: {n}" for r, n in run.retried.items()) or "none",
            "whole again (s)": "not within 10" if whole is None else round(whole, 1),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "fault (measured)"
    return frame


def drain_table(seen: DrainRun, phase: Callable[[float, int], str]) -> pd.DataFrame:
    """Return the observations during a drain, with the learner's phase at each moment.

    Args:
        seen: Observations.
        phase: Called with the seconds since SIGTERM and the number of running streams.
    """
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
