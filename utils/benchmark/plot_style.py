"""Colours and frames of all plots.

The colours are those of Okabe and Ito (2008), which colour-blind people can tell apart.
"""

from __future__ import annotations

from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, RED = "#0072B2", "#E69F00", "#009E73", "#D55E00"
PURPLE, SKY, YELLOW, GREY = "#CC79A7", "#56B4E9", "#F0E442", "#BBBBBB"

# Lines on white: without yellow, which is too faint for them.
PALETTE = (BLUE, RED, GREEN, PURPLE, SKY, ORANGE, "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")

# Filled areas, one per owner, group or worker.
OWNERS = (BLUE, ORANGE, GREEN, PURPLE, SKY, YELLOW)


def remove_frame(axes: Axes, fontsize: int = 9) -> None:
    """Hide the top and right spines and the legend's frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=fontsize, frameon=False)
