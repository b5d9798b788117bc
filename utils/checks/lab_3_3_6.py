"""Checks of lab 3.3.6, prefill, decode, compiled engines, quantisation and TensorRT-LLM's settings."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from utils.checks import check, expect, expect_close, expect_equal, expect_type
from utils.engines.tensorrt_llm_settings import Effect, settings_notes
from utils.quantisation.number_formats import nearest_e4m3

Measured = Sequence[tuple[int, float, float]]
Variants = Mapping[str, Mapping[str, float]]


def _layer_cost(
    hidden: int, ffn: int, heads: int, kv_heads: int, head_dim: int, tokens: int, value_bytes: int
) -> dict[str, int]:
    attention = 2 * hidden * heads * head_dim + 2 * hidden * kv_heads * head_dim
    parameters = attention + 3 * hidden * ffn
    return {"flops": 2 * parameters * tokens, "bytes": parameters * value_bytes}


@check(reference=_layer_cost)
def layer_cost(attempt: Callable[..., dict[str, int]]) -> None:
    """Examine the learner's `layer_cost(hidden, ffn, heads, kv_heads, head_dim, tokens, value_bytes)`."""
    hint = (
        "q and o have 4 x 8 = 32 numbers each, k and v 4 x 2 = 8 each: 80. The three matrices of the "
        "feed-forward block have 4 x 10 each: 120. Together 200; each costs a multiplication "
        "and an addition."
    )
    got = attempt(4, 10, 4, 1, 2, 1, 2)
    what = "hidden 4, ffn 10, 4 heads and 1 KV head of 2, 1 token, 2 bytes a number"
    expect_equal(got, {"flops": 400, "bytes": 400}, what=what, hint=hint)
    hint = "Every token is multiplied with every weight, but a weight is read once for all tokens."
    got = attempt(4, 10, 4, 1, 2, 16, 2)
    expect_equal(got, {"flops": 6400, "bytes": 400}, what="the same with 16 tokens", hint=hint)
    hint = "float32: the same operations, twice the bytes."
    got = attempt(4, 10, 4, 1, 2, 16, 4)
    expect_equal(got, {"flops": 6400, "bytes": 800}, what="the same in 4 bytes", hint=hint)
    rng = random.Random(1)
    for _ in range(20):
        same_cost(attempt, rng)


def same_cost(attempt: Callable[..., dict[str, int]], rng: random.Random) -> None:
    """One layer of random sizes; query heads together are not as wide as the hidden state."""
    kv_heads = rng.randint(1, 4)
    sizes = {
        "hidden": 8 * rng.randint(2, 40),
        "ffn": 8 * rng.randint(2, 90),
        "heads": kv_heads * rng.randint(2, 6),
        "kv_heads": kv_heads,
        "head_dim": 4 * rng.randint(1, 16),
        "tokens": rng.randint(2, 600),
        "value_bytes": rng.choice([1, 2, 4]),
    }
    expect_equal(attempt(*sizes.values()), _layer_cost(**sizes), what=f"a layer of {sizes}")


def _ridge_point_tokens(flops_per_s: float, bytes_per_s: float, value_bytes: float) -> float:
    return flops_per_s * value_bytes / (2 * bytes_per_s)


@check(reference=_ridge_point_tokens)
def ridge_point_tokens(attempt: Callable[..., float]) -> None:
    """Examine the learner's `ridge_point_tokens(flops_per_s, bytes_per_s, value_bytes)`."""
    hint = (
        "Reading a weight of 2 bytes takes 2 / 10e9 s; multiplying it for a token 2 / 100e9 s. "
        "After how many "
        "tokens is that as long?"
    )
    got = attempt(100e9, 10e9, 2)
    expect_close(got, 10.0, what="100 GFLOP/s, 10 GB/s, 2 bytes a weight", hint=hint)
    hint = "Twice the bytes take twice as long to read, so twice as many tokens are computed meanwhile."
    expect_close(attempt(100e9, 10e9, 4), 20.0, what="the same with 4 bytes a weight", hint=hint)
    hint = "DGX Spark (cited): 125 TFLOP/s in bfloat16 over 273 GB/s."
    expect_close(attempt(125e12, 273e9, 2), 125e12 / 273e9, what="a DGX Spark", hint=hint)
    rng = random.Random(2)
    for _ in range(10):
        same_ridge_point(attempt, rng)


