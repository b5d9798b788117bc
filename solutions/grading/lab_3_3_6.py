"""How lab 3.3.6 is graded. Never released; tools/lab/judge/hidden_tests.py explains."""

from __future__ import annotations

import bisect
import math
import random
from collections.abc import Callable
from typing import Any

import numpy as np

from utils.checks import lab_3_3_6 as lab
from tools.lab.judge.hidden_tests import Grading, Wrong
from utils.quantisation.number_formats import nearest_e4m3

_cost = lab.layer_cost.reference
_ridge_point = lab.ridge_point_tokens.reference
_seconds = lab.step_seconds.reference
_chunk = lab.chunk_for.reference
_fit = lab.requests_that_fit.reference
_choice = lab.choose_variant.reference
_settings = lab.serve_settings.reference
_e2m1 = lab.nearest_e2m1.reference
_block = lab.nvfp4_block.reference
_repair = lab.repair_recipe.reference
_length = lab.draft_length.reference
_padding = lab.padded_share.reference
_places = lab.prefix_places.reference


def _by_matrices(
    hidden: int, ffn: int, heads: int, kv_heads: int, head_dim: int, tokens: int, value_bytes: int
) -> dict[str, int]:
    q, kv = heads * head_dim, kv_heads * head_dim
    shapes = [
        (q, hidden),
        (kv, hidden),
        (kv, hidden),
        (hidden, q),
        (ffn, hidden),
        (ffn, hidden),
        (hidden, ffn),
    ]
    weights = sum(rows * columns for rows, columns in shapes)
    return {"bytes": weights * value_bytes, "flops": 2 * tokens * weights}


def _in_floats(
    hidden: int, ffn: int, heads: int, kv_heads: int, head_dim: int, tokens: int, value_bytes: int
) -> dict[str, float]:
    n = hidden * head_dim * (2 * heads + 2 * kv_heads) + 3 * hidden * ffn
    return {"flops": 2.0 * n * tokens, "bytes": 1.0 * n * value_bytes}


layer_cost = Grading(
    lab.layer_cost,
    right={"by matrices": _by_matrices, "in floats": _in_floats},
    wrong={
        "an operation per weight": Wrong(
            lambda hidden, ffn, heads, kv_heads, head_dim, tokens, value_bytes: {
                **_cost(hidden, ffn, heads, kv_heads, head_dim, tokens, value_bytes),
                "flops": _cost(hidden, ffn, heads, kv_heads, head_dim, tokens, value_bytes)["flops"] // 2,
            },
            says="a multiplication and an addition",
        ),
        "weights read for every token": Wrong(
            lambda hidden, ffn, heads, kv_heads, head_dim, tokens, value_bytes: {
                "flops": _cost(hidden, ffn, heads, kv_heads, head_dim, tokens, value_bytes)["flops"],
                "bytes": tokens * _cost(hidden, ffn, heads, kv_heads, head_dim, 1, value_bytes)["bytes"],
            },
            says="read once",
        ),
        "as many KV heads as query heads": Wrong(
            lambda hidden, ffn, heads, kv_heads, head_dim, tokens, value_bytes: _cost(
                hidden, ffn, heads, heads, head_dim, tokens, value_bytes
            ),
            says="8 each",
        ),
        "two matrices in the feed-forward block": Wrong(
            lambda hidden, ffn, heads, kv_heads, head_dim, tokens, value_bytes: _cost(
                hidden, 2 * ffn // 3, heads, kv_heads, head_dim, tokens, value_bytes
            ),
            says="three matrices",
        ),
        "heads as wide together as the hidden state": Wrong(
            lambda hidden, ffn, heads, kv_heads, head_dim, tokens, value_bytes: _cost(
                hidden, ffn, heads, kv_heads, hidden // heads, tokens, value_bytes
            ),
        ),
        "numbers instead of bytes": Wrong(
            lambda hidden, ffn, heads, kv_heads, head_dim, tokens, value_bytes: _cost(
                hidden, ffn, heads, kv_heads, head_dim, tokens, 1
            ),
        ),
    },
    twins=("utils.roofline.weights.weights_of_config", "utils.model_sizes.decoder_parameters"),
)


@layer_cost.part("one token", points=2)
def _(attempt: Callable[..., dict[str, int]], rng: random.Random) -> None:
    for _ in range(10):
        lab.same_cost(lambda *a: _scaled(attempt, a), rng)


def _scaled(attempt: Callable[..., dict[str, int]], arguments: tuple[int, ...]) -> dict[str, int]:
    *sizes, tokens, width = arguments
    one = attempt(*sizes, 1, width)
    return {"flops": one["flops"] * tokens, "bytes": one["bytes"]}


