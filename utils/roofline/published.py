"""The DGX Spark numbers of the old course and of others, with sources, and their ceilings.

None of them was measured here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from utils.benchmark.records import Cited
from utils.model_sizes import BITS_PER_WEIGHT
from utils.roofline.ceilings import CeilingVerdict, Claim, decode_ceiling, judge, prefill_ceiling
from utils.roofline.machine import Bandwidth, Machine
from utils.roofline.weights import weights_of_config

_SPEC = "NVIDIA, DGX Spark product page (273 GB/s; 1 PFLOP FP4 with sparsity)"
_SPEC_URL = "https://www.nvidia.com/en-us/products/workstations/dgx-spark/"

# 1 PFLOP is FP4 with 2:4 sparsity; dense is half of it, and each doubling of the operands' width
# halves it again: at most 125 TFLOP/s in bf16. A generous bound, so that no flag is unjust.
DGX_SPARK = Machine(
    name="NVIDIA DGX Spark (GB10)",
    bandwidths=(Bandwidth(0, 273e9, "LPDDR5X"),),
    flops=125e12,
    flops_dtype="bfloat16",
    origin="cited",
    source=f"{_SPEC}, {_SPEC_URL}; bf16 rate derived: 1 PFLOP ÷ 2 (dense) ÷ 4 (16 for 4 bits)",
)

# meta-llama/Llama-3.1-8B, config.json.
LLAMA_3_1_8B: Mapping[str, Any] = {
    "model_type": "llama",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "vocab_size": 128256,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}

_OLD = "the course's old benchmark table: no source, model, quantisation or date given"
_LMSYS = "LMSYS, NVIDIA DGX Spark in-depth review (2025-10)"
_LMSYS_URL = "https://lmsys.org/blog/2025-10-13-nvidia-dgx-spark/"
_NVIDIA = "NVIDIA, How DGX Spark's performance enables intensive AI tasks (2025-10)"
_SPARK = "DGX Spark"
_MODEL = "Llama-3.1-8B"


def _old(engine: str, prefill: float, decode: float, note: str) -> Cited:
    return Cited(
        engine, _MODEL, "", _SPARK, _OLD, prefill_tok_s=prefill, decode_tok_s=decode, note=note
    )


OLD_TABLE: tuple[Cited, ...] = (
    _old(
        "llama.cpp",
        1500,
        59,
        "At the Q4 roofline, implausible for 8B; equals the published gpt-oss-120B row "
        "(1,937 / 59.0, llama.cpp benches/dgx-spark.md), another model.",
    ),
    _old("Ollama", 3000, 45, "4-bit only, and optimistic: about 38 is reported for Q4_K_M."),
    _old("vLLM", 5000, 40, "Impossible at bf16 or FP8: needs 4-bit weights."),
    _old(
        "SGLang",
        6000,
        42,
        "Contradicted: LMSYS published FP8 7,991 / 20.5 at batch 1.",
    ),
    _old(
        "SGLang + Medusa",
        6000,
        105,
        "The middle of '90-120'. SGLang has no Medusa; LMSYS saw up to 2 x with EAGLE-3. With "
        "speculation several tokens share one reading of the weights, so divide by the "
        "acceptance length before comparing with the ceiling.",
    ),
    _old("TensorRT-LLM", 10000, 38, "True for NVFP4 only (NVIDIA: 10,257 / 38.65)."),
)

PUBLISHED: tuple[Cited, ...] = (
    Cited("SGLang", _MODEL, "FP8", _SPARK, _LMSYS, _LMSYS_URL, 1, 7991, 20.5),
    Cited("SGLang", _MODEL, "FP8", _SPARK, _LMSYS, _LMSYS_URL, 32, 7949, 368),
    Cited("TensorRT-LLM", _MODEL, "NVFP4", _SPARK, _NVIDIA, "", 1, 10257, 38.65),
)


@dataclass(frozen=True, slots=True)
class RowVerdict:
    """One published row against the ceilings of the quantisations it could be about.

    Attributes:
        row: Published row.
        by_quantisation: Judgements of prefill and decode for each quantisation.
    """

    row: Cited
    by_quantisation: Mapping[str, tuple[CeilingVerdict, CeilingVerdict]]

    @property
    def possible_at(self) -> tuple[str, ...]:
        """Quantisations at which neither number is above its ceiling."""
        return tuple(
            name
            for name, judgements in self.by_quantisation.items()
            if not any(judgement.flagged for judgement in judgements)
        )

    @property
    def text(self) -> str:
        """The verdict in words."""
        tried = self.by_quantisation
        if not self.possible_at:
            return f"impossible at {', '.join(tried)}"
        near = [
            name
            for name in self.possible_at
            if any(judgement.verdict == "at the ceiling" for judgement in tried[name])
        ]
        close = f"; within 10 % of the ceiling at {', '.join(near)}: implausible" if near else ""
        if len(self.possible_at) == len(tried):
            return f"possible at {', '.join(tried)}{close}"
        refused = [name for name in tried if name not in self.possible_at]
        return f"possible only at {', '.join(self.possible_at)}, not at {', '.join(refused)}{close}"


def judge_rows(
    rows: Iterable[Cited] = OLD_TABLE + PUBLISHED,
    *,
    machine: Machine = DGX_SPARK,
    config: Mapping[str, Any] = LLAMA_3_1_8B,
) -> list[RowVerdict]:
    """Judge published rows of one model at the quantisation they name, or at each common one.

    Args:
        rows: Published rows.
        machine: Machine that is said to have run them.
        config: The model's Hugging Face config.
    """
    verdicts = []
    for row in rows:
        known = row.quantisation in BITS_PER_WEIGHT
        names = [row.quantisation] if known else ["BF16", "FP8", "NVFP4", "Q4_K_M"]
        verdicts.append(
            RowVerdict(row, {name: _judge_row(row, name, machine, config) for name in names})
        )
    return verdicts


def _judge_row(
    row: Cited, quantisation: str, machine: Machine, config: Mapping[str, Any]
) -> tuple[CeilingVerdict, CeilingVerdict]:
    bits = BITS_PER_WEIGHT[quantisation]
    weights = weights_of_config(config, bits)
    source = row.source
    prefill, decode = judge(
        [
            Claim(
                row.engine,
                "prefill",
                row.prefill_tok_s,
                prefill_ceiling(weights, machine, weight_bits=bits),
                row.origin,
                source,
            ),
            Claim(
                row.engine,
                "decode",
                row.decode_tok_s,
                decode_ceiling(weights, machine, batch=row.batch, weight_bits=bits),
                row.origin,
                source,
            ),
        ]
    )
    return prefill, decode