def same_ridge_point(attempt: Callable[..., float], rng: random.Random) -> None:
    """One random machine and width of weights."""
    flops, bandwidth = rng.uniform(1e10, 1e15), rng.uniform(1e9, 5e12)
    width = rng.choice([0.5625, 1, 2, 4])
    what = f"{flops:.3g} FLOP/s, {bandwidth:.3g} bytes/s, {width} bytes a weight"
    expect_close(
        attempt(flops, bandwidth, width), _ridge_point_tokens(flops, bandwidth, width), what=what
    )


def _step_seconds(flops: float, bytes_: float, flops_per_s: float, bytes_per_s: float) -> float:
    return max(flops / flops_per_s, bytes_ / bytes_per_s)


@check(reference=_step_seconds)
def step_seconds(attempt: Callable[..., float]) -> None:
    """Examine the learner's `step_seconds(flops, bytes_, flops_per_s, bytes_per_s)`."""
    hint = (
        "Reading takes 2 s, computing 1 s, and both go on at the same time: the longer one counts."
    )
    expect_close(
        attempt(100.0, 20.0, 100.0, 10.0), 2.0, what="1 s of computing, 2 s of reading", hint=hint
    )
    hint = "Now computing takes 5 s, reading 2 s."
    expect_close(
        attempt(500.0, 20.0, 100.0, 10.0), 5.0, what="5 s of computing, 2 s of reading", hint=hint
    )
    rng = random.Random(3)
    for _ in range(20):
        same_step(attempt, rng)


def same_step(attempt: Callable[..., float], rng: random.Random) -> None:
    """One random step, by computing or by reading."""
    args = [rng.uniform(1, 100) for _ in range(4)]
    flops, size, rate, bandwidth = args
    what = f"{flops} FLOP, {size} bytes, {rate} FLOP/s, {bandwidth} bytes/s"
    expect_close(attempt(*args), _step_seconds(*args), what=what)


def _chunk_for(measured: Measured, ttft_s: float, stall_s: float) -> int | None:
    fitting = [row for row in measured if row[1] <= ttft_s and row[2] <= stall_s]
    return min(fitting, key=lambda row: row[1])[0] if fitting else None


ROWS: Measured = [(64, 2.0, 0.05), (256, 1.2, 0.15), (2048, 1.0, 0.9)]


@check(reference=_chunk_for)
def chunk_for(attempt: Callable[..., int | None]) -> None:
    """Examine the learner's `chunk_for(measured, ttft_s, stall_s)`."""
    what = f"measured {ROWS}"
    hint = "2048 makes others wait 0.9 s; of the two others, 256 answers first."
    got = attempt(ROWS, 3.0, 0.2)
    expect_equal(got, 256, what=f"{what}, at most 3 s and 0.2 s", hint=hint)
    hint = "Both limits are kept by all three: the one with the shortest TTFT is best."
    expect_equal(attempt(ROWS, 3.0, 1.0), 2048, what=f"{what}, at most 3 s and 1 s", hint=hint)
    hint = "256 takes 1.2 s, 2048 stalls 0.9 s, 64 takes 2 s: nothing keeps both limits, so None."
    expect_equal(attempt(ROWS, 1.1, 0.2), None, what=f"{what}, at most 1.1 s and 0.2 s", hint=hint)
    hint = "A limit that is just reached is kept."
    expect_equal(attempt(ROWS, 2.0, 0.05), 64, what=f"{what}, at most 2 s and 0.05 s", hint=hint)
    hint = "Rows may come in any order, and a larger chunk need not have the shorter TTFT: compare."
    odd: Measured = [(512, 1.4, 0.3), (128, 1.1, 0.1), (32, 1.9, 0.02)]
    expect_equal(attempt(odd, 2.0, 0.5), 128, what=f"measured {odd}, wide limits", hint=hint)
    rng = random.Random(4)
    for _ in range(40):
        same_chunk(attempt, rng)


