"""Tables and guards of lab 3.3.5, computed from its runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import mean

import pandas as pd

from utils.labs.lab_3_3_5.experiments import Level
from utils.speculative.comparison import ServedSpeculation, SpeculationResult

TARGET_SPEEDUP = 2.5
TARGET_ACCEPTANCE = 3.0
BROKEN = 0.5  # share of the accepted guesses below which an engine's sampling is not ours


def probe_table(accuracy: Mapping[str, float]) -> pd.DataFrame:
    """Return a row per input of the probe: right guesses, and the gain over the token alone."""
    alone = next(iter(accuracy.values()))
    rows = {
        name: {"right": f"{share:.1%}", "gain (points)": f"{100 * (share - alone):+.1f}"}
        for name, share in accuracy.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def guess_table(accuracy: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Return a row per draft: right guesses by number of the guess, and the change from first to last."""
    rows = {
        name: {f"guess {i}": f"{share:.0%}" for i, share in enumerate(shares, 1)}
        | {"first to last (points)": f"{100 * (shares[-1] - shares[0]):+.0f}"}
        for name, shares in accuracy.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def same_table(same: Mapping[str, tuple[int, int]]) -> pd.DataFrame:
    """Return a row per method: answers that are plain decoding's, token for token."""
    rows = {
        name: {"answers": count, "same as plain": equal, "share": f"{equal / count:.1%}"}
        for name, (equal, count) in same.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def targets_table(results: Mapping[str, SpeculationResult]) -> pd.DataFrame:
    """Return a row per target of the course: the best EAGLE-3 method, and whether it reaches the target."""
    own = {name: result for name, result in results.items() if name.startswith("EAGLE-3")}
    fastest = max(own, key=lambda name: own[name].speedup)
    longest = max(own, key=lambda name: own[name].acceptance_length)
    over_lookup = own[fastest].speedup / results["n-gram"].speedup
    rows = {
        "speed-up": (fastest, own[fastest].speedup, TARGET_SPEEDUP),
        "acceptance length": (longest, own[longest].acceptance_length, TARGET_ACCEPTANCE),
        "speed-up over n-gram's": (fastest, over_lookup, 1.0),
    }
    return pd.DataFrame.from_dict(
        {
            name: {
                "best method": method,
                "measured": round(value, 2),
                "target": target,
                "reached": "yes" if value >= target else "NO",
            }
            for name, (method, value, target) in rows.items()
        },
        orient="index",
    )


def cost_table(
    results: Mapping[str, SpeculationResult],
    costs: Mapping[int, float],
    drafting: Mapping[str, float],
) -> pd.DataFrame:
    """Return a row per method: the cost of a cycle in plain steps, and the speed-up that it explains.

    The last columns tell how far a method is from the course's target: the acceptance length that it would
    need at its cost, and the cost that it could afford at its acceptance length.

    Args:
        results: Result of each method.
        costs: Seconds of a forward pass over n tokens, by n.
        drafting: Seconds of a draft, by method.
    """
    rows = {}
    for name, result in results.items():
        if name == "plain":
            continue
        drafted = [n for g in result.generations for n in g.drafted]
        verify = mean(_interpolated(costs, n + 1) for n in drafted) / costs[1]
        draft = drafting[name] / costs[1]
        length = result.acceptance_length
        rows[name] = {
            "tokens verified": round(1 + mean(drafted), 1),
            "verification / T(1)": round(verify, 2),
            "draft / T(1)": round(draft, 2),
            "acceptance length": round(length, 2),
            "speed-up, derived": round(length / (verify + draft), 2),
            "speed-up, measured": round(result.speedup, 2),
            f"acceptance length for {TARGET_SPEEDUP}": round(TARGET_SPEEDUP * (verify + draft), 2),
            f"cycle for {TARGET_SPEEDUP}": round(length / TARGET_SPEEDUP, 2),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def position_table(shares: Mapping[str, Sequence[float]]) -> pd.DataFrame:
    """Return a row per program: share of the drafts whose guess 1, 2, ... was accepted."""
    rows = {
        name: {f"guess {i}": f"{share:.1%}" for i, share in enumerate(own, 1)}
        for name, own in shares.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def _interpolated(costs: Mapping[int, float], n: int) -> float:
    """Return the seconds of n tokens, on the line between the sizes that were measured."""
    below = max((size for size in costs if size <= n), default=min(costs))
    above = min((size for size in costs if size >= n), default=max(costs))
    if above == below:
        return costs[below]
    share = (n - below) / (above - below)
    return (1 - share) * costs[below] + share * costs[above]


def agreement_table(own: SpeculationResult, served: ServedSpeculation) -> pd.DataFrame:
    """Return a row per program: drafts, accepted guesses and acceptance length of the same draft."""
    steps = [n for g in own.generations for n in g.accepted]
    rows = {
        "our own loop": (len(steps), sum(steps) - len(steps), own.acceptance_length),
        "vLLM's counters": (
            int(served.drafts or 0),
            int(served.accepted or 0),
            served.acceptance_length,
        ),
    }
    return pd.DataFrame.from_dict(
        {
            name: {"drafts": drafts, "accepted": accepted, "acceptance length": round(length, 3)}
            for name, (drafts, accepted, length) in rows.items()
        },
        orient="index",
    )


def served_table(served: Mapping[str, ServedSpeculation], base: str = "plain") -> pd.DataFrame:
    """Return a row per way of serving: speed of one request at a time, acceptance, same answers."""
    plain = served[base]
    rows = {}
    for name, own in served.items():
        same = sum(a == b for a, b in zip(plain.texts, own.texts, strict=True))
        rows[name] = {
            "output tok/s": round(own.run.throughput, 1),
            "times plain": round(own.run.throughput / plain.run.throughput, 2),
            "acceptance length": round(own.acceptance_length, 2),
            "same answers as plain": f"{same} of {len(own.texts)}",
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def ratios(
    found: Mapping[str, Sequence[Level]], temperature: float, name: str, base: str = "plain"
) -> dict[int, float]:
    """Return the throughput over plain's by requests in flight, at one temperature."""
    return {
        a.concurrency: mean(a.throughput) / mean(b.throughput)
        for a, b in zip(found[name], found[base], strict=True)
        if a.temperature == temperature
    }


def crossover_table(found: Mapping[str, Sequence[Level]], base: str = "plain") -> pd.DataFrame:
    """Return a row per temperature and level: throughput of each, their ratio, acceptance."""
    rows = []
    for name in (n for n in found if n != base):
        for a, b in zip(found[name], found[base], strict=True):
            rows.append(
                {
                    "temperature": a.temperature,
                    "in flight": a.concurrency,
                    f"{base}, tok/s": round(mean(b.throughput), 1),
                    f"{name}, tok/s": round(mean(a.throughput), 1),
                    "ratio": round(mean(a.throughput) / mean(b.throughput), 2),
                    "acceptance length": round(a.acceptance, 2),
                }
            )
    return pd.DataFrame(rows).set_index(["temperature", "in flight"])


def temperature_table(accepted: Mapping[float, float]) -> pd.DataFrame:
    """Return a row per temperature: acceptance length of our own loop, and the change from the first row."""
    first = next(iter(accepted.values()))
    rows = {
        temperature: {"acceptance length": round(length, 2), "change": f"{length - first:+.2f}"}
        for temperature, length in accepted.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index").rename_axis("temperature")


def warn_other_sampling(counted: float, own: float) -> None:
    """Warn if an engine accepts so little at temperature 1 that it can't sample from the target.

    Args:
        counted: Acceptance length by the engine's counters.
        own: Acceptance length of our own loop, which samples exactly.
    """
    if counted - 1 < BROKEN * (own - 1):
        print(
            f"THE ENGINE'S SAMPLING IS NOT THE TARGET'S: {counted:.2f} tokens a step, but {own:.2f} in "
            "our own loop. Don't use its answers at this temperature."
        )
