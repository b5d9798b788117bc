"""How lab 3.3.3, continuous batching, is graded. Never released; tools/lab/judge/hidden_tests.py explains."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from utils.checks import CheckFailed, expect, expect_close, expect_equal, expect_raises, expect_type
from utils.checks import lab_3_3_3 as lab
from utils.checks.lab_3_3_3 import Config, Decide, Queue
from tools.lab.judge.hidden_tests import Grading, Wrong
from utils.kvcache.blocks import BlockPool, BlockTable, OutOfBlocks
from utils.kvcache.scheduler import Job, SchedulerLimits, Sequence
from utils.kvcache.scheduler import schedule as _reference_schedule
from utils.kvcache.simulate import StepCost, simulate_continuous

_kv_bytes = lab.kv_bytes_per_token.reference
_capacity = lab.capacity.reference
_append_slot = lab.append_slot.reference
_unused = lab.unused_share.reference
_predict = lab.predict_throughput.reference


def _all_heads(config: Config, value_bytes: int) -> int:
    return _kv_bytes({**config, "num_key_value_heads": config["num_attention_heads"]}, value_bytes)


def _no_head_dim(config: Config, value_bytes: int) -> int:
    return _kv_bytes({k: v for k, v in config.items() if k != "head_dim"}, value_bytes)


def _width_over_kv_heads(config: Config, value_bytes: int) -> int:
    kv_heads = config.get("num_key_value_heads", config["num_attention_heads"])
    return _kv_bytes({"head_dim": config["hidden_size"] // kv_heads, **config}, value_bytes)


def _both_fields_or_none(config: Config, value_bytes: int) -> int:
    if "num_key_value_heads" not in config:
        return int(2 * config["num_hidden_layers"] * config["hidden_size"] * value_bytes)
    per_layer = 2 * config["num_key_value_heads"] * config["head_dim"]
    return int(config["num_hidden_layers"] * per_layer * value_bytes)


def _true_division(config: Config, value_bytes: int) -> float:
    heads = config["num_attention_heads"]
    head_dim = config.get("head_dim", config["hidden_size"] / heads)
    return 2 * config["num_hidden_layers"] * config.get("num_key_value_heads", heads) * head_dim * value_bytes


def _with_if(config: Config, value_bytes: int) -> int:
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads") or heads
    size = config["head_dim"] if "head_dim" in config else int(config["hidden_size"] / heads)
    return sum(kv_heads * size * value_bytes * 2 for _ in range(config["num_hidden_layers"]))


kv_bytes_per_token = Grading(
    lab.kv_bytes_per_token,
    right={
        "layer by layer": _with_if,
        "/ in place of //": _true_division,
        "NumPy": lambda config, value_bytes: np.int64(_kv_bytes(config, value_bytes)),
    },
    wrong={
        "keeps keys only": Wrong(lambda config, value_bytes: _kv_bytes(config, value_bytes) // 2),
        "counts query heads": Wrong(_all_heads, says="KV heads"),
        "divides hidden_size though head_dim is given": Wrong(_no_head_dim, says="head_dim"),
        "divides hidden_size by KV heads": Wrong(_width_over_kv_heads, says="query heads"),
        "needs head_dim where KV heads are given": Wrong(_both_fields_or_none, says="head_dim"),
        "always two bytes": Wrong(lambda config, value_bytes: _kv_bytes(config, 2), says="FP8"),
        "one layer": Wrong(
            lambda config, value_bytes: _kv_bytes({**config, "num_hidden_layers": 1}, value_bytes)
        ),
    },
    twins=("utils.model_sizes.bytes_per_token", "utils.model_sizes.cache_shape"),
)


def _config(rng: random.Random, kv_heads: bool, head_dim: bool) -> Config:
    """A decoder's config; grouped-query attention, and a head_dim that is not the quotient."""
    kv = rng.choice([1, 2, 4, 8])
    heads = kv * rng.choice([2, 4, 8])
    config = {
        "hidden_size": heads * rng.choice([32, 64, 128]),
        "num_hidden_layers": rng.randint(2, 80),
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "head_dim": rng.choice([48, 80, 96, 112, 256]),
    }
    left_out = {"num_key_value_heads": not kv_heads, "head_dim": not head_dim}
    return {key: value for key, value in config.items() if not left_out.get(key)}