def same_chunk(attempt: Callable[..., int | None], rng: random.Random) -> None:
    """Random measurements with two random limits."""
    sizes = rng.sample([16, 32, 64, 128, 256, 512, 1024, 2048], rng.randint(1, 5))
    rows = [(size, rng.uniform(0.5, 3), rng.uniform(0.01, 1)) for size in sizes]
    limits = rng.uniform(0.8, 3), rng.uniform(0.05, 1)
    what = f"measured {rows}, at most {limits[0]} s and {limits[1]} s"
    expect_equal(attempt(rows, *limits), _chunk_for(rows, *limits), what=what)


def _requests_that_fit(
    memory: int,
    tokens: int,
    layers: int,
    kv_heads: int,
    head_dim: int,
    group: int,
    group_bytes: int,
) -> int:
    numbers = 2 * layers * kv_heads * head_dim
    return memory // (tokens * numbers // group * group_bytes)


@check(reference=_requests_that_fit)
def requests_that_fit(attempt: Callable[..., int]) -> None:
    """Examine the learner's `requests_that_fit(memory, tokens, layers, ..., group, group_bytes)`."""
    hint = (
        "Keys and values: 2 x 2 layers x 1 head x 32 = 128 numbers a token, 256 bytes in f16. "
        "100 tokens take "
        "25,600 bytes."
    )
    got = attempt(130_000, 100, 2, 1, 32, 1, 2)
    expect_equal(got, 5, what="130,000 bytes, 2 layers, 1 head of 32, f16", hint=hint)
    hint = "q8_0: 128 numbers are 4 groups of 32, of 34 bytes each (32 numbers and a scale of 2): 136 bytes."
    got = attempt(130_000, 100, 2, 1, 32, 32, 34)
    expect_equal(got, 9, what="the same in q8_0, 34 bytes for 32 numbers", hint=hint)
    hint = "q4_0: 4 groups of 18 bytes are 72 bytes a token."
    got = attempt(130_000, 100, 2, 1, 32, 32, 18)
    expect_equal(got, 18, what="the same in q4_0, 18 bytes for 32 numbers", hint=hint)
    hint = "A request that fits only in part does not fit."
    got = attempt(25_599, 100, 2, 1, 32, 1, 2)
    expect_equal(got, 0, what="a byte less than one request takes", hint=hint)
    rng = random.Random(5)
    for _ in range(20):
        same_fit(attempt, rng)


def same_fit(attempt: Callable[..., int], rng: random.Random) -> None:
    """A random model, type and memory."""
    group, group_bytes = rng.choice([(1, 2), (1, 1), (1, 4), (32, 34), (32, 18)])
    args = (
        rng.randint(10**6, 10**9),
        rng.randint(20, 4000),
        rng.randint(2, 40),
        rng.randint(1, 8),
        32 * rng.randint(1, 4),
        group,
        group_bytes,
    )
    what = f"(memory, tokens, layers, KV heads, head_dim, group, group_bytes) = {args}"
    expect_equal(attempt(*args), _requests_that_fit(*args), what=what)


def _choose_variant(
    variants: Variants, reference: str, most_rise: float, least_speed: float
) -> str:
    base = variants[reference]
    good = {
        name: row
        for name, row in variants.items()
        if row["perplexity"] <= base["perplexity"] * (1 + most_rise)
        and row["tokens_per_s"] >= base["tokens_per_s"] * least_speed
    }
    return min(good, key=lambda name: (good[name]["kv_bytes"], -good[name]["tokens_per_s"]))


TABLE: Variants = {
    "f16": {"kv_bytes": 100.0, "perplexity": 10.0, "tokens_per_s": 50.0},
    "q8_0": {"kv_bytes": 53.0, "perplexity": 10.05, "tokens_per_s": 48.0},
    "q4_0": {"kv_bytes": 28.0, "perplexity": 10.8, "tokens_per_s": 30.0},
}


