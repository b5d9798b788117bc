"""The measurements of lab 3.3.6 in words and tables, computed from the runs handed in."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median

import pandas as pd

from utils.compiled.engine import Built
from utils.labs.lab_3_3_6.experiments import TOLERANCE, Agreement, Times, speedups
from utils.labs.lab_3_3_6.ridge_point import Work, matrix_rate, matrix_vector_rate, measured_knee
from utils.roofline.machine import Machine

CLOSE = 0.30  # a prediction within this part of the measurement counts as met
StepSeconds = Callable[[float, float, float, float], float]


def knee_table(
    times: Mapping[int, float], work: Work, machine: Machine, predict: StepSeconds
) -> pd.DataFrame:
    """One row per number of tokens: intensity, time predicted by the roofline, time measured."""
    rows = {}
    for n, seconds in times.items():
        predicted = predict(n * work.flops_per_token, work.bytes, machine.flops, machine.bandwidth)
        rows[n] = {
            "FLOP per byte": round(n * work.flops_per_token / work.bytes, 1),
            "predicted (ms)": round(1000 * predicted, 2),
            "measured (ms)": round(1000 * seconds, 2),
            "measured / predicted": round(seconds / predicted, 2),
            "µs per token": round(1e6 * seconds / n, 1),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "tokens"
    return frame


def explain_knee(
    times: Mapping[int, float], work: Work, machine: Machine, predict: StepSeconds
) -> str:
    """Whether the roofline was met at its two ends, and what the difference is made of."""
    few, most = min(times), max(times)
    lines = []
    for n, name in ((most, "computing"), (few, "reading")):
        predicted = predict(n * work.flops_per_token, work.bytes, machine.flops, machine.bandwidth)
        ratio = times[n] / predicted
        met = "met within 30 %" if abs(ratio - 1) <= CLOSE else "not met"
        lines.append(f"{n} tokens ({name}): {ratio:.2f} times the predicted time, {met}.")
    vector, matrix = matrix_vector_rate(work, times), matrix_rate(work, times)
    lines.append(
        f"The difference, measured: {few} token{'s' if few > 1 else ''} went through the weights at "
        f"{vector / 1e9:.1f} GB/s, where plain reading reached {machine.bandwidth / 1e9:.1f}: "
        "what is missing is "
        f"the cost of many small products, not the memory. {most} tokens ran at "
        f"{matrix / 1e9:.0f} GFLOP/s of "
        f"{machine.flops / 1e9:.0f}."
    )
    return "\n".join(lines)


def explain_between(times: Mapping[int, float]) -> str:
    """Whether reading and multiplying went on at the same time near the knee, in words.

    The two ends of the measurement say how long reading takes, and multiplying a token; at the knee both take
    the same time, so a step takes that once if they overlap, twice if not.
    """
    few, most = min(times), max(times)
    at = min(times, key=lambda n: abs(n - measured_knee(times)))
    reading, computing = times[few], at * times[most] / most
    overlapped, apart = max(reading, computing), reading + computing
    return (
        f"Measured knee: {measured_knee(times):.1f} tokens. Near it, at {at} tokens, a step would take "
        f"{1000 * overlapped:.1f} ms if reading and multiplying overlapped wholly, "
        f"{1000 * apart:.1f} ms if they "
        f"did not at all; measured: {1000 * times[at]:.1f} ms."
    )


def whole_table(
    prefill: Mapping[int, float],
    decode: Mapping[int, float],
    matrices: Mapping[int, float],
    work: Work,
    machine: Machine,
    predict: StepSeconds,
) -> pd.DataFrame:
    """Prefill by prompt length and decode by batch, beside the roofline and the matrices alone."""
    rows = {}
    for name, times in (("prefill", prefill), ("decode", decode)):
        for n, seconds in times.items():
            bound = predict(n * work.flops_per_token, work.bytes, machine.flops, machine.bandwidth)
            rows[f"{name}, {n} {'tokens' if name == 'prefill' else 'requests'}"] = {
                "roofline (ms)": round(1000 * bound, 2),
                "matrices alone (ms)": round(1000 * matrices[n], 2),
                "whole model (ms)": round(1000 * seconds, 2),
                "whole / roofline": round(seconds / bound, 2),
                "not matrices": f"{max(0.0, 1 - matrices[n] / seconds):.0%}",
                "tokens per second": round(n / seconds),
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def explain_whole(
    prefill: Mapping[int, float], decode: Mapping[int, float], matrices: Mapping[int, float]
) -> str:
    """Where the whole model's time goes beyond its matrices, in words."""
    long, one = max(prefill), min(decode)
    return (
        f"Of prefill over {long} tokens {matrices[long] / prefill[long]:.0%} is the matrices' "
        "time, of decoding "
        f"{one} token {min(1.0, matrices[one] / decode[one]):.0%}. The rest is attention, norms "
        "and, at decode, "
        "hundreds of small operations that PyTorch starts one by one: that is what a compiled "
        "engine can take away."
    )


def built_table(built: Mapping[str, Built]) -> pd.DataFrame:
    """One row per engine file: how long it took, how large it is, how fast it loads."""
    rows = {
        name: {
            "export (s)": round(one.export_s, 1),
            "compile (s)": round(one.compile_s, 1),
            "file (MB)": round(one.bytes / 1e6, 1),
            "load (s)": round(one.load_s, 2),
        }
        for name, one in built.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def explain_agreement(found: Mapping[str, Agreement]) -> str:
    """How far each way of running differs from eager, in words."""
    lines = []
    for name, one in found.items():
        verdict = "the same within" if one.within else "NOT the same within"
        lines.append(
            f"{name}: {verdict} {TOLERANCE:g} (logits differ by at most {one.logits:.1e}, of "
            f"{one.scale:.0f}; keys "
            f"and values by {one.cache:.1e}); {one.tokens} greedy tokens "
            f"{'the same' if one.same_tokens else 'differ'}."
        )
    return "\n".join(lines)


def times_table(times: Times) -> pd.DataFrame:
    """One row per work and way: median time, and speed-up over eager with its range."""
    rows = {}
    for work, ways in times.items():
        gains = speedups(ways)
        for name, seconds in ways.items():
            own = gains.get(name, [1.0])
            rows[f"{work}: {name}"] = {
                "median (ms)": round(1000 * median(seconds), 2),
                "times eager's speed": round(median(own), 2),
                "least ... most": f"{min(own):.2f} ... {max(own):.2f}",
            }
    return pd.DataFrame.from_dict(rows, orient="index")


def explain_times(times: Times, name: str = "built engine") -> str:
    """Where the built engine is faster than eager, in words."""
    told = [
        f"{work}: {median(speedups(ways)[name]):.2f} times"
        for work, ways in times.items()
        if name in ways
    ]
    return f"The {name} against eager, measured in one run in turn: " + "; ".join(told) + "."


def not_run(reasons: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """What did not run here, by name and reason."""
    rows = [{"what": what, "reason": reason} for what, reason in reasons if reason]
    return pd.DataFrame(rows, columns=["what", "reason"]).set_index("what")
