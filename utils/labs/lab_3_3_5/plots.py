"""Plots of lab 3.3.5, in the colours of Okabe and Ito, which colour-blind people can tell apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from utils.benchmark.plot_style import BLUE, GREEN, GREY, ORANGE, RED
from utils.labs.lab_3_3_5.experiments import Expansion, Level
from utils.labs.lab_3_3_5.tables import TARGET_ACCEPTANCE, TARGET_SPEEDUP, ratios
from utils.speculative.comparison import SpeculationResult
from utils.speculative.plot_helpers import finish_axes, tree_layout

DROPPED = "#777777"  # darker than GREY: it is text
MARKS = ((BLUE, "o"), (ORANGE, "s"), (GREEN, "^"), (RED, "D"))


def plot_mask(mask: Sequence[Sequence[bool]]) -> Figure:
    """Which keys each query sees: a row per query, the keys of the steps side by side.

    Args:
        mask: Mask of `ttt.ttt_mask`.
    """
    rows, columns = len(mask), len(mask[0])
    figure, axes = plt.subplots(figsize=(1 + 0.3 * columns, 0.9 + 0.3 * rows), layout="constrained")
    for row, seen in enumerate(mask):
        for key, visible in enumerate(seen):
            at = (key + 0.3 * (key // rows), rows - 1 - row)
            later = ORANGE if key >= rows else BLUE
            face = later if visible else "white"
            axes.add_patch(Rectangle(at, 0.9, 0.9, facecolor=face, edgecolor=GREY, lw=0.6))
    steps = columns // rows
    axes.set_xticks(
        [step * (rows + 0.3) + rows / 2 for step in range(steps)],
        [f"keys of step {step}" for step in range(steps)],
    )
    axes.set_yticks([rows - 0.55 - row for row in range(rows)], [f"query {r}" for r in range(rows)])
    axes.set_xlim(-0.1, columns + 0.3 * steps)
    axes.set_ylim(-0.1, rows)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    seen_by = [", ".join(str(key) for key in range(columns) if row[key]) for row in mask]
    texts = [f"query {row} sees {keys or 'none'}" for row, keys in enumerate(seen_by)]
    figure.set_label(f"Attention mask over the keys of {steps} steps: {'; '.join(texts)}.")
    plt.close(figure)
    return figure


def plot_steps(accuracies: Mapping[str, Sequence[float]]) -> Figure:
    """Share of right guesses by step of drafting on, a line per draft."""
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    for (name, shares), (colour, mark) in zip(accuracies.items(), MARKS, strict=False):
        steps = range(1, len(shares) + 1)
        axes.plot(steps, [100 * s for s in shares], f"{mark}-", color=colour, label=name)
    axes.set_xticks(range(1, 1 + max(map(len, accuracies.values()))))
    axes.set_xlabel("guess of the draft, counted from the last token known")
    axes.set_ylabel("right (%)")
    axes.set_ylim(0, 100)
    finish_axes(axes, 9)
    plt.close(figure)
    return figure


def plot_expansion(
    tree: Expansion, kept: Sequence[int], text: Callable[[int], str] = str
) -> Figure:
    """Draw the expanded tree: nodes that re-ranking keeps in blue, nodes that the target accepts in green.

    Args:
        tree: Nodes and their probabilities.
        kept: Nodes that re-ranking keeps, the root among them.
        text: Function that writes a token.
    """
    depth, height, lines = tree_layout(tree.parents)
    accepted = set(tree.accepted(kept))
    figure, axes = plt.subplots(figsize=(9, 0.8 + 0.24 * lines), layout="constrained")
    for node, x in enumerate(depth):
        y = height[node]
        inside = node in kept
        colour = GREEN if node in accepted else BLUE if inside else DROPPED
        if node:
            parent = tree.parents[node]
            ends = [depth[parent] + 0.62, x - 0.02], [height[parent], y]
            axes.plot(*ends, color=colour, lw=1 + inside)
        share = f" {tree.probabilities[node]:.2f}" if node else ""
        words = f"{text(tree.tokens[node])!r}{share}"
        weight = "bold" if node in accepted else "normal"
        axes.text(x, y, words, va="center", fontsize=8, color=colour, weight=weight)
    axes.set_xlim(-0.1, max(depth) + 0.9)
    axes.set_ylim(-lines + 0.5, 0.7)
    axes.axis("off")
    figure.set_label(
        f"Draft tree of {len(depth)} nodes. Re-ranking keeps {len(kept)} of them, "
        f"and the target accepts {len(accepted)}."
    )
    plt.close(figure)
    return figure


def plot_results(
    results: Mapping[str, SpeculationResult], unlike: Mapping[str, SpeculationResult]
) -> Figure:
    """Plot speed-up and acceptance length of every method, on known kinds of text and on unlike text."""
    names = [name for name in results if name != "plain"]
    at = np.arange(len(names))
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(10, 0.9 + 0.42 * len(names)), sharey=True, layout="constrained"
    )
    for shift, colour, label, found in (
        (-0.2, BLUE, "kinds the heads know", results),
        (0.2, ORANGE, "unlike text (prose)", unlike),
    ):
        speed = [found[name].speedup for name in names]
        low = [found[name].speedup - min(found[name].speedups) for name in names]
        high = [max(found[name].speedups) - found[name].speedup for name in names]
        left.barh(at + shift, speed, 0.38, color=colour, alpha=0.7, label=label)
        left.errorbar(speed, at + shift, xerr=[low, high], fmt="none", color="black", capsize=2)
        lengths = [found[name].acceptance_length for name in names]
        right.barh(at + shift, lengths, 0.38, color=colour, alpha=0.7)
    left.axvline(1, color=GREY, lw=1)
    left.axvline(TARGET_SPEEDUP, color=RED, ls=":", lw=1)
    right.axvline(TARGET_ACCEPTANCE, color=RED, ls=":", lw=1)
    left.set_yticks(at, names)
    left.invert_yaxis()
    left.set_xlabel("times plain decoding (dotted: target for EAGLE-3)")
    right.set_xlabel("tokens per verification (dotted: target)")
    for axes in (left, right):
        axes.spines[["top", "right"]].set_visible(False)
    figure.legend(loc="outside upper center", ncols=2, fontsize=9, frameon=False)
    plt.close(figure)
    return figure


def plot_chains(predicted: Mapping[int, float], measured: Mapping[int, float]) -> Figure:
    """Speed-up of chains by length: the formula's curve, and the measured points."""
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    axes.plot(list(predicted), list(predicted.values()), "-", color=RED, label="your formula")
    axes.plot(list(measured), list(measured.values()), "o", color=BLUE, label="measured")
    axes.axhline(1, color=GREY, lw=1)
    axes.set_xlabel("guesses in a chain")
    axes.set_ylabel("speed-up")
    axes.set_ylim(bottom=0)
    finish_axes(axes, 9)
    plt.close(figure)
    return figure


def plot_crossover(found: Mapping[str, Sequence[Level]], base: str = "plain") -> Figure:
    """Throughput with speculation over throughput without, by requests in flight and temperature."""
    figure, axes = plt.subplots(figsize=(7, 3.4), layout="constrained")
    others = [name for name in found if name != base]
    marks = iter(MARKS)
    for name in others:
        for temperature in sorted({level.temperature for level in found[name]}):
            by_level = ratios(found, temperature, name, base)
            colour, mark = next(marks)
            axes.plot(
                list(by_level),
                list(by_level.values()),
                f"{mark}-",
                color=colour,
                label=f"{name}, temperature {temperature:g}",
            )
    levels = sorted({level.concurrency for level in found[base]})
    axes.axhline(1, color=GREY, lw=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(levels, [str(level) for level in levels])
    axes.set_xlabel("requests in flight")
    axes.set_ylabel("throughput over plain vLLM's")
    axes.set_ylim(bottom=0)
    finish_axes(axes, 9)
    plt.close(figure)
    return figure