@layer_cost.part("many tokens", points=2)
def _(attempt: Callable[..., dict[str, int]], rng: random.Random) -> None:
    for _ in range(20):
        lab.same_cost(attempt, rng)


ridge_point_tokens = Grading(
    lab.ridge_point_tokens,
    right={
        "the time of one token": lambda flops_per_s, bytes_per_s, value_bytes: (
            (value_bytes / bytes_per_s) / (2 / flops_per_s)
        ),
        "the intensity first": lambda flops_per_s, bytes_per_s, value_bytes: (
            flops_per_s / bytes_per_s / (2 / value_bytes)
        ),
    },
    wrong={
        "forgets that a token costs two operations": Wrong(
            lambda flops_per_s, bytes_per_s, value_bytes: flops_per_s * value_bytes / bytes_per_s,
            says="how many",
        ),
        "leaves the width out": Wrong(
            lambda flops_per_s, bytes_per_s, value_bytes: flops_per_s / bytes_per_s,
            says="Twice the bytes",
        ),
        "upside down": Wrong(
            lambda flops_per_s, bytes_per_s, value_bytes: 2 * bytes_per_s / (flops_per_s * value_bytes),
        ),
        "divides by the width": Wrong(
            lambda flops_per_s, bytes_per_s, value_bytes: flops_per_s / (2 * bytes_per_s * value_bytes),
        ),
    },
)


@ridge_point_tokens.part("any machine", points=2)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    for _ in range(20):
        lab.same_ridge_point(attempt, rng)


step_seconds = Grading(
    lab.step_seconds,
    right={
        "with if": lambda flops, bytes_, flops_per_s, bytes_per_s: (
            flops / flops_per_s if flops * bytes_per_s > bytes_ * flops_per_s else bytes_ / bytes_per_s
        ),
        "sorted": lambda flops, bytes_, flops_per_s, bytes_per_s: sorted(
            [flops / flops_per_s, bytes_ / bytes_per_s]
        )[-1],
    },
    wrong={
        "one after the other": Wrong(
            lambda flops, bytes_, flops_per_s, bytes_per_s: flops / flops_per_s + bytes_ / bytes_per_s,
            says="same time",
        ),
        "the shorter one": Wrong(
            lambda flops, bytes_, flops_per_s, bytes_per_s: min(flops / flops_per_s, bytes_ / bytes_per_s),
            says="longer one",
        ),
        "computing alone": Wrong(
            lambda flops, bytes_, flops_per_s, bytes_per_s: flops / flops_per_s, says="longer one"
        ),
        "reading alone": Wrong(
            lambda flops, bytes_, flops_per_s, bytes_per_s: bytes_ / bytes_per_s,
            says="Now computing",
        ),
    },
)


@step_seconds.part("by computing and by reading", points=2)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    for _ in range(30):
        lab.same_step(attempt, rng)


def _ignores_stalls(measured: lab.Measured, ttft_s: float, stall_s: float) -> int | None:
    return _chunk(measured, ttft_s, float("inf"))


def _smallest(measured: lab.Measured, ttft_s: float, stall_s: float) -> int | None:
    fitting = [row[0] for row in measured if row[1] <= ttft_s and row[2] <= stall_s]
    return min(fitting, default=None)


def _largest(measured: lab.Measured, ttft_s: float, stall_s: float) -> int | None:
    fitting = [row[0] for row in measured if row[1] <= ttft_s and row[2] <= stall_s]
    return max(fitting, default=None)


def _always_one(measured: lab.Measured, ttft_s: float, stall_s: float) -> int | None:
    return _chunk(measured, ttft_s, stall_s) or measured[0][0]


def _strictly(measured: lab.Measured, ttft_s: float, stall_s: float) -> int | None:
    fitting = [row for row in measured if row[1] < ttft_s and row[2] < stall_s]
    return min(fitting, key=lambda row: row[1])[0] if fitting else None


def _best_chunk_so_far(measured: list[tuple[int, float, float]], ttft_s: float, stall_s: float) -> int | None:
    best, shortest = None, math.inf
    for chunk, ttft, stall in measured:
        if ttft <= ttft_s and stall <= stall_s and ttft < shortest:
            best, shortest = chunk, ttft
    return best


def _sorted_by_ttft(measured: list[tuple[int, float, float]], ttft_s: float, stall_s: float) -> int | None:
    by_ttft = sorted(measured, key=lambda row: row[1])
    return next((chunk for chunk, ttft, stall in by_ttft if not (ttft > ttft_s or stall > stall_s)), None)


