"""The fault day of lab 3.3.7 as a picture."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from utils.benchmark.plot_style import MARKERS, PALETTE
from utils.benchmark.plots import log_axis
from utils.labs.lab_3_3_7.experiments import FATES, Day


def plot_days(days: Sequence[Day]) -> Figure:
    """One row a day: when each request was sent, and how long it took until its answer or its error.

    Raises:
        ValueError: There is no day, or one without requests.
    """
    if not days or not all(day.traces for day in days):
        raise ValueError("there is no day to draw, or one without requests")
    figure, rows = plt.subplots(
        len(days),
        1,
        figsize=(8, 1.5 * len(days) + 0.6),
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, day in zip(rows[:, 0], days, strict=True):
        began = min(trace.sent for trace in day.traces)
        for fate, colour, marker in zip(FATES, PALETTE, MARKERS, strict=False):
            of_it = [trace for trace in day.traces if day.fate(trace) == fate]
            sent = [trace.sent - began for trace in of_it]
            took = [1000 * (trace.finished - trace.sent) for trace in of_it]
            axes.scatter(sent, took, s=14, color=colour, marker=marker, label=fate)
        if day.fault_at is not None:
            axes.axvline(
                day.fault_at - began, color="black", linestyle="--", linewidth=1, label="fault"
            )
        log_axis(axes, "y")
        axes.grid(alpha=0.3)
        axes.set_title(day.what, loc="left", fontsize="medium")
    figure.supylabel("milliseconds until it ended")
    rows[-1, 0].set_xlabel("seconds after the first request")
    handles, labels = rows[-1, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper right", ncols=len(labels), fontsize="small")
    figure.set_label(
        "Requests by the time they were sent and how long they took. "
        + "; ".join(map(_told, days))
        + "."
    )
    return figure


def _told(day: Day) -> str:
    seen = ", ".join(f"{day.count(fate)} {fate}" for fate in FATES)
    longest = max(trace.finished - trace.sent for trace in day.traces)
    return f"{day.what}: {seen}, the longest {longest:.1f} s"
