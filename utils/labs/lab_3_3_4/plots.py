"""Plots of lab 3.3.4, in the colours of Okabe and Ito, which colour-blind people can tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from utils.benchmark.plot_style import BLUE, GREEN, GREY, ORANGE, PURPLE, RED, SKY
from utils.speculative.plot_helpers import finish_axes, tree_layout
from utils.speculative.training import LogLine

SERIES = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (PURPLE, "D"), (SKY, "v"), (RED, "P"))


def plot_tree(
    parents: Sequence[int],
    mask: Sequence[Sequence[bool]] | None = None,
    labels: Sequence[str] | None = None,
    accepted: Sequence[int] = (),
) -> Figure:
    """Draw a draft tree, and next to it the mask under which all its nodes are verified at once.

    Args:
        parents: Parent of each node, -1 for the root.
        mask: True where a node (row) sees another (column); None draws the tree alone.
        labels: Text of each node; None writes its number.
        accepted: Nodes drawn in orange.
    """
    size = len(parents)
    texts = [f"{node}" for node in range(size)] if labels is None else list(labels)
    wide = 0 if mask is None else 1
    figure, both = plt.subplots(
        1,
        1 + wide,
        figsize=(6 + 4 * wide, max(2.6, 0.3 * size)),
        layout="constrained",
        squeeze=False,
        width_ratios=[3, 2][: 1 + wide],
    )
    _tree(both[0, 0], parents, texts, set(accepted))
    if mask is not None:
        axes = both[0, 1]
        axes.imshow(np.array(mask, dtype=int), cmap=ListedColormap(["white", BLUE]), vmin=0, vmax=1)
        axes.set_xticks(range(size), [str(n) for n in range(size)], fontsize=8)
        axes.set_yticks(range(size), [str(n) for n in range(size)], fontsize=8)
        axes.set_xticks(np.arange(size + 1) - 0.5, minor=True)
        axes.set_yticks(np.arange(size + 1) - 0.5, minor=True)
        axes.grid(which="minor", color=GREY, lw=0.6)
        axes.tick_params(which="minor", length=0)
        axes.set_xlabel("is seen by the row's node (blue)", fontsize=9)
        axes.set_ylabel("node", fontsize=9)
    plt.close(figure)
    return figure


def _tree(axes: Axes, parents: Sequence[int], texts: Sequence[str], accepted: set[int]) -> None:
    depth, height, lines = tree_layout(parents)
    for node, parent in enumerate(parents):
        if parent >= 0:
            both = {node, parent} <= accepted
            axes.plot(
                [depth[parent], depth[node]],
                [height[parent], height[node]],
                color=ORANGE if both else GREY,
                lw=2.5 if both else 1.2,
                zorder=1,
            )
        axes.text(
            depth[node],
            height[node],
            texts[node],
            ha="center",
            va="center",
            fontsize=9,
            zorder=2,
            bbox={
                "boxstyle": "round,pad=0.25",
                "facecolor": ORANGE if node in accepted else "white",
                "edgecolor": BLUE,
            },
        )
    axes.set_xlim(-0.4, max(depth) + 0.5)
    axes.set_ylim(-lines + 0.3, 0.7)
    axes.set_xticks(range(max(depth) + 1), [f"+{d}" for d in range(max(depth) + 1)])
    axes.set_xlabel("position behind the root", fontsize=9)
    axes.set_yticks([])
    axes.spines[["top", "right", "left"]].set_visible(False)


def plot_training(logs: Mapping[str, Sequence[LogLine]], part: str = "head") -> Figure:
    """Loss, and the accuracy of each head or step, against optimizer steps.

    Args:
        logs: By name.
        part: Owner of the accuracies: "head", or "step".
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.2), layout="constrained")
    for (name, log), style in zip(logs.items(), ("-", "--", ":", "-."), strict=False):
        steps = [line.step for line in log]
        left.plot(steps, [line.loss for line in log], style, color=BLUE, label=name)
        for i in range(len(log[0].accuracy) if log else 0):
            colour = SERIES[i % len(SERIES)][0]
            label = f"{part} {i}" if len(logs) == 1 else f"{name}, {part} {i}"
            shares = [100 * line.accuracy[i] for line in log]
            right.plot(steps, shares, style, color=colour, label=label)
    left.set_ylabel("loss")
    right.set_ylabel("best guess right (%)")
    right.set_ylim(0, 100)
    for axes in (left, right):
        axes.set_xlabel("optimizer step")
        finish_axes(axes)
    plt.close(figure)
    return figure