@check(reference=_choose_variant)
def choose_variant(attempt: Callable[..., str]) -> None:
    """Examine the learner's `choose_variant(variants, reference, most_rise, least_speed)`."""
    what = f"variants {TABLE}, reference f16"
    hint = "q4_0 is 8 % worse than 10.0, q8_0 half a percent: of those allowed, the one with least memory."
    got = attempt(TABLE, "f16", 0.01, 0.5)
    expect_equal(got, "q8_0", what=f"{what}, 1 % worse and half the speed allowed", hint=hint)
    hint = "Now 10 % worse is allowed, and q4_0 is the smallest."
    expect_equal(attempt(TABLE, "f16", 0.1, 0.5), "q4_0", what=f"{what}, 10 % and half", hint=hint)
    hint = "q4_0 has 0.6 of the reference's speed, and 0.9 is asked for: 45 tok/s, which q8_0 has."
    expect_equal(attempt(TABLE, "f16", 0.1, 0.9), "q8_0", what=f"{what}, 10 % and 0.9", hint=hint)
    hint = "Nothing else is allowed, so the reference itself is left: it is as good and as fast as itself."
    expect_equal(attempt(TABLE, "f16", 0.0, 1.0), "f16", what=f"{what}, no loss at all", hint=hint)
    twins = {**TABLE, "q8_0 too": {"kv_bytes": 53.0, "perplexity": 10.05, "tokens_per_s": 49.0}}
    hint = "Of two that need the same memory the faster one is better."
    got = attempt(twins, "f16", 0.01, 0.5)
    expect_equal(got, "q8_0 too", what="two variants of 53 bytes, with 48 and 49 tok/s", hint=hint)
    rng = random.Random(6)
    for _ in range(30):
        same_choice(attempt, rng)


def same_choice(attempt: Callable[..., str], rng: random.Random) -> None:
    """Random variants with random limits; the reference is any of them."""
    names = rng.sample("abcdefgh", rng.randint(2, 6))
    rows = {
        name: {
            "kv_bytes": float(rng.choice([28, 53, 100])),
            "perplexity": rng.uniform(8, 12),
            "tokens_per_s": rng.uniform(20, 60),
        }
        for name in names
    }
    reference = rng.choice(names)
    limits = rng.uniform(0, 0.3), rng.uniform(0.4, 1)
    what = f"variants {rows}, reference {reference}, limits {limits}"
    wanted = _choose_variant(rows, reference, *limits)
    expect_equal(attempt(rows, reference, *limits), wanted, what=what)


E2M1 = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def _nearest_e2m1(x: float) -> float:
    distances = [abs(abs(x) - value) for value in E2M1]
    near = [i for i, distance in enumerate(distances) if distance == min(distances)]
    return math.copysign(E2M1[next((i for i in near if i % 2 == 0), near[0])], x)


@check(reference=_nearest_e2m1)
def nearest_e2m1(attempt: Callable[[float], float]) -> None:
    """Examine the learner's `nearest_e2m1(x)`."""
    hint = "The values are 0, 0.5, 1, 1.5, 2, 3, 4, 6: take the nearest."
    for x in (0.1, 0.6, 1.4, 2.2, 3.4, 4.9, 5.1):
        expect_equal(attempt(x), _nearest_e2m1(x), what=f"x = {x}", hint=hint)
    hint = "What is above 6 becomes 6: there is no infinity."
    expect_equal(attempt(100.0), 6.0, what="x = 100", hint=hint)
    hint = "The sign is a bit of its own."
    expect_equal(attempt(-2.9), -3.0, what="x = -2.9", hint=hint)
    hint = "In the middle of two values, take the one with the even mantissa: 0, 1, 2 or 4."
    for x in (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0, -0.75, -5.0):
        expect_equal(attempt(x), _nearest_e2m1(x), what=f"x = {x}, a tie", hint=hint)
    rng = random.Random(7)
    for _ in range(40):
        same_e2m1(attempt, rng)


def same_e2m1(attempt: Callable[[float], float], rng: random.Random) -> None:
    """One random number, half of the time a tie."""
    low = rng.randrange(len(E2M1) - 1)
    tie = (E2M1[low] + E2M1[low + 1]) / 2
    x = rng.choice([-1, 1]) * rng.choice([tie, rng.uniform(0, 9)])
    expect_equal(attempt(x), _nearest_e2m1(x), what=f"x = {x}")


def _nvfp4_block(block: list[float], unit: float) -> list[float]:
    scale = nearest_e4m3(max(abs(x) for x in block) / 6 / unit) * unit
    return [_nearest_e2m1(x / scale) * scale if scale else 0.0 for x in block]


