"""Checks of lab 3.3.6, prefill, decode, compiled engines, quantisation and TensorRT-LLM's settings."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from utils.checks import check, expect, expect_close, expect_equal, expect_type
from utils.engines.tensorrt_llm_settings import Effect, settings_notes

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
    """Examines the learner's `layer_cost(hidden, ffn, heads, kv_heads, head_dim, tokens, value_bytes)`."""
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
    """Examines the learner's `ridge_point_tokens(flops_per_s, bytes_per_s, value_bytes)`."""
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
    """Examines the learner's `step_seconds(flops, bytes_, flops_per_s, bytes_per_s)`."""
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
    """Examines the learner's `chunk_for(measured, ttft_s, stall_s)`."""
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
    """Examines the learner's `requests_that_fit(memory, tokens, layers, ..., group, group_bytes)`."""
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
    """Examines the learner's `choose_variant(variants, reference, most_rise, least_speed)`."""
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
    """Examines the learner's `serve_settings(requests, context, chunk, fp8, json)`."""
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
