"""Is the output still distributed as the target's? Draws, counted, and a chi-square test of the counts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from utils.speculative.target import Target
from utils.speculative.tree import DraftTree, chain
from utils.speculative.verify import Rule

Array = np.ndarray[Any, Any]
LEAST_EXPECTED = 5.0  # a bin that expects fewer draws joins the others of its kind


@dataclass(frozen=True)
class ChiSquare:
    """Pearson's test of counts against probabilities.

    Attributes:
        statistic: Sum of (counted - expected)² / expected.
        degrees: Degrees of freedom: bins less one.
        p_value: Probability of a statistic at least as large if the counts come from the probabilities.
        draws: Number of draws that were counted.
    """

    statistic: float
    degrees: int
    p_value: float
    draws: int


def chi_square(counts: Sequence[int] | Array, probabilities: Sequence[float] | Array) -> ChiSquare:
    """Test counts against probabilities; bins that expect fewer than 5 draws count as one.

    Args:
        counts: Draws per bin [bins].
        probabilities: Probabilities of the same bins, sum 1.
    """
    counted = np.asarray(counts, dtype=float)
    expected = np.asarray(probabilities, dtype=float) * counted.sum()
    rare = expected < LEAST_EXPECTED
    if rare.any():
        counted = np.append(counted[~rare], counted[rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
    keep = expected > 0
    if counted[~keep].sum():  # drawn, though impossible
        return ChiSquare(float("inf"), max(1, int(keep.sum()) - 1), 0.0, int(counted.sum()))
    counted, expected = counted[keep], expected[keep]
    statistic = float(((counted - expected) ** 2 / expected).sum())
    degrees = max(1, len(counted) - 1)
    half = torch.tensor([degrees / 2, statistic / 2], dtype=torch.float64)
    p_value = float(torch.special.gammaincc(half[0], half[1]))
    return ChiSquare(statistic, degrees, p_value, int(counted.sum()))


def _drafted(q: Array, draws: int, seed: int) -> tuple[np.random.Generator, Array]:
    """Draw tokens from the drafter's distribution; return the generator and the tokens."""
    rng = np.random.default_rng(seed)
    return rng, rng.choice(len(q), draws, p=q)


def draw_sampled(
    p: Array, q: Array, left_over: Callable[[Array, Array], Array], draws: int, seed: int = 0
) -> Array:
    """Next tokens of speculative sampling with one draft token each, counted.

    A token is drawn from q and accepted with probability min(1, p/q); otherwise another is drawn from
    `left_over(p, q)` (Leviathan 2023, algorithm 1, with one guess).

    Args:
        p: The target's distribution [vocab].
        q: The drafter's distribution, [vocab].
        left_over: Distribution to draw from after a rejection: the residual, if it is to be exact.
        draws: Number of draws.
        seed: Seed of the draws.

    Returns:
        Counts [vocab].
    """
    rng, drafted = _drafted(q, draws, seed)
    accepted = rng.random(draws) * q[drafted] < p[drafted]
    rest = np.asarray(left_over(p, q), dtype=float)
    redrawn = rng.choice(len(p), draws, p=rest / rest.sum())
    return np.bincount(np.where(accepted, drafted, redrawn), minlength=len(p))


def draws_to_refuse(
    p: Array, q: Array, left_over: Callable[[Array, Array], Array], level: float = 0.001
) -> int:
    """Return the number of draws that the chi-square test needs to find a rule wrong (100, 200, 400, ...).

    Args:
        p: The target's distribution [vocab].
        q: The drafter's [vocab].
        left_over: See `draw_sampled`.
        level: A p-value below it refuses the rule.

    Returns:
        The first number tried whose p-value is below `level`; 0 if none up to a million is.
    """
    for draws in (100 << i for i in range(14)):
        if chi_square(draw_sampled(p, q, left_over, draws), p).p_value < level:
            return draws
    return 0