def plot_accuracy(
    shares: Mapping[str, Sequence[float]], part: str = "head", what: str = "best guess right (%)"
) -> Figure:
    """Return a line per name: a share for head 0, 1, ... or step 0, 1, ...

    Args:
        shares: 0 to 1, by name.
        part: "head", or "step".
        what: The axis.
    """
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for (name, values), (colour, mark) in zip(shares.items(), SERIES * 3, strict=False):
        axes.plot(
            range(len(values)), [100 * v for v in values], color=colour, marker=mark, label=name
        )
    longest = max((len(values) for values in shares.values()), default=1)
    axes.set_xticks(range(longest), [f"{part} {k}" for k in range(longest)])
    axes.set_ylabel(what)
    axes.set_ylim(0, 100)
    finish_axes(axes)
    plt.close(figure)
    return figure


def plot_costs(costs: Mapping[int, float]) -> Figure:
    """Plot the cost of a forward pass over n nodes, in forward passes over one; costs: seconds by n."""
    figure, axes = plt.subplots(figsize=(6, 3), layout="constrained")
    nodes = sorted(costs)
    ratios = [costs[n] / costs[1] for n in nodes]
    axes.plot(nodes, ratios, color=BLUE, marker="o", label="measured")
    axes.plot(nodes, nodes, ":", color=GREY, label="n times as much: no gain possible")
    axes.axhline(1, color=GREEN, lw=1, label="free: memory-bound")
    axes.set_xlabel("nodes of a forward pass, the root included")
    axes.set_ylabel("T(n) / T(1)")
    axes.set_ylim(0, max(2.0, 1.3 * max(ratios)))
    finish_axes(axes)
    plt.close(figure)
    return figure


def plot_speedups(
    nodes: Mapping[str, int],
    predicted: Mapping[str, float],
    measured: Mapping[str, Sequence[float]],
    tokens: Mapping[str, float],
) -> Figure:
    """Speed-up against the size of the tree: predicted and measured, with the accepted tokens.

    Args:
        nodes: Nodes of each method's tree, the root included.
        predicted: Speed-up by method.
        measured: Speed-ups of all repeats by method.
        tokens: Measured tokens per step by method.
    """
    figure, axes = plt.subplots(figsize=(8, 3.6), layout="constrained")
    names = sorted(nodes, key=lambda name: (nodes[name], name))
    at = np.arange(len(names))
    middle = [float(np.median(measured[name])) for name in names]
    low = [m - min(measured[name]) for m, name in zip(middle, names, strict=True)]
    high = [max(measured[name]) - m for m, name in zip(middle, names, strict=True)]
    axes.plot(at, [tokens[n] for n in names], "^:", color=GREY, label="tokens a step, measured")
    axes.plot(at, [predicted[n] for n in names], "s--", color=RED, label="speed-up, predicted")
    axes.errorbar(
        at, middle, [low, high], fmt="o-", color=BLUE, capsize=3, label="speed-up, measured"
    )
    axes.axhline(1, color="black", lw=0.8)
    axes.set_xticks(at, [f"{name}\n({nodes[name]} nodes)" for name in names], fontsize=9)
    axes.set_ylabel("times plain decoding")
    axes.set_ylim(0, None)
    finish_axes(axes)
    plt.close(figure)
    return figure
