"""Checks of lab 3.3.4, speculative decoding with Medusa."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from utils.checks import check, expect, expect_close, expect_equal
from utils.speculative import verify
from utils.speculative.tree import DraftTree

Array = np.ndarray[Any, Any]
Choices = Sequence[tuple[int, ...]]

# root 0; children 1, 2; below 1: 3, 4; below 2: 5; below 4: 6
PARENTS = [-1, 0, 0, 1, 1, 2, 4]


def random_parents(rng: random.Random, nodes: int) -> list[int]:
    """Parents of a tree of any shape, the root included in `nodes`."""
    return [-1, *(rng.randrange(node) for node in range(1, nodes))]


def _accept_greedy(parents: list[int], tokens: list[int], best: list[int]) -> list[int]:
    return verify.accept_greedy(DraftTree(parents), tokens, best)


@check(reference=_accept_greedy)
def accept_greedy(attempt: Callable[..., list[int]]) -> None:
    """Examine the learner's `accept_greedy(parents, tokens, best)`."""
    hint = "The root is part of the text already: it is always accepted, and comes first."
    got = attempt([-1], [3], [5])
    expect_equal(got, [0], what="a root alone, as in plain decoding", hint=hint)
    chain = [-1, 0, 1, 2]
    hint = "Behind the root it wants 5, as guessed, then 9, not 6. Behind a wrong guess nothing counts."
    got = attempt(chain, [3, 5, 6, 7], [5, 9, 7, 8])
    expect_equal(got, [0, 1], what="a chain whose second guess is wrong", hint=hint)
    hint = "Node 3 continues another text: its parent was not accepted."
    got = attempt(chain, [3, 5, 6, 7], [5, 9, 7, 1])
    expect_equal(got, [0, 1], what="a chain whose third guess is right, the second not", hint=hint)
    hint = "The root is always accepted: it is part of the text already."
    got = attempt(chain, [3, 5, 6, 7], [4, 6, 7, 8])
    expect_equal(got, [0], what="a chain whose first guess is wrong", hint=hint)
    hint = "All guesses are right, so all nodes are accepted. best of the last one is not needed."
    got = attempt(chain, [3, 5, 6, 7], [5, 6, 7, 8])
    expect_equal(got, [0, 1, 2, 3], what="a chain that is right to its end", hint=hint)
    tokens = [3, 5, 6, 7, 8, 7, 9]
    hint = (
        "best[node] is what follows node: look for it among all children of the node accepted last."
    )
    got = attempt(PARENTS, tokens, [6, 0, 7, 0, 9, 0, 0])
    what = f"parents {PARENTS}, tokens {tokens}, the target wants 6, then 7"
    expect_equal(got, [0, 2, 5], what=what, hint=hint)
    hint = "Node 4 is the second child of node 1, and holds the 8 that the target wants there."
    got = attempt(PARENTS, tokens, [5, 8, 7, 0, 9, 0, 0])
    what = f"parents {PARENTS}, tokens {tokens}, the target wants 5, 8, 9"
    expect_equal(got, [0, 1, 4, 6], what=what, hint=hint)
    hint = (
        "Node 2 hangs on the root, not on node 1: a token counts only below the node accepted last."
    )
    got = attempt([-1, 0, 0], [3, 5, 6], [5, 6, 0])
    expect_equal(got, [0, 1], what="two children of the root, 5 and 6", hint=hint)
    rng = random.Random(1)
    for _ in range(60):
        same_path(attempt, rng, random_parents(rng, rng.randint(1, 9)))


def same_path(
    attempt: Callable[..., list[int]], rng: random.Random, parents: list[int], letters: int = 3
) -> None:
    """Tokens and the target's choices drawn from few letters, so that paths are often right."""
    size = len(parents)
    tokens = []
    siblings: dict[int, list[int]] = {}
    for parent in parents:  # children of a node differ, as those of a draft do
        taken = siblings.setdefault(parent, [])
        token = rng.choice([t for t in range(letters + len(taken)) if t not in taken])
        taken.append(token)
        tokens.append(token)
    best = [rng.randrange(letters) for _ in range(size)]
    what = f"parents {parents}, tokens {tokens}, the target's best {best}"
    expect_equal(attempt(parents, tokens, best), _accept_greedy(parents, tokens, best), what=what)


def _tree_mask(parents: list[int]) -> list[list[bool]]:
    rows: list[list[bool]] = DraftTree(parents).mask.tolist()
    return rows