chunk_for = Grading(
    lab.chunk_for,
    right={"the best so far": _best_chunk_so_far, "sorted by TTFT": _sorted_by_ttft},
    wrong={
        "others may wait": Wrong(_ignores_stalls, says="wait 0.9 s"),
        "the smallest chunk": Wrong(_smallest, says="answers first"),
        "the largest chunk": Wrong(_largest, says="compare"),
        "never None": Wrong(_always_one, says="None"),
        "strictly below the limits": Wrong(_strictly, says="just reached"),
    },
)


@chunk_for.part("limits that some keep", points=2)
def _(attempt: Callable[..., int | None], rng: random.Random) -> None:
    for _ in range(60):
        lab.same_chunk(attempt, rng)


@chunk_for.part("limits that are just reached, or by nobody", points=1)
def _(attempt: Callable[..., int | None], rng: random.Random) -> None:
    for _ in range(10):
        rows = [(2 ** rng.randint(4, 11), rng.uniform(1, 2), rng.uniform(0.1, 0.5))]
        chunk, ttft, stall = rows[0]
        lab.expect_equal(attempt(rows, ttft, stall), chunk, what=f"measured {rows}, its own values")
        got = attempt(rows, ttft * 0.9, stall)
        lab.expect_equal(got, None, what=f"measured {rows}, 0.9 of its TTFT")


def _bytes_first(
    memory: int, tokens: int, layers: int, kv_heads: int, head_dim: int, group: int, group_bytes: int
) -> int:
    token_bytes = layers * kv_heads * head_dim * 2 * group_bytes // group
    return int(memory / (token_bytes * tokens))


def _adds_requests(
    memory: int, tokens: int, layers: int, kv_heads: int, head_dim: int, group: int, group_bytes: int
) -> int:
    groups = 2 * layers * kv_heads * head_dim // group
    whole, _ = divmod(memory, tokens * groups * group_bytes)
    return whole


requests_that_fit = Grading(
    lab.requests_that_fit,
    right={"bytes of a token first": _bytes_first, "with divmod": _adds_requests},
    wrong={
        "keys alone": Wrong(
            lambda memory, tokens, layers, kv_heads, head_dim, group, group_bytes: (
                2 * memory // (tokens * 2 * layers * kv_heads * head_dim // group * group_bytes)
            ),
            says="Keys and values",
        ),
        "one layer": Wrong(
            lambda memory, tokens, layers, kv_heads, head_dim, group, group_bytes: _fit(
                memory, tokens, 1, kv_heads, head_dim, group, group_bytes
            ),
            says="2 layers",
        ),
        "forgets the scale of a group": Wrong(
            lambda memory, tokens, layers, kv_heads, head_dim, group, group_bytes: _fit(
                memory,
                tokens,
                layers,
                kv_heads,
                head_dim,
                group,
                group_bytes - (2 if group > 1 else 0),
            ),
            says="scale",
        ),
        "bytes of a group for each number": Wrong(
            lambda memory, tokens, layers, kv_heads, head_dim, group, group_bytes: _fit(
                memory, tokens, layers, kv_heads, head_dim, 1, group_bytes
            ),
            says="4 groups",
        ),
        "a part of a request": Wrong(
            lambda memory, tokens, layers, kv_heads, head_dim, group, group_bytes: (
                _fit(memory, tokens, layers, kv_heads, head_dim, group, group_bytes) + 1
            ),
        ),
        "tokens, not requests": Wrong(
            lambda memory, tokens, layers, kv_heads, head_dim, group, group_bytes: _fit(
                memory, 1, layers, kv_heads, head_dim, group, group_bytes
            ),
        ),
    },
    twins=("utils.model_sizes.requests_that_fit", "utils.model_sizes.bytes_per_token"),
)


@requests_that_fit.part("any type", points=3)
def _(attempt: Callable[..., int], rng: random.Random) -> None:
    for _ in range(40):
        lab.same_fit(attempt, rng)


def _best_quality(variants: Any, reference: str, most_rise: float, least_speed: float) -> str:
    return min(variants, key=lambda name: variants[name]["perplexity"])


def _any_speed(variants: Any, reference: str, most_rise: float, least_speed: float) -> str:
    return _choice(variants, reference, most_rise, 0.0)


def _any_quality(variants: Any, reference: str, most_rise: float, least_speed: float) -> str:
    return _choice(variants, reference, float("inf"), least_speed)


def _rise_in_numbers(variants: Any, reference: str, most_rise: float, least_speed: float) -> str:
    base = variants[reference]["perplexity"]
    return _choice(variants, reference, most_rise / base, least_speed)


