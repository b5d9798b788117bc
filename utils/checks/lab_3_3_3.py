"""Checks of lab 3.3.3, continuous batching and PagedAttention."""

from __future__ import annotations

import math
import random
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from utils.checks import (
    CheckFailed,
    check,
    expect,
    expect_close,
    expect_equal,
    expect_raises,
    expect_type,
)
from utils.kvcache.blocks import BlockPool, BlockTable, OutOfBlocks
from utils.kvcache.scheduler import Job, SchedulerLimits, Sequence
from utils.kvcache.scheduler import schedule as _reference_schedule
from utils.kvcache.simulate import StepCost, simulate_continuous

Config = Mapping[str, Any]
Queue = deque[Sequence]
Decide = Callable[[Queue, list[Sequence], SchedulerLimits], dict[int, int]]

# config.json of Qwen/Qwen3-8B, as published on the hub.
QWEN3_8B: Config = {
    "hidden_size": 4096,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
}
ODD_HEADS: Config = {
    "hidden_size": 192,
    "num_hidden_layers": 24,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 64,
}
# GQA without head_dim, as in Llama-3.1-8B.
GQA_NO_HEAD_DIM: Config = {
    "hidden_size": 4096,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}
PLAIN: Config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def _kv_bytes(config: Config, value_bytes: int) -> int:
    heads = config["num_attention_heads"]
    kv_heads = config.get("num_key_value_heads", heads)
    head_dim = config.get("head_dim", config["hidden_size"] // heads)
    return int(2 * config["num_hidden_layers"] * kv_heads * head_dim * value_bytes)


@check(reference=_kv_bytes)
def kv_bytes_per_token(attempt: Callable[..., int]) -> None:
    """Examine the learner's `kv_bytes_per_token(config, value_bytes)`."""
    plain = attempt(PLAIN, 2)
    hint = "A key and a value, in each layer, for each head? Without num_key_value_heads every "
    hint += "query head has its own; without head_dim it is hidden_size / num_attention_heads."
    expect_equal(plain, 512, what="bytes per token of a small model without GQA", hint=hint)
    hint = "Do you count KV heads, or query heads? Under GQA several query heads share one KV head."
    expect_equal(attempt(QWEN3_8B, 2), 147456, what="bytes per token of Qwen3-8B", hint=hint)
    hint = "head_dim is in this config, and it is not hidden_size / num_attention_heads."
    expect_equal(
        attempt(ODD_HEADS, 2), 6144, what="bytes per token of a deep, thin model", hint=hint
    )
    hint = "KV heads are given, head_dim is not: then it is hidden_size // num_attention_heads, "
    hint += "divided by the query heads, also under GQA."
    try:
        gqa = attempt(GQA_NO_HEAD_DIM, 2)
    except KeyError as error:
        raise CheckFailed(f"a model with GQA and no head_dim: KeyError {error}. {hint}") from error
    expect_equal(gqa, 131072, what="bytes per token with GQA and no head_dim", hint=hint)
    hint = "An FP8 cache takes value_bytes=1."
    expect_equal(attempt(QWEN3_8B, 1), 73728, what="bytes per token in FP8", hint=hint)


def _capacity(
    budget_bytes: int, token_bytes: int, block_size: int, request_tokens: int
) -> tuple[int, int]:
    blocks = budget_bytes // (token_bytes * block_size)
    return blocks, blocks // -(-request_tokens // block_size)


@check(reference=_capacity)
def capacity(attempt: Callable[..., tuple[int, int]]) -> None:
    """Examine the learner's `capacity(budget_bytes, token_bytes, block_size, request_tokens)`."""
    blocks, requests = _pair(attempt(1000, 10, 4, 9))
    expect_equal(blocks, 25, what="blocks of 4 tokens of 10 bytes in 1000 bytes")
    hint = "9 tokens need three blocks of 4; the rest of the third is nobody else's: "
    hint += "each request has a last block of its own."
    expect_equal(requests, 8, what="requests of 9 tokens in 25 blocks of 4", hint=hint)
    hint = "8 tokens fill two blocks of 4 exactly."
    expect_equal(_pair(attempt(1000, 10, 4, 8))[1], 12, what="requests of 8 tokens", hint=hint)
    hint = "A block that is only partly within the budget does not exist."
    expect_equal(_pair(attempt(999, 10, 4, 8)), (24, 12), what="a smaller budget", hint=hint)


def _pair(answer: object) -> tuple[int, int]:
    expect_type(answer, tuple, what="the answer", hint="Return two numbers: blocks, requests.")
    assert isinstance(answer, tuple)
    expect(len(answer) == 2, f"return two numbers, blocks and requests, not {len(answer)}.")
    for number in answer:
        expect_type(number, int, what="a count", hint="// divides and rounds down.")
    return answer


@check(reference=BlockPool)
def block_pool(attempt: type[BlockPool]) -> None:
    """Examine the learner's class `block_pool(num_blocks, block_size)`."""
    pool = attempt(3, 4)
    first, second = pool.allocate(), pool.allocate()
    what = "two blocks of a pool of three"
    expect(first != second and {first, second} <= {0, 1, 2}, f"{what}: got {first} and {second}.")
    hint = "A block that is handed out has one reference."
    expect_equal(pool.references[first], 1, what="references of a new block", hint=hint)
    pool.share(first)
    expect_equal(pool.references[first], 2, what="references of a block shared once")
    pool.release(first)
    hint = "Somebody still holds it: only the last reference frees a block."
    expect_equal(pool.references[first], 1, what="references after one of two let go", hint=hint)
    expect(first not in pool.free, f"block {first} is in the free list. {hint}")
    pool.release(first)
    hint = "With its last reference a block returns to the free list."
    expect_equal(list(pool.free).count(first), 1, what="the block in the free list", hint=hint)
    what = "release of a block that is free, so freed twice"
    expect_raises(ValueError, lambda: pool.release(first), what=what)
    expect_raises(ValueError, lambda: pool.share(first), what="share of a block that is free")
    for _ in range(2):
        pool.allocate()
    hint = "Is there a block left to hand out? If not, raise OutOfBlocks."
    expect_raises(OutOfBlocks, pool.allocate, what="a fourth block of three", hint=hint)
    _play(attempt, seed=1)


def _play(attempt: type[BlockPool], seed: int) -> None:
    """Random use: every block is held as often as its references say, or free exactly once."""
    rng, pool = random.Random(seed), attempt(8, 4)
    held: list[int] = []
    for _ in range(300):
        choice = rng.random()
        if choice < 0.45 and pool.free:
            held.append(pool.allocate())
        elif choice < 0.6 and held:
            held.append(rng.choice(held))
            pool.share(held[-1])
        elif held:
            pool.release(held.pop(rng.randrange(len(held))))
        counts = [held.count(block) for block in range(8)]
        expect_equal(list(pool.references), counts, what="references after random use")
        unheld = [block for block in range(8) if not counts[block]]
        expect_equal(sorted(pool.free), unheld, what="the free list after random use")


def _append_slot(pool: BlockPool, table: list[int], num_tokens: int) -> tuple[int, int] | None:
    if num_tokens % pool.block_size == 0:
        table.append(pool.allocate())
        return None
    last = table[-1]
    if pool.references[last] == 1:
        return None
    copy = pool.allocate()
    table[-1] = copy
    pool.release(last)
    return last, copy


@check(reference=_append_slot, copy_inputs=False)
def append_slot(attempt: Callable[..., tuple[int, int] | None]) -> None:
    """Examine the learner's `append_slot(pool, table, num_tokens)`."""
    pool = BlockPool(6, 4)
    table: list[int] = []
    for num_tokens in range(6):
        copied = attempt(pool, table, num_tokens)
        hint = "The last block is held by nobody else, so it is written in place."
        expect(copied is None, f"a copy was made at token {num_tokens}. {hint}")
        hint = "`table + [...]` makes a new list; change the one that you were given, with append."
        expect(bool(table), f"the block table is still empty after the first token. {hint}")
    hint = "A new block is needed when the tokens so far fill theirs, and only then."
    expect_equal(len(table), 2, what="blocks of 6 tokens, 4 in each", hint=hint)
    twin = list(table)
    for block in twin:
        pool.share(block)
    original = table[-1]
    copied = attempt(pool, twin, 6)
    hint = "The last block belongs to the other sequence as well: copy it, then write."
    if isinstance(copied, tuple) and copied == (twin[-1], original) and twin[-1] != original:
        hint = "The pair is the wrong way round: first the original, then the copy."
    expect_equal(copied, (original, twin[-1]), what="(original, copy)", hint=hint)
    expect(twin[-1] != original, f"the block table still ends with the shared block. {hint}")
    expect_equal(len(twin), 2, what="length of the block table after the copy")
    hint = "Who copies lets go of the original: one reference less."
    expect_equal(pool.references[original], 1, what="references of the original", hint=hint)
    expect_equal(pool.references[twin[-1]], 1, what="references of the copy")
    copied = attempt(pool, table, 6)
    expect(copied is None, "the last owner of a block writes in place, without a copy.")
    _grows_past_a_full_block(attempt)
    _three_share(attempt)
    for num_tokens, what in ((2, "a partly full, shared block"), (4, "a full block")):
        _no_block_is_free(attempt, num_tokens, what)


def _three_share(attempt: Callable[..., tuple[int, int] | None]) -> None:
    pool = BlockPool(6, 4)
    original = pool.allocate()
    pool.share(original)
    pool.share(original)
    tables = [[original], [original], [original]]
    copies = [attempt(pool, table, 2) for table in tables]
    hint = "While anybody else holds the block, copy it; the last of the three writes in place."
    wanted = [(original, tables[0][-1]), (original, tables[1][-1]), None]
    what = "copies as three sequences that share a block write in turn"
    expect_equal(copies, wanted, what=what, hint=hint)
    last_blocks = {table[-1] for table in tables}
    expect(len(last_blocks) == 3, f"two of three sequences write into one block. {hint}")


def _no_block_is_free(
    attempt: Callable[..., tuple[int, int] | None], num_tokens: int, what: str
) -> None:
    pool = BlockPool(1, 4)
    table = [pool.allocate()]
    pool.share(table[0])
    what = f"one more token behind {what} when no block is free"
    hint = "pool.allocate() raises it; let it pass: the caller has to preempt somebody."
    expect_raises(OutOfBlocks, lambda: attempt(pool, table, num_tokens), what=what, hint=hint)
    hint = "Allocate first, and change the rest only when that has worked."
    expect_equal(table, [0], what=f"the block table after {what}", hint=hint)
    expect_equal(list(pool.references), [2], what=f"references after {what}", hint=hint)


def _grows_past_a_full_block(attempt: Callable[..., tuple[int, int] | None]) -> None:
    pool = BlockPool(6, 4)
    table = [pool.allocate()]
    pool.share(table[0])
    twin = list(table)
    copied = attempt(pool, twin, 4)
    hint = "A full block is never written to again: it stays shared, and a new one follows it."
    expect(copied is None, f"a full block was copied. {hint}")
    expect_equal(twin[:1], table, what="the full block in both tables", hint=hint)
    expect_equal(len(twin), 2, what="blocks after the fifth token", hint=hint)


def _unused(lengths: list[int], block_size: int) -> float:
    held = sum(-(-length // block_size) * block_size for length in lengths)
    return (held - sum(lengths)) / held


@check(reference=_unused)
def unused_share(attempt: Callable[..., float]) -> None:
    """Examine the learner's `unused_share(lengths, block_size)`."""
    hint = "4 slots are held and 3 used: the answer is the share of the held slots, 0 to 1."
    expect_close(attempt([3], 4), 0.25, what="one request of 3 tokens, block of 4", hint=hint)
    hint = "Eight tokens fill two blocks of 4 exactly."
    expect_close(attempt([8], 4), 0.0, what="one request of 8 tokens, blocks of 4", hint=hint)
    hint = "Add up over all requests first: 20 slots are held, 18 of them used."
    expect_close(attempt([3, 15], 4), 0.1, what="requests of 3 and 15 tokens", hint=hint)
    hint = "Each request has a last block of its own: 4 + 8 slots are held, and 8 of them used."
    expect_close(attempt([3, 5], 4), 1 / 3, what="requests of 3 and 5 tokens", hint=hint)
    hint = "20 tokens hold two blocks of 16, 32 slots: count with block_size."
    expect_close(attempt([20], 16), 0.375, what="one request of 20 tokens, blocks of 16", hint=hint)


@check(reference=_reference_schedule, copy_inputs=False)
def schedule(attempt: Decide) -> None:
    """Examine the learner's `schedule(waiting, running, limits)`."""
    _admission(attempt)
    _pressure(attempt)
    _room_for_all_tokens(attempt)
    rng = random.Random(3)
    cost = StepCost(0.01, 0.0001)
    for blocks, limits in (
        (200, SchedulerLimits(64, 6)),
        (24, SchedulerLimits(64, 6)),
        (24, SchedulerLimits(200, 6, False)),
    ):
        jobs = [Job(i, 0.05 * i, rng.randint(5, 60), rng.randint(1, 60)) for i in range(30)]
        expected = simulate_continuous(jobs, cost, blocks, 8, limits)
        what = f"30 requests on {blocks} blocks, {limits}"
        try:
            actual = simulate_continuous(jobs, cost, blocks, 8, limits, attempt)
        except ValueError as error:
            raise CheckFailed(f"{what}: {error}") from error
        wanted = [(o.job.job_id, o.preemptions, o.finished_at) for o in expected.outcomes]
        got = [(o.job.job_id, o.preemptions, o.finished_at) for o in actual.outcomes]
        hint = "Compare the order of your two loops with the task."
        expect_close(got, wanted, what=f"(request, preemptions, end in s) of {what}", hint=hint)


def _requests(pool: BlockPool, *prompts: int) -> list[Sequence]:
    return [Sequence(Job(i, 0, tokens, 50), BlockTable(pool)) for i, tokens in enumerate(prompts)]


def _ids(sequences: Queue | list[Sequence]) -> list[int]:
    return [sequence.job.job_id for sequence in sequences]


def _admission(attempt: Decide) -> None:
    pool = BlockPool(100, 4)
    waiting, running = deque(_requests(pool, 6, 20, 20)), list[Sequence]()
    hint = "What is left of the budget goes to the next one as a chunk of its prompt."
    plan = attempt(waiting, running, SchedulerLimits(token_budget=24))
    expect_equal(plan, {0: 6, 1: 18}, what="prompts of 6, 20, 20 under a budget of 24", hint=hint)
    expect_equal(_ids(running), [0, 1], what="running after that step", hint="Oldest first.")
    running[0].generated = 1
    plan = attempt(waiting, running, SchedulerLimits(token_budget=24))
    hint = "The running go first: one token each, or the rest of the prompt; then, where a place is"
    hint += " free and budget is left, the waiting."
    expect_equal(plan, {0: 1, 1: 2, 2: 20}, what="the next step", hint=hint)
    waiting = deque(_requests(BlockPool(3, 4), 16, 2))
    hint = "The first in the queue does not fit yet; first come, first served: nobody overtakes."
    expect_equal(
        attempt(waiting, [], SchedulerLimits()), {}, what="prompts of 16 and 2, 12 slots", hint=hint
    )
    waiting = deque(_requests(BlockPool(3, 4), 16))
    hint = "Only 8 tokens are computed now, but admit a request only if its whole prompt has room."
    plan = attempt(waiting, [], SchedulerLimits(token_budget=8))
    expect_equal(plan, {}, what="a prompt of 16 in chunks of 8, 12 slots", hint=hint)
    waiting = deque(_requests(BlockPool(9, 4), 6, 6))
    hint = "Without chunked prefill a prompt is computed whole or not at all."
    plan = attempt(waiting, [], SchedulerLimits(token_budget=8, chunked_prefill=False))
    expect_equal(plan, {0: 6}, what="two prompts of 6, no chunks, a budget of 8", hint=hint)
    waiting = deque(_requests(BlockPool(9, 4), 6, 6, 2))
    hint = "The second does not fit this step's budget whole, so the queue stops: nobody overtakes."
    plan = attempt(waiting, [], SchedulerLimits(token_budget=8, chunked_prefill=False))
    expect_equal(plan, {0: 6}, what="prompts of 6, 6, 2, no chunks, a budget of 8", hint=hint)
    hint = "The first spends the budget: a request that gets no tokens is not in the plan."
    waiting, running = deque(_requests(BlockPool(9, 4), 8, 8)), []
    plan = attempt(waiting, running, SchedulerLimits(token_budget=8))
    expect_equal(plan, {0: 8}, what="two waiting prompts of 8, a budget of 8", hint=hint)
    expect_equal(_ids(running), [0], what="running after that step", hint=hint)
    running = _requests(BlockPool(9, 4), 12, 12)
    for sequence in running:
        sequence.take(4)
    plan = attempt(deque(), running, SchedulerLimits(token_budget=8))
    what = "two running requests with 8 tokens of their prompts left, a budget of 8"
    expect_equal(plan, {0: 8}, what=what, hint=hint)
    waiting = deque(_requests(BlockPool(9, 4), 1, 1, 1))
    plan = attempt(waiting, [], SchedulerLimits(max_running=2))
    expect_equal(plan, {0: 1, 1: 1}, what="three requests, two of which may run")


def _pressure(attempt: Decide) -> None:
    pool = BlockPool(4, 4)
    oldest, middle, youngest = running = _requests(pool, 4, 4, 4)
    newcomer = Sequence(Job(9, 0, 1, 5), BlockTable(pool))
    for sequence in running:
        sequence.take(4)
        sequence.generated = 1
    waiting = deque([newcomer])
    plan = attempt(waiting, running, SchedulerLimits())
    hint = "All three need a block and one is free: the youngest running request is preempted for "
    hint += "the middle one, and its block is enough."
    lost = (oldest.preemptions, middle.preemptions, youngest.preemptions)
    expect_equal(lost, (0, 0, 1), what="preemptions of oldest, middle, youngest", hint=hint)
    hint = "The preempted goes back to the front of the queue."
    expect_equal(_ids(waiting)[:1], [2], what="first in the queue", hint=hint)
    hint = "The waiting are looked at only in a step in which nobody was preempted."
    expect_equal(plan, {0: 1, 1: 1}, what="the plan of that step", hint=hint)
    expect_equal(_ids(waiting), [2, 9], what="the queue", hint=hint)
    expect_equal(youngest.table.blocks, [], what="blocks of the preempted request")


def _room_for_all_tokens(attempt: Decide) -> None:
    older, younger = running = _requests(BlockPool(6, 4), 20, 8)
    older.take(8)
    younger.take(8)
    younger.generated = 1
    waiting = Queue()
    what = "12 more tokens of a running prompt, 2 blocks of 4 free, a younger request holding 2"
    hint = "Ask request.fits(n) for the n tokens that you take, not for fewer."
    try:
        plan = attempt(waiting, running, SchedulerLimits())
    except OutOfBlocks as error:
        raise CheckFailed(f"{what}: take() raised OutOfBlocks. {hint}") from error
    expect_equal(plan, {0: 12}, what=f"the plan for {what}", hint=hint)
    expect_equal(_ids(running), [0], what=f"running after {what}", hint="The youngest gives way.")
    expect_equal(_ids(waiting), [1], what=f"the queue after {what}", hint="The youngest gives way.")


def _predict(concurrency: int, tpot_s: dict[int, float]) -> float:
    (low, fast), (high, slow) = sorted(tpot_s.items())
    per_request = (slow - fast) / (high - low)
    base = fast - per_request * low
    return concurrency / (base + per_request * concurrency)


@check(reference=_predict)
def predict_throughput(attempt: Callable[..., float]) -> None:
    """Examine the learner's `predict_throughput(concurrency, tpot_s)`."""
    flat = attempt(10, {1: 0.01, 5: 0.01})
    hint = "A step of 10 ms gives one token to each of 10: tokens per second of all of them."
    expect_close(flat, 1000.0, what="10 requests, 10 ms a step at any batch", hint=hint)
    hint = "Each further request makes a step 2 ms longer: 8 + 2 x 10 = 28 ms. Does your line go "
    hint += "through seconds per step, and not through throughputs?"
    rising = attempt(10, {1: 0.010, 5: 0.018})
    if type(rising) in (float, np.float64) and math.isclose(rising, 10 / 0.018):
        hint = (
            "This is the step time of 5 requests. numpy.interp does not go on past the last level."
        )
    expect_close(rising, 10 / 0.028, what="10 requests, 10 ms at 1 and 18 ms at 5", hint=hint)
    same = attempt(10, {5: 0.018, 1: 0.010})
    expect_close(same, 10 / 0.028, what="the same, the levels in another order")
    expect_close(attempt(5, {1: 0.010, 5: 0.018}), 5 / 0.018, what="a level that was measured")
    hint = "From 4 to 16 requests a step grows by 24 ms, 2 ms for each of 12: 8 + 2 x 32 = 72 ms."
    far = attempt(32, {4: 0.016, 16: 0.040})
    expect_close(far, 32 / 0.072, what="32 requests, from the levels 4 and 16", hint=hint)
    hint = "Each level keeps its own time, also where the measured time falls: 22 - 2 x 4 = 14 ms."
    falling = attempt(4, {1: 0.020, 5: 0.012})
    expect_close(falling, 4 / 0.014, what="4 requests, 20 ms at 1 and 12 ms at 5", hint=hint)
