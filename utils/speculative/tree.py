"""Draft trees: candidate continuations that one forward pass of the target checks together.

Node 0 is the root: the last token of the sequence, sampled already, whose keys and values the target has yet
to compute. Every other node is a guess at the token after its parent. Nodes are numbered so that a parent
comes before its children.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from utils.speculative.speculation_error import SpeculationError

Choice = tuple[int, ...]


class DraftTree:
    """Shape of a draft tree; the tokens of its nodes are kept elsewhere.

    Args:
        parents: Parent of each node; -1 for the root, which is node 0.

    Raises:
        SpeculationError: Node 0 is not the only root, or a parent comes after its child.
    """

    def __init__(self, parents: Sequence[int]) -> None:
        good = all(0 <= p < i for i, p in enumerate(parents) if i)
        if not parents or parents[0] != -1 or not good:
            raise SpeculationError(
                f"{list(parents)[:12]} aren't the parents of a tree: node 0 is the root (-1), "
                "and every other parent comes before its child."
            )
        self.parents = tuple(parents)

    @property
    def size(self) -> int:
        """Nodes, the root included."""
        return len(self.parents)

    @cached_property
    def depths(self) -> Tensor:
        """Steps from the root, int64 [size]; the position of a node is the sequence's length plus this."""
        depths = [0]
        for parent in self.parents[1:]:
            depths.append(depths[parent] + 1)
        return torch.tensor(depths)

    @property
    def depth(self) -> int:
        """Depth of the deepest node."""
        return int(self.depths.max())

    @cached_property
    def mask(self) -> Tensor:
        """Which node sees which, bool [size, size]: row i is true for i and its ancestors."""
        mask = torch.eye(self.size, dtype=torch.bool)
        for node, parent in enumerate(self.parents[1:], 1):
            mask[node] |= mask[parent]
        return mask

    @cached_property
    def children(self) -> tuple[tuple[int, ...], ...]:
        """Children of each node, in ascending order."""
        found: list[list[int]] = [[] for _ in self.parents]
        for node, parent in enumerate(self.parents[1:], 1):
            found[parent].append(node)
        return tuple(map(tuple, found))

    def path(self, node: int) -> list[int]:
        """Nodes from the root to `node`."""
        nodes = [node]
        while (parent := self.parents[nodes[-1]]) >= 0:
            nodes.append(parent)
        return nodes[::-1]

    @cached_property
    def retrieve_indices(self) -> Tensor:
        """The path to each leaf, int64 [leaves, depth + 1], filled up with -1.

        Leaves come in ascending order; Medusa's `generate_medusa_buffers` has the same rows in another order.
        """
        leaves = [node for node, below in enumerate(self.children) if not below]
        rows = torch.full((len(leaves), self.depth + 1), -1)
        for row, leaf in zip(rows, leaves, strict=True):
            path = self.path(leaf)
            row[: len(path)] = torch.tensor(path)
        return rows

    def __eq__(self, other: object) -> bool:
        return isinstance(other, DraftTree) and self.parents == other.parents

    def __hash__(self) -> int:
        return hash(self.parents)

    def __repr__(self) -> str:
        return f"Tree({self.size} nodes, depth {self.depth})"


@lru_cache(maxsize=4096)
def chain(guesses: int) -> DraftTree:
    """Return the trivial tree: the root and `guesses` nodes, one after the other."""
    return DraftTree(range(-1, guesses))


class ChoiceTree(DraftTree):
    """Medusa's static tree.

    Args:
        choices: Paths of ranks: (0, 2) is the node whose parent is head 0's best guess, and which holds
            head 1's third-best. The beginnings of a path have to be among them.

    Attributes:
        choices: Sorted by depth, then by ranks; choice i is node i + 1.

    Raises:
        SpeculationError: A choice without its beginning, or with a rank that is no whole number from 0 on.
    """

    def __init__(self, choices: Sequence[Choice]) -> None:
        if bad := [path for path in choices if any(type(r) is not int or r < 0 for r in path)]:
            raise SpeculationError(f"The choice {bad[0]} needs whole ranks, 0 for the best guess.")
        self.choices = tuple(sorted(set(choices), key=lambda path: (len(path), path)))
        at = {(): 0} | {path: i for i, path in enumerate(self.choices, 1)}
        for path in self.choices:
            if path[:-1] not in at:
                raise SpeculationError(f"The choice {path} needs {path[:-1]} in the tree too.")
        super().__init__([-1, *(at[path[:-1]] for path in self.choices)])

    @cached_property
    def ranks(self) -> Tensor:
        """Rank of each node's guess among its head's, int64 [size - 1]."""
        return torch.tensor([path[-1] for path in self.choices], dtype=torch.int64)

    @cached_property
    def heads(self) -> Tensor:
        """Head that guesses each node, from 0 on, int64 [size - 1]."""
        return torch.tensor([len(path) - 1 for path in self.choices], dtype=torch.int64)


def best_choices(accuracy: Sequence[Sequence[float]], nodes: int) -> list[Choice]:
    """Return the `nodes` choices that a static tree gains most from.

    A choice is right if every guess on its path is; heads taken as independent, that is the product of their
    accuracies (Medusa, section 2.3.3). Each choice adds its product to the expected accepted tokens.

    Args:
        accuracy: [head][rank]: how often head's guess of this rank is right.
        nodes: Number of choices, the root not counted.

    Returns:
        Choices by falling gain; every beginning of one is among them.
    """
    chosen: list[Choice] = []
    open_: dict[Choice, float] = {(rank,): p for rank, p in enumerate(accuracy[0])}
    while open_ and len(chosen) < nodes:
        best = max(open_, key=lambda path: (open_[path], -len(path)))
        gain = open_.pop(best)
        chosen.append(best)
        if len(best) < len(accuracy):
            open_ |= {(*best, rank): gain * p for rank, p in enumerate(accuracy[len(best)])}
    return chosen


def rerank(parents: Sequence[int], scores: Sequence[float], nodes: int) -> list[int]:
    """EAGLE-2's choice of nodes: the most probable of an expanded tree.

    Args:
        parents: Parents of the expanded tree's nodes, -1 for the root, node 0.
        scores: Log-probability of each node's path: never above its parent's.
        nodes: Number of nodes to keep, the root not counted.

    Returns:
        Kept nodes in ascending order, the root first. With a node its parent is kept: a tie goes to the
        lower number, and parents come first (EAGLE-2, section 4.2).
    """
    order = sorted(range(1, len(parents)), key=lambda node: (-scores[node], node))
    return [0, *sorted(order[:nodes])]


def subtree(parents: Sequence[int], kept: Sequence[int]) -> DraftTree:
    """Return the tree of some nodes of a larger one, numbered anew in their order."""
    at = {node: i for i, node in enumerate(kept)}
    return DraftTree([at.get(parents[node], -1) for node in kept])
