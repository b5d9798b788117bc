"""Roofline for the labs: a model's costs, this machine's rates, and tables that judge numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
import pandas as pd

from utils.benchmark.condition import repeats
from utils.benchmark.records import Cited, Record
from utils.model_sizes import BITS_PER_WEIGHT, bytes_per_token, dtype_bytes, read_config
from utils.roofline.ceilings import (
    Ceiling,
    CeilingVerdict,
    Claim,
    decode_ceiling,
    judge,
    prefill_ceiling,
)
from utils.roofline.machine import Machine
from utils.roofline.published import DGX_SPARK, judge_rows
from utils.roofline.weights import (
    WeightTraffic,
    read_weights,
    weights_of_config,
)

__all__ = [
    "DGX_SPARK",
    "Ceiling",
    "CeilingVerdict",
    "Claim",
    "Machine",
    "Model",
    "WeightTraffic",
    "compare",
    "decode_ceiling",
    "describe_model",
    "judge",
    "judge_published",
    "judgements_table",
    "prefill_ceiling",
    "read_weights",
    "record_claim",
    "weights_of_config",
]

# bandwidth (bytes/s), weight bytes, KV bytes per token, context (tokens), batch -> tok/s
CeilingFunction = Callable[[float, float, float, int, int], float]


@dataclass(frozen=True, slots=True)
class Model:
    """Cost of a model per token.

    Attributes:
        name: Path or hub id.
        weights: Bytes and parameters.
        kv_bytes_per_token: Bytes of KV cache per token, over all layers.
        config: The Hugging Face config.
    """

    name: str
    weights: WeightTraffic
    kv_bytes_per_token: int
    config: Mapping[str, Any]

    @property
    def weight_bytes(self) -> float:
        """Bytes of weights that a decode step reads."""
        return self.weights.decode_bytes

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.weight_bytes / 1e6:,.1f} MB of weights read per decode step "
            f"({self.weights.note}), {self.kv_bytes_per_token:,} bytes of KV cache per token"
        )


class PrefillLike(Protocol):
    """A measured prefill: `utils.benchmark.sweep.Prefill`."""

    @property
    def prompt_tokens(self) -> int: ...
    @property
    def tokens_per_s(self) -> float: ...


def describe_model(model: str | Path, dtype: str = "bfloat16") -> Model:
    """Read the costs of a model: from its files if they are here, else from its config.

    Args:
        model: A folder with `config.json` and weights, or a hub id.
        dtype: Data type in which an engine holds its weights and KV cache, whatever that of the files.

    Raises:
        ConfigError: If there is no config.
        WeightsError: If the weights are damaged or a mixture of experts.
    """
    config = read_config(model)
    if Path(model).exists():
        weights = read_weights(model, dtype)
    else:
        weights = weights_of_config(config, 8 * dtype_bytes(1, dtype))
    return Model(str(model), weights, bytes_per_token(config, dtype), config)


def record_claim(
    record: Record,
    machine: Machine,
    model: Model,
    *,
    tokens_per_step: float = 1.0,
    ceiling: CeilingFunction | None = None,
) -> Claim:
    """Compare a record's output throughput with its decode ceiling.

    Weights are those of the record's file if it is on this machine, in the dtype that the engine held them
    in, else the model's at the size of the record's quantisation. If that size isn't known, there is no
    ceiling. The context is the mean prompt and half of the mean answer.

    Args:
        record: A measured run.
        machine: Machine that ran it.
        model: The model, for the shape of its KV cache.
        tokens_per_step: Mean acceptance length of speculative decoding; 1 without it.
        ceiling: A learner's own bound by bandwidth, in place of `decode_ceiling`.
    """
    weights, bits = _weights_of(record, model)
    kv_dtype = _kv_dtype(record)
    batch = int(record.load.get("concurrency") or record.summary["max_concurrent_requests"])
    context = _mean_context(record)
    name = f"{record.label}, {batch} in flight"
    throughput = record.summary["output_throughput"]
    if weights is None:
        unknown = Ceiling(
            math.nan, "bandwidth", f"the size of {record.quantisation} weights isn't known"
        )
        return Claim(name, "decode", throughput, unknown, record.origin, record.id)
    bound = decode_ceiling(
        weights,
        machine,
        batch=batch,
        context=context,
        config=model.config,
        kv_dtype=kv_dtype,
        weight_bits=bits,
        tokens_per_step=tokens_per_step,
    )
    if ceiling is not None and bound.bound_by == "bandwidth":
        kv_bytes = bytes_per_token(model.config, kv_dtype)
        moved = weights.decode_bytes + batch * context * kv_bytes
        bandwidth = machine.bandwidth_for(moved).bytes_per_s
        own = ceiling(bandwidth, weights.decode_bytes, kv_bytes, context, batch)
        bound = Ceiling(own * tokens_per_step, "bandwidth", bound.formula)
    return Claim(name, "decode", throughput, bound, record.origin, record.id)


def _weights_of(record: Record, model: Model) -> tuple[WeightTraffic | None, float]:
    """Return the weights that a record's engine read, or None if unknown, and the bits of a weight."""
    if Path(record.model).exists():
        return read_weights(record.model, record.dtype), 16
    bits = BITS_PER_WEIGHT.get(record.quantisation)
    return (None, 16) if bits is None else (weights_of_config(model.config, bits), bits)


