"""Speed of fewer bytes: llama.cpp with the untrained model in BF16, Q8_0 and Q4_0.

The untrained model's answers are noise, so only its speed is measured. It is large enough that a decode step
waits for memory.
"""

from __future__ import annotations

import os
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

import pandas as pd

from utils import loopback
from utils.engines import RunningEngine
from utils.engines.fleet import Fleet
from utils.roofline.machine import Machine
from utils.roofline.rates import measure_machine
from utils.roofline.weights import read_weights
from utils.tinymodel.untrained import untrained_gguf

KINDS = ("BF16", "Q8_0", "Q4_0")
DECODED = 48  # tokens of an answer
PROMPT = 384  # tokens of a prompt with one token of answer
CONTEXT = 1024
TIMEOUT_S = 120.0


@dataclass
class KindSpeed:
    """Rates of one type of weights.

    Attributes:
        weight_bytes: Bytes that a decode step reads.
        decode: Decode rates at batch 1, in tokens per second, one per repeat.
        prefill: Prefill rates, in tokens per second, one per repeat.
    """

    weight_bytes: float
    decode: list[float] = field(default_factory=list)
    prefill: list[float] = field(default_factory=list)


def speed_threads() -> int:
    """Return the number of threads: two, or one on a single core."""
    return min(2, os.cpu_count() or 1)


def variants() -> dict[str, dict[str, Any]]:
    """Return the options of `launch("llama_cpp", ...)` by type of the weights."""
    threads = str(speed_threads())
    return {
        kind: {
            "engine": "llama_cpp",
            "model": str(untrained_gguf(kind)),
            "context_length": CONTEXT,
            "max_sequences": 1,
            "extra_arguments": ("-t", threads, "-tb", threads),
        }
        for kind in KINDS
    }


def measure_bandwidth(seconds: float) -> Machine:
    """Measure how fast this machine reads as many bytes as the model has, with as many threads."""
    size = int(read_weights(untrained_gguf("BF16")).decode_bytes)
    return measure_machine(
        working_set=size, threads=speed_threads(), seconds=seconds, dtype="float32"
    )


def measure_kinds(fleet: Fleet, repeats: int) -> dict[str, KindSpeed]:
    """Measure decode and prefill of every type, the types in turn."""
    found: dict[str, KindSpeed] = {}

    def ask(name: str, engine: RunningEngine, turn: int) -> None:
        draw = random.Random(turn)
        decode = _timings(engine, _tokens(draw, 4), DECODED)["predicted_per_second"]
        prefill = _timings(engine, _tokens(draw, PROMPT), 1)["prompt_per_second"]
        traffic = read_weights(Path(engine.model_path)).decode_bytes
        speed = found.setdefault(name, KindSpeed(traffic))
        if turn:  # a server's first requests take longer
            speed.decode.append(decode)
            speed.prefill.append(prefill)

    fleet.each(ask, turns=repeats + 1)
    return {name: speed for name, speed in found.items() if speed.decode}


def _tokens(draw: random.Random, count: int) -> list[int]:
    return [draw.randrange(300, 2000) for _ in range(count)]


def _timings(engine: RunningEngine, prompt: Sequence[int], tokens: int) -> dict[str, float]:
    body = {
        "prompt": list(prompt),
        "n_predict": tokens,
        "ignore_eos": True,
        "temperature": 0,
        "cache_prompt": False,
    }
    answer = loopback.post(f"{engine.base_url}/completion", json=body, timeout=TIMEOUT_S)
    answer.raise_for_status()
    timings: dict[str, float] = answer.json()["timings"]
    return timings


def kinds_table(found: Mapping[str, KindSpeed], machine: Machine) -> pd.DataFrame:
    """Return a row per type: bytes of a step, the bound that follows from them, and the rates."""
    base = found.get(KINDS[0])
    rows = {}
    for name, one in found.items():
        bound = machine.bandwidth / one.weight_bytes
        rate = median(one.decode)
        rows[name] = {
            "read per token (MB)": round(one.weight_bytes / 1e6),
            "decode bound (tok/s)": round(bound, 1),
            "decode (tok/s)": round(rate, 1),
            "least ... most": f"{min(one.decode):.0f} ... {max(one.decode):.0f}",
            "share of the bound": f"{rate / bound:.0%}",
            "decode, times BF16": round(rate / median(base.decode), 2) if base else None,
            "prefill (tok/s)": round(median(one.prefill)),
            "prefill, times BF16": round(median(one.prefill) / median(base.prefill), 2)
            if base
            else None,
        }
    return pd.DataFrame.from_dict(rows, orient="index")
