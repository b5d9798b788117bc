"""Pictures of lab 3.3.6. Colours are those of Okabe and Ito, told apart with colour-blindness."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from utils.benchmark.plot_style import BLUE, GREEN, GREY, ORANGE, RED
from utils.labs.lab_3_3_6.chunked_prefill import Waits, typical
from utils.labs.lab_3_3_6.quantisation import Variant
from utils.labs.lab_3_3_6.ridge_point import Work, measured_ridge_point
from utils.roofline.machine import Machine


def plot_ridge_point(times: Mapping[int, float], work: Work, machine: Machine) -> Figure:
    """Draw the time of a step against its tokens, with the roofline's two lines."""
    figure, axes = plt.subplots(figsize=(7.5, 4.2), layout="constrained")
    n = np.array(sorted(times), dtype=float)
    reading = np.full_like(n, work.bytes / machine.bandwidth)
    axes.loglog(n, 1000 * reading, "--", color=GREEN, label="reading the weights (predicted)")
    computing = n * work.flops_per_token / machine.flops
    axes.loglog(n, 1000 * computing, "--", color=ORANGE, label="multiplying (predicted)")
    measured = [1000 * times[int(tokens)] for tokens in n]
    axes.loglog(n, measured, "o-", color=BLUE, label="measured")
    axes.axvline(measured_ridge_point(times), color=GREY, lw=1, label="measured ridge point")
    axes.set_xlabel("tokens in the step (prompt tokens, or requests that decode)")
    axes.set_ylabel("time of the step (ms)")
    axes.legend(frameon=False, fontsize="small")
    plt.close(figure)
    return figure


def plot_waits(found: Mapping[str, Sequence[Waits]]) -> Figure:
    """Draw the long request's TTFT against the longest wait of the others, a point per run."""
    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    marks = zip(found.items(), (BLUE, ORANGE, GREEN, RED), "os^D", strict=False)
    for (name, runs), colour, mark in marks:
        x, y = [w.stall_s for w in runs], [w.ttft_s for w in runs]
        axes.plot(x, y, mark, color=colour, alpha=0.5)
        one = typical(runs)
        axes.plot(one.stall_s, one.ttft_s, mark, color=colour, ms=11, label=name)
    axes.set_xlabel("longest wait of the others for a token (s)")
    axes.set_ylabel("TTFT of the long request (s)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize="small")
    plt.close(figure)
    return figure


def plot_variants(found: Mapping[str, Variant]) -> Figure:
    """Draw quality and speed of the variants side by side, in the same order."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", sharey=True)
    names = list(found)
    left.plot([found[name].judged.perplexity for name in names], names, "o", color=BLUE, ms=9)
    left.set_xlabel("perplexity (lower is better)")
    right.barh(names, [found[name].speed for name in names], color=GREEN)
    right.set_xlabel("output tokens per second")
    left.grid(axis="x", alpha=0.4)
    left.invert_yaxis()
    plt.close(figure)
    return figure
