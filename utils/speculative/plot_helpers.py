"""Helpers of the speculative labs' plots: the layout of a draft tree, and plain axes."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from utils.speculative.tree import DraftTree


def finish_axes(axes: Axes, fontsize: int = 8) -> None:
    """Hide the top and right spines and the legend's frame."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=fontsize, frameon=False)


def tree_layout(parents: Sequence[int]) -> tuple[list[int], dict[int, float], int]:
    """Return where to draw the nodes of a tree, from left to right by depth.

    Each leaf has a line of its own, and a parent is in the middle of its children.

    Args:
        parents: Parent of each node, -1 for the root.

    Returns:
        Depth of each node, height by node (lines 0, -1, -2, ...), and the number of lines.
    """
    tree = DraftTree(parents)
    height: dict[int, float] = {}
    lines = 0

    def place(node: int) -> float:
        nonlocal lines
        below = [place(child) for child in tree.children[node]]
        if not below:
            below = [-float(lines)]
            lines += 1
        height[node] = sum(below) / len(below)
        return height[node]

    place(0)
    return tree.depths.tolist(), height, lines
