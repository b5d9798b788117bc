"""How lab 3.3.4, speculative decoding with Medusa, is graded. Never released; tools/lab/judge/hidden_tests.py explains."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from utils.checks import expect_close, expect_equal
from utils.checks import lab_3_3_4 as lab
from tools.lab.judge.hidden_tests import Grading, Wrong

Array = np.ndarray[Any, Any]
_path = lab.accept_greedy.reference
_mask = lab.tree_mask.reference
_positions = lab.position_ids.reference
_head = lab.head_logits.reference
_left = lab.residual.reference
_typical = lab.typical_accepts.reference
_tokens = lab.expected_tokens.reference
_speedup = lab.expected_speedup.reference


def _numbers(rng: random.Random) -> np.random.Generator:
    return np.random.default_rng(rng.getrandbits(32))


def _first_child_only(parents: list[int], tokens: list[int], best: list[int]) -> list[int]:
    path = [0]
    while (node := path[-1]) in parents:
        child = parents.index(node)
        if tokens[child] != best[node]:
            break
        path.append(child)
    return path


def _counts_all_right(parents: list[int], tokens: list[int], best: list[int]) -> list[int]:
    nodes = range(1, len(parents))
    return [0, *(n for n in nodes if tokens[n] == best[parents[n]])]


def _takes_it_for_a_chain(parents: list[int], tokens: list[int], best: list[int]) -> list[int]:
    path = [0]
    for node in range(1, len(parents)):
        if tokens[node] != best[path[-1]]:
            break
        path.append(node)
    return path


def _any_node_below(parents: list[int], tokens: list[int], best: list[int]) -> list[int]:
    path = [0]
    for node in range(1, len(parents)):
        if tokens[node] == best[path[-1]]:
            path.append(node)
    return path


def _own_best(parents: list[int], tokens: list[int], best: list[int]) -> list[int]:
    path = [0]
    while right := [n for n, p in enumerate(parents) if p == path[-1] and tokens[n] == best[n]]:
        path.append(right[0])
    return path


def _by_recursion(parents: list[int], tokens: list[int], best: list[int], node: int = 0) -> list[int]:
    for child, parent in enumerate(parents):
        if parent == node and tokens[child] == best[node]:
            return [node, *_by_recursion(parents, tokens, best, child)]
    return [node]


def _by_children(parents: list[int], tokens: list[int], best: list[int]) -> list[int]:
    child_of = {(parents[n], tokens[n]): n for n in reversed(range(1, len(parents)))}
    path = [0]
    while (found := child_of.get((path[-1], best[path[-1]]))) is not None:
        path.append(found)
    return path


accept_greedy = Grading(
    lab.accept_greedy,
    right={"by recursion": _by_recursion, "from a dictionary of children": _by_children},
    wrong={
        "looks at the first child alone": Wrong(_first_child_only, says="all children"),
        "counts what is right behind a wrong guess": Wrong(_counts_all_right, says="nothing counts"),
        "takes every tree for a chain": Wrong(_takes_it_for_a_chain, says="children"),
        "looks at all nodes, not at children": Wrong(_any_node_below, says="accepted last"),
        "compares a node with its own best": Wrong(_own_best),
        "leaves the root out": Wrong(
            lambda parents, tokens, best: _path(parents, tokens, best)[1:], says="comes first"
        ),
        "returns tokens": Wrong(
            lambda parents, tokens, best: [tokens[n] for n in _path(parents, tokens, best)]
        ),
    },
    twins=("utils.speculative.verify.accept_greedy", "utils.speculative.verify.Greedy"),
)


@accept_greedy.part("chains", points=2)
def _(attempt: Callable[..., list[int]], rng: random.Random) -> None:
    for _ in range(40):
        lab.same_path(attempt, rng, list(range(-1, rng.randint(0, 6))), letters=2)


@accept_greedy.part("trees of any shape", points=2)
def _(attempt: Callable[..., list[int]], rng: random.Random) -> None:
    for _ in range(60):
        lab.same_path(attempt, rng, lab.random_parents(rng, rng.randint(2, 14)))


def _triangle(parents: list[int]) -> list[list[bool]]:
    return [[j <= i for j in range(len(parents))] for i in range(len(parents))]


def _parent_and_self(parents: list[int]) -> list[list[bool]]:
    size = range(len(parents))
    return [[j == i or j == parents[i] for j in size] for i in size]


def _one_row_for_all(parents: list[int]) -> list[list[bool]]:
    rows: list[list[bool]] = []
    for node, parent in enumerate(parents):
        row = [False] * len(parents) if parent < 0 else rows[parent]
        row[node] = True
        rows.append(row)
    return rows


def _changed(parents: list[int], change: Callable[[list[list[bool]]], Any]) -> Any:
    return change(_mask(parents))


def _climbs(parents: list[int]) -> list[list[bool]]:
    mask = [[False] * len(parents) for _ in parents]
    for node in range(len(parents)):
        seen = node
        while seen >= 0:
            mask[node][seen] = True
            seen = parents[seen]
    return mask


def _by_powers(parents: list[int]) -> list[list[bool]]:
    step = np.eye(len(parents), dtype=int)
    for node, parent in enumerate(parents[1:], 1):
        step[node, parent] = 1
    return (np.linalg.matrix_power(step, len(parents)) > 0).tolist()


tree_mask = Grading(
    lab.tree_mask,
    right={"climbs from each node": _climbs, "by powers of a matrix": _by_powers},
    wrong={
        "the triangle of plain attention": Wrong(_triangle, says="different futures"),
        "parent and node only": Wrong(_parent_and_self, says="triangle"),
        "the parent's own row, not a copy": Wrong(_one_row_for_all, says="Copy the parent's row"),
        "forgets the node itself": Wrong(
            lambda parents: [
                [seen and i != j for j, seen in enumerate(row)] for i, row in enumerate(_mask(parents))
            ]
        ),
        "columns for rows": Wrong(
            lambda parents: _changed(parents, lambda m: [list(c) for c in zip(*m, strict=True)])
        ),
        "the other way round": Wrong(
            lambda parents: _changed(parents, lambda m: [[not seen for seen in row] for row in m])
        ),
        "numbers for truth values": Wrong(
            lambda parents: _changed(parents, lambda m: [[int(seen) for seen in row] for row in m])
        ),
    },
    twins=("utils.speculative.tree.DraftTree.mask", "utils.speculative.tree.DraftTree.path"),
)


@tree_mask.part("chains, and guesses side by side", points=2)
def _(attempt: Callable[..., list[list[bool]]], rng: random.Random) -> None:
    for _ in range(4):
        for parents in (list(range(-1, rng.randint(2, 9))), [-1] + [0] * rng.randint(2, 9)):
            expect_equal(attempt(parents), _mask(parents), what=f"the mask for {parents}")


@tree_mask.part("trees of any shape", points=2)
def _(attempt: Callable[..., list[list[bool]]], rng: random.Random) -> None:
    for _ in range(20):
        parents = lab.random_parents(rng, rng.randint(5, 20))
        expect_equal(attempt(parents), _mask(parents), what=f"the mask for {parents}")


def _from_the_mask(parents: list[int], length: int) -> list[int]:
    return [length + sum(row) - 1 for row in _mask(parents)]


def _depth_by_recursion(parents: list[int], length: int) -> tuple[int, ...]:
    def depth(node: int) -> int:
        return 0 if node == 0 else 1 + depth(parents[node])

    return tuple(length + depth(node) for node in range(len(parents)))


position_ids = Grading(
    lab.position_ids,
    right={"from the mask": _from_the_mask, "by recursion, a tuple": _depth_by_recursion},
    wrong={
        "numbers the nodes": Wrong(
            lambda parents, length: list(range(length, length + len(parents))), says="Siblings"
        ),
        "depths without the text": Wrong(lambda parents, length: _positions(parents, 0), says="10"),
        "one too many": Wrong(lambda parents, length: _positions(parents, length + 1), says="10"),
        "one behind the parent's number": Wrong(
            lambda parents, length: [length + 1 + parent for parent in parents],
            says="not behind its number",
        ),
    },
    twins=("utils.speculative.tree.DraftTree.depths", "utils.speculative.target.positions_of"),
)


@position_ids.part("trees of any shape", points=2)
def _(attempt: Callable[..., list[int]], rng: random.Random) -> None:
    for _ in range(20):
        parents, length = lab.random_parents(rng, rng.randint(6, 20)), rng.randint(1, 500)
        what = f"parents {parents} behind {length}"
        expect_equal(attempt(parents, length), _positions(parents, length), what=what)


def _silu(x: Array) -> Array:
    y: Array = x / (1 + np.exp(-x))
    return y


def _with_torch(hidden: np.ndarray, weight: np.ndarray, bias: np.ndarray, lm_head: np.ndarray) -> np.ndarray:
    h, w, b, out = (torch.from_numpy(np.asarray(x)) for x in (hidden, weight, bias, lm_head))
    return ((h + torch.nn.functional.silu(torch.nn.functional.linear(h, w, b))) @ out.T).numpy()


def _row_by_row(hidden: np.ndarray, weight: np.ndarray, bias: np.ndarray, lm_head: np.ndarray) -> np.ndarray:
    def logits(h: np.ndarray) -> np.ndarray:
        x = weight @ h + bias
        return lm_head @ (h + x * (1 / (1 + np.exp(-x))))

    return np.stack([logits(row) for row in hidden])


head_logits = Grading(
    lab.head_logits,
    right={"PyTorch's SiLU": _with_torch, "row by row": _row_by_row},
    wrong={
        "no residual": Wrong(
            lambda hidden, weight, bias, lm_head: _silu(hidden @ weight.T + bias) @ lm_head.T,
            says="hidden state itself",
        ),
        "no SiLU": Wrong(
            lambda hidden, weight, bias, lm_head: (hidden + hidden @ weight.T + bias) @ lm_head.T,
            says="SiLU",
        ),
        "a sigmoid for SiLU": Wrong(
            lambda hidden, weight, bias, lm_head: (
                (hidden + 1 / (1 + np.exp(-(hidden @ weight.T + bias)))) @ lm_head.T
            ),
        ),
        "weight the other way round": Wrong(
            lambda hidden, weight, bias, lm_head: _head(hidden, weight.T, bias, lm_head),
            says="[out, in]",
        ),
        "forgets the bias": Wrong(
            lambda hidden, weight, bias, lm_head: _head(hidden, weight, 0 * bias, lm_head),
            says="SiLU",
        ),
        "stops before the LM head": Wrong(
            lambda hidden, weight, bias, lm_head: _head(hidden, weight, bias, np.eye(hidden.shape[1])),
            says="three logits",
        ),
        "SiLU around the sum": Wrong(
            lambda hidden, weight, bias, lm_head: _silu(hidden + hidden @ weight.T + bias) @ lm_head.T,
        ),
    },
    twins=("utils.speculative.heads.MedusaHeads.forward",),
)


def _same_logits(attempt: Callable[..., Array], arguments: tuple[Array, ...]) -> None:
    what = f"{len(arguments[0])} hidden states of {arguments[0].shape[1]} numbers"
    expect_close(attempt(*arguments), _head(*arguments), what=what, rel=1e-4, abs_=1e-6)


@head_logits.part("the residual block", points=2)
def _(attempt: Callable[..., Array], rng: random.Random) -> None:
    for _ in range(6):
        hidden, weight, bias, _ = lab.random_head(_numbers(rng))
        _same_logits(attempt, (hidden, weight, bias, np.eye(hidden.shape[1])))


@head_logits.part("block and LM head", points=1)
def _(attempt: Callable[..., Array], rng: random.Random) -> None:
    for _ in range(6):
        _same_logits(attempt, lab.random_head(_numbers(rng), vocab=rng.randint(8, 12)))


def _not_scaled(p: Array, q: Array) -> Array:
    return np.maximum(p - q, 0)


def _absolute(p: Array, q: Array) -> Array:
    left = np.abs(p - q)
    return left / left.sum() if left.sum() else p


def _divides_by_nothing(p: Array, q: Array) -> Array:
    left = np.maximum(p - q, 0)
    with np.errstate(invalid="ignore"):
        quotient: Array = left / left.sum()
    return quotient


def _by_clip(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    left = (p - q).clip(min=0)
    return p.copy() if left.sum() == 0 else left / left.sum()


def _where_larger(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    left = np.where(p > q, p - q, 0.0)
    return left / left.sum() if left.any() else p


residual = Grading(
    lab.residual,
    right={"by clip": _by_clip, "where p is larger": _where_larger},
    wrong={
        "p again": Wrong(lambda p, q: p, says="Nothing is owed"),
        "not scaled": Wrong(_not_scaled, says="sum 1"),
        "absolute differences": Wrong(_absolute, says="Nothing is owed"),
        "q less p": Wrong(lambda p, q: _left(q, p), says="p - q"),
        "divides by zero": Wrong(_divides_by_nothing, says="return p"),
        "p without q's tokens": Wrong(
            lambda p, q: np.where(q > p, 0, p) / np.where(q > p, 0, p).sum(),
            says="[-0.2, 0.1, 0.1]",
        ),
    },
    twins=("utils.speculative.verify.residual", "utils.speculative.verify.SpeculativeSampling"),
)


@residual.part("what is left of p", points=2)
def _(attempt: Callable[..., Array], rng: random.Random) -> None:
    draw = _numbers(rng)
    for _ in range(20):
        size = int(draw.integers(3, 12))
        p, q = draw.dirichlet(np.ones(size)), draw.dirichlet(np.ones(size))
        what = f"p = {p.round(3).tolist()}, q = {q.round(3).tolist()}"
        expect_close(attempt(p, q), _left(p, q), what=what, abs_=1e-9)


@residual.part("nothing left, and a token chosen without a draw", points=1)
def _(attempt: Callable[..., Array], rng: random.Random) -> None:
    draw = _numbers(rng)
    for _ in range(5):
        size = int(draw.integers(3, 12))
        p = draw.dirichlet(np.ones(size))
        expect_close(attempt(p, p.copy()), p, what="q the same as p")
        q = np.eye(size)[int(draw.integers(size))]
        what = f"p = {p.round(3).tolist()}, q = {q.tolist()}"
        expect_close(attempt(p, q), _left(p, q), what=what, abs_=1e-9)


def _entropy(p: Array) -> float:
    subset = p[p > 0]
    return -float((subset * np.log(subset)).sum())


def _log_of_zero(p: Array, token: int, epsilon: float, alpha: float) -> bool:
    with np.errstate(divide="ignore", invalid="ignore"):
        entropy = -(p * np.log(p)).sum()
        return bool(p[token] > np.minimum(epsilon, alpha * np.exp(-entropy)))


def _with_a_loop(p: np.ndarray, token: int, epsilon: float, alpha: float) -> bool:
    entropy = 0.0
    for share in p:
        if share > 0:
            entropy -= share * math.log(share)
    threshold = alpha / math.exp(entropy)
    return float(p[token]) > (threshold if threshold < epsilon else epsilon)


def _by_either_limit(p: np.ndarray, token: int, epsilon: float, alpha: float) -> np.bool_:
    logs = np.log(p, out=np.zeros_like(p, dtype=float), where=p > 0)
    return (p[token] > epsilon) | (p[token] > alpha * np.exp((p * logs).sum()))


typical_accepts = Grading(
    lab.typical_accepts,
    right={"with a loop": _with_a_loop, "by either limit": _by_either_limit},
    wrong={
        "epsilon alone": Wrong(lambda p, token, epsilon, alpha: bool(p[token] > epsilon), says="unsure"),
        "the larger threshold": Wrong(
            lambda p, token, epsilon, alpha: bool(p[token] > max(epsilon, alpha * math.exp(-_entropy(p)))),
            says="unsure",
        ),
        "no minimum": Wrong(
            lambda p, token, epsilon, alpha: bool(p[token] > alpha * math.exp(-_entropy(p))),
        ),
        "entropy in bits": Wrong(
            lambda p, token, epsilon, alpha: bool(
                p[token] > min(epsilon, alpha * math.exp(-_entropy(p) / math.log(2)))
            ),
            says="natural logarithm",
        ),
        "the sign of the entropy": Wrong(
            lambda p, token, epsilon, alpha: bool(p[token] > min(epsilon, alpha * math.exp(_entropy(p)))),
            says="unsure",
        ),
        "log of zero": Wrong(_log_of_zero, says="adds nothing"),
        "at least as probable as the best": Wrong(lambda p, token, epsilon, alpha: bool(p[token] == p.max())),
    },
    twins=("utils.speculative.verify.Typical",),
)


def _same_typical(attempt: Callable[..., bool], p: Array, epsilon: float, alpha: float) -> None:
    for token in range(len(p)):
        low, high = (_typical(p, token, epsilon * f, alpha * f) for f in (1.001, 0.999))
        if low == high:
            what = f"token {token} of p = {p.round(3).tolist()}, epsilon {epsilon}, alpha {alpha}"
            expect_equal(attempt(p, token, epsilon, alpha), low, what=what)


@typical_accepts.part("a target that is sure", points=1)
def _(attempt: Callable[..., bool], rng: random.Random) -> None:
    draw = _numbers(rng)
    for _ in range(30):
        rest = draw.dirichlet(np.ones(4)) * draw.uniform(0.1, 0.5)
        p = np.array([1 - rest.sum(), *rest, 0.0])
        _same_typical(attempt, p, round(float(draw.uniform(0.03, 0.15)), 3), 0.5)


@typical_accepts.part("a target that is unsure", points=1)
def _(attempt: Callable[..., bool], rng: random.Random) -> None:
    draw = _numbers(rng)
    for _ in range(30):
        p = draw.dirichlet(np.full(int(draw.integers(8, 20)), 2.0))
        _same_typical(attempt, p, 0.2, round(float(draw.uniform(0.5, 1.2)), 3))


def _sum_of_all(choices: lab.Choices, accuracy: list[list[float]]) -> float:
    return 1.0 + sum(accuracy[len(path) - 1][path[-1]] for path in choices)


def _ranks_for_heads(choices: lab.Choices, accuracy: list[list[float]]) -> float:
    return _tokens([(0,) * len(path) for path in choices], accuracy)


def _longest_path(choices: lab.Choices, accuracy: list[list[float]]) -> float:
    return 1.0 + max((len(path) for path in choices), default=0)


def _head_zero_always(choices: lab.Choices, accuracy: list[list[float]]) -> float:
    return _tokens(choices, [accuracy[0]] * len(accuracy))


def _with_products(choices: list[tuple[int, ...]], accuracy: list[list[float]]) -> float:
    return 1 + sum(math.prod(accuracy[k][rank] for k, rank in enumerate(path)) for path in choices)


def _grows(choices: list[tuple[int, ...]], accuracy: list[list[float]]) -> np.float64:
    reached = [np.prod([accuracy[head][path[head]] for head in range(len(path))]) for path in choices]
    return np.float64(1) + np.sum(reached)


expected_tokens = Grading(
    lab.expected_tokens,
    right={"with products": _with_products, "NumPy": _grows},
    wrong={
        "forgets the target's own token": Wrong(
            lambda choices, accuracy: _tokens(choices, accuracy) - 1, says="own token"
        ),
        "a guess counts without those before it": Wrong(_sum_of_all, says="only if the first"),
        "every guess a best guess": Wrong(_ranks_for_heads, says="Siblings"),
        "the depth of the tree": Wrong(_longest_path, says="6 of 10"),
        "one head's accuracy for all": Wrong(_head_zero_always, says="only if the first"),
        "nodes, however probable": Wrong(lambda choices, accuracy: 1.0 + len(choices), says="6 of 10"),
    },
)


def _same_expected(attempt: Callable[..., float], choices: Any, accuracy: Any) -> None:
    what = f"the choices {choices}, accuracy {accuracy}"
    expect_close(attempt(choices, accuracy), _tokens(choices, accuracy), what=what)


@expected_tokens.part("chains", points=1)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    for _ in range(10):
        _, accuracy = lab.random_choices(rng, 0)
        chain = [(0,) * (i + 1) for i in range(rng.randint(1, 4))]
        _same_expected(attempt, chain, accuracy)


@expected_tokens.part("trees of any shape", points=2)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    for _ in range(20):
        _same_expected(attempt, *lab.random_choices(rng, rng.randint(4, 16)))


expected_speedup = Grading(
    lab.expected_speedup,
    right={
        "tokens a second over tokens a second": lambda tokens, step_s, plain_s, draft_s: (
            tokens / (step_s + draft_s) / (1 / plain_s)
        ),
        "plain time first": lambda tokens, step_s, plain_s, draft_s: (
            tokens * plain_s / sum([step_s, draft_s])
        ),
    },
    wrong={
        "forgets the draft": Wrong(
            lambda tokens, step_s, plain_s, draft_s: tokens * plain_s / step_s, says="Drafting"
        ),
        "tokens, whatever they cost": Wrong(
            lambda tokens, step_s, plain_s, draft_s: tokens, says="1.5 plain steps"
        ),
        "the price alone": Wrong(
            lambda tokens, step_s, plain_s, draft_s: (step_s + draft_s) / plain_s,
        ),
        "tokens a second": Wrong(
            lambda tokens, step_s, plain_s, draft_s: tokens / (step_s + draft_s), says="plain"
        ),
        "a draft for each token": Wrong(
            lambda tokens, step_s, plain_s, draft_s: _speedup(tokens, step_s, plain_s, tokens * draft_s),
        ),
    },
)


@expected_speedup.part("any prices", points=2)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    for _ in range(20):
        tokens, plain_s = rng.uniform(1.1, 5), rng.uniform(0.001, 0.05)
        step_s, draft_s = plain_s * rng.uniform(1, 4), plain_s * rng.uniform(0.05, 0.5)
        what = f"{tokens} tokens, {step_s} s a step, {plain_s} s plain, {draft_s} s of drafting"
        wanted = _speedup(tokens, step_s, plain_s, draft_s)
        expect_close(attempt(tokens, step_s, plain_s, draft_s), wanted, what=what)
