"""Plots of records.

Each has units, colours and markers that colour-blind people can tell apart, and a text for those
who cannot see it (`alt_text`).
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from html import escape
from itertools import cycle
from typing import Any, Literal

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogFormatter

from utils.benchmark.condition import load_text, repeats, series_names
from utils.benchmark.plot_style import MARKERS, PALETTE
from utils.benchmark.record import Record
from utils.benchmark.records import without_duplicates
from utils.benchmark.stats import PERCENTILES, Latency, supported
from utils.benchmark.trace import Clock

CLOCKS: tuple[Clock, Clock] = ("scheduled", "sent")


def plot_throughput(records: Sequence[Record]) -> Figure:
    """Plot output tokens per second against requests in flight, one line per engine and condition.

    Repeats at the same concurrency give the mean and a bar from the lowest to the highest. The legend
    marks an engine that isn't ranked.

    Raises:
        ValueError: If no record is of a closed loop.
    """
    closed = without_duplicates(r for r in records if r.load.get("pattern") == "closed")
    lines = _series(closed, "concurrency", lambda record: record.summary.get("output_throughput"))
    if not lines:
        raise ValueError("no closed-loop records to plot throughput of")
    figure, axes = _canvas("Throughput against concurrency")
    texts = []
    for (label, points), style in zip(lines.items(), _styles(), strict=False):
        _line(axes, points, label, style)
        means = {level: float(np.mean(values)) for level, values in points.items()}
        texts.append(f"{label}: " + ", ".join(f"{v:,.0f} at {k:g}" for k, v in means.items()))
    levels = sorted({level for points in lines.values() for level in points})
    axes.set_xscale("log", base=2)
    axes.set_xticks(levels, [f"{level:g}" for level in levels])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("requests in flight")
    axes.set_ylabel("output throughput (tok/s)")
    axes.legend()
    return _described(figure, "Output tokens per second by requests in flight. ", texts)


def plot_distributions(records: Sequence[Record]) -> Figure:
    """Plot cumulative distributions of TTFT and ITL, one curve for all repeats of a measurement.

    Raises:
        ValueError: If no record has a first token.
    """
    groups = list(repeats(records).values())
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    texts = []
    names = _names([group[0] for group in groups])
    for group, name, (colour, marker) in zip(groups, names, _styles(), strict=False):
        clock = group[0].load.get("clock", "sent")
        traces = [trace for record in group for trace in record.traces]
        ttfts = [t.ttft(clock) for t in traces if t.ok and t.first_token is not None]
        gaps = [gap for trace in traces for gap in trace.itls]
        for axes, seconds in ((left, ttfts), (right, gaps)):
            if seconds:
                values = np.sort(seconds) * 1000
                share = np.arange(1, len(values) + 1) / len(values)
                every = max(1, len(values) // 8)
                axes.step(
                    values, share, where="post", color=colour, marker=marker, markevery=every,
                    label=legend_text(name),
                )  # fmt: skip
        if ttfts:
            texts.append(
                f"{name}: median TTFT {np.median(ttfts) * 1000:.1f} ms"
                + (f", median ITL {np.median(gaps) * 1000:.2f} ms" if gaps else "")
            )
    if not texts:
        plt.close(figure)
        raise ValueError("no record holds a streamed answer")
    for axes, title in ((left, "Time to first token"), (right, "Gap between chunks (ITL)")):
        axes.set_title(title)
        log_axis(axes, "x")
        axes.set_xlabel("milliseconds")
        axes.set_ylabel("share of requests" if axes is left else "share of gaps")
        axes.set_ylim(0, 1.02)
        axes.grid(alpha=0.3)
    left.legend()
    return _described(figure, "Cumulative distributions of TTFT and ITL. ", texts)


def plot_latency_against_rate(records: Sequence[Record], percentile: int = 95) -> Figure:
    """Plot end-to-end latency against request rate, counted from due and from sent.

    Args:
        records: Records, of which those of open loops count.
        percentile: 50, 90, 95 or 99. If a run has too few requests for it, the plot takes the next lower one.

    Raises:
        ValueError: If no record of an open loop has two successes.
    """
    records = without_duplicates(r for r in records if r.load.get("pattern") == "open")
    counts = [sum(trace.ok for trace in record.traces) for record in records]
    records = [record for record, count in zip(records, counts, strict=True) if count > 1]
    if not records:
        raise ValueError("no open-loop records to plot latency of")
    fewest = min(count for count in counts if count > 1)
    usable = [p for p in PERCENTILES if p <= percentile and supported(p, fewest)]
    statistic = f"p{max(usable)}"
    figure, axes = _canvas(f"Latency against request rate ({statistic})")
    texts = []
    named: dict[str, list[Record]] = {}
    for record, name in zip(records, series_names([_by_engine(r) for r in records]), strict=True):
        named.setdefault(name, []).append(record)
    for (engine, actual), style in zip(named.items(), _styles(), strict=False):
        due, sent = (
            _points(actual, "request_rate", partial(_latency_ms, clock=clock, statistic=statistic))
            for clock in CLOCKS
        )
        _line(axes, due, f"{engine}, from when it was due", style)
        _line(axes, sent, f"{engine}, from when it was sent", style, dashed=True)
        texts.append(
            f"{engine}: " + ", ".join(f"{np.mean(v):,.0f} ms at {k:g}/s" for k, v in due.items())
        )
    axes.set_xlabel("requests due per second")
    axes.set_ylabel("end-to-end latency (ms)")
    log_axis(axes, "y")
    axes.legend()
    return _described(figure, f"{statistic} end-to-end latency by request rate. ", texts)


def _latency_ms(record: Record, *, clock: Clock, statistic: str) -> float:
    return Latency.of(trace.e2el(clock) for trace in record.traces).statistic(statistic)


def legend_text(label: str) -> str:
    """Return a label for matplotlib: $ is no formula; a "_" in front, which would hide it, goes."""
    return label.replace("$", r"\$").lstrip("_") or "(no name)"


def alt_text(figure: Figure) -> str:
    """Return a description of a plot in words."""
    return str(figure.get_label())


def html_image(figure: Figure) -> str:
    """Return an `<img>` element that holds the picture itself and its text."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    data = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(alt_text(figure))}" src="data:image/png;base64,{data}">'