@check(reference=_nvfp4_block)
def nvfp4_block(attempt: Callable[..., list[float]]) -> None:
    """Examine the learner's `nvfp4_block(block, unit)`."""
    block = [0.75, 1.75, 3.5, 6.0, 0.25, 1.25, 2.5, 5.0, 0.0, -6.0, -1.0, 0.5, 2.0, -3.0, 4.0, 1.0]
    hint = "The largest is 6, so the scale is 1 and each number goes to the nearest of E2M1."
    wanted = [_nearest_e2m1(x) for x in block]
    expect_close(attempt(block, 1.0), wanted, what="a block with scale 1", hint=hint)
    hint = "Twice the numbers, twice the scale: divide by the scale, round, multiply by it again."
    double = [2 * x for x in block]
    expect_close(attempt(double, 1.0), [2 * x for x in wanted], what="the same, doubled", hint=hint)
    hint = (
        "The scale itself is kept in E4M3: max / 6 / unit is rounded with nearest_e4m3, and the rounded "
        "scale, times unit, divides and multiplies the block."
    )
    odd = [0.1 * i - 0.7 for i in range(16)]
    got = attempt(odd, 0.001)
    expect_close(got, _nvfp4_block(odd, 0.001), what="a block from -0.7 to 0.8", hint=hint)
    hint = "A block of zeros has scale 0, and dividing by it fails: it stays zero."
    expect_close(attempt([0.0] * 16, 1.0), [0.0] * 16, what="a block of zeros", hint=hint)
    rng = random.Random(8)
    for _ in range(20):
        same_block(attempt, rng)


def same_block(attempt: Callable[..., list[float]], rng: random.Random) -> None:
    """One random block of weights, sometimes of zeros."""
    size = 10 ** rng.uniform(-3, 1) if rng.random() < 0.8 else 0.0
    block = [rng.gauss(0, size) for _ in range(16)]
    unit = (size or 1.0) * rng.uniform(0.001, 0.01)
    got = attempt(block, unit)
    expect_close(got, _nvfp4_block(block, unit), what=f"block {block}, unit {unit}")


_GRAPHS = {
    "cuda_graph_padding_enabled": "enable_padding",
    "cuda_graph_batch_sizes": "batch_sizes",
    "cuda_graph_max_batch_size": "max_batch_size",
}
_CACHE = {
    "kv_cache_dtype": "dtype",
    "kv_cache_free_gpu_memory_fraction": "free_gpu_memory_fraction",
}


def _repair_recipe(recipe: dict[str, Any]) -> dict[str, Any]:
    old = copy.deepcopy(recipe)
    old |= old.pop("pytorch_backend_config", {})
    graphs = {new: old.pop(key) for key, new in _GRAPHS.items() if key in old}
    wanted = old.pop("use_cuda_graph", None)
    if wanted is False:
        old["cuda_graph_config"] = None
    elif wanted or graphs:
        old["cuda_graph_config"] = (old.get("cuda_graph_config") or {}) | graphs
    if "enable_overlap_scheduler" in old:
        old["disable_overlap_scheduler"] = not old.pop("enable_overlap_scheduler")
    cache = {new: old.pop(key) for key, new in _CACHE.items() if key in old}
    if cache:
        old["kv_cache_config"] = old.get("kv_cache_config", {}) | cache
    if "scheduler_policy" in old:
        old["scheduler_config"] = {"capacity_scheduler_policy": old.pop("scheduler_policy")}
    method = old.get("speculative_config", {})
    if "num_nextn_predict_layers" in method:
        method["max_draft_len"] = method.pop("num_nextn_predict_layers")
    return old


@check(reference=_repair_recipe)
def repair_recipe(attempt: Callable[..., dict[str, Any]]) -> None:
    """Examine the learner's `repair_recipe(recipe)`."""
    for recipe, hint in (
        (
            {"dtype": "bfloat16", "stream_interval": 10},
            "There is nothing to repair: all keys stay.",
        ),
        ({"kv_cache_dtype": "fp8"}, "It is kv_cache_config: {dtype: fp8} now."),
        (
            {"kv_cache_dtype": "fp8", "kv_cache_config": {"enable_block_reuse": False}},
            "The section may be there already: keep its keys.",
        ),
        (
            {"use_cuda_graph": True, "cuda_graph_padding_enabled": True},
            "It is cuda_graph_config: {enable_padding: true} now, and use_cuda_graph is gone.",
        ),
        ({"use_cuda_graph": False}, "Graphs that were off stay off: cuda_graph_config: null."),
        (
            {"pytorch_backend_config": {"cuda_graph_batch_sizes": [1, 8], "print_iter_log": True}},
            "The keys of pytorch_backend_config are at the top level now, and old ones need repair, too.",
        ),
        ({"enable_overlap_scheduler": True}, "disable_overlap_scheduler says the opposite."),
        (
            {"speculative_config": {"decoding_type": "MTP", "num_nextn_predict_layers": 2}},
            "It is max_draft_len now.",
        ),
    ):
        same_repair(attempt, recipe, hint)
    rng = random.Random(9)
    for _ in range(30):
        same_repair(attempt, old_recipe(rng))