def _fastest(variants: Any, reference: str, most_rise: float, least_speed: float) -> str:
    limit = variants[reference]["perplexity"] * (1 + most_rise)
    good = [name for name, row in variants.items() if row["perplexity"] <= limit]
    return max(good, key=lambda name: variants[name]["tokens_per_s"])


def _first_of_twins(variants: Any, reference: str, most_rise: float, least_speed: float) -> str:
    slower = {
        name: {**row, "tokens_per_s": 1.0 if row["tokens_per_s"] else 0.0}
        for name, row in variants.items()
        if row["perplexity"] <= variants[reference]["perplexity"] * (1 + most_rise)
        and row["tokens_per_s"] >= variants[reference]["tokens_per_s"] * least_speed
    }
    return min(slower, key=lambda name: slower[name]["kv_bytes"])


def _by_sort(
    variants: dict[str, dict[str, float]], reference: str, most_rise: float, least_speed: float
) -> str:
    base = variants[reference]
    for name, row in sorted(
        variants.items(), key=lambda item: (item[1]["kv_bytes"], -item[1]["tokens_per_s"])
    ):
        rise = row["perplexity"] / base["perplexity"] - 1
        if rise <= most_rise and row["tokens_per_s"] / base["tokens_per_s"] >= least_speed:
            return name
    raise AssertionError("the reference itself is allowed")


def _filters_twice(
    variants: dict[str, dict[str, float]], reference: str, most_rise: float, least_speed: float
) -> str:
    limit = (1 + most_rise) * variants[reference]["perplexity"]
    slowest = least_speed * variants[reference]["tokens_per_s"]
    good = {n: r for n, r in variants.items() if r["perplexity"] <= limit and r["tokens_per_s"] >= slowest}
    least = min(row["kv_bytes"] for row in good.values())
    small = {name: row["tokens_per_s"] for name, row in good.items() if row["kv_bytes"] == least}
    return max(small, key=small.__getitem__)


choose_variant = Grading(
    lab.choose_variant,
    right={"by sorting": _by_sort, "filters twice": _filters_twice},
    wrong={
        "the best quality": Wrong(_best_quality, says="least memory"),
        "whatever its speed": Wrong(_any_speed, says="0.9 is asked for"),
        "whatever its quality": Wrong(_any_quality, says="8 % worse"),
        "a rise in numbers, not in parts": Wrong(_rise_in_numbers, says="q4_0"),
        "the fastest": Wrong(_fastest, says="least memory"),
        "the first of equals": Wrong(_first_of_twins, says="faster one"),
    },
)


@choose_variant.part("any limits", points=3)
def _(attempt: Callable[..., str], rng: random.Random) -> None:
    for _ in range(80):
        lab.same_choice(attempt, rng)


def _with(**changes: Any) -> Callable[..., dict[str, Any]]:
    def wrong(requests: int, context: int, chunk: int, fp8: bool, json: bool) -> dict[str, Any]:
        return {**_settings(requests, context, chunk, fp8, json), **changes}

    return wrong


def _without(key: str) -> Callable[..., dict[str, Any]]:
    def wrong(requests: int, context: int, chunk: int, fp8: bool, json: bool) -> dict[str, Any]:
        settings: dict[str, Any] = _settings(requests, context, chunk, fp8, json)
        return {name: value for name, value in settings.items() if name != key}

    return wrong


def _dtype_at_the_top(requests: int, context: int, chunk: int, fp8: bool, json: bool) -> dict[str, Any]:
    settings: dict[str, Any] = _settings(requests, context, chunk, fp8, json)
    del settings["kv_cache_config"]
    return {**settings, "kv_cache_dtype": "fp8" if fp8 else "auto"}


def _fp8_weights(requests: int, context: int, chunk: int, fp8: bool, json: bool) -> dict[str, Any]:
    settings: dict[str, Any] = _settings(requests, context, chunk, False, json)
    return {**settings, "dtype": "fp8" if fp8 else "bfloat16"}


def _never_chunked(requests: int, context: int, chunk: int, fp8: bool, json: bool) -> dict[str, Any]:
    return _with(enable_chunked_prefill=False)(requests, context, chunk, fp8, json)


def _no_backend(requests: int, context: int, chunk: int, fp8: bool, json: bool) -> dict[str, Any]:
    return dict(_settings(requests, context, chunk, fp8, False))