def compare(
    records: Sequence[Record],
    prefills: Mapping[str, PrefillLike],
    machine: Machine,
    model: Model,
    ceiling: CeilingFunction | None = None,
    cited: Iterable[Cited] = (),
) -> pd.DataFrame:
    """Return every measured decode and prefill rate with its ceiling, the mean of repeats as one rate.

    Args:
        records: Closed-loop runs.
        prefills: Label to measured prefill.
        machine: Machine that ran them.
        model: Model that they served.
        ceiling: A learner's own decode ceiling, in place of `decode_ceiling`.
        cited: Results of other tools, judged as if they were about this machine and this model.
    """
    means = [_mean(group) for group in repeats(records).values()]
    claims = [record_claim(record, machine, model, ceiling=ceiling) for record in means]
    for label, prefill in prefills.items():
        bound = prefill_ceiling(
            model.weights, machine, prompt_tokens=prefill.prompt_tokens, config=model.config
        )
        name = f"{label}, prompts of {prefill.prompt_tokens} tokens"
        claims.append(Claim(name, "prefill", prefill.tokens_per_s, bound, "measured", "this run"))
    for row in cited:
        name = f"{row.engine}, {row.batch} in flight"
        bounds: dict[Literal["decode", "prefill"], tuple[float | None, Ceiling]] = {
            "decode": (
                row.decode_tok_s,
                decode_ceiling(model.weights, machine, batch=row.batch, config=model.config),
            ),
            "prefill": (row.prefill_tok_s, prefill_ceiling(model.weights, machine)),
        }
        for phase, (rate, bound) in bounds.items():
            if rate is not None:
                claims.append(Claim(name, phase, rate, bound, f"cited: {row.source}", row.source))
    return judgements_table(judge(claims))


def judgements_table(judgements: Iterable[CeilingVerdict]) -> pd.DataFrame:
    """Judgements as a table: number, ceiling (predicted), share, verdict, formula, origin."""
    return pd.DataFrame(
        [
            {
                "what": judgement.claim.name,
                "phase": judgement.claim.phase,
                "tok/s": judgement.claim.tokens_per_s,
                "ceiling tok/s": judgement.claim.ceiling.tokens_per_s,
                "share of the ceiling": judgement.share,
                "verdict": judgement.verdict,
                "origin": judgement.claim.origin,
                "ceiling, predicted from": judgement.claim.ceiling.formula,
            }
            for judgement in judgements
        ]
    ).set_index(["what", "phase"])


def judge_published(rows: Iterable[Cited] | None = None) -> pd.DataFrame:
    """Return the published DGX Spark rows for Llama-3.1-8B, judged by the roofline.

    Args:
        rows: Other rows for the same model and machine.
    """
    verdicts = judge_rows() if rows is None else judge_rows(rows)
    return pd.DataFrame(
        [
            {
                "row": f"{verdict.row.engine} {verdict.row.quantisation}".strip(),
                "in flight": verdict.row.batch,
                "prefill tok/s": verdict.row.prefill_tok_s,
                "decode tok/s": verdict.row.decode_tok_s,
                "roofline says": verdict.text,
                "note": verdict.row.note,
                "origin": f"cited: {verdict.row.source}",
            }
            for verdict in verdicts
        ]
    ).set_index("row")


def _mean(group: Sequence[Record]) -> Record:
    """Return the first of some repeats with the mean throughput of all of them."""
    rates = [v for record in group if (v := record.summary["output_throughput"]) is not None]
    mean = float(np.mean(rates)) if rates else math.nan
    return replace(group[0], summary={**group[0].summary, "output_throughput": mean})


def _kv_dtype(record: Record) -> str:
    """Return an engine's default data type of keys and values: for llama.cpp, also inside Ollama, float16."""
    return "float16" if record.engine in ("llama_cpp", "ollama") else record.dtype


def _mean_context(record: Record) -> int:
    lengths = [
        trace.prompt_tokens + trace.completion_tokens / 2
        for trace in record.traces
        if trace.ok and trace.prompt_tokens is not None and trace.completion_tokens is not None
    ]
    return int(np.mean(lengths)) if lengths else 0