def old_recipe(rng: random.Random) -> dict[str, Any]:
    """Return a random recipe with keys of 2025."""
    sizes = sorted(rng.sample([1, 2, 4, 8, 16, 32, 64, 128], 3))
    old = {
        "use_cuda_graph": True,
        "cuda_graph_padding_enabled": rng.random() < 0.5,
        "cuda_graph_batch_sizes": sizes,
        "cuda_graph_max_batch_size": sizes[-1],
        "enable_overlap_scheduler": rng.random() < 0.5,
        "kv_cache_dtype": rng.choice(["fp8", "auto"]),
        "kv_cache_free_gpu_memory_fraction": rng.choice([0.6, 0.8, 0.95]),
        "scheduler_policy": rng.choice(["MAX_UTILIZATION", "GUARANTEED_NO_EVICT"]),
        "print_iter_log": True,
    }
    chosen = {key: old[key] for key in old if rng.random() < 0.6}
    if rng.random() < 0.2:
        chosen = {"use_cuda_graph": False, "print_iter_log": False}
    recipe = {"pytorch_backend_config": chosen} if rng.random() < 0.5 else chosen
    if rng.random() < 0.5:
        recipe |= {"kv_cache_config": {"enable_block_reuse": rng.random() < 0.5}}
    if rng.random() < 0.5:
        method = {"decoding_type": "MTP", "num_nextn_predict_layers": rng.randint(1, 4)}
        recipe |= {"speculative_config": method}
    return recipe | {"max_batch_size": sizes[-1], "tensor_parallel_size": rng.choice([1, 2, 8])}


def same_repair(
    attempt: Callable[..., dict[str, Any]], recipe: dict[str, Any], hint: str = ""
) -> None:
    """One recipe: the repaired file has the same meaning, and the engine starts with it."""
    got = attempt(copy.deepcopy(recipe))
    expect_type(got, dict, what=f"recipe {recipe}")
    for note in settings_notes(got):
        text = f"recipe {recipe}: TensorRT-LLM {note.effect}. {note.text}"
        expect(note.effect is not Effect.REFUSES, text)
    expect_equal(got, _repair_recipe(recipe), what=f"recipe {recipe}", hint=hint)


def _draft_length(schedule: Mapping[int, int], batch: int) -> int:
    return next((schedule[size] for size in sorted(schedule) if batch <= size), 0)


@check(reference=_draft_length)
def draft_length(attempt: Callable[..., int]) -> None:
    """Examine the learner's `draft_length(schedule, batch)`."""
    schedule = {4: 4, 8: 2, 32: 1}
    for batch, hint in (
        (1, "Up to 4 requests the engine drafts 4 tokens."),
        (4, "A batch size of the schedule belongs to its own row."),
        (5, "Above 4, the next size, 8, counts."),
        (32, "A batch size of the schedule belongs to its own row."),
        (33, "Above the largest size nothing is drafted."),
    ):
        wanted = _draft_length(schedule, batch)
        expect_equal(attempt(schedule, batch), wanted, what=f"{schedule}, {batch}", hint=hint)
    hint = "The sizes may come in any order."
    expect_equal(attempt({32: 1, 4: 4}, 3), 4, what="{32: 1, 4: 4}, 3 requests", hint=hint)
    rng = random.Random(10)
    for _ in range(30):
        same_draft_length(attempt, rng)