serve_settings = Grading(
    lab.serve_settings,
    right={
        "the file's own names for lengths": lambda requests, context, chunk, fp8, json: {
            **_settings(requests, context, chunk, fp8, json),
            "max_seq_len": context,
            "tensor_parallel_size": 1,
        },
        "block reuse spelled out": lambda requests, context, chunk, fp8, json: {
            **_settings(requests, context, chunk, fp8, json),
            "kv_cache_config": {"enable_block_reuse": True, "dtype": "fp8" if fp8 else "auto"},
        },
    },
    wrong={
        "the KV type at the top level": Wrong(_dtype_at_the_top, says="older recipes"),
        "FP8 weights instead of FP8 keys": Wrong(_fp8_weights, says="property of the checkpoint"),
        "no chunks": Wrong(_never_chunked, says="has to fit into one step"),
        "always in chunks": Wrong(_with(enable_chunked_prefill=True), says="shorter one need not"),
        "nothing that constrains answers": Wrong(_no_backend, says="xgrammar"),
        "an engine build": Wrong(_with(build_config={"max_batch_size": 8}), says="builds no engines"),
        "a key that does not exist": Wrong(_with(max_batch=8), says="Did you mean"),
        "no statistics": Wrong(_with(enable_iter_perf_stats=False), says="stays empty"),
        "leaves out the statistics": Wrong(_without("enable_iter_perf_stats"), says="stays empty"),
        "leaves out the type of the weights": Wrong(_without("dtype"), says="written down"),
    },
)


