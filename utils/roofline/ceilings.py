"""Upper bounds on decode and prefill from memory bandwidth and FLOP/s, with their formulas.

A bound, not a forecast: real engines stay below it. A number above it was measured wrongly, or
is not about the configuration that it claims.

Source: Williams, Waterman, Patterson, "Roofline" (CACM 52(4), 2009), applied to decoding.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from utils.model_sizes import bytes_per_token, cache_shape
from utils.roofline.machine import Machine
from utils.roofline.weights import WeightTraffic

Verdict = Literal["above the ceiling", "at the ceiling", "possible", "not given"]
NEAR = 0.9


@dataclass(frozen=True, slots=True)
class Ceiling:
    """An upper bound, tok/s, with the formula and its numbers as text; NaN if it isn't known."""

    tokens_per_s: float
    bound_by: Literal["bandwidth", "compute"]
    formula: str
    origin: str = "predicted"


def decode_ceiling(
    weights: WeightTraffic,
    machine: Machine,
    *,
    batch: int = 1,
    context: int = 0,
    config: Mapping[str, Any] | None = None,
    kv_dtype: str = "auto",
    weight_bits: float = 16,
    tokens_per_step: float = 1.0,
) -> Ceiling:
    """Most tokens per second that decoding can generate, over all requests of a batch.

    One step reads the weights once and each request's KV cache, and gives one token per request
    (with speculation, several).

    Args:
        weights: Weights that a step reads.
        machine: Machine that runs it.
        batch: Requests that decode together.
        context: Mean tokens in each request's KV cache; needs `config` if not 0.
        config: The model's Hugging Face config, for the KV cache.
        kv_dtype: Dtype of the KV cache; "auto" is the checkpoint's.
        weight_bits: Width of the weights, for the compute bound of a cited accelerator.
        tokens_per_step: Mean acceptance length of speculative decoding; 1 without it. The work
            of drafting and of rejected tokens is not counted: the bound stays an upper one.

    Raises:
        ValueError: If a context is given without a config, or the batch is not positive.
    """
    if batch < 1 or context < 0 or tokens_per_step < 1:
        raise ValueError(
            "need batch >= 1, context >= 0 and tokens_per_step >= 1, "
            f"not {batch}, {context} and {tokens_per_step}"
        )
    if context and config is None:
        raise ValueError("a context needs config= for the size of its KV cache")
    cache = batch * context * bytes_per_token(config, kv_dtype) if context and config else 0
    moved = weights.decode_bytes + cache
    bandwidth = machine.bandwidth_for(moved)
    by_bandwidth = batch * tokens_per_step * bandwidth.bytes_per_s / moved
    flops = machine.flops_at(weight_bits)
    by_compute = flops / (2 * weights.decode_parameters)
    if by_compute < by_bandwidth:
        return Ceiling(
            by_compute,
            "compute",
            f"{_si(flops)}FLOP/s ÷ (2 × {_si(weights.decode_parameters)} weights) "
            f"= {_rate(by_compute)}",
        )
    kv_text = f" + {_si(cache)}B of KV cache" if cache else ""
    times = "".join(f"{n:g} × " for n in (batch, tokens_per_step) if n > 1)
    return Ceiling(
        by_bandwidth,
        "bandwidth",
        f"{times}{_si(bandwidth.bytes_per_s)}B/s ({bandwidth.level}) ÷ "
        f"({_si(weights.decode_bytes)}B of weights{kv_text}) = {_rate(by_bandwidth)}",
    )


def prefill_ceiling(
    weights: WeightTraffic,
    machine: Machine,
    *,
    prompt_tokens: int = 0,
    config: Mapping[str, Any] | None = None,
    weight_bits: float = 16,
) -> Ceiling:
    """Most prompt tokens per second.

    Two operations per weight and token, and for causal attention over a prompt of T tokens
    2 × layers × heads × head_dim × T per token (scores and values, half of the square).

    Args:
        weights: Weights to multiply.
        machine: Machine that runs it.
        prompt_tokens: Length of the prompt, for the attention; needs `config` if not 0.
        config: The model's Hugging Face config.
        weight_bits: Width of the operands, for a cited accelerator.

    Raises:
        ValueError: If a prompt length is given without a config.
    """
    if prompt_tokens and config is None:
        raise ValueError("a prompt length needs config= for the attention")
    attention = 0
    if prompt_tokens and config is not None:
        shape = cache_shape(config)
        attention = 2 * shape.layers * shape.query_heads * shape.head_dim * prompt_tokens
    flops = machine.flops_at(weight_bits)
    bound = flops / (2 * weights.prefill_parameters + attention)
    text = f" + {_si(attention)}FLOP of attention" if attention else ""
    return Ceiling(
        bound,
        "compute",
        f"{_si(flops)}FLOP/s ÷ (2 × {_si(weights.prefill_parameters)} weights{text}) "
        f"= {_rate(bound)}",
    )


@dataclass(frozen=True, slots=True)
class Claim:
    """A number to be judged.

    Attributes:
        name: Whose number.
        phase: "prefill" or "decode".
        tokens_per_s: The number; None if not given.
        ceiling: Its upper bound.
        origin: "measured" or "cited".
        source: Record id, paper or page.
    """

    name: str
    phase: Literal["prefill", "decode"]
    tokens_per_s: float | None
    ceiling: Ceiling
    origin: str
    source: str


@dataclass(frozen=True, slots=True)
class CeilingVerdict:
    """Claim with its ceiling.

    Attributes:
        claim: Claim under test.
        verdict: "above the ceiling", "at the ceiling" (over 90 % of it, which no engine is known
            to reach), "possible", or "not given", also if there is no ceiling.
        share: The number as a part of the ceiling; NaN if not given.
    """

    claim: Claim
    verdict: Verdict
    share: float

    @property
    def flagged(self) -> bool:
        """True if the number cannot be what it claims to be."""
        return self.verdict == "above the ceiling"


def judge(claims: Iterable[Claim]) -> list[CeilingVerdict]:
    """Compare every number, ours or cited, with its ceiling."""
    judgements = []
    for claim in claims:
        value = claim.tokens_per_s
        if value is None or math.isnan(value) or math.isnan(claim.ceiling.tokens_per_s):
            judgements.append(CeilingVerdict(claim, "not given", math.nan))
            continue
        share = value / claim.ceiling.tokens_per_s
        verdict: Verdict = "possible"
        if share > 1:
            verdict = "above the ceiling"
        elif share > NEAR:
            verdict = "at the ceiling"
        judgements.append(CeilingVerdict(claim, verdict, share))
    return judgements


def _rate(value: float) -> str:
    return f"{value:,.0f} tok/s" if value >= 100 else f"{value:.3g} tok/s"


def _si(value: float) -> str:
    """1.5e10 -> "15 G"; the unit follows without a space."""
    for factor, prefix in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= factor:
            return f"{value / factor:.3g} {prefix}"
    return f"{value:.3g} "
