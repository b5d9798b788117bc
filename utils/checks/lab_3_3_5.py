"""Checks of lab 3.3.5, EAGLE-3."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from utils.checks import CheckFailed, check, expect_close, expect_equal, expect_raises, expect_type
from utils.speculative.tree import rerank as _rerank
from utils.speculative.ttt import ttt_mask as _ttt_mask

Array = np.ndarray[Any, Any]
Triple = tuple[Any, int, int | None]


def states(layers: int, tokens: int, hidden: int, seed: int) -> Array:
    """Made-up hidden states [layers + 1, tokens, hidden]."""
    return np.random.default_rng(seed).normal(size=(layers + 1, tokens, hidden))


def _fuse(hidden_states: Array, aux_layers: Sequence[int], fc: Array) -> Array:
    fused: Array = np.concatenate([hidden_states[k] for k in aux_layers], axis=-1) @ fc.T
    return fused


@check(reference=_fuse)
def fuse(attempt: Callable[..., Array]) -> None:
    """Examine the learner's `fuse(hidden_states, aux_layers, fc)`."""
    # State k is full of k: what fc picks out tells which state stood where.
    numbered = np.stack([np.full((2, 2), float(k)) for k in range(7)])
    identity = np.eye(6)
    hint = "k names hidden_states[k], the output of layer k - 1; hidden_states[0] is the embedding."
    got = attempt(numbered, [1, 3, 5], identity)
    expect_type(got, np.ndarray, what="what fuse returns")
    expect_equal(got.shape, (2, 6), what="shape for 2 tokens and an fc with 6 rows", hint=hint)
    wanted = np.array([[1.0, 1.0, 3.0, 3.0, 5.0, 5.0]] * 2)
    hint += " Low comes first, then middle, then high, side by side along the last axis."
    expect_close(got, wanted, what="states 1, 3, 5, an fc that changes nothing", hint=hint)
    hint = "Take the layers in the order that you are given."
    expect_close(
        attempt(numbered, [5, 1, 3], identity)[0],
        np.array([5.0, 5.0, 1.0, 1.0, 3.0, 3.0]),
        what="states 5, 1, 3",
        hint=hint,
    )
    hint = "A linear layer's weight is [outputs, inputs]: multiply by its transpose."
    fc = np.arange(12, dtype=float).reshape(2, 6)
    expect_close(attempt(numbered, [1, 3, 5], fc), wanted @ fc.T, what="an fc of [2, 6]", hint=hint)
    hidden, fc = states(8, 5, 3, 1), np.random.default_rng(2).normal(size=(3, 9))
    what = "random states of 8 layers, 2, 4 and 5"
    expect_close(attempt(hidden, [2, 4, 5], fc), _fuse(hidden, [2, 4, 5], fc), what=what)
    fc = np.random.default_rng(3).normal(size=(3, 6))
    what = "two states, 0 and 8 of 8 layers"
    expect_close(attempt(hidden, [0, 8], fc), _fuse(hidden, [0, 8], fc), what=what)


def _shift(features: list[Any], tokens: list[int]) -> list[Triple]:
    return [
        (feature, tokens[i + 1], tokens[i + 2] if i + 2 < len(tokens) else None)
        for i, feature in enumerate(features)
    ]


@check(reference=_shift)
def shift(attempt: Callable[..., list[Triple]]) -> None:
    """Examine the learner's `shift(features, tokens)`."""
    hint = "Feature 0 goes with token 1, and together they guess token 2."
    got = attempt(["f0", "f1"], [10, 11, 12])
    expect_type(got, list, what="what shift returns")
    expect_equal(len(got), 2, what="triples for 2 features", hint="One for each feature.")
    expect_equal(got[0], ("f0", 11, 12), what="the first of tokens 10, 11, 12", hint=hint)
    hint = "Token 3 is not known yet: that is the guess itself. So None."
    expect_equal(got[1], ("f1", 12, None), what="the second of tokens 10, 11, 12", hint=hint)
    hint = "Two tokens, one feature: the first guess of a draft."
    expect_equal(attempt(["f0"], [7, 8]), [("f0", 8, None)], what="tokens 7, 8", hint=hint)
    hint = "Nothing was computed yet, so there is nothing to pair."
    expect_equal(attempt([], [7]), [], what="one token, no feature", hint=hint)
    longer = [f"f{i}" for i in range(5)]
    expect_equal(attempt(longer, [*range(6)]), _shift(longer, [*range(6)]), what="tokens 0 to 5")


def _to_offsets(kept: list[int]) -> list[int]:
    return [token - draft for draft, token in enumerate(sorted(kept))]