@check(reference=_tree_mask)
def tree_mask(attempt: Callable[..., list[list[bool]]]) -> None:
    """Examine the learner's `tree_mask(parents)`."""
    expect_equal(attempt([-1]), [[True]], what="the mask of a root alone")
    hint = (
        "In a chain everything before a node is its ancestor: a triangle, as in plain attention. Does "
        "changing one row change another? Copy the parent's row, and make each row a list of its own."
    )
    triangle = [[True, False, False], [True, True, False], [True, True, True]]
    expect_equal(attempt([-1, 0, 1]), triangle, what="the mask of a chain of 3", hint=hint)
    hint = "Two children of the root are two different futures: neither sees the other."
    star = [[True, False, False], [True, True, False], [True, False, True]]
    expect_equal(attempt([-1, 0, 0]), star, what="the mask of a root with two children", hint=hint)
    hint = "Go up from each node to the root: the grandparent is seen as well, the parent's sibling is not."
    expect_equal(
        attempt(PARENTS), _tree_mask(PARENTS), what=f"the mask for parents {PARENTS}", hint=hint
    )
    rng = random.Random(2)
    for _ in range(30):
        parents = random_parents(rng, rng.randint(1, 12))
        expect_equal(attempt(parents), _tree_mask(parents), what=f"the mask for parents {parents}")


def _position_ids(parents: list[int], length: int) -> list[int]:
    return [length + depth for depth in DraftTree(parents).depths.tolist()]


@check(reference=_position_ids)
def position_ids(attempt: Callable[..., list[int]]) -> None:
    """Examine the learner's `position_ids(parents, length)`."""
    hint = "The cache holds positions 0 to 9, so the root is at 10."
    expect_equal(attempt([-1], 10), [10], what="a root behind 10 cached tokens", hint=hint)
    hint = "In a chain each node comes one position after its parent."
    expect_equal(attempt([-1, 0, 1], 10), [10, 11, 12], what="a chain of 3 behind 10", hint=hint)
    hint = "Siblings guess at the same place in the text: the same position."
    expect_equal(attempt([-1, 0, 0], 10), [10, 11, 11], what="two children, behind 10", hint=hint)
    hint = "One behind the parent's position, not behind its number: look up what the parent got."
    wanted = _position_ids(PARENTS, 7)
    expect_equal(attempt(PARENTS, 7), wanted, what=f"parents {PARENTS} behind 7", hint=hint)
    rng = random.Random(3)
    for _ in range(20):
        parents, length = random_parents(rng, rng.randint(1, 12)), rng.randint(0, 99)
        wanted = _position_ids(parents, length)
        expect_equal(attempt(parents, length), wanted, what=f"parents {parents} behind {length}")


def _head_logits(hidden: Array, weight: Array, bias: Array, lm_head: Array) -> Array:
    inner = hidden @ weight.T + bias
    states = hidden + inner / (1 + np.exp(-inner))
    logits: Array = states @ lm_head.T
    return logits