def same_draft_length(attempt: Callable[..., int], rng: random.Random) -> None:
    """A random schedule in random order, with a batch at, below or above one of its sizes."""
    sizes = rng.sample([1, 2, 4, 8, 16, 32, 64], rng.randint(1, 4))
    schedule = {size: rng.randint(0, 6) for size in sizes}
    batch = max(1, rng.choice(sizes) + rng.choice([-1, 0, 1]))
    what = f"schedule {schedule}, {batch} requests"
    expect_equal(attempt(schedule, batch), _draft_length(schedule, batch), what=what)


def _padded_share(sizes: Sequence[int], batches: Sequence[int]) -> float:
    rows = [min((size for size in sizes if size >= batch), default=batch) for batch in batches]
    return 1 - sum(batches) / sum(rows)


@check(reference=_padded_share)
def padded_share(attempt: Callable[..., float]) -> None:
    """Examine the learner's `padded_share(sizes, batches)`."""
    sizes = [1, 2, 4, 8, 16, 32]
    hint = "9 requests run in the graph of 16: 7 of 16 rows are padding."
    expect_close(attempt(sizes, [9]), 7 / 16, what=f"sizes {sizes}, one step of 9", hint=hint)
    hint = "8 requests fit the graph of 8 exactly."
    expect_close(attempt(sizes, [8]), 0.0, what=f"sizes {sizes}, one step of 8", hint=hint)
    hint = "Above the largest graph the step runs without one, and without padding."
    expect_close(attempt(sizes, [40]), 0.0, what=f"sizes {sizes}, one step of 40", hint=hint)
    hint = "The share is of the rows of all steps together: 0 of 8 and 7 of 16 are 7 of 24."
    expect_close(attempt(sizes, [8, 9]), 7 / 24, what=f"sizes {sizes}, steps of 8 and 9", hint=hint)
    hint = "The sizes may come in any order: take the smallest that is large enough."
    expect_close(attempt([16, 4, 8], [3]), 1 / 4, what="sizes [16, 4, 8], a step of 3", hint=hint)
    rng = random.Random(11)
    for _ in range(30):
        same_padding(attempt, rng)


def same_padding(attempt: Callable[..., float], rng: random.Random) -> None:
    """Random graphs in random order, and the batches of some steps."""
    sizes = rng.sample([1, 2, 4, 8, 12, 16, 24, 32, 64], rng.randint(1, 6))
    batches = [rng.randint(1, 48) for _ in range(rng.randint(1, 8))]
    what = f"sizes {sizes}, batches {batches}"
    expect_close(attempt(sizes, batches), _padded_share(sizes, batches), what=what)


def _prefix_places(
    visits: Sequence[tuple[str, int]], gpu_blocks: int, host_blocks: int
) -> list[str]:
    recent: list[tuple[str, int]] = []  # the latest last
    places = []
    for user, blocks in visits:
        place = "recompute"
        if any(other == user for other, _ in recent):
            index = next(i for i, (other, _) in enumerate(recent) if other == user)
            needed = sum(size for _, size in recent[index:])
            if needed <= gpu_blocks:
                place = "gpu"
            elif needed <= gpu_blocks + host_blocks:
                place = "host"
        places.append(place)
        recent = [(other, size) for other, size in recent if other != user] + [(user, blocks)]
    return places


@check(reference=_prefix_places)
def prefix_places(attempt: Callable[..., list[str]]) -> None:
    """Examine the learner's `prefix_places(visits, gpu_blocks, host_blocks)`."""
    visits = [("a", 4), ("b", 4), ("a", 4), ("c", 4), ("b", 4), ("a", 4)]
    hint = "All three fit into the GPU's 12 blocks, so only each first visit is computed."
    _expect_places(attempt, visits, 12, 0, hint)
    hint = "8 blocks hold the two latest. When b comes back, a and c were used since: 12 blocks."
    _expect_places(attempt, visits, 8, 0, hint)
    hint = "A prefix that the GPU dropped is in host memory, if it fits there."
    _expect_places(attempt, visits, 8, 4, hint)
    hint = "A visit makes a prefix the latest again: count only what was used after its last visit."
    again = [("a", 2), ("b", 2), ("b", 2), ("b", 2), ("a", 2)]
    _expect_places(attempt, again, 4, 0, hint)
    hint = "Prefixes have different sizes: count blocks, not users."
    _expect_places(attempt, [("a", 2), ("b", 9), ("a", 2)], 10, 4, hint)
    rng = random.Random(12)
    for _ in range(30):
        same_places(attempt, rng)


