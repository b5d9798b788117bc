"""Plot of lab 3.3.7: requests during faults."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from utils.benchmark.plot_style import MARKERS, PALETTE
from utils.benchmark.plots import log_axis
from utils.labs.lab_3_3_7.experiments import OUTCOMES, FaultRun


def plot_fault_runs(runs: Sequence[FaultRun]) -> Figure:
    """Draw when each request was sent and how long it took to end, with one row per run.

    Raises:
        ValueError: There is no run, or a run has no requests.
    """
    if not runs or not all(run.traces for run in runs):
        raise ValueError(
            "There is nothing to draw, because there is no run or a run has no requests."
        )
    figure, rows = plt.subplots(
        len(runs),
        1,
        figsize=(8, 1.5 * len(runs) + 0.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, run in zip(rows[:, 0], runs, strict=True):
        began = min(trace.sent for trace in run.traces)
        for outcome, colour, marker in zip(OUTCOMES, PALETTE, MARKERS, strict=False):
            of_it = [trace for trace in run.traces if run.outcome(trace) == outcome]
            sent = [trace.sent - began for trace in of_it]
            took = [1000 * (trace.finished - trace.sent) for trace in of_it]
            axes.scatter(sent, took, s=14, color=colour, marker=marker, label=outcome)
        if run.fault_at is not None:
            axes.axvline(
                run.fault_at - began, color="black", linestyle="--", linewidth=1, label="fault"
            )
        log_axis(axes, "y")
        axes.grid(alpha=0.3)
        axes.set_title(run.what, loc="left", fontsize="medium")
    figure.supylabel("milliseconds until it ended")
    rows[-1, 0].set_xlabel("seconds after the first request")
    handles, labels = rows[-1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), fontsize="small")
    figure.set_label(
        "Requests by the time they were sent and how long they took. "
        + "; ".join(map(_alt_text, runs))
        + "."
    )
    return figure


def _alt_text(run: FaultRun) -> str:
    seen = ", ".join(f"{run.count(outcome)} {outcome}" for outcome in OUTCOMES)
    longest = max(trace.finished - trace.sent for trace in run.traces)
    return f"{run.what}: {seen}, the longest {longest:.1f} s"
