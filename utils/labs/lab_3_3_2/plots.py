"""Plots of lab 3.3.2."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from utils.benchmark.plot_style import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    OWNERS,
    RED,
    remove_frame,
)
from utils.kvcache.radix import Node
from utils.labs.lab_3_3_2.experiments import Hits, Point, Routed

MARKS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (RED, "D"))


def plot_tree(root: Node, text: Callable[[list[int]], str] = str) -> Figure:
    """Draw a radix tree with one box per node, its tokens, their number and its locks.

    Args:
        root: Root of the tree.
        text: Function that writes a run of tokens.
    """
    rows: list[tuple[int, Node]] = []

    def place(node: Node, depth: int) -> None:
        for child in node.children.values():
            rows.append((depth, child))
            place(child, depth + 1)

    place(root, 0)
    figure, axes = plt.subplots(figsize=(9, 0.4 + 0.36 * max(1, len(rows))), layout="constrained")
    lines: dict[int, float] = {-1: 0.35}
    for row, (depth, node) in enumerate(rows):
        y = -float(row)
        axes.plot([depth - 0.8, depth - 0.8, depth - 0.05], [lines[depth - 1], y, y], color=GREY)
        lines[depth] = y
        colour = ORANGE if node.lock_ref else BLUE
        axes.add_patch(Rectangle((depth, y - 0.32), 0.28, 0.64, facecolor=colour, alpha=0.6))
        axes.text(depth + 0.14, y, str(len(node.key)), ha="center", va="center", fontsize=9)
        locked = f"  [locked by {node.lock_ref}]" if node.lock_ref else ""
        key = text(node.key)
        shown = key if len(key) <= 56 else key[:53] + "..."
        axes.text(depth + 0.36, y, shown + locked, va="center", fontsize=9, family="monospace")
    depths = [depth for depth, _ in rows] or [0]
    axes.set_xlim(-1, max(depths) + 5)
    axes.set_ylim(-len(rows) + 0.3, 0.7)
    axes.set_title("radix tree: tokens per node; orange is locked", fontsize=10)
    axes.axis("off")
    plt.close(figure)
    return figure


def plot_hits(
    predicted: Mapping[str, Mapping[str, float]], measured: Mapping[str, Mapping[str, Hits]]
) -> Figure:
    """Plot hit rates by workload, with measured bars and predicted lines."""
    names = list(next(iter(measured.values())))
    figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
    width = 0.8 / len(measured)
    for index, (engine, by_workload) in enumerate(measured.items()):
        at = np.arange(len(names)) + (index - (len(measured) - 1) / 2) * width
        rates = [100 * by_workload[name].rate for name in names]
        shares = [100 * predicted[engine][name] for name in names]
        colour = MARKS[index][0]
        axes.bar(at, rates, 0.9 * width, color=colour, alpha=0.6, label=f"{engine}, measured")
        label = "predicted by your tree" if index == 0 else "_nolegend_"
        axes.hlines(shares, at - width / 2, at + width / 2, color="black", lw=2, label=label)
    axes.set_xticks(range(len(names)), names)
    axes.set_ylabel("prompt tokens cached (%)")
    axes.set_ylim(0, 100)
    remove_frame(axes)
    plt.close(figure)
    return figure


def plot_speedup(
    curves: Mapping[str, Sequence[Point]],
    predicted: Callable[[float], float],
    arithmetic: Callable[[float], float],
) -> Figure:
    """Plot the speed-up of TTFT against the share of the prompt that is cached.

    Args:
        curves: Measured points by engine. The first point of each has nothing cached.
        predicted: Learner's prediction of the speed-up for a share.
        arithmetic: Roofline's speed-up for a share, if only arithmetic took time.
    """
    figure, axes = plt.subplots(figsize=(8, 4), layout="constrained")
    shares = np.linspace(0, 0.95, 60)
    axes.plot(100 * shares, [arithmetic(f) for f in shares], ":", color=GREY, label="roofline")
    axes.plot(100 * shares, [predicted(f) for f in shares], color=RED, label="your prediction")
    for (name, points), (colour, mark) in zip(curves.items(), MARKS, strict=False):
        cold = points[0].median
        middle = [cold / point.median for point in points]
        low = [cold / max(point.ttft_s) for point in points]
        high = [cold / min(point.ttft_s) for point in points]
        at = [100 * point.fraction for point in points]
        spread = [np.subtract(middle, low), np.subtract(high, middle)]
        axes.errorbar(at, middle, spread, fmt=mark, color=colour, capsize=3, label=name)
    axes.set_yscale("log")
    ticks = [1, 2, 5, 10, 20]
    axes.set_yticks(ticks, [f"{tick}×" for tick in ticks])
    axes.set_xlabel("prompt tokens cached (%)")
    axes.set_ylabel("TTFT, cold over warm")
    remove_frame(axes)
    plt.close(figure)
    return figure


def plot_orders(orders: Mapping[str, Sequence[int]], groups: Sequence[int]) -> Figure:
    """Plot the order of service: a row per rule, and a box per request in the colour of its group.

    Args:
        orders: Positions in the queue, in the order of service, by rule.
        groups: Group of each request, and -1 for the request that shares nothing.
    """
    figure, axes = plt.subplots(figsize=(9, 0.7 + 0.5 * len(orders)), layout="constrained")
    for row, order in enumerate(orders.values()):
        for place, index in enumerate(order):
            alone = groups[index] < 0
            face = "white" if alone else OWNERS[groups[index]]
            axes.add_patch(
                Rectangle(
                    (place, -row - 0.4), 0.92, 0.8, facecolor=face, edgecolor="black", alpha=0.8
                )
            )
            axes.text(place + 0.46, -row, str(index), ha="center", va="center", fontsize=9)
    axes.set_yticks([-row for row in range(len(orders))], list(orders))
    axes.set_xticks([])
    axes.set_xlim(-0.2, len(groups) + 0.2)
    axes.set_ylim(-len(orders) + 0.4, 0.6)
    axes.set_xlabel(
        "served first → last; the number is the place in the queue, white shares nothing"
    )
    axes.spines[:].set_visible(False)
    plt.close(figure)
    return figure


def plot_routes(routed: Sequence[Routed]) -> Figure:
    """Plot the hit rate of each policy and the prompt tokens that each worker received."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.6), layout="constrained")
    names = [one.policy for one in routed]
    left.barh(names, [100 * one.rate for one in routed], color=BLUE, alpha=0.6)
    left.set_xlim(0, 100)
    left.set_xlabel("prompt tokens cached (%)")
    start = np.zeros(len(routed))
    for worker in range(len(routed[0].shares)):
        shares = np.array([one.shares[worker] for one in routed])
        right.barh(names, shares, left=start, color=OWNERS[worker], label=f"worker {worker + 1}")
        start += shares
    right.set_xlabel("prompt tokens received")
    right.set_yticks([])
    right.spines[["top", "right"]].set_visible(False)
    right.legend(fontsize=9, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    plt.close(figure)
    return figure