def log_axis(axes: Axes, which: Literal["x", "y"]) -> None:
    """A logarithmic axis with plain numbers."""
    axis = axes.xaxis if which == "x" else axes.yaxis
    (axes.set_xscale if which == "x" else axes.set_yscale)("log")
    axis.set_major_formatter(LogFormatter())
    axis.set_minor_formatter(LogFormatter(labelOnlyBase=False, minor_thresholds=(2, 0.4)))


def _canvas(title: str) -> tuple[Figure, Axes]:
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.set_title(title)
    axes.grid(alpha=0.3)
    return figure, axes


def _described(figure: Figure, start: str, texts: Sequence[str]) -> Figure:
    figure.set_label(start + "; ".join(texts) + ".")
    return figure


def _styles() -> cycle[tuple[str, str]]:
    return cycle(zip(PALETTE, MARKERS, strict=True))


def _series(
    records: Sequence[Record], key: str, value: Callable[[Record], Any]
) -> Mapping[str, dict[float, list[float]]]:
    named: dict[str, list[Record]] = {}
    for record, name in zip(records, series_names(records), strict=True):
        named.setdefault(name + (", not ranked" if record.handicaps else ""), []).append(record)
    lines = {name: _points(group, key, value) for name, group in named.items()}
    return {name: points for name, points in lines.items() if points}


def _by_engine(record: Record) -> Record:
    """Return a record whose label is its engine, because labels of open loops name their rates."""
    return replace(record, label=record.engine)


def _points(
    records: Sequence[Record], key: str, value: Callable[[Record], Any]
) -> dict[float, list[float]]:
    """Return values by load level, ascending, without levels that could not be measured."""
    points: dict[float, list[float]] = {}
    for record in sorted(records, key=lambda record: float(record.load[key])):
        if value(record) is not None:
            points.setdefault(float(record.load[key]), []).append(float(value(record)))
    return points


def _line(
    axes: Axes,
    points: Mapping[float, list[float]],
    label: str,
    style: tuple[str, str],
    *,
    dashed: bool = False,
) -> None:
    colour, marker = style
    mean = np.array([np.mean(values) for values in points.values()])
    low = np.array([min(values) for values in points.values()])
    high = np.array([max(values) for values in points.values()])
    axes.errorbar(
        list(points), mean, yerr=[mean - low, high - mean], color=colour, marker=marker,
        linestyle="--" if dashed else "-", capsize=3, label=legend_text(label),
        markerfacecolor="white" if dashed else colour,
    )  # fmt: skip


def _names(records: Sequence[Record]) -> list[str]:
    """Labels, with the load where several records share one."""
    labels = [record.label for record in records]
    return [
        name if labels.count(record.label) == 1 else f"{name}, {load_text(record)}"
        for name, record in zip(series_names(records), records, strict=True)
    ]