def draw_accepted(
    p: Array, q: Array, accepts: Callable[[Array, int], bool], draws: int, seed: int = 0
) -> Array:
    """Next tokens where a drafted token is accepted by a rule without chance, else the target's best one.

    Args:
        p: The target's distribution [vocab].
        q: The drafter's, which tokens are drawn from [vocab].
        accepts: True if a token is accepted; typical acceptance, for one.
        draws: Number of draws.
        seed: Of chance.

    Returns:
        Counts [vocab].
    """
    _, drafted = _drafted(q, draws, seed)
    good = np.array([bool(accepts(p, token)) for token in range(len(p))])
    return np.bincount(np.where(good[drafted], drafted, p.argmax()), minlength=len(p))


@dataclass(frozen=True)
class SmallLanguage:
    """A target's next-token logits, cut down to its few most probable tokens, two tokens deep.

    Attributes:
        tokens: Ids of the tokens that are left.
        first: Logits of the first token [size].
        second: Logits of the second token, by the first [size, size].
    """

    tokens: list[int]
    first: torch.Tensor
    second: torch.Tensor

    @property
    def size(self) -> int:
        """Tokens that are left."""
        return len(self.tokens)

    @property
    def pairs(self) -> Array:
        """Probability of each pair of tokens, [size x size]."""
        one, two = torch.softmax(self.first, -1), torch.softmax(self.second, -1)
        table: Array = (one[:, None] * two).flatten().double().numpy()
        table /= table.sum()
        return table


@torch.inference_mode()
def small_language(target: Target, text: Sequence[int], size: int) -> SmallLanguage:
    """Cut a target down where it is least sure, so that a test can see every outcome many times.

    Args:
        target: Whose logits these are.
        text: Token ids; the position with the highest entropy is taken, among the later half.
        size: Tokens that are left.
    """
    n = len(text)
    seen = target(
        torch.tensor([list(text)], device=target.device), [chain(n - 1)], target.cache(1, n)
    )
    logits = target.logits(seen.hidden[0]).float()
    p = torch.softmax(logits, -1)
    entropy = -(p * (p + 1e-10).log()).sum(-1)
    at = n // 2 + int(entropy[n // 2 :].argmax())
    tokens = logits[at].topk(size).indices
    ids = [*text[: at + 1], *tokens.tolist()]
    tree = DraftTree([*range(-1, at), *[at] * size])
    cache = target.cache(1, len(ids))
    seen = target(torch.tensor([ids], device=target.device), [tree], cache)
    below = target.logits(seen.hidden[0, -size:]).float()
    return SmallLanguage(tokens.tolist(), logits[at, tokens].cpu(), below[:, tokens].cpu())


def count_pairs(rule: Rule, language: SmallLanguage, draws: int, seed: int = 0) -> Array:
    """Return the next two tokens, drawn with a rule of acceptance over a tree, counted.

    The tree holds the two most probable first tokens, and the most probable second token after each. Tokens
    that a step does not give are drawn from the target itself.

    Args:
        rule: Rule of acceptance; it has to draw from torch's own generator.
        language: The target.
        draws: Number of draws.
        seed: Of chance.

    Returns:
        Counts of pairs [size x size].
    """
    torch.manual_seed(seed)
    one, two = language.first.topk(2).indices.tolist()
    behind = language.second.argmax(-1).tolist()
    tree = DraftTree([-1, 0, 0, 1, 2])
    tokens = [0, one, two, behind[one], behind[two]]
    logits = torch.stack([language.first, *(language.second[token] for token in tokens[1:])])
    seconds = torch.softmax(language.second, -1)
    own = [torch.multinomial(row, draws, replacement=True).tolist() for row in seconds]
    counts = np.zeros(language.size**2, dtype=int)
    for i in range(draws):
        verdict = rule(tree, tokens, logits)
        gained = [*(tokens[node] for node in verdict.path[1:]), verdict.token]
        second = gained[1] if len(gained) > 1 else own[gained[0]][i]
        counts[gained[0] * language.size + second] += 1
    return counts
