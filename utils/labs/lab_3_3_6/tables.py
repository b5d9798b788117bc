"""Tables of lab 3.3.6."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any

import pandas as pd

from utils.compiled.engine import Built
from utils.engines.tensorrt_llm_settings import SettingNote
from utils.labs.lab_3_3_6.experiments import TOLERANCE, Agreement, Times, speedups
from utils.labs.lab_3_3_6.ridge_point import Work, measured_ridge_point
from utils.roofline.machine import Machine

StepSeconds = Callable[[float, float, float, float], float]


def ridge_point_table(
    times: Mapping[int, float], work: Work, machine: Machine, predict: StepSeconds
) -> pd.DataFrame:
    """Return one row per number of tokens: intensity, predicted time, measured time and rates."""
    rows = {}
    for n, seconds in times.items():
        predicted = predict(n * work.flops_per_token, work.bytes, machine.flops, machine.bandwidth)
        rows[n] = {
            "FLOP per byte": round(n * work.flops_per_token / work.bytes, 1),
            "predicted (ms)": round(1000 * predicted, 2),
            "measured (ms)": round(1000 * seconds, 2),
            "measured / predicted": round(seconds / predicted, 2),
            "µs per token": round(1e6 * seconds / n, 1),
            "weights read (GB/s)": round(work.bytes / seconds / 1e9, 1),
            "multiplied (GFLOP/s)": round(n * work.flops_per_token / seconds / 1e9),
        }
    frame = pd.DataFrame.from_dict(rows, orient="index")
    frame.index.name = "tokens"
    return frame


def overlap_table(times: Mapping[int, float]) -> pd.DataFrame:
    """Compare a step near the measured ridge point with full overlap and with none.

    The fewest tokens tell how long reading the weights takes, and the most tokens how long multiplying a
    token takes. At the ridge point both take the same time.

    Args:
        times: Seconds by number of tokens.
    """
    few, most = min(times), max(times)
    at = min(times, key=lambda n: abs(n - measured_ridge_point(times)))
    reading, computing = times[few], at * times[most] / most
    row = {
        "if they overlap (ms)": round(1000 * max(reading, computing), 2),
        "if they take turns (ms)": round(1000 * (reading + computing), 2),
        "measured (ms)": round(1000 * times[at], 2),
    }
    return pd.DataFrame(row, index=pd.Index([at], name="tokens"))


def whole_table(
    prefill: Mapping[int, float],
    decode: Mapping[int, float],
    matrices: Mapping[int, float],
    work: Work,
    machine: Machine,
    predict: StepSeconds,
) -> pd.DataFrame:
    """Compare prefill and decode of the whole model with the roofline and with the matrices alone."""
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


def built_table(built: Mapping[str, Built]) -> pd.DataFrame:
    """Return one row per engine file: time to build it, size, and time to load it."""
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


def agreement_table(found: Mapping[str, Agreement]) -> pd.DataFrame:
    """Return one row per way of running the model: how far its numbers differ from eager's."""
    rows = {
        name: {
            f"within {TOLERANCE:g}": one.within,
            "largest difference of a logit": f"{one.logits:.1e}",
            "largest logit": round(one.scale, 1),
            "largest difference of a key or value": f"{one.cache:.1e}",
            f"the same {one.tokens} greedy tokens": one.same_tokens,
        }
        for name, one in found.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")


def times_table(times: Times) -> pd.DataFrame:
    """Return one row per work and way: median time, and speed-up over eager with its range."""
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


def notes_table(
    cases: Mapping[str, Mapping[str, Any]],
    remarks: Callable[[Mapping[str, Any]], Sequence[SettingNote]],
) -> pd.DataFrame:
    """Return a row per remark on each file of settings."""
    rows = [
        {
            "settings": name,
            "TensorRT-LLM": note.effect,
            "because": note.text,
            "read in": note.source,
        }
        for name, values in cases.items()
        for note in remarks(values)
    ]
    return pd.DataFrame(rows, columns=["settings", "TensorRT-LLM", "because", "read in"]).set_index(
        "settings"
    )


def not_run(reasons: Sequence[tuple[str, str]]) -> pd.DataFrame:
    """List the experiments that didn't run here, with the reason."""
    rows = [{"what": what, "reason": reason} for what, reason in reasons if reason]
    return pd.DataFrame(rows, columns=["what", "reason"]).set_index("what")
