"""How lab 3.3.5, EAGLE-3, is graded. Never released; tools/lab/judge/hidden_tests.py explains."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from utils.checks import expect_close, expect_equal, expect_raises
from utils.checks import lab_3_3_5 as lab
from tools.lab.judge.hidden_tests import Grading, Wrong

Array = np.ndarray[Any, Any]
_fuse = lab.fuse.reference
_shift = lab.shift.reference
_to_offsets = lab.to_offsets.reference
_to_target = lab.to_target.reference
_ttt_mask = lab.ttt_mask.reference
_path_scores = lab.path_scores.reference
_rerank = lab.rerank.reference
_speedup = lab.expected_speedup.reference


def _one_layer_on(hidden_states: Array, aux_layers: Any, fc: Array) -> Array:
    return _fuse(hidden_states, [min(k + 1, len(hidden_states) - 1) for k in aux_layers], fc)


def _high_first(hidden_states: Array, aux_layers: Any, fc: Array) -> Array:
    return _fuse(hidden_states, list(aux_layers)[::-1], fc)


def _sorted_layers(hidden_states: Array, aux_layers: Any, fc: Array) -> Array:
    return _fuse(hidden_states, sorted(aux_layers), fc)


def _summed(hidden_states: Array, aux_layers: Any, fc: Array) -> Array:
    total: Array = sum(hidden_states[k] for k in aux_layers)
    return total @ fc[:, : total.shape[-1]].T


def _not_transposed(hidden_states: Array, aux_layers: Any, fc: Array) -> Array:
    fused: Array = np.concatenate([hidden_states[k] for k in aux_layers], -1) @ fc
    return fused


def _along_tokens(hidden_states: Array, aux_layers: Any, fc: Array) -> Array:
    stacked: Array = np.concatenate([hidden_states[k] for k in aux_layers], 0)
    return stacked


def _token_by_token(hidden_states: np.ndarray, aux_layers: list[int], fc: np.ndarray) -> np.ndarray:
    rows = [np.hstack([hidden_states[k][i] for k in aux_layers]) for i in range(hidden_states.shape[1])]
    return np.array([fc @ row for row in rows])


def _sum_of_parts(hidden_states: np.ndarray, aux_layers: list[int], fc: np.ndarray) -> np.ndarray:
    parts = np.split(fc, len(aux_layers), axis=1)
    return sum(hidden_states[k] @ part.T for k, part in zip(aux_layers, parts, strict=True))


fuse = Grading(
    lab.fuse,
    right={"token by token": _token_by_token, "a sum of parts": _sum_of_parts},
    wrong={
        "one layer further": Wrong(_one_layer_on, says="hidden_states[k]"),
        "high comes first": Wrong(_high_first, says="Low comes first"),
        "sorts the layers": Wrong(_sorted_layers, says="order that you are given"),
        "adds in place of laying side by side": Wrong(_summed, says="side by side"),
        "forgets to transpose": Wrong(_not_transposed, says="mismatch"),
        "lays them along the tokens": Wrong(_along_tokens, says="shape"),
    },
    twins=("utils.speculative.heads.Eagle3Draft.fuse",),
)


def _same_fusion(attempt: Callable[..., Array], rng: random.Random, count: int) -> None:
    for _ in range(6):
        layers, tokens, hidden = rng.randint(6, 12), rng.randint(1, 6), rng.randint(2, 5)
        built = lab.states(layers, tokens, hidden, rng.randrange(10**6))
        aux = rng.sample(range(layers + 1), count)
        fc = np.random.default_rng(rng.randrange(10**6)).normal(size=(hidden, count * hidden))
        what = f"states {aux} of {layers} layers, {tokens} tokens of {hidden}"
        expect_close(attempt(built, aux, fc), _fuse(built, aux, fc), what=what)


@fuse.part("three hidden states", points=2)
def _(attempt: Callable[..., Array], rng: random.Random) -> None:
    _same_fusion(attempt, rng, 3)


@fuse.part("another number of hidden states", points=1)
def _(attempt: Callable[..., Array], rng: random.Random) -> None:
    _same_fusion(attempt, rng, rng.choice([1, 2, 4]))


def _not_shifted(features: list[Any], tokens: list[int]) -> list[Any]:
    return [(feature, tokens[i], tokens[i + 1]) for i, feature in enumerate(features)]


def _guesses_what_it_reads(features: list[Any], tokens: list[int]) -> list[Any]:
    return [(feature, tokens[i + 1], tokens[i + 1]) for i, feature in enumerate(features)]


def _drops_the_last(features: list[Any], tokens: list[int]) -> list[Any]:
    return list(zip(features, tokens[1:], tokens[2:], strict=False))


def _zero_for_unknown(features: list[Any], tokens: list[int]) -> list[Any]:
    return [(f, t, 0 if w is None else w) for f, t, w in _shift(features, tokens)]


def _wraps_around(features: list[Any], tokens: list[int]) -> list[Any]:
    n = len(tokens)
    return [(f, tokens[(i + 1) % n], tokens[(i + 2) % n]) for i, f in enumerate(features)]


def _by_index(features: list[Any], tokens: list[int]) -> list[tuple[Any, ...]]:
    last = len(tokens) - 1
    return [(features[i], tokens[i + 1], tokens[i + 2] if i + 2 <= last else None) for i in range(last)]


def _appends(features: list[Any], tokens: list[int]) -> list[tuple[Any, ...]]:
    triples, longer = [], [*tokens, None]
    for at, feature in enumerate(features):
        triples.append((feature, *longer[at + 1 : at + 3]))
    return triples


shift = Grading(
    lab.shift,
    right={"by index": _by_index, "slices of a longer list": _appends},
    wrong={
        "pairs a feature with its own token": Wrong(_not_shifted, says="token 1"),
        "guesses what it reads": Wrong(_guesses_what_it_reads, says="guess token 2"),
        "leaves out the last": Wrong(_drops_the_last, says="each feature"),
        "0 for what is unknown": Wrong(_zero_for_unknown, says="None"),
        "begins again at the front": Wrong(_wraps_around, says="None"),
    },
)


def _sequence(rng: random.Random) -> tuple[list[Any], list[int]]:
    length = rng.randint(3, 12)
    features = [rng.choice(["f", "g"]) + str(rng.randrange(1000)) for _ in range(length - 1)]
    return features, [rng.randrange(2000) for _ in range(length)]


@shift.part("features with the tokens behind them", points=2)
def _(attempt: Callable[..., list[Any]], rng: random.Random) -> None:
    for _ in range(15):
        features, tokens = _sequence(rng)
        wanted = _shift(features, tokens)[:-1]
        what = f"all but the last triple of {features} and {tokens}"
        expect_equal(list(attempt(features, tokens))[:-1], wanted, what=what)


@shift.part("the newest token, whose successor is not known", points=1)
def _(attempt: Callable[..., list[Any]], rng: random.Random) -> None:
    for _ in range(15):
        features, tokens = _sequence(rng)
        what = f"triples of {features} and {tokens}"
        expect_equal(attempt(features, tokens), _shift(features, tokens), what=what)


def _with_numpy(kept: list[int]) -> np.ndarray:
    ids = np.sort(np.asarray(kept, dtype=int))
    return ids - np.arange(len(ids))


def _removes_the_least(kept: list[int]) -> list[int]:
    left, offsets = list(kept), []
    while left:
        left.remove(least := min(left))
        offsets.append(least - len(offsets))
    return offsets


to_offsets = Grading(
    lab.to_offsets,
    right={"an array": _with_numpy, "the least first": _removes_the_least},
    wrong={
        "the target's ids themselves": Wrong(lambda kept: sorted(kept), says="5 - 1"),
        "does not sort": Wrong(lambda kept: [token - i for i, token in enumerate(kept)], says="sort"),
        "the other way round": Wrong(
            lambda kept: [i - token for i, token in enumerate(sorted(kept))], says="offset"
        ),
        "counts from one": Wrong(
            lambda kept: [token - i for i, token in enumerate(sorted(kept), 1)], says="offset"
        ),
    },
    twins=("utils.speculative.checkpoints.to_offsets",),
)


@to_offsets.part("any tokens in any order", points=2)
def _(attempt: Callable[..., list[int]], rng: random.Random) -> None:
    for _ in range(20):
        vocab = rng.randint(20, 500)
        kept = rng.sample(range(vocab), rng.randint(5, 19))
        expect_equal(attempt(kept), _to_offsets(kept), what=f"kept {kept}")


def _adds_nothing(draft_ids: list[int], offsets: list[int], vocab: int) -> list[int]:
    return [offsets[draft] for draft in draft_ids]


def _refuses_nothing(draft_ids: list[int], offsets: list[int], vocab: int) -> list[int]:
    return [d + (offsets[d] if -len(offsets) <= d < len(offsets) else 0) for d in draft_ids]


def _negative_ids(draft_ids: list[int], offsets: list[int], vocab: int) -> list[int]:
    if any(d >= len(offsets) for d in draft_ids):
        raise ValueError("outside")
    tokens = [d % len(offsets) + offsets[d] for d in draft_ids]
    if any(not 0 <= t < vocab for t in tokens):
        raise ValueError("outside")
    return tokens


def _no_vocabulary(draft_ids: list[int], offsets: list[int], vocab: int) -> list[int]:
    if any(not 0 <= d < len(offsets) for d in draft_ids):
        raise ValueError("outside")
    return [d + offsets[d] for d in draft_ids]


def _clips(draft_ids: list[int], offsets: list[int], vocab: int) -> list[int]:
    good = [min(max(d, 0), len(offsets) - 1) for d in draft_ids]
    return [min(max(d + offsets[d], 0), vocab - 1) for d in good]


def _leaves_out(draft_ids: list[int], offsets: list[int], vocab: int) -> list[int]:
    return [d + offsets[d] for d in draft_ids if 0 <= d < len(offsets)]


def _checks_all_offsets(draft_ids: list[int], offsets: list[int], vocab: int) -> list[int]:
    _to_target(list(range(len(offsets))), offsets, vocab)
    return _to_target(draft_ids, offsets, vocab)  # type: ignore[no-any-return]


def _checks_first(draft_ids: list[int], offsets: list[int], vocab: int) -> list[int]:
    if any(draft not in range(len(offsets)) for draft in draft_ids):
        raise ValueError("an id outside of the draft's vocabulary")
    tokens = [draft + offsets[draft] for draft in draft_ids]
    if any(token < 0 or token >= vocab for token in tokens):
        raise ValueError("an id outside of the target's vocabulary")
    return tokens


def _by_a_table(draft_ids: list[int], offsets: list[int], vocab: int) -> list[int]:
    table = {draft: draft + offset for draft, offset in enumerate(offsets) if 0 <= draft + offset < vocab}
    try:
        return [table[draft] for draft in draft_ids]
    except KeyError as error:
        raise ValueError(f"{error} is no draft id") from None


to_target = Grading(
    lab.to_target,
    right={"checks first": _checks_first, "by a table": _by_a_table},
    wrong={
        "takes the offset for the token": Wrong(_adds_nothing, says="draft + offset"),
        "refuses nothing": Wrong(_refuses_nothing, says="draft id 3"),
        "lets -1 be the last": Wrong(_negative_ids, says="negative"),
        "does not look at the target's vocabulary": Wrong(_no_vocabulary, says="larger vocabulary"),
        "takes the nearest in place of refusing": Wrong(_clips, says="draft id 3"),
        "leaves out what it does not know": Wrong(_leaves_out, says="draft id 3"),
        "judges ids that nobody asked for": Wrong(_checks_all_offsets, says="leads out of"),
    },
    twins=("utils.speculative.checkpoints.from_offsets",),
)


def _map(rng: random.Random) -> tuple[list[int], int]:
    vocab = rng.randint(30, 300)
    return _to_offsets(rng.sample(range(vocab), rng.randint(6, 20))), vocab


@to_target.part("draft ids become the target's", points=1)
def _(attempt: Callable[..., list[int]], rng: random.Random) -> None:
    for _ in range(20):
        offsets, vocab = _map(rng)
        ids = [rng.randrange(len(offsets)) for _ in range(rng.randint(1, 8))]
        what = f"draft ids {ids} with offsets {offsets}"
        expect_equal(attempt(ids, offsets, vocab), _to_target(ids, offsets, vocab), what=what)


@to_target.part("ids outside either vocabulary are refused", points=2)
def _(attempt: Callable[..., list[int]], rng: random.Random) -> None:
    for _ in range(8):
        offsets, vocab = _map(rng)
        size = len(offsets)
        good = rng.randrange(size)
        for bad in (-1, -rng.randint(1, size), size, size + rng.randint(1, 9)):
            what = f"draft ids {good} and {bad} of a draft vocabulary of {size}"
            expect_raises(ValueError, partial(attempt, [good, bad], offsets, vocab), what=what)
        highest = size - 1 + offsets[-1]
        what = f"draft id {size - 1}, which leads to token {highest} of {highest}"
        expect_raises(ValueError, partial(attempt, [size - 1], offsets, highest), what=what)
        below = [-size, *offsets[1:]]
        what = f"draft id 0 with the offset {-size}"
        expect_raises(ValueError, partial(attempt, [0], below, vocab), what=what)
        wanted = _to_target([0], offsets, highest)
        what = f"draft id 0 with offsets {offsets}, {highest} tokens"
        expect_equal(attempt([0], offsets, highest), wanted, what=what)


def _mask_by(rule: Callable[[int, int, int], bool]) -> Callable[[int, int], list[list[bool]]]:
    """A mask from a rule of row, step of the key, and number of the key."""

    def wrong(rows: int, step: int) -> list[list[bool]]:
        return [[rule(r, s, k) for s in range(step + 1) for k in range(rows)] for r in range(rows)]

    return wrong


def _only_the_last_step(rows: int, step: int) -> list[list[bool]]:
    return [
        [k <= r if s == 0 else k == r and s == step for s in range(step + 1) for k in range(rows)]
        for r in range(rows)
    ]


def _by_numpy(rows: int, step: int) -> list[list[bool]]:
    parts = [np.tril(np.ones((rows, rows), bool)), *[np.eye(rows, dtype=bool)] * step]
    return np.concatenate(parts, axis=1).tolist()


def _by_rule(rows: int, step: int) -> list[list[bool]]:
    return [
        [key % rows <= row if key < rows else key % rows == row for key in range(rows * (step + 1))]
        for row in range(rows)
    ]


ttt_mask = Grading(
    lab.ttt_mask,
    right={"NumPy": _by_numpy, "by one rule": _by_rule},
    wrong={
        "causal in every step": Wrong(_mask_by(lambda r, s, k: k <= r), says="own one only"),
        "does not see itself": Wrong(_mask_by(lambda r, s, k: k < r if s == 0 else k == r), says="causal"),
        "the diagonal everywhere": Wrong(_mask_by(lambda r, s, k: k == r), says="causal"),
        "sees the future": Wrong(_mask_by(lambda r, s, k: s == 0 or k == r), says="causal"),
        "forgets the steps between": Wrong(_only_the_last_step, says="every later step"),
        "step 0 only": Wrong(lambda rows, step: _ttt_mask(rows, 0), says="side by side"),
        "the diagonal one off": Wrong(
            _mask_by(lambda r, s, k: k <= r if s == 0 else k == r + s), says="number i"
        ),
    },
)


@ttt_mask.part("the first step: causal", points=1)
def _(attempt: Callable[..., list[list[bool]]], rng: random.Random) -> None:
    for rows in rng.sample(range(1, 12), 5):
        expect_equal(attempt(rows, 0), _ttt_mask(rows, 0), what=f"{rows} rows, step 0")


@ttt_mask.part("later steps: the own chain", points=3)
def _(attempt: Callable[..., list[list[bool]]], rng: random.Random) -> None:
    for rows in rng.sample(range(2, 9), 4):
        for step in range(1, 5):
            what = f"{rows} rows, step {step}"
            expect_equal(attempt(rows, step), _ttt_mask(rows, step), what=what)


def _own_only(parents: list[int], probabilities: list[float]) -> list[float]:
    return [math.log(p) for p in probabilities]


def _running_sum(parents: list[int], probabilities: list[float]) -> list[float]:
    scores, total = [], 0.0
    for p in probabilities:
        total += math.log(p)
        scores.append(total)
    return scores


def _products(parents: list[int], probabilities: list[float]) -> list[float]:
    return [math.exp(score) for score in _path_scores(parents, probabilities)]


def _adds_probabilities(parents: list[int], probabilities: list[float]) -> list[float]:
    scores = [0.0]
    for node in range(1, len(parents)):
        scores.append(scores[parents[node]] + probabilities[node])
    return scores


def _log2(parents: list[int], probabilities: list[float]) -> list[float]:
    return [score / math.log(2) for score in _path_scores(parents, probabilities)]


def _climbs_up(parents: list[int], probabilities: list[float]) -> tuple[float, ...]:
    def score(node: int) -> float:
        return 0.0 if node == 0 else math.log(probabilities[node]) + score(parents[node])

    return tuple(map(score, range(len(parents))))


def _logs_of_products(parents: list[int], probabilities: list[float]) -> np.ndarray:
    products = [1.0]
    for node in range(1, len(parents)):
        products.append(products[parents[node]] * probabilities[node])
    return np.log(products)


path_scores = Grading(
    lab.path_scores,
    right={"by recursion, a tuple": _climbs_up, "the logarithm of products": _logs_of_products},
    wrong={
        "a node's own probability": Wrong(_own_only, says="all its steps"),
        "goes by the order of nodes": Wrong(_running_sum, says="parents"),
        "probabilities, not logarithms": Wrong(_products, says="log 1"),
        "adds probabilities": Wrong(_adds_probabilities, says="log 0.5"),
        "logarithms to base 2": Wrong(_log2, says="log 0.5"),
    },
)


@path_scores.part("any tree", points=2)
def _(attempt: Callable[..., list[float]], rng: random.Random) -> None:
    for _ in range(12):
        parents, given = lab.grown(rng, rng.randint(3, 40))
        what = f"parents {parents}, probabilities {given}"
        expect_close(attempt(parents, given), _path_scores(parents, given), what=what)


def _by_score(parents: list[int], scores: list[float], nodes: int) -> list[int]:
    return [0, *sorted(range(1, len(parents)), key=lambda n: (-scores[n], n))[:nodes]]


def _lowest(parents: list[int], scores: list[float], nodes: int) -> list[int]:
    return [0, *sorted(sorted(range(1, len(parents)), key=lambda n: scores[n])[:nodes])]


def _counts_the_root(parents: list[int], scores: list[float], nodes: int) -> list[int]:
    return _rerank(parents, scores, nodes - 1)


def _no_root(parents: list[int], scores: list[float], nodes: int) -> list[int]:
    return _rerank(parents, scores, nodes)[1:]


def _shallow_first(parents: list[int], scores: list[float], nodes: int) -> list[int]:
    return list(range(min(nodes, len(parents) - 1) + 1))


def _later_of_equals(parents: list[int], scores: list[float], nodes: int) -> list[int]:
    order = sorted(range(1, len(parents)), key=lambda n: (-scores[n], -n))
    return [0, *sorted(order[:nodes])]


def _stable_argsort(parents: list[int], scores: list[float], nodes: int) -> list[int]:
    order = np.argsort([-score for score in scores[1:]], kind="stable")[:nodes] + 1
    return [0, *sorted(order.tolist())]


def _drops_the_worst(parents: list[int], scores: list[float], nodes: int) -> list[int]:
    kept = list(range(1, len(parents)))
    while len(kept) > nodes:
        kept.remove(min(kept, key=lambda node: (scores[node], -node)))
    return [0, *kept]


rerank = Grading(
    lab.rerank,
    right={"a stable argsort": _stable_argsort, "drops the worst": _drops_the_worst},
    wrong={
        "in the order of scores": Wrong(_by_score, says="ascending order"),
        "the least probable": Wrong(_lowest, says="highest scores"),
        "counts the root": Wrong(_counts_the_root, says="root always stays"),
        "leaves out the root": Wrong(_no_root, says="root always stays"),
        "takes the first levels": Wrong(_shallow_first, says="highest scores"),
        "the later of equals": Wrong(_later_of_equals, says="a tie"),
    },
)


@rerank.part("the most probable nodes of any tree", points=2)
def _(attempt: Callable[..., list[int]], rng: random.Random) -> None:
    for _ in range(15):
        parents, given = lab.grown(rng, rng.randint(8, 40))
        scores = _path_scores(parents, given)
        nodes = rng.randint(3, 12)
        what = f"{nodes} of parents {parents}, scores {scores}"
        expect_equal(attempt(parents, scores, nodes), _rerank(parents, scores, nodes), what=what)


@rerank.part("ties: with a node its parent stays", points=1)
def _(attempt: Callable[..., list[int]], rng: random.Random) -> None:
    for _ in range(15):
        parents, given = lab.grown(rng, rng.randint(8, 30))
        certain = [1.0 if node and rng.random() < 0.7 else p for node, p in enumerate(given)]
        scores = _path_scores(parents, certain)
        for nodes in (1, 2, rng.randint(3, 6)):
            what = f"{nodes} of parents {parents}, scores {scores}"
            wanted = _rerank(parents, scores, nodes)
            expect_equal(attempt(parents, scores, nodes), wanted, what=what)


def _no_bonus(acceptance: float, k: int, draft_cost: float, verify_cost: float) -> float:
    return sum(acceptance**i for i in range(1, k + 1)) / (k * draft_cost + verify_cost)


def _linear(acceptance: float, k: int, draft_cost: float, verify_cost: float) -> float:
    return (1 + acceptance * k) / (k * draft_cost + verify_cost)


def _one_draft(acceptance: float, k: int, draft_cost: float, verify_cost: float) -> float:
    return sum(acceptance**i for i in range(k + 1)) / (draft_cost + verify_cost)


def _free_verification(acceptance: float, k: int, draft_cost: float, verify_cost: float) -> float:
    return sum(acceptance**i for i in range(k + 1)) / (k * draft_cost + 1)


def _divides(acceptance: float, k: int, draft_cost: float, verify_cost: float) -> float:
    return (1 - acceptance ** (k + 1)) / (1 - acceptance) / (k * draft_cost + verify_cost)


def _closed_form(acceptance: float, k: int, draft_cost: float, verify_cost: float) -> float:
    a = acceptance
    tokens = k + 1 if a == 1 else (1 - a ** (k + 1)) / (1 - a)
    return tokens / (verify_cost + k * draft_cost)


def _guess_by_guess(acceptance: float, k: int, draft_cost: float, verify_cost: float) -> np.float64:
    tokens, reached, cost = np.float64(1), 1.0, verify_cost
    for _ in range(k):
        reached *= acceptance
        tokens, cost = tokens + reached, cost + draft_cost
    return tokens / cost


expected_speedup = Grading(
    lab.expected_speedup,
    right={"the closed form": _closed_form, "guess by guess": _guess_by_guess},
    wrong={
        "forgets the target's own token": Wrong(_no_bonus, says="one token per cycle"),
        "counts guesses as independent of those before": Wrong(_linear, says="both guesses"),
        "one draft for all": Wrong(_one_draft, says="2 x 0.1"),
        "verification for one step": Wrong(_free_verification, says="one verification"),
        "divides by zero": Wrong(_divides, says="ZeroDivisionError"),
        "slow-down for speed-up": Wrong(
            lambda acceptance, k, draft_cost, verify_cost: (
                1 / _speedup(acceptance, k, draft_cost, verify_cost)
            )
        ),
    },
)


@expected_speedup.part("any acceptance, length and costs", points=2)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    for _ in range(20):
        a, k = rng.uniform(0.05, 0.95), rng.randint(2, 9)
        c, t = rng.uniform(0.02, 0.3), rng.uniform(1.05, 3.0)
        what = f"a = {a}, k = {k}, draft {c}, verification {t}"
        expect_close(attempt(a, k, c, t), _speedup(a, k, c, t), what=what)


@expected_speedup.part("every guess right, and nothing drafted", points=1)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    for k in rng.sample(range(1, 10), 4):
        c, t = rng.uniform(0.02, 0.3), rng.uniform(1.05, 3.0)
        what = f"a = 1, k = {k}, draft {c}, verification {t}"
        expect_close(attempt(1.0, k, c, t), _speedup(1.0, k, c, t), what=what)
        a = rng.random()
        expect_close(attempt(a, 0, c, t), _speedup(a, 0, c, t), what=f"a = {a}, k = 0")