@serve_settings.part("steps and chunks", points=2)
def _(attempt: Callable[..., dict[str, Any]], rng: random.Random) -> None:
    for _ in range(8):
        context = 1024 * rng.randint(2, 32)
        chunk = rng.choice([context // 2, context // 4, context, 2 * context])
        lab.same_settings(attempt, rng.randint(1, 128), context, chunk, False, False)


@serve_settings.part("KV type and constrained answers", points=2)
def _(attempt: Callable[..., dict[str, Any]], rng: random.Random) -> None:
    kinds = [(True, False), (False, True), (True, True), (False, False)]
    for fp8, json in rng.sample(kinds, len(kinds)):
        lab.same_settings(attempt, rng.randint(1, 64), 8192, 4096, fp8, json)


def _ties_up(x: float) -> float:
    value = min(reversed(lab.E2M1), key=lambda v: abs(abs(x) - v))
    return -value if x < 0 else value


def _ties_down(x: float) -> float:
    value = min(lab.E2M1, key=lambda v: abs(abs(x) - v))
    return -value if x < 0 else value


def _by_thresholds(x: float) -> float:
    size = abs(x)
    for limit, value in ((0.25, 0.0), (1.25, 1.0), (2.5, 2.0), (5.0, 4.0)):
        half = {0.0: 0.75, 1.0: 1.75, 2.0: 3.5, 4.0: math.inf}[value]
        following = {0.0: 0.5, 1.0: 1.5, 2.0: 3.0, 4.0: 6.0}[value]
        if size <= limit:
            return math.copysign(value, x)
        if size < half:
            return math.copysign(following, x)
    return math.copysign(6.0, x)


def _by_rounding(x: float) -> float:
    size = min(abs(x), 6.0)
    step = 0.5 if size < 2 else 1.0 if size < 4 else 2.0
    return math.copysign(round(size / step) * step, x)


nearest_e2m1 = Grading(
    lab.nearest_e2m1,
    right={"by thresholds": _by_thresholds, "by rounding to even": _by_rounding},
    wrong={
        "a tie goes up": Wrong(_ties_up, says="even mantissa"),
        "a tie goes down": Wrong(_ties_down, says="even mantissa"),
        "forgets the sign": Wrong(lambda x: abs(_e2m1(x)), says="sign"),
        "whole numbers": Wrong(lambda x: float(round(x)), says="nearest"),
        "even steps of a half": Wrong(lambda x: max(-6.0, min(6.0, round(2 * x) / 2)), says="nearest"),
        "no limit": Wrong(lambda x: x if abs(x) > 6 else _e2m1(x), says="no infinity"),
    },
    twins=(
        "utils.quantisation.number_formats.nearest_e2m1",
        "utils.quantisation.number_formats.round_e2m1",
        "utils.quantisation.number_formats.nvfp4",
        "utils.quantisation.number_formats.mxfp4",
    ),
)


@nearest_e2m1.part("any number", points=3)
def _(attempt: Callable[[float], float], rng: random.Random) -> None:
    for _ in range(60):
        lab.same_e2m1(attempt, rng)


def _exact_scale(block: list[float], unit: float) -> list[float]:
    scale = max(abs(x) for x in block) / 6
    return [_e2m1(x / scale) * scale if scale else 0.0 for x in block]


def _forgets_unit(block: list[float], unit: float) -> list[float]:
    return list(_block(block, 1.0))


def _not_scaled_back(block: list[float], unit: float) -> list[float]:
    scale = lab.nearest_e4m3(max(abs(x) for x in block) / 6 / unit) * unit
    return [_e2m1(x / scale) if scale else 0.0 for x in block]


def _power_of_two(block: list[float], unit: float) -> list[float]:
    largest = max(abs(x) for x in block)
    if not largest:
        return [0.0] * len(block)
    scale = 2.0 ** (math.floor(math.log2(largest)) - 2)
    return [_e2m1(x / scale) * scale for x in block]


def _signed_maximum(block: list[float], unit: float) -> list[float]:
    scale = lab.nearest_e4m3(max(block) / 6 / unit) * unit
    return [_e2m1(x / scale) * scale if scale else 0.0 for x in block]


def _divides_by_zero(block: list[float], unit: float) -> list[float]:
    scale = lab.nearest_e4m3(max(abs(x) for x in block) / 6 / unit) * unit
    return [_e2m1(x / scale) * scale for x in block]


def _scaled_up(block: list[float], unit: float) -> tuple[float, ...]:
    largest = max(map(abs, block))
    scale = nearest_e4m3(largest / (6 * unit)) * unit
    return tuple(scale * _e2m1(x / scale) if scale else 0.0 for x in block)


def _value_by_value(block: list[float], unit: float) -> list[float]:
    scale = unit * nearest_e4m3(max(-min(block), max(block)) / 6 / unit)
    rounded = []
    for x in block:
        rounded.append(0.0 if scale == 0 else _e2m1(x / scale) * scale)
    return rounded


nvfp4_block = Grading(
    lab.nvfp4_block,
    right={"a tuple": _scaled_up, "value by value": _value_by_value},
    wrong={
        "the scale is not rounded": Wrong(_exact_scale, says="E4M3"),
        "leaves the unit out": Wrong(_forgets_unit, says="unit"),
        "not multiplied by the scale again": Wrong(_not_scaled_back, says="multiply"),
        "a power of two": Wrong(_power_of_two),
        "the largest with its sign": Wrong(_signed_maximum),
        "divides by zero": Wrong(_divides_by_zero, says="ZeroDivisionError"),
    },
    twins=("utils.quantisation.number_formats.nvfp4",),
)


@nvfp4_block.part("any block", points=3)
def _(attempt: Callable[..., list[float]], rng: random.Random) -> None:
    for _ in range(30):
        lab.same_block(attempt, rng)


def _repaired_without(*keys: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    def wrong(recipe: dict[str, Any]) -> dict[str, Any]:
        return {k: v for k, v in _repair(recipe).items() if k not in keys}

    return wrong


def _same_overlap(recipe: dict[str, Any]) -> dict[str, Any]:
    found = dict(_repair(recipe))
    if "disable_overlap_scheduler" in found:
        found["disable_overlap_scheduler"] = not found["disable_overlap_scheduler"]
    return found


def _replaces_cache(recipe: dict[str, Any]) -> dict[str, Any]:
    found = dict(_repair(recipe))
    flat = recipe | recipe.get("pytorch_backend_config", {})
    if "kv_cache_dtype" in flat:
        found["kv_cache_config"] = {"dtype": flat["kv_cache_dtype"]}
    return found


def _graphs_always_on(recipe: dict[str, Any]) -> dict[str, Any]:
    found = dict(_repair(recipe))
    if "cuda_graph_config" in found and found["cuda_graph_config"] is None:
        found["cuda_graph_config"] = {}
    return found


def _only_the_top(recipe: dict[str, Any]) -> dict[str, Any]:
    inner = recipe.get("pytorch_backend_config")
    rest = {k: v for k, v in recipe.items() if k != "pytorch_backend_config"}
    return {**_repair(rest), **({"pytorch_backend_config": inner} if inner else {})}


def _drops_what_is_old(recipe: dict[str, Any]) -> dict[str, Any]:
    flat = {**recipe, **recipe.get("pytorch_backend_config", {})}
    known = lab.copy.deepcopy({k: v for k, v in flat.items() if k in _repair(recipe)})
    method = known.get("speculative_config", {})
    if "num_nextn_predict_layers" in method:
        method["max_draft_len"] = method.pop("num_nextn_predict_layers")
    return known


def _renames_by_table(recipe: dict[str, Any]) -> dict[str, Any]:
    new = {k: dict(v) if isinstance(v, dict) else v for k, v in recipe.items()}
    new |= new.pop("pytorch_backend_config", {})
    moves = {
        "kv_cache_dtype": ("kv_cache_config", "dtype"),
        "kv_cache_free_gpu_memory_fraction": ("kv_cache_config", "free_gpu_memory_fraction"),
        "scheduler_policy": ("scheduler_config", "capacity_scheduler_policy"),
        "cuda_graph_padding_enabled": ("cuda_graph_config", "enable_padding"),
        "cuda_graph_batch_sizes": ("cuda_graph_config", "batch_sizes"),
        "cuda_graph_max_batch_size": ("cuda_graph_config", "max_batch_size"),
    }
    for name, (group, key) in moves.items():
        if name in new:
            new[group] = {**(new.get(group) or {}), key: new.pop(name)}
    graphs = new.pop("use_cuda_graph", None)
    if graphs is not None:
        new["cuda_graph_config"] = (new.get("cuda_graph_config") or {}) if graphs else None
    if "enable_overlap_scheduler" in new:
        new["disable_overlap_scheduler"] = not new.pop("enable_overlap_scheduler")
    method = new.get("speculative_config", {})
    if "num_nextn_predict_layers" in method:
        method["max_draft_len"] = method.pop("num_nextn_predict_layers")
    return new


repair_recipe = Grading(
    lab.repair_recipe,
    right={
        "by a table of names": _renames_by_table,
        "keys in another order": lambda recipe: dict(reversed(_repair(recipe).items())),
    },
    wrong={
        "leaves the file as it is": Wrong(lambda recipe: dict(recipe), says="older recipes"),
        "keeps the old section": Wrong(_only_the_top, says="top level"),
        "the overlap scheduler the wrong way round": Wrong(_same_overlap, says="opposite"),
        "replaces the section that is there": Wrong(_replaces_cache, says="keep its keys"),
        "graphs always on": Wrong(_graphs_always_on, says="stay off"),
        "throws the old keys away": Wrong(_drops_what_is_old),
        "forgets the graphs": Wrong(_repaired_without("cuda_graph_config")),
    },
)


@repair_recipe.part("recipes with old keys", points=4)
def _(attempt: Callable[..., dict[str, Any]], rng: random.Random) -> None:
    for _ in range(40):
        lab.same_repair(attempt, lab.old_recipe(rng))


def _smallest_that_holds(schedule: dict[int, int], batch: int) -> int:
    return schedule.get(min((size for size in schedule if size >= batch), default=0), 0)


def _by_bisect(schedule: dict[int, int], batch: int) -> int:
    sizes = sorted(schedule)
    at = bisect.bisect_left(sizes, batch)
    return schedule[sizes[at]] if at < len(sizes) else 0


draft_length = Grading(
    lab.draft_length,
    right={"the smallest that holds": _smallest_that_holds, "by bisection": _by_bisect},
    wrong={
        "the row below": Wrong(
            lambda schedule, batch: next(
                (schedule[size] for size in sorted(schedule, reverse=True) if size <= batch), 0
            ),
            says="Up to 4",
        ),
        "never 0": Wrong(
            lambda schedule, batch: _length(schedule, min(batch, max(schedule))), says="nothing"
        ),
        "strictly below": Wrong(
            lambda schedule, batch: next((schedule[size] for size in sorted(schedule) if batch < size), 0),
            says="its own row",
        ),
        "only exact sizes": Wrong(lambda schedule, batch: schedule.get(batch, 0), says="Up to 4"),
        "in the file's order": Wrong(
            lambda schedule, batch: next((schedule[s] for s in schedule if batch <= s), 0),
            says="any order",
        ),
    },
)


@draft_length.part("any schedule", points=2)
def _(attempt: Callable[..., int], rng: random.Random) -> None:
    for _ in range(60):
        lab.same_draft_length(attempt, rng)


def _rows(sizes: Any, batch: int) -> int:
    return int(min((size for size in sizes if size >= batch), default=batch))


def _row_by_row(sizes: list[int], batches: list[int]) -> float:
    padded = rows = 0
    for batch in batches:
        larger = [size for size in sizes if not size < batch]
        rows += min(larger) if larger else batch
        padded += min(larger) - batch if larger else 0
    return padded / rows


def _by_searchsorted(sizes: list[int], batches: list[int]) -> np.float64:
    known, wanted = np.sort(sizes), np.asarray(batches)
    at = np.searchsorted(known, wanted)
    rows = np.where(at < len(known), known[np.minimum(at, len(known) - 1)], wanted)
    return 1 - wanted.sum() / rows.sum()


padded_share = Grading(
    lab.padded_share,
    right={"row by row": _row_by_row, "with searchsorted": _by_searchsorted},
    wrong={
        "share of the requests": Wrong(
            lambda sizes, batches: sum(_rows(sizes, b) - b for b in batches) / sum(batches),
            says="7 of 16",
        ),
        "mean of the steps": Wrong(
            lambda sizes, batches: sum(1 - b / _rows(sizes, b) for b in batches) / len(batches),
            says="7 of 24",
        ),
        "the largest graph for all": Wrong(
            lambda sizes, batches: 1 - sum(batches) / sum(max(max(sizes), b) for b in batches),
            says="7 of 16",
        ),
        "the next graph although one fits": Wrong(
            lambda sizes, batches: (
                1 - sum(batches) / sum(min((s for s in sizes if s > b), default=b) for b in batches)
            ),
            says="exactly",
        ),
        "cut off above the largest": Wrong(
            lambda sizes, batches: (
                1 - sum(batches) / sum(min((s for s in sizes if s >= b), default=max(sizes)) for b in batches)
            ),
            says="without padding",
        ),
    },
)


@padded_share.part("any graphs", points=3)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    for _ in range(60):
        lab.same_padding(attempt, rng)


def _since_first_visit(visits: Any, gpu_blocks: int, host_blocks: int) -> list[str]:
    places, order = [], []
    for user, blocks in visits:
        seen = [other for other, _ in order]
        needed = sum(size for _, size in order[seen.index(user) :]) if user in seen else None
        if needed is None:
            order.append((user, blocks))
        limits = [(gpu_blocks, "gpu"), (gpu_blocks + host_blocks, "host")]
        fits = [place for limit, place in limits if needed is not None and needed <= limit]
        places.append(fits[0] if fits else "recompute")
    return places


def _counts_users(visits: Any, gpu_blocks: int, host_blocks: int) -> list[str]:
    return list(_places([(user, 1) for user, _ in visits], gpu_blocks, host_blocks))


def _all_traffic(visits: Any, gpu_blocks: int, host_blocks: int) -> list[str]:
    places = []
    for i, (user, _) in enumerate(visits):
        before = [j for j in range(i) if visits[j][0] == user]
        needed = sum(size for _, size in visits[before[-1] : i]) if before else None
        limits = [(gpu_blocks, "gpu"), (gpu_blocks + host_blocks, "host")]
        fits = [place for limit, place in limits if needed is not None and needed <= limit]
        places.append(fits[0] if fits else "recompute")
    return places


def _from_the_newest(visits: list[tuple[str, int]], gpu_blocks: int, host_blocks: int) -> list[str]:
    newest, places = [], []
    for user, blocks in visits:
        needed, place = 0, "recompute"
        for other, held in newest:
            needed += held
            if other == user:
                if needed <= gpu_blocks + host_blocks:
                    place = "gpu" if needed <= gpu_blocks else "host"
                break
        places.append(place)
        newest = [(user, blocks), *(pair for pair in newest if pair[0] != user)]
    return places


def _looks_back(visits: list[tuple[str, int]], gpu_blocks: int, host_blocks: int) -> tuple[str, ...]:
    def place(at: int) -> str:
        user, seen = visits[at][0], {}
        for other, blocks in reversed(visits[:at]):
            seen.setdefault(other, blocks)
            if other == user:
                total = sum(seen.values())
                both = "host" if total <= gpu_blocks + host_blocks else "recompute"
                return "gpu" if total <= gpu_blocks else both
        return "recompute"

    return tuple(map(place, range(len(visits))))


prefix_places = Grading(
    lab.prefix_places,
    right={"from the newest": _from_the_newest, "looks back": _looks_back},
    wrong={
        "no host memory": Wrong(
            lambda visits, gpu_blocks, host_blocks: _places(visits, gpu_blocks, 0),
            says="host memory",
        ),
        "host instead of recompute": Wrong(
            lambda visits, gpu_blocks, host_blocks: [
                "host" if place == "recompute" else place
                for place in _places(visits, gpu_blocks, host_blocks)
            ],
            says="first visit",
        ),
        "first come, first out": Wrong(_since_first_visit, says="two latest"),
        "counts users": Wrong(_counts_users),
        "counts a prefix each time": Wrong(_all_traffic, says="after its last visit"),
        "leaves out its own blocks": Wrong(
            lambda visits, gpu_blocks, host_blocks: _places(visits, gpu_blocks + 1, host_blocks),
        ),
    },
)


@prefix_places.part("any visits", points=4)
def _(attempt: Callable[..., list[str]], rng: random.Random) -> None:
    for _ in range(60):
        lab.same_places(attempt, rng)
