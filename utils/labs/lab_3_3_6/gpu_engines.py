"""TensorRT-LLM next to vLLM and SGLang on a GPU, in BF16 and in the formats that the GPU has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from utils.benchmark import sweep
from utils.engines import EngineError, RunningEngine, launch
from utils.profiles import Profile

ENGINES = ("tensorrt_llm", "vllm", "sglang")
# Keys of a profile's models. It has only those in formats that the GPU has.
FORMATS = {"BF16": "tensorrt_llm", "FP8": "tensorrt_llm_fp8", "NVFP4": "tensorrt_llm_nvfp4"}


@dataclass(frozen=True)
class EngineRates:
    """Rates of one engine with one checkpoint, measured.

    Attributes:
        prefill: Prompt tokens per second of one request.
        ttft_s: Median time to the first token of one request, in seconds.
        decode: Output tokens per second of one request.
        loaded: Output tokens per second of all requests at the highest level.
        level: Requests in flight at that level.
    """

    prefill: float
    ttft_s: float
    decode: float
    loaded: float
    level: int


def gpu_checkpoints(profile: Profile) -> dict[str, str]:
    """Return the checkpoints to serve, by the format of their weights; {} without a GPU."""
    if profile.device != "cuda":
        return {}
    found = {name: profile.models.get(key) for name, key in FORMATS.items()}
    return {name: model for name, model in found.items() if model}


def measure_engine(engine: RunningEngine, profile: Profile, label: str) -> EngineRates:
    """Measure prefill, TTFT and decode of a running engine, and write records."""
    length, levels = profile.load.prefill_tokens, (1, max(profile.load.levels))
    prefill = sweep.measure_prefill(engine, profile, length=length)
    alone, full = sweep.sweep(engine, profile, label=label, levels=levels)
    return EngineRates(
        prefill.tokens_per_s,
        alone.summary["median_ttft_ms"] / 1000,
        1000 / alone.summary["median_tpot_ms"],
        full.summary["output_throughput"],
        levels[-1],
    )


def compare_engines(
    profile: Profile,
    checkpoints: Mapping[str, str],
    config: Path | None,
    measure: Callable[[RunningEngine, Profile, str], EngineRates] = measure_engine,
) -> tuple[dict[tuple[str, str], EngineRates], dict[str, str]]:
    """Start every engine with every checkpoint, one after the other, and measure it.

    Args:
        profile: Profile of a machine with a GPU.
        checkpoints: Checkpoints by format.
        config: TensorRT-LLM's settings, or None for its own.
        measure: Measurement of a running engine.

    Returns:
        Rates by format and engine, and the reason for each pair that didn't run.
    """
    rates: dict[tuple[str, str], EngineRates] = {}
    reasons: dict[str, str] = {}
    for weights, model in checkpoints.items():
        for name in ENGINES:
            options: dict[str, Any] = (
                {"config": config} if name == "tensorrt_llm" and config else {}
            )
            title = f"{name}, {weights}"
            try:
                with launch(name, profile, model=model, quiet=True, **options) as engine:
                    rates[weights, name] = measure(engine, profile, f"lab 3.3.6: {title}")
            except (EngineError, RuntimeError) as error:
                reasons[title] = str(error).partition("\n")[0]
    return rates, reasons


def engines_table(rates: Mapping[tuple[str, str], EngineRates]) -> pd.DataFrame:
    """Return a row per format and engine, in the order of measurement."""
    rows = [
        {
            "weights": weights,
            "engine": name,
            "prefill (tok/s)": round(one.prefill),
            "TTFT (ms)": round(1000 * one.ttft_s),
            "decode, 1 request (tok/s)": round(one.decode, 1),
            "output at the highest load (tok/s)": round(one.loaded),
            "requests in flight": one.level,
        }
        for (weights, name), one in rates.items()
    ]
    return pd.DataFrame(rows).set_index(["weights", "engine"])
