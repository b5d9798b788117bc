"""Plots of lab 3.3.3."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import ScalarFormatter

from utils.benchmark.engine_run import Run
from utils.benchmark.plot_style import BLUE, GREEN, GREY, ORANGE, OWNERS, RED, SKY
from utils.kvcache.blocks import BlockPool, BlockTable
from utils.kvcache.simulate import Prediction
from utils.labs.lab_3_3_3.experiments import latency_at, throughput_at
from utils.labs.lab_3_3_3.fragmentation import MemoryRun

KINDS = {
    "used": (BLUE, "", "holds a token"),
    "reserved": (SKY, "//", "reserved, used later"),
    "internal": (ORANGE, "xx", "reserved, never used (internal)"),
    "external": (RED, "..", "gap too small (external)"),
    "free": ("#EEEEEE", "", "free"),
}


def plot_blocks(pool: BlockPool, tables: Mapping[str, BlockTable]) -> Figure:
    """Draw physical blocks with their holders, and the block table of each sequence.

    Args:
        pool: Pool of blocks. The number in a block is its reference count.
        tables: Block tables by the name of their sequence.
    """
    figure, axes = plt.subplots(figsize=(9, 1.6 + 0.35 * len(tables)), layout="constrained")
    colours = dict(zip(tables, OWNERS * len(tables), strict=False))
    for block in range(pool.num_blocks):
        holders = [name for name, table in tables.items() if block in table.blocks]
        axes.add_patch(Rectangle((block, 0), 0.94, 1, facecolor="white", edgecolor="black"))
        for row, name in enumerate(holders):
            height = 1 / len(holders)
            place = (block, row * height)
            axes.add_patch(Rectangle(place, 0.94, height, facecolor=colours[name], alpha=0.75))
        text = f"{block}\n×{pool.references[block]}" if holders else f"{block}"
        axes.text(block + 0.47, 0.5, text, ha="center", va="center", fontsize=8)
    for row, (name, table) in enumerate(tables.items()):
        text = f"{name}: {table.num_tokens} tokens in blocks {table.blocks}"
        place = (0, -0.45 - 0.4 * row)
        axes.text(*place, "■ " + text, color=colours[name], fontsize=10, va="center")
    axes.set_xlim(-0.1, pool.num_blocks)
    axes.set_ylim(-0.5 - 0.4 * len(tables), 1.1)
    axes.set_title(f"physical blocks of {pool.block_size} tokens, × = references", fontsize=10)
    axes.axis("off")
    plt.close(figure)
    return figure


def plot_memory(runs: Sequence[MemoryRun]) -> Figure:
    """Draw the use of a KV cache's slots, with one bar per way of managing it."""
    figure, axes = plt.subplots(figsize=(9, 0.9 + 0.6 * len(runs)), layout="constrained")
    names = [f"{run.name}\n{run.mean_running:.0f} requests at once" for run in runs]
    left = [0.0] * len(runs)
    for kind, (colour, hatch, label) in KINDS.items():
        widths = [100 * run.shares[kind] for run in runs]
        axes.barh(
            names, widths, left=left, color=colour, hatch=hatch, edgecolor="white", label=label
        )
        left = [start + width for start, width in zip(left, widths, strict=True)]
    for row, run in enumerate(runs):
        text = f"{100 * run.shares['used']:.0f} %"
        axes.text(1, row, text, color="white", va="center", fontweight="bold")
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("share of the KV cache's slots, mean while requests wait (%)")
    axes.legend(ncols=3, fontsize="small", loc="lower center", bbox_to_anchor=(0.4, 1.0))
    plt.close(figure)
    return figure


def plot_schedules(predictions: Sequence[Prediction]) -> Figure:
    """Draw when each job waits and runs, with one panel per policy and predicted times."""
    figure, panels = plt.subplots(
        1,
        len(predictions),
        figsize=(10, 4),
        sharex=True,
        sharey=True,
        squeeze=False,
        layout="constrained",
    )
    for axes, prediction in zip(panels[0], predictions, strict=True):
        for row, outcome in enumerate(prediction.outcomes):
            arrival, first = outcome.job.arrival, outcome.first_token_at
            axes.barh(row, first - arrival, left=arrival, color=ORANGE, height=1)
            axes.barh(row, outcome.finished_at - first, left=first, color=BLUE, height=1)
        axes.barh(0, 0, color=ORANGE, label="until the first token")
        axes.barh(0, 0, color=BLUE, label="until the answer is back")
        title = f"{prediction.policy}: {prediction.output_throughput:.0f} tok/s (predicted)"
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("predicted time (s)")
    panels[0][0].set_ylabel("request, in order of arrival")
    panels[0][0].invert_yaxis()
    panels[0][-1].legend(loc="lower right", fontsize="small")
    plt.close(figure)
    return figure


def plot_sweep(runs: Sequence[Run], predicted: Mapping[int, float] | None = None) -> Figure:
    """Draw throughput and latency against concurrency, with intervals over the repeats.

    Args:
        runs: Measured runs at several levels.
        predicted: Predicted output tokens per second, by level.
    """
    levels = sorted({run.concurrency for run in runs})
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    intervals = [throughput_at(runs, level) for level in levels]
    values = [interval.value for interval in intervals]
    errors = [0.0 if interval.count < 2 else interval.half_width for interval in intervals]
    left.errorbar(levels, values, yerr=errors, color=BLUE, marker="o", capsize=4, label="measured")
    ideal = [values[0] * level / levels[0] for level in levels]
    left.plot(levels, ideal, color=GREY, linestyle=":", label="proportional to concurrency")
    if predicted:
        left.plot(
            list(predicted),
            list(predicted.values()),
            "D",
            color=RED,
            markerfacecolor="none",
            label="predicted",
        )
    left.set_ylabel("output tokens per second")
    for metric, label, colour, marker in (
        ("median_ttft_ms", "TTFT, median", ORANGE, "s"),
        ("median_tpot_ms", "TPOT, median", GREEN, "o"),
    ):
        latencies = [latency_at(runs, level, metric) for level in levels]
        right.plot(levels, latencies, color=colour, marker=marker, label=label)
    right.set_ylabel("milliseconds")
    for axes in (left, right):
        _log_axes(axes, levels)
    plt.close(figure)
    return figure


def _log_axes(axes: Axes, levels: Sequence[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(levels)
    axes.xaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.set_xlabel("concurrent requests")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