@check(reference=_head_logits)
def head_logits(attempt: Callable[..., Array]) -> None:
    """Examine the learner's `head_logits(hidden, weight, bias, lm_head)`."""
    eye, noop = np.eye(2), np.zeros((2, 2))
    h = np.array([[1.0, -2.0]])
    hint = "With weights and bias 0 the block adds SiLU(0) = 0: what is left is the hidden state itself."
    got = attempt(h, noop, np.zeros(2), eye)
    expect_close(got, h, what="a block of zeros, LM head = identity", hint=hint)
    hint = "SiLU(x) = x / (1 + exp(-x)): 3 becomes 2.857, and is added to the hidden state."
    got = attempt(h, noop, np.array([3.0, 0.0]), eye)
    wanted = np.array([[1.0 + 3 / (1 + math.exp(-3)), -2.0]])
    expect_close(got, wanted, what="weights 0, bias [3, 0], LM head = identity", hint=hint)
    weight = np.array([[0.0, 1.0], [0.0, 0.0]])
    hint = "weight is [out, in], as in torch's Linear: W h is hidden @ weight.T for states in rows."
    got = attempt(h, weight, np.zeros(2), eye)
    wanted = _head_logits(h, weight, np.zeros(2), eye)
    expect_close(got, wanted, what="a weight that moves the second number to the first", hint=hint)
    lm_head = np.array([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
    hint = "lm_head is [vocabulary, hidden]: three logits, the third the sum of the other two."
    got = attempt(h, noop, np.zeros(2), lm_head)
    expect_close(got, np.array([[1.0, -2.0, -1.0]]), what="an LM head of 3 tokens", hint=hint)
    rng = np.random.default_rng(4)
    for _ in range(5):
        args = random_head(rng)
        what = f"{args[0].shape[0]} random hidden states of {args[0].shape[1]} numbers"
        expect_close(attempt(*args), _head_logits(*args), what=what, rel=1e-4, abs_=1e-6)


def random_head(rng: np.random.Generator, vocab: int = 7) -> tuple[Array, Array, Array, Array]:
    """Hidden states, weight, bias and LM head of random sizes and values."""
    n, size = int(rng.integers(1, 4)), int(rng.integers(2, 6))
    return (
        rng.normal(size=(n, size)),
        rng.normal(size=(size, size)),
        rng.normal(size=size),
        rng.normal(size=(vocab, size)),
    )


def _residual(p: Array, q: Array) -> Array:
    left = np.maximum(p - q, 0)
    total = left.sum()
    return left / total if total > 0 else p


@check(reference=_residual)
def residual(attempt: Callable[..., Array]) -> None:
    """Examine the learner's `residual(p, q)`."""
    p, q = np.array([0.5, 0.3, 0.2]), np.array([0.7, 0.2, 0.1])
    hint = "p - q is [-0.2, 0.1, 0.1]. Nothing is owed to the first token; the rest is scaled to sum 1."
    what = "p = [0.5, 0.3, 0.2], q = [0.7, 0.2, 0.1]"
    expect_close(attempt(p, q), np.array([0.0, 0.5, 0.5]), what=what, hint=hint)
    hint = "A token chosen without a draw has q = 1: what is left is p without it, scaled to sum 1."
    got = attempt(p, np.array([0.0, 1.0, 0.0]))
    expect_close(
        got, np.array([5 / 7, 0.0, 2 / 7]), what=f"p = {p.tolist()}, q = 1 at token 1", hint=hint
    )
    hint = "Where p = q nothing is left to divide by. That cannot be asked for but by rounding: return p."
    expect_close(attempt(p, p), p, what="q the same as p", hint=hint)
    rng = np.random.default_rng(5)
    for _ in range(20):
        p, q = rng.dirichlet(np.ones(6)), rng.dirichlet(np.ones(6))
        what = f"p = {p.round(3).tolist()}, q = {q.round(3).tolist()}"
        expect_close(attempt(p, q), _residual(p, q), what=what, abs_=1e-9)


def _typical_accepts(p: Array, token: int, epsilon: float, alpha: float) -> bool:
    subset = p[p > 0]
    entropy = -float((subset * np.log(subset)).sum())
    return bool(p[token] > min(epsilon, alpha * math.exp(-entropy)))


@check(reference=_typical_accepts)
def typical_accepts(attempt: Callable[..., bool]) -> None:
    """Examine the learner's `typical_accepts(p, token, epsilon, alpha)`."""
    sure = np.array([0.9, 0.06, 0.04])
    hint = "H = 0.395 and exp(-H) = 0.674, so the threshold is min(0.09, 0.202) = 0.09, and 0.06 is less."
    got = attempt(sure, 1, 0.09, 0.3)
    expect_equal(
        got, False, what="a token of probability 0.06 where p = [0.9, 0.06, 0.04]", hint=hint
    )
    expect_equal(attempt(sure, 0, 0.09, 0.3), True, what="its most probable token, 0.9")
    even = np.full(20, 0.05)
    hint = "The target is unsure: exp(-H) = 1/20, so the threshold is 0.3 / 20 = 0.015. Natural logarithm."
    got = attempt(even, 3, 0.09, 0.3)
    expect_equal(got, True, what="a token of 20 that are equally probable", hint=hint)
    hint = "By the natural logarithm H = 2.056: the threshold is min(0.09, 0.8 x 0.128) = 0.09."
    got = attempt(np.array([0.06] + [0.94 / 7] * 7), 0, 0.09, 0.8)
    expect_equal(got, False, what="0.06 beside seven tokens of 0.134, alpha 0.8", hint=hint)
    hint = "The smaller of the two thresholds counts."
    got = attempt(np.array([0.9, 0.1]), 1, 0.09, 0.01)
    expect_equal(got, True, what="0.1 where epsilon is 0.09 and alpha 0.01", hint=hint)
    hint = "A probability of 0 adds nothing to the entropy: 0 x log 0 counts as 0."
    got = attempt(np.array([1.0, 0.0]), 0, 0.09, 0.3)
    expect_equal(got, True, what="the only token that is possible", hint=hint)
    expect_equal(attempt(np.array([1.0, 0.0]), 1, 0.09, 0.3), False, what="an impossible token")
    rng = np.random.default_rng(6)
    for _ in range(60):
        same_typical(attempt, rng, float(rng.uniform(0.02, 0.3)), float(rng.uniform(0.1, 1.0)))


def same_typical(
    attempt: Callable[..., bool], rng: np.random.Generator, epsilon: float, alpha: float
) -> None:
    """One random distribution and token, not too near to the threshold."""
    p = rng.dirichlet(np.ones(int(rng.integers(2, 9))))
    token = int(rng.integers(len(p)))
    low, high = (_typical_accepts(p, token, epsilon * f, alpha * f) for f in (1.001, 0.999))
    if low == high:
        what = (
            f"token {token} of p = {p.round(3).tolist()}, epsilon {epsilon:.3f}, alpha {alpha:.3f}"
        )
        expect_equal(attempt(p, token, epsilon, alpha), low, what=what)


def _expected_tokens(choices: Choices, accuracy: list[list[float]]) -> float:
    return 1.0 + sum(
        math.prod(accuracy[head][rank] for head, rank in enumerate(path)) for path in choices
    )


@check(reference=_expected_tokens)
def expected_tokens(attempt: Callable[..., float]) -> None:
    """Examine the learner's `expected_tokens(choices, accuracy)`."""
    accuracy = [[0.6, 0.2, 0.1], [0.5, 0.3, 0.1]]
    hint = "Without a guess each step still gives the target's own token."
    expect_close(attempt([], accuracy), 1.0, what="no choices at all", hint=hint)
    hint = "The target's own token, and head 0's best guess in 6 of 10 steps."
    expect_close(attempt([(0,)], accuracy), 1.6, what="head 0's best guess alone", hint=hint)
    hint = "The second node counts only if the first was right too: 1 + 0.6 + 0.6 x 0.5."
    expect_close(attempt([(0,), (0, 0)], accuracy), 1.9, what="a chain of two", hint=hint)
    hint = "Siblings exclude each other, and each is right in its own share of steps: add them up."
    expect_close(attempt([(0,), (1,)], accuracy), 1.8, what="two guesses of head 0", hint=hint)
    hint = "(0, 1) is head 1's second guess behind head 0's best: accuracy[0][0] x accuracy[1][1]."
    got = attempt([(0,), (0, 1)], accuracy)
    expect_close(got, 1.6 + 0.6 * 0.3, what="the choices (0,) and (0, 1)", hint=hint)
    rng = random.Random(7)
    for _ in range(20):
        choices, accuracy = random_choices(rng, rng.randint(0, 12))
        what = f"the choices {choices}, accuracy {accuracy}"
        expect_close(attempt(choices, accuracy), _expected_tokens(choices, accuracy), what=what)


def random_choices(
    rng: random.Random, count: int, ranks: int = 3, heads: int = 4
) -> tuple[list[tuple[int, ...]], list[list[float]]]:
    """Choices with all their beginnings, and accuracies [head][rank] that fall with the rank."""
    chosen: list[tuple[int, ...]] = []
    while len(chosen) < count:
        path = (*rng.choice([(), *(c for c in chosen if len(c) < heads)]), rng.randrange(ranks))
        if path not in chosen:
            chosen.append(path)
    accuracy = []
    for _ in range(heads):
        parts = sorted((rng.random() for _ in range(ranks + 1)), reverse=True)
        accuracy.append([round(x / sum(parts), 3) for x in parts[:ranks]])
    return chosen, accuracy


def _expected_speedup(tokens: float, step_s: float, plain_s: float, draft_s: float) -> float:
    return tokens / ((step_s + draft_s) / plain_s)


@check(reference=_expected_speedup)
def expected_speedup(attempt: Callable[..., float]) -> None:
    """Examine the learner's `expected_speedup(tokens, step_s, plain_s, draft_s)`."""
    hint = "One token a step, at the price of a plain step: nothing is gained."
    expect_close(attempt(1.0, 0.01, 0.01, 0.0), 1.0, what="plain decoding itself", hint=hint)
    hint = "3 tokens in the time of 1.5 plain steps."
    expect_close(
        attempt(3.0, 0.015, 0.01, 0.0), 2.0, what="3 tokens at 1.5 times the price", hint=hint
    )
    hint = "Drafting takes time too: 3 tokens in 15 + 5 ms, where plain takes 10 ms for one."
    expect_close(
        attempt(3.0, 0.015, 0.01, 0.005), 1.5, what="the same, 5 ms of drafting", hint=hint
    )
    slow = attempt(1.5, 0.03, 0.01, 0.0)
    expect_close(slow, 0.5, what="1.5 tokens at 3 times the price", hint="Speculation can lose.")
    expect(slow > 0, "a speed-up is positive.")
