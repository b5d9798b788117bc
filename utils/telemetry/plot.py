"""A run in one picture: the requests, and the engine's metrics meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from utils.telemetry.sampler import Series

# Okabe and Ito's palette, told apart by people with colour-blindness.
BLUE, ORANGE, GREEN, RED, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#999999"


class Traced(Protocol):
    """Fields of a request that are drawn; traces of `utils.benchmark` have them. Times: `perf_counter`, s."""

    @property
    def sent(self) -> float:
        """Time when it was sent."""

    @property
    def first_token(self) -> float | None:
        """Time when its first token came."""

    @property
    def finished(self) -> float:
        """Time when it ended."""


def plot_run(series: Series, traces: Sequence[Traced] = (), title: str = "") -> Figure:
    """Draw requests, queue and KV use over the same seconds.

    Args:
        series: The engine's readings.
        traces: Requests of the same run, as ``LoadResult.traces``.
        title: Title of the picture.

    Returns:
        The figure.
    """
    figure, axes = plt.subplots(
        3, 1, figsize=(9, 7.5), sharex=True, height_ratios=(2.2, 1, 1), layout="constrained"
    )
    _requests(axes[0], traces, series.started)
    _queue(axes[1], series)
    _cache(axes[2], series)
    axes[2].set_xlabel("time since the start (s)")
    figure.suptitle(title)
    plt.close(figure)
    return figure


def _requests(axes: Axes, traces: Sequence[Traced], started: float) -> None:
    for row, trace in enumerate(sorted(traces, key=lambda trace: trace.sent)):
        sent, end = trace.sent - started, trace.finished - started
        first = end if trace.first_token is None else trace.first_token - started
        axes.barh(row, first - sent, left=sent, color=ORANGE, height=0.8)
        axes.barh(row, end - first, left=first, color=BLUE, height=0.8)
    axes.barh(0, 0, color=ORANGE, label="until the first token (TTFT)")
    axes.barh(0, 0, color=BLUE, label="decoding")
    axes.set_ylabel("request")
    axes.invert_yaxis()
    _legend(axes)


def _queue(axes: Axes, series: Series) -> None:
    frame = series.to_frame()
    shown = False
    for name, colour, style in (("running", BLUE, "-"), ("waiting", RED, "--")):
        column = frame[name].dropna()
        if len(column):
            axes.step(column.index, column, where="post", color=colour, linestyle=style, label=name)
            shown = True
    axes.set_ylabel("requests")
    _legend_or_absence(axes, shown)


def _cache(axes: Axes, series: Series) -> None:
    frame = series.to_frame()
    usage = frame["kv_usage"].dropna() * 100
    if len(usage):
        axes.step(usage.index, usage, where="post", color=GREEN, label="KV cache in use")
        lost = frame["preemptions"].diff().fillna(0)
        times = lost.index[lost > 0]
        count = int(lost.sum())
        axes.plot(times, [103] * len(times), "v", color=RED, label=f"preemptions ({count} in all)")
    axes.set_ylim(0, 112)
    axes.set_ylabel("KV cache (%)")
    _legend_or_absence(axes, bool(len(usage)))


def _legend_or_absence(axes: Axes, shown: bool) -> None:
    if shown:
        _legend(axes)
    else:
        axes.text(0.5, 0.5, "not offered by this engine", transform=axes.transAxes, ha="center")


def _legend(axes: Axes) -> None:
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=3, fontsize="small", frameon=False)
