"""Verification of a draft: the accepted path of the tree, and the token that follows it.

Two rules change nothing in the output: `Greedy`, and `SpeculativeSampling`, which keeps the distribution.
`Typical`, Medusa's, is faster at higher temperatures and *not* lossless.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from utils.speculative.speculation_error import SpeculationError
from utils.speculative.tree import DraftTree

LEAST_TEMPERATURE = 1e-6  # below it logits over temperature may leave float32


@dataclass(frozen=True)
class Verdict:
    """Nodes accepted, root first, and the token after the last of them, which the target itself chose."""

    path: list[int]
    token: int


class Rule(Protocol):
    """A rule of acceptance."""

    name: str
    lossless: bool

    def __call__(
        self, tree: DraftTree, tokens: Sequence[int], logits: Tensor, draft: Tensor | None = None
    ) -> Verdict:
        """Walk the tree.

        Args:
            tree: Shape.
            tokens: Tokens of the nodes; tokens[0] is the root's.
            logits: The target's at each node, [size, vocab].
            draft: Distribution that each node's token was drawn from, [size, vocab], row 0 unused; None if
                the tokens were chosen deterministically. Children of one node have to be drawn
                independently, with replacement; or each row is the distribution given the siblings before.
        """
        ...


def accept_greedy(tree: DraftTree, tokens: Sequence[int], best: Sequence[int]) -> list[int]:
    """Return the longest path whose every token is the target's own best one.

    Args:
        tree: Shape.
        tokens: Tokens of the nodes.
        best: The target's most probable next token at each node.

    Returns:
        Accepted nodes, root first.
    """
    path = [0]
    while True:
        node = path[-1]
        matching = [child for child in tree.children[node] if tokens[child] == best[node]]
        if not matching:
            return path
        path.append(matching[0])


class Greedy:
    """Accepts what greedy decoding would have written: the output is the same, token for token."""

    name, lossless = "greedy", True

    def __call__(
        self, tree: DraftTree, tokens: Sequence[int], logits: Tensor, draft: Tensor | None = None
    ) -> Verdict:
        """See `Rule`."""
        best = logits.argmax(-1).tolist()
        path = accept_greedy(tree, tokens, best)
        return Verdict(path, best[path[-1]])


def residual(p: Tensor, q: Tensor) -> Tensor:
    """Return the rest of p after q was tried: max(0, p - q), scaled to sum 1 (Leviathan 2023, section 2.3).

    Args:
        p: Target's distribution [vocab].
        q: Distribution of the rejected draft [vocab].

    Returns:
        A distribution [vocab]; p itself where nothing is left, which only rounding can bring about.
    """
    left = (p - q).clamp(min=0)
    total = left.sum()
    return left / total if total > 0 else p


@dataclass
class SpeculativeSampling:
    """Exact: tokens are distributed as if the target had drawn each of them itself.

    The children of a node are tried in turn. One that was drawn from q is accepted with probability
    min(1, p/q); one that was chosen deterministically has q = 1 at its token, so it is accepted with p. After
    a rejection p becomes the residual, and the next child is tried against that (SpecInfer, section 4.3;
    EAGLE, appendix B). If none is left, the token is drawn from what remains.

    Attributes:
        temperature: Above 0.
        generator: Source of chance.
    """

    temperature: float = 1.0
    generator: torch.Generator | None = None
    name = "speculative sampling"
    lossless = True

    def __post_init__(self) -> None:
        _refuse_temperature(self.temperature)

    def __call__(
        self, tree: DraftTree, tokens: Sequence[int], logits: Tensor, draft: Tensor | None = None
    ) -> Verdict:
        """See `Rule`."""
        probabilities = torch.softmax(logits.float() / self.temperature, -1)
        path = [0]
        while True:
            p = probabilities[path[-1]]
            accepted = None
            for child in tree.children[path[-1]]:
                token = tokens[child]
                if draft is None:
                    q = torch.zeros_like(p)
                    q[token] = 1.0
                else:
                    q = draft[child]
                if self._chance(p.device) * float(q[token]) < float(p[token]):
                    accepted = child
                    break
                p = residual(p, q)
            if accepted is None:
                return Verdict(path, int(torch.multinomial(p, 1, generator=self.generator)))
            path.append(accepted)

    def _chance(self, device: torch.device) -> float:
        return float(torch.rand((), generator=self.generator, device=device))


def _refuse_temperature(temperature: float) -> None:
    if not LEAST_TEMPERATURE <= temperature < math.inf:
        raise SpeculationError(
            f"Sampling needs a finite temperature above 0, at least {LEAST_TEMPERATURE:g}; it is "
            f"{temperature}. For 0, use Greedy()."
        )


@dataclass
class Typical:
    """Medusa's typical acceptance: **not lossless**. It accepts what is likely enough, whatever else is.

    A token is accepted if p(token) > min(epsilon, alpha x exp(-H(p))), H the entropy of the target's
    distribution (Medusa, section 2.3.1). The longest path so accepted is kept, of several the one that the
    target finds likeliest, as in Medusa's `evaluate_posterior`; the token after it is the target's best.

    Attributes:
        temperature: Temperature of the distribution.
        epsilon: Probability that always suffices, above 0 to 1.
        alpha: Scale of the threshold where the target is unsure, above 0.
    """

    temperature: float = 1.0
    epsilon: float = 0.09
    alpha: float = 0.3
    name = "typical acceptance"
    lossless = False

    def __post_init__(self) -> None:
        _refuse_temperature(self.temperature)
        if not 0 < self.epsilon <= 1 or not 0 < self.alpha < math.inf:
            raise SpeculationError(
                f"Typical acceptance needs epsilon above 0 to 1 and a finite alpha above 0, not "
                f"{self.epsilon} and {self.alpha}. Medusa's code has 0.09 and 0.3."
            )

    def __call__(
        self, tree: DraftTree, tokens: Sequence[int], logits: Tensor, draft: Tensor | None = None
    ) -> Verdict:
        """See `Rule`."""
        p = torch.softmax(logits.float() / self.temperature, -1)
        entropy = -(p * (p + 1e-10).log()).sum(-1)
        threshold = (self.alpha * torch.exp(-entropy)).clamp(max=self.epsilon)
        likelihood = {0: 0.0}  # of the path to each accepted node, a logarithm
        for node, parent in enumerate(tree.parents[1:], 1):
            likely = p[parent, tokens[node]]
            if parent in likelihood and likely > threshold[parent]:
                likelihood[node] = likelihood[parent] + float(likely.log())
        best = max(likelihood, key=lambda node: (int(tree.depths[node]), likelihood[node]))
        return Verdict(tree.path(best), int(logits[best].argmax()))