@check(reference=_to_offsets)
def to_offsets(attempt: Callable[..., list[int]]) -> None:
    """Examine the learner's `to_offsets(kept)`."""
    hint = "Draft token 0 is target token 3, so its offset is 3; draft token 1 is 5, so 5 - 1."
    got = attempt([3, 5, 9])
    expect_type(got, list, what="what to_offsets returns")
    expect_equal(got, [3, 4, 7], what="kept 3, 5, 9", hint=hint)
    hint = "The most frequent tokens come in any order: sort them, so that offsets never fall."
    expect_equal(attempt([9, 3, 5]), [3, 4, 7], what="kept 9, 3, 5", hint=hint)
    hint = "A draft that keeps the first tokens of the target needs no map: all 0."
    expect_equal(attempt([0, 1, 2, 3]), [0, 0, 0, 0], what="kept 0, 1, 2, 3", hint=hint)
    expect_equal(attempt([]), [], what="nothing kept")
    kept = random.Random(1).sample(range(500), 60)
    expect_equal(attempt(kept), _to_offsets(kept), what="60 of 500 tokens")


def _to_target(draft_ids: list[int], offsets: list[int], vocab: int) -> list[int]:
    if any(not 0 <= draft < len(offsets) for draft in draft_ids):
        raise ValueError("a draft id is outside the draft vocabulary")
    tokens = [draft + offsets[draft] for draft in draft_ids]
    if any(not 0 <= token < vocab for token in tokens):
        raise ValueError("an offset leads out of the target's vocabulary")
    return tokens


@check(reference=_to_target)
def to_target(attempt: Callable[..., list[int]]) -> None:
    """Examine the learner's `to_target(draft_ids, offsets, vocab)`."""
    hint = "target = draft + offset of the draft: 0 + 3, 2 + 7, 1 + 4."
    got = attempt([0, 2, 1], [3, 4, 7], 10)
    expect_type(got, list, what="what to_target returns")
    expect_equal(got, [3, 9, 5], what="draft ids 0, 2, 1 with offsets 3, 4, 7", hint=hint)
    expect_equal(attempt([], [3, 4, 7], 10), [], what="no draft ids")
    _refused(attempt, [0, 3], [3, 4, 7], 10, "draft id 3 of a draft vocabulary of 3")
    hint = "In Python offsets[-1] is the last one: a negative id has to be refused by you."
    _refused(attempt, [-1], [3, 4, 7], 10, "draft id -1", hint)
    hint = "These heads are for a larger vocabulary: refuse, before the target looks token 9 up."
    _refused(attempt, [2], [3, 4, 7], 9, "offsets that lead to token 9 of a target with 9", hint)
    _refused(attempt, [0], [-1, 0], 9, "an offset that leads to token -1", hint)
    hint = "Only what is asked for counts: draft id 2 was not."
    expect_equal(attempt([0], [3, 4, 7], 9), [3], what="draft id 0 of the same", hint=hint)


def _refused(
    attempt: Callable[..., object],
    draft_ids: list[int],
    offsets: list[int],
    vocab: int,
    what: str,
    hint: str = "",
) -> None:
    expect_raises(ValueError, lambda: attempt(draft_ids, offsets, vocab), what=what, hint=hint)


@check(reference=_ttt_mask)
def ttt_mask(attempt: Callable[..., list[list[bool]]]) -> None:
    """Examine the learner's `ttt_mask(rows, step)`."""
    first = attempt(3, 0)
    expect_type(first, list, what="what ttt_mask returns")
    hint = "Step 0 is ordinary causal attention: row i sees keys 0 to i."
    wanted = [[True, False, False], [True, True, False], [True, True, True]]
    expect_equal(first, wanted, what="3 rows, step 0", hint=hint)
    second = attempt(2, 1)
    hint = "The keys of both steps lie side by side: 2 + 2 of them."
    expect_equal([len(row) for row in second], [4, 4], what="keys of 2 rows, step 1", hint=hint)
    hint = "Keys of step 0 up to i, then of step 1 the own one only, number i."
    wanted = [[True, False, True, False], [True, True, False, True]]
    expect_equal(second, wanted, what="2 rows, step 1", hint=hint)
    third = attempt(2, 2)
    hint = "Of every later step the own key: chains that start elsewhere are other continuations."
    wanted = [[True, False, True, False, True, False], [True, True, False, True, False, True]]
    expect_equal(third, wanted, what="2 rows, step 2", hint=hint)
    for rows, step in ((1, 3), (5, 2), (4, 0)):
        what = f"{rows} rows, step {step}"
        expect_equal(attempt(rows, step), _ttt_mask(rows, step), what=what)


def _path_scores(parents: list[int], probabilities: list[float]) -> list[float]:
    scores = [0.0]
    for node in range(1, len(parents)):
        scores.append(scores[parents[node]] + math.log(probabilities[node]))
    return scores


@check(reference=_path_scores)
def path_scores(attempt: Callable[..., list[float]]) -> None:
    """Examine the learner's `path_scores(parents, probabilities)`."""
    hint = "The root is known: its probability is 1, and log 1 = 0."
    got = attempt([-1], [1.0])
    expect_type(got, list, what="what path_scores returns")
    expect_close(got, [0.0], what="a root alone", hint=hint)
    hint = "log 0.5, and log 0.5 + log 0.5: a path is as probable as all its steps together."
    chain = attempt([-1, 0, 1], [1.0, 0.5, 0.5])
    expect_close(chain, [0.0, math.log(0.5), math.log(0.25)], what="a chain", hint=hint)
    hint = "Node 3 hangs on node 1, node 2 on the root: go by parents, not by the order of nodes."
    parents, given = [-1, 0, 0, 1], [1.0, 0.6, 0.4, 0.5]
    wanted = [0.0, math.log(0.6), math.log(0.4), math.log(0.3)]
    expect_close(attempt(parents, given), wanted, what="two branches", hint=hint)
    parents, given = grown(random.Random(4), 40)
    expect_close(attempt(parents, given), _path_scores(parents, given), what="a tree of 40 nodes")