def _sizes(attempt: Callable[..., int], rng: random.Random, bytes_: list[int], *given: bool) -> None:
    for value_bytes in bytes_:
        config = _config(rng, *given)
        what = f"bytes per token of {dict(config)} with {value_bytes} bytes a value"
        expect_equal(attempt(config, value_bytes), _kv_bytes(config, value_bytes), what=what)


@kv_bytes_per_token.part("models with every field", points=1)
def _(attempt: Callable[..., int], rng: random.Random) -> None:
    _sizes(attempt, rng, [2] * 6, True, True)


@kv_bytes_per_token.part("models without one field or the other", points=1)
def _(attempt: Callable[..., int], rng: random.Random) -> None:
    for given in ((True, False), (False, True), (False, False)):
        _sizes(attempt, rng, [2] * 3, *given)


@kv_bytes_per_token.part("other sizes of a value", points=1)
def _(attempt: Callable[..., int], rng: random.Random) -> None:
    _sizes(attempt, rng, [1, 4, 1, 4, 8], True, True)


def _shares_blocks(
    budget_bytes: int, token_bytes: int, block_size: int, request_tokens: int
) -> tuple[int, int]:
    blocks = budget_bytes // (token_bytes * block_size)
    return blocks, blocks * block_size // request_tokens


def _rounds_blocks_up(
    budget_bytes: int, token_bytes: int, block_size: int, request_tokens: int
) -> tuple[int, int]:
    blocks = -(-budget_bytes // (token_bytes * block_size))
    return blocks, blocks // -(-request_tokens // block_size)


def _one_block_more(
    budget_bytes: int, token_bytes: int, block_size: int, request_tokens: int
) -> tuple[int, int]:
    blocks = budget_bytes // (token_bytes * block_size)
    return blocks, blocks // (request_tokens // block_size + 1)


def _with_ceil(budget_bytes: int, token_bytes: int, block_size: int, request_tokens: int) -> tuple[int, int]:
    blocks = budget_bytes // token_bytes // block_size
    return blocks, int(blocks / math.ceil(request_tokens / block_size))


def _fills_up(budget_bytes: int, token_bytes: int, block_size: int, request_tokens: int) -> tuple[int, int]:
    blocks, _ = divmod(budget_bytes, token_bytes * block_size)
    each, rest = divmod(request_tokens, block_size)
    return blocks, blocks // (each + (rest > 0))


capacity = Grading(
    lab.capacity,
    right={"with ceil": _with_ceil, "with divmod": _fills_up},
    wrong={
        "lets requests share a block": Wrong(_shares_blocks, says="block of its own"),
        "rounds the blocks up": Wrong(_rounds_blocks_up, says="budget"),
        "a block too many for full blocks": Wrong(_one_block_more, says="exactly"),
    },
    twins=("utils.model_sizes.blocks_in", "utils.model_sizes.requests_that_fit"),
)


def _capacities(attempt: Callable[..., Any], rng: random.Random, which: int, what: str) -> None:
    for _ in range(15):
        token_bytes, block_size = rng.randint(100, 300_000), rng.choice([8, 16, 32, 48])
        budget = token_bytes * block_size * rng.randint(20, 900) + rng.randint(1, token_bytes)
        tokens = rng.choice([rng.randint(1, 9) * block_size, rng.randint(1, 20 * block_size)])
        got = lab._pair(attempt(budget, token_bytes, block_size, tokens))
        wanted = _capacity(budget, token_bytes, block_size, tokens)
        case = f"{budget} bytes, {token_bytes} a token, blocks of {block_size}, {tokens} tokens"
        expect_equal(got[which], wanted[which], what=f"{what}: {case}")


@capacity.part("blocks", points=1)
def _(attempt: Callable[..., tuple[int, int]], rng: random.Random) -> None:
    _capacities(attempt, rng, 0, "blocks")


@capacity.part("requests", points=1)
def _(attempt: Callable[..., tuple[int, int]], rng: random.Random) -> None:
    _capacities(attempt, rng, 1, "requests that fit")


class _FreesShared(BlockPool):
    def release(self, block: int) -> None:
        self.references[block] = 0
        self.free.append(block)


class _NeverFrees(BlockPool):
    def release(self, block: int) -> None:
        if self.references[block] == 0:
            raise ValueError(block)
        self.references[block] -= 1


class _FreesTwice(BlockPool):
    def release(self, block: int) -> None:
        self.references[block] = max(0, self.references[block] - 1)
        if self.references[block] == 0:
            self.free.append(block)


class _NoReference(BlockPool):
    def allocate(self) -> int:
        if not self.free:
            raise OutOfBlocks
        return self.free.popleft()


class _SharesFree(BlockPool):
    def share(self, block: int) -> None:
        self.references[block] += 1


class _NumbersNothing(BlockPool):
    """Hands out things that are no blocks, and never touches the pool."""

    def allocate(self) -> int:
        return object()  # type: ignore[return-value]

    def release(self, block: int) -> None:
        return None


class _WrapsAround(BlockPool):
    def allocate(self) -> int:
        if not self.free:
            self.references[0] += 1
            return 0
        return super().allocate()


class _DequePool(BlockPool):
    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks, self.block_size = num_blocks, block_size
        self.free = deque(range(num_blocks))
        self.references = num_blocks * [0]

    def allocate(self) -> int:
        try:
            block = self.free.popleft()
        except IndexError:
            raise OutOfBlocks("no block is free") from None
        self.references[block] += 1
        return block

    def share(self, block: int) -> None:
        if block in self.free:
            raise ValueError(block)
        self.references[block] += 1

    def release(self, block: int) -> None:
        if block in self.free:
            raise ValueError(block)
        self.references[block] -= 1
        if not self.references[block]:
            self.free.append(block)


class _StackPool(_DequePool):
    def allocate(self) -> int:
        if not self.free:
            raise OutOfBlocks("no block is free")
        block = self.free.pop()
        self.references[block] = 1
        return block


block_pool = Grading(
    lab.block_pool,
    right={"with a deque": _DequePool, "the block that was freed last": _StackPool},
    wrong={
        "frees a block that others still use": Wrong(_FreesShared, says="still"),
        "never gives a block back": Wrong(_NeverFrees, says="free list"),
        "frees a block twice": Wrong(_FreesTwice, says="twice"),
        "hands out a block without a reference": Wrong(_NoReference, says="reference"),
        "shares a free block": Wrong(_SharesFree, says="free"),
        "hands out a used block when none is free": Wrong(_WrapsAround, says="OutOfBlocks"),
        "hands out what is no block": Wrong(_NumbersNothing, says="two blocks"),
    },
)


def _play(attempt: type[BlockPool], rng: random.Random, shares: float) -> None:
    """Random use: every block is held as often as its references say, or free exactly once."""
    blocks = rng.randint(4, 12)
    pool = attempt(blocks, rng.choice([4, 16]))
    held: list[int] = []
    for _ in range(60):
        choice = rng.random()
        if choice < shares and held:
            held.append(rng.choice(held))
            pool.share(held[-1])
        elif choice < 0.6 and len(set(held)) < blocks:
            block = pool.allocate()
            expect_type(block, int, what="a block's number")
            expect(0 <= block < blocks, f"there is no block {block} in a pool of {blocks}")
            expect(block not in held, f"block {block} was handed out twice")
            held.append(block)
        elif held:
            pool.release(held.pop(rng.randrange(len(held))))
        counts = [held.count(block) for block in range(blocks)]
        expect_equal(list(pool.references), counts, what="references after random use")
        unheld = [block for block in range(blocks) if not counts[block]]
        expect_equal(sorted(pool.free), unheld, what="the free list after random use")


@block_pool.part("blocks are handed out and come back", points=2)
def _(attempt: type[BlockPool], rng: random.Random) -> None:
    for _ in range(2):
        _play(attempt, rng, shares=0.0)


@block_pool.part("shared blocks", points=1)
def _(attempt: type[BlockPool], rng: random.Random) -> None:
    for _ in range(2):
        _play(attempt, rng, shares=0.3)


@block_pool.part("mistakes are refused", points=1)
def _(attempt: type[BlockPool], rng: random.Random) -> None:
    blocks = rng.randint(3, 9)
    pool = attempt(blocks, 4)
    held = [pool.allocate() for _ in range(blocks)]
    expect_equal(sorted(held), list(range(blocks)), what=f"all blocks of a pool of {blocks}")
    expect_raises(OutOfBlocks, pool.allocate, what=f"one block more than {blocks}")
    freed = held.pop(rng.randrange(blocks))
    pool.release(freed)
    expect_raises(ValueError, lambda: pool.release(freed), what="release of a free block")
    expect_raises(ValueError, lambda: pool.share(freed), what="share of a free block")
    expect_equal(list(pool.free), [freed], what="the free list after what was refused")
    expect_equal(pool.allocate(), freed, what="the only free block, handed out again")


def _writes_in_place(pool: BlockPool, table: list[int], num_tokens: int) -> None:
    if num_tokens % pool.block_size == 0:
        table.append(pool.allocate())


def _always_copies(pool: BlockPool, table: list[int], num_tokens: int) -> tuple[int, int] | None:
    if num_tokens % pool.block_size == 0:
        table.append(pool.allocate())
        return None
    last, table[-1] = table[-1], pool.allocate()
    pool.release(last)
    return last, table[-1]


def _keeps_reference(pool: BlockPool, table: list[int], num_tokens: int) -> tuple[int, int] | None:
    answer = _append_slot(pool, table, num_tokens)
    if answer is not None:
        pool.share(answer[0])
    return answer


def _copies_full(pool: BlockPool, table: list[int], num_tokens: int) -> tuple[int, int] | None:
    if num_tokens % pool.block_size or not table or pool.references[table[-1]] == 1:
        return _append_slot(pool, table, num_tokens)
    last, table[-1] = table[-1], pool.allocate()
    pool.release(last)
    table.append(pool.allocate())
    return last, table[-2]


def _copies_for_two(pool: BlockPool, table: list[int], num_tokens: int) -> tuple[int, int] | None:
    if num_tokens % pool.block_size and pool.references[table[-1]] > 2:
        return None
    return _append_slot(pool, table, num_tokens)


def _shared(pool: BlockPool, table: list[int], num_tokens: int) -> bool:
    return num_tokens % pool.block_size > 0 and pool.references[table[-1]] > 1


def _releases_first(pool: BlockPool, table: list[int], num_tokens: int) -> tuple[int, int] | None:
    if not _shared(pool, table, num_tokens):
        return _append_slot(pool, table, num_tokens)
    original = table[-1]
    pool.release(original)
    table[-1] = pool.allocate()
    return original, table[-1]


def _pops_first(pool: BlockPool, table: list[int], num_tokens: int) -> tuple[int, int] | None:
    if not _shared(pool, table, num_tokens):
        return _append_slot(pool, table, num_tokens)
    original = table.pop()
    table.append(pool.allocate())
    pool.release(original)
    return original, table[-1]


def _takes_from_free(pool: BlockPool, table: list[int], num_tokens: int) -> tuple[int, int] | None:
    if not _shared(pool, table, num_tokens):
        return _append_slot(pool, table, num_tokens)
    original, table[-1] = table[-1], pool.free.popleft()
    pool.references[table[-1]] = 1
    pool.release(original)
    return original, table[-1]


def _gives_up(pool: BlockPool, table: list[int], num_tokens: int) -> tuple[int, int] | None:
    try:
        return _append_slot(pool, table, num_tokens)
    except OutOfBlocks:
        return None


def _appends_copy(pool: BlockPool, table: list[int], num_tokens: int) -> tuple[int, int] | None:
    answer = _append_slot(pool, table, num_tokens)
    if answer is not None:
        table.insert(-1, answer[0])
    return answer


def _swapped(pool: BlockPool, table: list[int], num_tokens: int) -> tuple[int, int] | None:
    copied = _append_slot(pool, table, num_tokens)
    return copied and (copied[1], copied[0])


def _makes_a_new_list(pool: BlockPool, table: list[int], num_tokens: int) -> tuple[int, int] | None:
    if num_tokens % pool.block_size == 0:
        table = [*table, pool.allocate()]
        return None
    return _append_slot(pool, table, num_tokens)


def _asks_first(pool: BlockPool, table: list[int], num_tokens: int) -> tuple[int, int] | None:
    full = len(table) * pool.block_size == num_tokens
    if not full and pool.references[table[-1]] < 2:
        return None
    block = pool.allocate()
    if full:
        table += [block]
        return None
    shared, table[-1] = table[-1], block
    pool.release(shared)
    return shared, block


def _by_table_length(pool: BlockPool, table: list[int], num_tokens: int) -> tuple[int, int] | None:
    if num_tokens // pool.block_size >= len(table):
        table.insert(len(table), pool.allocate())
    elif pool.references[table[-1]] > 1:
        old = table[-1]
        new = pool.allocate()
        pool.release(table.pop())
        table.append(new)
        return (old, new)
    return None


append_slot = Grading(
    lab.append_slot,
    right={"asks first": _asks_first, "by the table's length": _by_table_length},
    wrong={
        "the pair the wrong way round": Wrong(_swapped, says="wrong way round"),
        "makes a new list": Wrong(_makes_a_new_list, says="with append"),
        "writes into a shared block": Wrong(_writes_in_place, says="other sequence"),
        "copies a block of its own": Wrong(_always_copies, says="nobody else"),
        "keeps its reference to the original": Wrong(_keeps_reference, says="lets go"),
        "copies a full block": Wrong(_copies_full, says="full"),
        "keeps the original in its table": Wrong(_appends_copy, says="block table"),
        "copies only if exactly two share": Wrong(_copies_for_two, says="three"),
        "lets go before it has a copy": Wrong(_releases_first, says="references"),
        "takes the block out of the table first": Wrong(_pops_first, says="block table"),
        "takes a copy past allocate": Wrong(_takes_from_free, says="OutOfBlocks"),
        "returns None when no block is free": Wrong(_gives_up, says="OutOfBlocks"),
    },
    twins=("utils.kvcache.blocks.BlockTable.grow",),
)


def _same_growth(
    attempt: Callable[..., Any], rng: random.Random, blocks: int, forks: float, steps: int
) -> None:
    """Sequences that grow and fork, on the learner's side and on the reference's."""
    size, order = rng.randint(2, 12), rng.sample(range(blocks), blocks)
    actual, expected = BlockPool(blocks, size), BlockPool(blocks, size)
    actual.free, expected.free = deque(order), deque(order)
    sequences: list[tuple[list[int], list[int], int]] = [([], [], 0)]
    for _ in range(steps):
        index = rng.randrange(len(sequences))
        table, wanted, tokens = sequences[index]
        if rng.random() < forks and tokens:
            for block in table:
                actual.share(block)
                expected.share(block)
            sequences.append((list(table), list(wanted), tokens))
            continue
        case = f"token {tokens + 1}, blocks of {size}, block table {table}, references {actual.references}"
        try:
            copied = _append_slot(expected, wanted, tokens)
        except OutOfBlocks:
            expect_raises(OutOfBlocks, partial(attempt, actual, table, tokens), what=f"{case}, none free")
            copied = None
        else:
            expect_equal(attempt(actual, table, tokens), copied, what=f"what is returned for {case}")
            sequences[index] = (table, wanted, tokens + 1)
        expect_equal(table, wanted, what=f"the block table after {case}")
        expect_equal(list(actual.references), expected.references, what=f"references after {case}")


@append_slot.part("a sequence by itself", points=1)
def _(attempt: Callable[..., tuple[int, int] | None], rng: random.Random) -> None:
    for _ in range(3):
        _same_growth(attempt, rng, blocks=30, forks=0.0, steps=25)


@append_slot.part("sequences that share blocks", points=2)
def _(attempt: Callable[..., tuple[int, int] | None], rng: random.Random) -> None:
    for _ in range(4):
        _same_growth(attempt, rng, blocks=60, forks=0.15, steps=50)


@append_slot.part("no block is free", points=1)
def _(attempt: Callable[..., tuple[int, int] | None], rng: random.Random) -> None:
    for _ in range(6):
        _same_growth(attempt, rng, blocks=rng.randint(2, 4), forks=0.25, steps=40)


def _per_token(lengths: list[int], block_size: int) -> float:
    held = sum(-(-length // block_size) * block_size for length in lengths)
    return (held - sum(lengths)) / sum(lengths)


def _whole_block_more(lengths: list[int], block_size: int) -> float:
    held = sum((length // block_size + 1) * block_size for length in lengths)
    return (held - sum(lengths)) / held


def _mean_of_shares(lengths: list[int], block_size: int) -> float:
    return sum(_unused([length], block_size) for length in lengths) / len(lengths)


def _half_a_block(lengths: list[int], block_size: int) -> float:
    waste = len(lengths) * block_size / 2
    return waste / (sum(lengths) + waste)


def _blocks_of_four(lengths: list[int], block_size: int) -> float:
    return _unused(lengths, 4)


def _rounds_once(lengths: list[int], block_size: int) -> float:
    held = -(-sum(lengths) // block_size) * block_size
    return (held - sum(lengths)) / held


def _mean_of_free(lengths: list[int], block_size: int) -> float:
    slots = (np.ceil(np.asarray(lengths) / block_size) * block_size).sum()
    return 1 - np.sum(lengths) / slots


unused_share = Grading(
    lab.unused_share,
    right={
        "vectorised": _mean_of_free,
        "with math.ceil": lambda lengths, block_size: (
            1 - sum(lengths) / (block_size * sum(math.ceil(length / block_size) for length in lengths))
        ),
        "with NumPy": lambda lengths, block_size: (
            1 - np.sum(lengths) / np.sum(np.ceil(np.array(lengths) / block_size) * block_size)
        ),
    },
    wrong={
        "divides by tokens": Wrong(_per_token, says="held"),
        "adds the lengths, then rounds once": Wrong(_rounds_once, says="last block of its own"),
        "an empty block behind a full one": Wrong(_whole_block_more, says="exactly"),
        "mean of the requests' shares": Wrong(_mean_of_shares, says="all requests"),
        "half a block each, by rule of thumb": _half_a_block,
        "blocks of 4, whatever block_size": Wrong(_blocks_of_four, says="block_size"),
        "percent": Wrong(lambda lengths, block_size: 100 * _unused(lengths, block_size), "held"),
    },
)


def _shares(attempt: Callable[..., float], rng: random.Random, counts: list[int]) -> None:
    for count in counts:
        block_size = rng.choice([8, 16, 32, 64, 100])
        lengths = [rng.randint(1, 6 * block_size) for _ in range(count)]
        if rng.random() < 0.5:
            lengths[0] = block_size * rng.randint(1, 5)
        what = f"unused share of {lengths} tokens in blocks of {block_size}"
        expect_close(attempt(lengths, block_size), _unused(lengths, block_size), what=what)


@unused_share.part("one request", points=1)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    _shares(attempt, rng, [1] * 10)


@unused_share.part("several requests", points=1)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    _shares(attempt, rng, [rng.randint(2, 7) for _ in range(10)])


def _schedule_with(
    victim: int = -1,
    requeue: str = "front",
    admit: str = "in order",
    budget: bool = True,
    only_when_idle: bool = False,
    whole_prompt: bool = True,
    asks_for_one: bool = False,
    plans_zero: bool = False,
) -> Decide:
    """A scheduler with one thing wrong."""

    def schedule(waiting: Queue, running: list[Sequence], limits: SchedulerLimits) -> dict[int, int]:
        plan: dict[int, int] = {}
        left = limits.token_budget if budget else 10**9
        preempted, idle, position = False, not running, 0
        while position < len(running) and (left > 0 or plans_zero):
            sequence = running[position]
            tokens = min(sequence.remaining, left)
            while sequence in running and not sequence.fits(1 if asks_for_one else tokens):
                loser = running.pop(victim)
                plan.pop(loser.job.job_id, None)
                loser.preempt()
                preempted = True
                (waiting.appendleft if requeue == "front" else waiting.append)(loser)
            if sequence not in running:
                break
            position = running.index(sequence) + 1
            sequence.take(tokens)
            plan[sequence.job.job_id] = tokens
            left -= tokens
        may_admit = not preempted and (idle or not only_when_idle)
        while may_admit and waiting and left > 0 and len(running) < limits.max_running:
            if admit == "shortest":
                waiting.rotate(-min(range(len(waiting)), key=lambda i: waiting[i].remaining))
            if admit == "skips the long" and not limits.chunked_prefill:
                short = (i for i, other in enumerate(waiting) if other.remaining <= left)
                waiting.rotate(-next(short, 0))
            sequence = waiting[0]
            tokens = min(sequence.remaining, left)
            needed = sequence.remaining if whole_prompt else tokens
            chunk = tokens < sequence.remaining and not limits.chunked_prefill
            if chunk or not sequence.fits(needed):
                break
            running.append(waiting.popleft())
            sequence.take(tokens)
            plan[sequence.job.job_id] = tokens
            left -= tokens
        return plan

    return schedule


def _with_helpers(waiting: Queue, running: list[Sequence], limits: SchedulerLimits) -> dict[int, int]:
    plan: dict[int, int] = {}

    def left() -> int:
        return limits.token_budget - sum(plan.values())

    def give(request: Sequence, tokens: int) -> None:
        request.take(tokens)
        plan[request.job.job_id] = tokens

    preempted = len(waiting)
    for request in list(running):
        tokens = min(request.remaining, left())
        if tokens == 0 or not any(other is request for other in running):
            break
        while running and not request.fits(tokens):
            victim = running.pop()
            victim.preempt()
            waiting.appendleft(victim)
            if victim is request:
                return plan
        give(request, tokens)
    if len(waiting) > preempted:
        return plan
    while waiting and left() and len(running) < limits.max_running:
        request, tokens = waiting[0], min(waiting[0].remaining, left())
        whole = tokens == request.remaining or limits.chunked_prefill
        if not (whole and request.fits(request.remaining)):
            break
        running.append(waiting.popleft())
        give(request, tokens)
    return plan


schedule = Grading(
    lab.schedule,
    right={"with helpers": _with_helpers, "the course's own": _reference_schedule},
    wrong={
        "preempts the oldest": Wrong(_schedule_with(victim=0), says="youngest"),
        "sends the preempted to the end": Wrong(_schedule_with(requeue="back"), says="front"),
        "lets the shortest overtake": Wrong(_schedule_with(admit="shortest"), says="first come"),
        "ignores the token budget": Wrong(_schedule_with(budget=False), says="budget"),
        "static: admits only when nobody runs": Wrong(
            _schedule_with(only_when_idle=True), says="place is free"
        ),
        "admits a prompt that will not fit": Wrong(_schedule_with(whole_prompt=False), says="whole prompt"),
        "skips a prompt that is too long for the step": Wrong(
            _schedule_with(admit="skips the long"), says="overtakes"
        ),
        "asks for room for one token, then takes more": Wrong(
            _schedule_with(asks_for_one=True), says="request.fits"
        ),
        "plans 0 tokens when the budget is spent": Wrong(
            _schedule_with(plans_zero=True), says="gets no tokens"
        ),
    },
)


State = tuple[Queue, list[Sequence], SchedulerLimits]


def _state(rng: random.Random, blocks: int, tokens: int, running: int, budget: int) -> State:
    """A scheduler's state in the middle of its work, on a pool of `blocks` blocks of 4."""
    pool = BlockPool(blocks, 4)
    ids = iter(range(1, 99))

    def subset(count: int) -> list[Sequence]:
        lengths = [rng.randint(1, tokens) for _ in range(count)]
        return [Sequence(Job(next(ids), 0, n, 50), BlockTable(pool)) for n in lengths]

    chunked = rng.random() < 0.6
    started = []
    for sequence in subset(running):
        # Without chunks, a prompt that runs has been read whole.
        part = rng.randint(1, sequence.remaining) if chunked and rng.random() < 0.5 else sequence.remaining
        if sequence.fits(part):
            sequence.take(part)
            sequence.generated = int(sequence.remaining == 0)
            started.append(sequence)
    return deque(subset(rng.randint(1, 5))), started, SchedulerLimits(budget, rng.randint(3, 6), chunked)


def _same_step(attempt: Decide, seed: int, **size: int) -> None:
    actual, expected = (_state(random.Random(seed), **size) for _ in range(2))
    waiting, running, limits = actual
    free = len(waiting[0].table.pool.free)
    runs, waits = ([(s.job.job_id, s.remaining) for s in group] for group in (running, waiting))
    case = f"(id, remaining) running {runs}, waiting {waits}, {free} blocks of 4 free, {limits}"
    wanted = _reference_schedule(*expected)
    try:
        plan = attempt(waiting, running, limits)
    except OutOfBlocks as error:
        raise CheckFailed(f"take() raised OutOfBlocks. {case}") from error
    expect_equal(plan, wanted, what=f"the plan of {case}")
    for name, got, right in zip(("waiting", "running"), actual, expected, strict=False):
        expect_equal(lab._ids(got), lab._ids(right), what=f"{name} after {case}")


@schedule.part("steps with room for everybody", points=2)
def _(attempt: Decide, rng: random.Random) -> None:
    for _ in range(25):
        size = {"tokens": 20, "running": rng.randint(0, 4), "budget": rng.choice([8, 16, 24, 64])}
        _same_step(attempt, rng.getrandbits(32), blocks=200, **size)


@schedule.part("steps without", points=2)
def _(attempt: Decide, rng: random.Random) -> None:
    for _ in range(30):
        size = {"blocks": rng.randint(5, 9), "running": rng.randint(1, 5)}
        _same_step(attempt, rng.getrandbits(32), tokens=20, budget=rng.choice([8, 16, 64]), **size)
    for _ in range(15):  # a chunk would fit, the whole prompt does not
        _same_step(attempt, rng.getrandbits(32), blocks=4, tokens=30, running=rng.randint(0, 1), budget=8)


@schedule.part("whole workloads", points=2)
def _(attempt: Decide, rng: random.Random) -> None:
    for blocks in (150, 22, 20):
        jobs = [Job(i, 0.04 * i, rng.randint(5, 60), rng.randint(1, 50)) for i in range(16)]
        chunked = blocks != 20  # without chunks, the longest request has to fit into a step
        limits = SchedulerLimits(rng.choice([48, 64] if chunked else [128, 200]), rng.randint(4, 6), chunked)
        cost = StepCost(0.01, 0.0001)
        what = f"16 requests on {blocks} blocks of 8, {limits}"
        expected = simulate_continuous(jobs, cost, blocks, 8, limits)
        try:
            actual = simulate_continuous(jobs, cost, blocks, 8, limits, attempt)
        except ValueError as error:
            raise CheckFailed(f"{what}: {error}") from error
        wanted = [(o.job.job_id, o.preemptions, o.finished_at) for o in expected.outcomes]
        got = [(o.job.job_id, o.preemptions, o.finished_at) for o in actual.outcomes]
        expect_close(got, wanted, what=f"(request, preemptions, end in s) of {what}")


def _proportional(concurrency: int, tpot_s: dict[int, float]) -> float:
    return concurrency / tpot_s[min(tpot_s)]


def _line_through_throughput(concurrency: int, tpot_s: dict[int, float]) -> float:
    (low, fast), (high, slow) = sorted(tpot_s.items())
    slope = (high / slow - low / fast) / (high - low)
    return low / fast + slope * (concurrency - low)


def _lower_level_is_one(concurrency: int, tpot_s: dict[int, float]) -> float:
    (_, fast), (high, slow) = sorted(tpot_s.items())
    return _predict(concurrency, {1: fast, high: slow})


def _smaller_time_first(concurrency: int, tpot_s: dict[int, float]) -> float:
    times = tpot_s.values()
    return _predict(concurrency, {min(tpot_s): min(times), max(tpot_s): max(times)})


def _time_instead(concurrency: int, tpot_s: dict[int, float]) -> float:
    return concurrency / _predict(concurrency, tpot_s)


def _one_request(concurrency: int, tpot_s: dict[int, float]) -> float:
    return _predict(concurrency, tpot_s) / concurrency


def _interpolates(concurrency: int, tpot_s: dict[int, float]) -> float:
    levels = sorted(tpot_s)
    return concurrency / float(np.interp(concurrency, levels, [tpot_s[level] for level in levels]))


def _with_polyfit(concurrency: int, tpot_s: dict[int, float]) -> float:
    slope, base = np.polyfit(list(tpot_s), list(tpot_s.values()), 1)
    return concurrency / (base + slope * concurrency)


def _two_unknowns(concurrency: int, tpot_s: dict[int, float]) -> float:
    (n, slow), (m, fast) = sorted(tpot_s.items(), reverse=True)
    share = (concurrency - m) / (n - m)
    return concurrency / (fast + share * (slow - fast))


predict_throughput = Grading(
    lab.predict_throughput,
    right={"between the two points": _two_unknowns, "with polyfit": _with_polyfit},
    wrong={
        "clamps at the last level": Wrong(_interpolates, says="numpy.interp does not go on"),
        "a step costs the same at any batch": Wrong(_proportional, says="longer"),
        "a line through the throughputs": Wrong(_line_through_throughput, says="seconds"),
        "returns the time of a step": Wrong(_time_instead, says="tokens per second"),
        "takes the lower level for 1": Wrong(_lower_level_is_one, says="levels 4 and 16"),
        "takes the smaller time for the lower level": Wrong(_smaller_time_first, says="falls"),
        "returns one request's speed": Wrong(_one_request, says="all"),
    },
    twins=("utils.kvcache.simulate.fit_step_cost",),
)


def _lines(attempt: Callable[..., float], rng: random.Random, falls: bool) -> None:
    for _ in range(8):
        levels = rng.sample(range(1, 40), 2)
        base, slope = rng.uniform(0.005, 0.02), rng.uniform(0.0002, 0.003)
        if falls:
            slope = -base / 100
        tpot_s = {level: base + slope * level for level in levels}
        concurrency = rng.randint(1, 90)
        points = ", ".join(f"{s * 1000:.3f} ms at {level}" for level, s in tpot_s.items())
        wanted = _predict(concurrency, tpot_s)
        expect_close(attempt(concurrency, tpot_s), wanted, what=f"{concurrency} requests, {points}")


@predict_throughput.part("a step that grows with the batch", points=2)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    _lines(attempt, rng, falls=False)


@predict_throughput.part("measured times that fall", points=1)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    _lines(attempt, rng, falls=True)