def _expect_places(
    attempt: Callable[..., list[str]],
    visits: list[tuple[str, int]],
    gpu: int,
    host: int,
    hint: str = "",
) -> None:
    what = f"visits {visits}, {gpu} blocks on the GPU and {host} in host memory"
    expect_equal(
        attempt(visits, gpu, host), _prefix_places(visits, gpu, host), what=what, hint=hint
    )


def same_places(attempt: Callable[..., list[str]], rng: random.Random) -> None:
    """Random visits of a few users with prefixes of their own sizes."""
    sizes = {user: rng.randint(1, 9) for user in "abcdef"[: rng.randint(2, 6)]}
    visits = [(user, sizes[user]) for user in rng.choices(list(sizes), k=rng.randint(4, 14))]
    gpu = max(max(sizes.values()), rng.randint(4, 24))
    _expect_places(attempt, visits, gpu, rng.choice([0, 4, 12]))


def _serve_settings(
    requests: int, context: int, chunk: int, fp8: bool, json: bool
) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "dtype": "bfloat16",
        "max_batch_size": requests,
        "max_num_tokens": chunk,
        "enable_chunked_prefill": chunk < context,
        "kv_cache_config": {"dtype": "fp8" if fp8 else "auto"},
        "enable_iter_perf_stats": True,
    }
    if json:
        settings["guided_decoding_backend"] = "xgrammar"
    return settings


@check(reference=_serve_settings)
def serve_settings(attempt: Callable[..., dict[str, Any]]) -> None:
    """Examine the learner's `serve_settings(requests, context, chunk, fp8, json)`."""
    same_settings(attempt, 16, 8192, 8192, False, False)
    same_settings(attempt, 64, 32768, 4096, True, False)
    same_settings(attempt, 8, 4096, 8192, True, True)
    same_settings(attempt, 8, 4096, 2048, False, True)


def same_settings(
    attempt: Callable[..., dict[str, Any]],
    requests: int,
    context: int,
    chunk: int,
    fp8: bool,
    json: bool,
) -> None:
    """Examine one requirement: the dictionary is compared with it and with the rules of the engine."""
    got = attempt(requests, context, chunk, fp8, json)
    what = f"requests={requests}, context={context}, chunk={chunk}, fp8={fp8}, json={json}"
    expect_type(got, dict, what=what)
    for note in settings_notes(got, context):
        bad = note.effect in (Effect.REFUSES, Effect.REJECTS)
        expect(not bad, f"{what}: TensorRT-LLM {note.effect}. {note.text}")
    hint = (
        "Weights in bfloat16, and it is written down: auto would be the checkpoint's own type. FP8 "
        "weights are a property of the checkpoint."
    )
    expect_equal(got.get("dtype"), "bfloat16", what=f"{what}: dtype", hint=hint)
    for key, wanted, hint in (
        ("max_batch_size", requests, "It is the most requests in a step."),
        ("max_num_tokens", chunk, "It is the most tokens in a step, so the size of a chunk."),
    ):
        expect_equal(got.get(key), wanted, what=f"{what}: {key}", hint=hint)
    hint = "A prompt longer than a step is cut into chunks; a shorter one need not be."
    chunked = got.get("enable_chunked_prefill", False)
    expect_equal(chunked, chunk < context, what=f"{what}: enable_chunked_prefill", hint=hint)
    hint = (
        "The type of the KV cache is kv_cache_config: {dtype: fp8}, and auto is the model's own. FP8 weights "
        "are a property of the checkpoint."
    )
    dtype = got.get("kv_cache_config", {}).get("dtype", "auto")
    expect_equal(dtype, "fp8" if fp8 else "auto", what=f"{what}: KV dtype", hint=hint)
    hint = "Answers that follow a schema need guided_decoding_backend: xgrammar; others go without."
    backend = got.get("guided_decoding_backend")
    expect_equal(backend, "xgrammar" if json else None, what=f"{what}: guided decoding", hint=hint)
    hint = "Without enable_iter_perf_stats /metrics stays empty."
    written = got.get("enable_iter_perf_stats", False)
    expect_equal(written, True, what=f"{what}: statistics", hint=hint)