def grown(rng: random.Random, nodes: int) -> tuple[list[int], list[float]]:
    """Return a random tree: parents, and the probability of each node given its parent."""
    parents = [-1] + [rng.randrange(max(0, node - 6), node) for node in range(1, nodes)]
    return parents, [1.0] + [rng.uniform(0.02, 0.95) for _ in range(1, nodes)]


@check(reference=_rerank)
def rerank(attempt: Callable[..., list[int]]) -> None:
    """Examine the learner's `rerank(parents, scores, nodes)`."""
    parents, scores = [-1, 0, 0, 1, 1], [0.0, -0.1, -2.0, -0.3, -3.0]
    got = attempt(parents, scores, 2)
    expect_type(got, list, what="what rerank returns")
    hint = "Nodes 1 and 3 have the highest scores. The root always stays, and is not counted."
    expect_equal(got, [0, 1, 3], what="2 of scores -0.1, -2.0, -0.3, -3.0", hint=hint)
    hint = "In ascending order of the node, not of the score: a parent comes before its child."
    later = attempt([-1, 0, 0], [0.0, -2.0, -0.5], 2)
    expect_equal(later, [0, 1, 2], what="both of scores -2.0, -0.5", hint=hint)
    hint = "A deep node may beat a shallow one: all levels compete."
    expect_equal(attempt(parents, scores, 3), [0, 1, 2, 3], what="3 of the same", hint=hint)
    hint = (
        "Node 2 is its parent's child for certain (log 1 = 0), so both score -0.7: of equals the lower "
        "number, which is the parent. Otherwise a child could stay without it."
    )
    expect_equal(attempt([-1, 0, 1], [0.0, -0.7, -0.7], 1), [0, 1], what="a tie", hint=hint)
    hint = "There are no more: all of them."
    expect_equal(attempt(parents, scores, 9), [0, 1, 2, 3, 4], what="9 of 4", hint=hint)
    rng = random.Random(5)
    for nodes in (5, 8, 12):
        parents, given = grown(rng, 30)
        scores = _path_scores(parents, given)
        kept = attempt(parents, scores, nodes)
        expect_equal(kept, _rerank(parents, scores, nodes), what=f"{nodes} of 29 nodes")
        if orphans := [node for node in kept[1:] if parents[node] not in kept]:
            raise CheckFailed(f"{orphans[0]} is kept, and its parent is not.")


def _expected_speedup(acceptance: float, k: int, draft_cost: float, verify_cost: float) -> float:
    tokens = sum(acceptance**i for i in range(k + 1))
    return tokens / (k * draft_cost + verify_cost)


@check(reference=_expected_speedup)
def expected_speedup(attempt: Callable[..., float]) -> None:
    """Examine the learner's `expected_speedup(acceptance, k, draft_cost, verify_cost)`."""
    hint = "No guess is right: one token per cycle, and the cycle costs 1 + 2 x 0.1."
    expect_close(attempt(0.0, 2, 0.1, 1.0), 1 / 1.2, what="a = 0, k = 2", hint=hint)
    hint = "One guess: 1 + a tokens, since the target adds its own token in any case."
    expect_close(attempt(0.5, 1, 0.0, 1.0), 1.5, what="a = 0.5, k = 1, all for free", hint=hint)
    hint = "1 + a + a² = 1.75: the third token needs both guesses to be right."
    expect_close(attempt(0.5, 2, 0.0, 1.0), 1.75, what="a = 0.5, k = 2, all for free", hint=hint)
    hint = "a = 1: all k guesses and the target's token, k + 1. (1 - a) is 0 there: add up instead."
    expect_close(attempt(1.0, 4, 0.0, 1.0), 5.0, what="a = 1, k = 4, all for free", hint=hint)
    hint = "A cycle costs k drafts and one verification, in plain steps."
    expect_close(attempt(0.8, 3, 0.1, 1.6), 2.952 / 1.9, what="a = 0.8, k = 3, 0.1, 1.6", hint=hint)
    hint = "Nothing drafted: plain decoding."
    expect_close(attempt(0.8, 0, 0.1, 1.0), 1.0, what="k = 0", hint=hint)
    for a, k, c, t in ((0.62, 5, 0.04, 1.2), (0.9, 7, 0.08, 2.5), (0.3, 4, 0.2, 1.1)):
        what = f"a = {a}, k = {k}, draft {c}, verification {t}"
        expect_close(attempt(a, k, c, t), _expected_speedup(a, k, c, t), what=what)
