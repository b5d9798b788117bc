"""The measured runs of lab 3.3.6 on quantisation: llama.cpp with several types of weights and of KV cache."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from utils.benchmark import fresh_seed
from utils.benchmark.engine_run import make_requests, measure
from utils.engines import RunningEngine
from utils.engines.fleet import Fleet
from utils.fleet_plan import TYPES_CONTEXT, TYPES_SLOTS
from utils.profiles import MODELS, Profile, cpu_flags, read_cpuinfo
from utils.quantisation.quality import Judged, agreement, divergence, judge_texts
from utils.telemetry.cache import llama_cpp_cache_bytes
from utils.tinymodel import corpus, tasks, tokenizer
from utils.tinymodel.export import write_gguf

REFERENCE = "BF16 weights, f16 KV"
KV_TYPES = ("f16", "q8_0", "q4_0")
# Q4_K packs 256 values of a row together (llama.cpp ggml/src/ggml-common.h, QK_K).
K_QUANT_GROUP = 256


@dataclass(frozen=True)
class Variant:
    """One choice of types, measured.

    Attributes:
        weights: Type of the weights.
        kv: Type of keys and values.
        weight_bytes: Size of the model file; 0 where it is not on this machine.
        kv_bytes: Size of the KV cache, as the engine's log says.
        speeds: Output tokens per second, one per repeat.
        judged: Its probabilities for the texts.
    """

    weights: str
    kv: str
    weight_bytes: int
    kv_bytes: float
    speeds: tuple[float, ...]
    judged: Judged

    @property
    def speed(self) -> float:
        """Output tokens per second, median over repeats."""
        return median(self.speeds)

    @property
    def kv_bytes_per_token(self) -> float:
        """Bytes of KV cache for one token."""
        return self.kv_bytes / (TYPES_SLOTS * TYPES_CONTEXT)


def variants(profile: Profile, folder: Path) -> dict[str, dict[str, Any]]:
    """Options of `launch("llama_cpp", ...)` by name; files that do not ship are written to `folder`."""
    common = {
        "engine": "llama_cpp",
        "context_length": TYPES_CONTEXT,
        "max_sequences": TYPES_SLOTS,
        # -lv 4: the log tells the size of the cache. One thread: variants differ in arithmetic, not in
        # waiting.
        "extra_arguments": ("-lv", "4", "-t", "1", "-tb", "1"),
    }
    found: dict[str, dict[str, Any]] = {
        f"BF16 weights, {kv} KV": {**common, "kv_cache_dtype": kv} for kv in KV_TYPES
    }
    quantised = profile.models["llama_cpp_quantised"]
    found["Q8_0 weights, f16 KV"] = {**common, "kv_cache_dtype": "f16", "model": quantised}
    if profile.models["llama_cpp"].startswith(str(MODELS)):
        smaller = write_gguf(MODELS / "tiny", "Q4_0", folder)
        found["Q4_0 weights, f16 KV"] = {**common, "kv_cache_dtype": "f16", "model": str(smaller)}
    return found


def texts_for(count: int, seed: int = 6) -> list[tuple[str, str]]:
    """Held-out questions and tasks in two halves, with their answers, as the chat template writes them."""
    asked = [(q, t.answers[0]) for t in corpus.topics() for q in t.heldout]
    drawn = random.Random(seed).sample(asked, count // 2)
    chats = [([{"role": "user", "content": question}], answer) for question, answer in drawn]
    chats += [(t.messages, t.answer) for t in tasks.heldout(count - count // 2, seed=seed)]
    return [(tokenizer.render(messages, generate=True), answer) for messages, answer in chats]


def measure_variants(fleet: Fleet, profile: Profile, label: str) -> dict[str, Variant]:
    """Speed, memory and quality of every variant; speeds in turn, one record each."""
    sizes = profile.load.inside
    seeds = [
        fresh_seed() for _ in range(profile.load.repeats)
    ]  # the same prompts for every variant

    def speed(name: str, engine: RunningEngine, turn: int) -> float:
        requests = make_requests(profile, TYPES_SLOTS, seed=seeds[turn])
        warmup = TYPES_SLOTS if turn == 0 else 0
        return measure(
            engine, profile, requests, TYPES_SLOTS, f"{label}: {name}", warmup
        ).throughput

    def quality(name: str, engine: RunningEngine, turn: int) -> tuple[float, Judged, str]:
        judged = judge_texts(engine, texts_for(sizes.quality_texts), sizes.quality_tokens)
        return llama_cpp_cache_bytes(engine), judged, engine.model_path

    speeds = fleet.each(speed, turns=profile.load.repeats)
    rest = fleet.each(quality)
    found = {}
    for name, values in speeds.items():
        kv_bytes, judged, path = rest[name][0]
        weights, kv = (part.split()[0] for part in name.split(", "))
        size = Path(path).stat().st_size if Path(path).is_file() else 0
        found[name] = Variant(weights, kv, size, kv_bytes, tuple(values), judged)
    return found


def variants_table(found: Mapping[str, Variant]) -> pd.DataFrame:
    """Return one row per variant: memory saved, speed and quality compared with the reference."""
    reference = found[REFERENCE]
    rows = {}
    for name, one in found.items():
        rows[name] = {
            "weights (MB)": round(one.weight_bytes / 1e6, 1),
            "KV bytes per token": round(one.kv_bytes_per_token),
            "KV, share of f16": f"{one.kv_bytes / reference.kv_bytes:.1%}",
            "requests in the f16 cache's memory": int(
                TYPES_SLOTS * reference.kv_bytes / one.kv_bytes
            ),
            "output tok/s": round(one.speed, 1),
            "least ... most": f"{min(one.speeds):.0f} ... {max(one.speeds):.0f}",
            "times the reference's speed": round(one.speed / reference.speed, 2),
            "perplexity": round(one.judged.perplexity, 4),
            "perplexity change": f"{one.judged.perplexity / reference.judged.perplexity - 1:+.2%}",
            "likeliest token as reference": f"{agreement(reference.judged, one.judged):.1%}",
            "divergence (nats)": round(divergence(reference.judged, one.judged), 5),
        }
    return pd.DataFrame.from_dict(rows, orient="index")


def why_no_k_quants(rows: Sequence[int]) -> str:
    """Why a model with rows of these lengths has no Q4_K_M file, or "" if it can have one."""
    odd = sorted({row for row in rows if row % K_QUANT_GROUP})
    if not odd:
        return ""
    return (
        f"not run here: K-quants pack {K_QUANT_GROUP} values of a row together, and this "
        "model's rows have "
        f"{', '.join(map(str, odd))}. Q4_0, in groups of 32, takes its place."
    )


def why_no_fp8_cache(cpuinfo: str) -> str:
    """Why vLLM keeps no FP8 KV cache on this CPU, or "" if it can.

    Source: vLLM 0.32.0 v1/attention/backends/cpu_attn.py, which takes `fp8`, `fp8_e4m3` and `fp8_e5m2`, on
    x86-64 with AVX-512 or AMX only; int8_per_token_head is no type of its CPU backend.
    """
    if cpu_flags(cpuinfo) & {"avx512f", "amx_tile"}:
        return ""
    return "not run here: on a CPU it needs x86-64 with AVX-512 or AMX."


def fp8_reason(profile: Profile) -> str:
    """`why_no_fp8_cache` for this machine; "" on a GPU."""
    return why_no_fp8_cache(read_cpuinfo()) if profile.device == "cpu" else ""
