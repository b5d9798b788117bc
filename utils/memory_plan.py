"""GPU memory that an engine needs, computed before it starts. Standard library only: `make doctor` prints it.

    need = weights + KV cache + everything else

llama.cpp and Ollama reserve slots x context tokens of KV cache. vLLM, SGLang and TensorRT-LLM get a budget in
GiB, which all requests share. All three parts are *derived*; nothing is measured. Sources of the rest: CUDA's
context (about 0.5 GB), and the buffers of the largest step, which are its intermediate tensors and the logits
(vLLM 0.32 `gpu_worker.determine_available_memory`, llama.cpp's compute buffer).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from utils.gpu import Gpu
from utils.model_sizes import (
    BITS_PER_WEIGHT,
    GIB,
    QWEN3,
    ConfigError,
    bytes_per_token,
    decoder_parameters,
    dtype_bytes,
    read_config,
    table_parameters,
    weight_bytes,
)

GB = 1e9
CUDA_BYTES = 0.5e9
GRAPH_BYTES = 0.5e9  # CUDA graphs, workspaces and fragmentation of engines on PyTorch
SGLANG_SPARE_BYTES = (
    0.2e9  # temporaries of loading that SGLang still counts when it sizes its cache
)
STEP_TOKENS = 8192  # largest step of vLLM, SGLang and TensorRT-LLM on a GPU, tokens
UBATCH_TOKENS = 512  # of llama.cpp
MOST_SLOTS = {"llama_cpp": 32, "ollama": 8}
VLLM_BLOCK = 16
# NVIDIA's checkpoints in these formats keep embedding and output head in the dtype. Those of Qwen3-8B have
# 9.4 and 6.4 GB (AtomicBot-ai/atomic-chat-conf, runtimes/tensorrt-llm.json).
FORMATS_OF_LAYERS = ("FP8", "NVFP4")
# EAGLE-3 heads on the hub: Tengyunw/qwen3_8b_eagle3 has 0.8 GB, and those of smaller models are smaller.
DRAFT_BYTES = 0.8e9
# Options of `launch` that make an engine smaller.
LOWER = {
    "vllm": "kv_cache_gib or context_length",
    "sglang": "kv_cache_gib or context_length",
    "tensorrt_llm": "kv_cache_gib or context_length",
    "llama_cpp": "max_sequences or context_length",
    "ollama": "max_sequences or context_length",
    "transformers": "context_length",
}


@dataclass(frozen=True)
class Need:
    """Memory that one engine needs, in bytes.

    Attributes:
        engine: Engine name, such as `vllm`.
        weights: Weights, and those of a draft model.
        kv_cache: Keys and values.
        rest: CUDA context, graphs and the buffers of a step.
    """

    engine: str
    weights: float
    kv_cache: float
    rest: float

    @property
    def total(self) -> float:
        """Sum of the three parts."""
        return self.weights + self.kv_cache + self.rest

    def __str__(self) -> str:
        return (
            f"{self.total / GB:.1f} GB ({self.weights / GB:.1f} for weights, "
            f"{self.kv_cache / GB:.1f} for the KV cache, {self.rest / GB:.1f} for the rest)"
        )


def config_of(model: str) -> Mapping[str, Any] | None:
    """Return a model's config, or None if it isn't known here.

    A GGUF file has that of its folder. Repositories and tags with Qwen3's name and size are known by name.
    """
    path = Path(model)
    if path.exists():
        folder = path if path.is_dir() else path.parent
        return _read(folder) if (folder / "config.json").is_file() else None
    if found := re.search(r"qwen_?3[-:_](\d+(?:\.\d+)?b)(?![\d.])", model, re.IGNORECASE):
        return QWEN3.get(found[1].upper())
    return _read(model.partition(":")[0]) if model.count("/") == 1 else None


def _read(model: str | Path) -> Mapping[str, Any] | None:
    try:
        return read_config(model)
    except ConfigError:
        return None


def weights_of(model: str, dtype: str) -> float | None:
    """Return the bytes of a model's weights as an engine loads them, or None if they aren't known."""
    path = Path(model)
    if path.is_file():
        return float(path.stat().st_size)
    if path.is_dir():
        try:
            return float(weight_bytes(path))
        except ConfigError:
            return None
    config = config_of(model)
    if config is None or "quantization_config" in config:
        return None
    try:
        kept = table_parameters(config) if _format_of(model) in FORMATS_OF_LAYERS else 0
        rest = decoder_parameters(config) - kept
        return kept * float(dtype_bytes(1, dtype)) + rest * bytes_of_weight(model, dtype)
    except ConfigError:
        return None


def bytes_of_weight(model: str, dtype: str) -> float:
    """Return the bytes of one weight, by the quantisation in a model's name, else by the dtype."""
    bits = BITS_PER_WEIGHT.get(_format_of(model))
    return float(dtype_bytes(1, dtype)) if bits is None else bits / 8


def _format_of(model: str) -> str:
    return re.split(r"[:-]", model)[-1].upper()


def need(
    engine: str,
    model: str,
    *,
    dtype: str,
    context_length: int,
    max_sequences: int,
    kv_cache_gib: float,
    kv_cache_dtype: str | None = None,
    kv_blocks: int | None = None,
    block_size: int | None = None,
    draft: str | None = None,
) -> Need | None:
    """Compute the memory that an engine needs.

    Args:
        engine: Engine name.
        model: Folder, file, hub id or library tag.
        dtype: Data type of weights and activations.
        context_length: Longest prompt plus output, tokens; of each slot where the engine has slots.
        max_sequences: Most requests at once.
        kv_cache_gib: KV-cache budget of engines whose requests share it, in GiB.
        kv_cache_dtype: Data type of the KV cache, or None for the engine's default.
        kv_blocks: Exact number of blocks in place of the budget.
        block_size: Tokens of one block, or None for the engine's default.
        draft: Draft model or heads that the engine loads too.

    Returns:
        The need, or None if the model's size isn't known.
    """
    config, weights = config_of(model), weights_of(model, dtype)
    if config is None or weights is None:
        return None
    try:
        per_token = bytes_per_token(config, kv_type(engine, dtype, kv_cache_dtype))
    except ConfigError:
        return None
    if draft:
        weights += (weights_of(draft, dtype) if Path(draft).exists() else None) or DRAFT_BYTES
    slots = min(max_sequences, MOST_SLOTS.get(engine, max_sequences))
    if engine in MOST_SLOTS:
        cache = float(slots * context_length * per_token)
    elif engine == "transformers":
        slots, cache = 1, float(context_length * per_token)
    elif kv_blocks is not None:
        default = VLLM_BLOCK if engine == "vllm" else 1
        cache = float(kv_blocks * (block_size or default) * per_token)
    else:
        cache = kv_cache_gib * GIB
    return Need(engine, weights, cache, _rest(engine, config, slots, dtype))


def kv_type(engine: str, dtype: str, asked: str | None) -> str:
    """Return the data type that an engine keeps keys and values in. llama.cpp's default is float16."""
    if asked is None:
        return "float16" if engine in MOST_SLOTS else dtype
    return "int8" if asked.startswith("int8") else asked


def _rest(engine: str, config: Mapping[str, Any], slots: int, dtype: str) -> float:
    text = config.get("text_config") or config
    vocabulary, hidden, inner = (
        int(text[key]) for key in ("vocab_size", "hidden_size", "intermediate_size")
    )
    if engine in MOST_SLOTS:
        return CUDA_BYTES + 4.0 * UBATCH_TOKENS * (vocabulary + 4 * hidden)
    step = dtype_bytes(STEP_TOKENS * (2 * hidden + 2 * inner), dtype)
    logits = 2 * 4.0 * slots * vocabulary  # and their probabilities, in float32
    return CUDA_BYTES + GRAPH_BYTES + step + logits


def refusal(title: str, wanted: Need, room: float, gpu: Gpu) -> str:
    """Explain why an engine isn't started, and which of its options to lower."""
    return (
        f"{title} needs {wanted}, but {room / GB:.1f} GB of {gpu.name}'s "
        f"{gpu.memory_bytes / GB:.1f} GB are free for it. Lower {LOWER[wanted.engine]}, choose a smaller "
        "model, or stop other engines and notebooks."
    )


def share_of(wanted: Need, gpu: Gpu) -> float:
    """Return the share of memory that an engine is told to take, which each engine counts in its own way.

    * vLLM: the need over the whole memory, because it refuses to start if less is free. The KV cache itself
      gets its exact size.
    * SGLang: weights and KV cache over the memory that is free when it starts, because memory that others use
      already isn't counted (0.5.23, `kv_cache_configurator._profile_available_bytes`).
    * TensorRT-LLM: the KV cache over the memory that is free after the weights are loaded.
    """
    if wanted.engine == "sglang":
        # It looks after its context is made, so it sees less than we do.
        kept = wanted.weights + wanted.kv_cache + SGLANG_SPARE_BYTES
        return _hundredths(math.ceil, kept / max(gpu.free_bytes - CUDA_BYTES, 1.0))
    if wanted.engine == "tensorrt_llm":
        left = gpu.free_bytes - wanted.weights - wanted.rest
        return _hundredths(math.floor, wanted.kv_cache / max(left, 1.0))
    return _hundredths(math.floor, wanted.total / gpu.memory_bytes)


def _hundredths(rounded: Callable[[float], int], share: float) -> float:
    return min(max(rounded(100 * share), 1), 95) / 100


def within_share(wanted: Need, share: float, gpu: Gpu) -> Need:
    """Return the need of an engine that was told its share: the rest of the share is for the KV cache."""
    rest = share * gpu.memory_bytes - wanted.weights - wanted.rest
    return replace(wanted, kv_cache=max(rest, 0.0))


def tokens_in(cache_bytes: float, model: str, dtype: str, kv_cache_dtype: str | None) -> int | None:
    """Return the tokens that a KV cache of SGLang's holds, or None if the model's shape isn't known."""
    config = config_of(model)
    if config is None:
        return None
    return int(cache_bytes // bytes_per_token(config, kv_type("sglang", dtype, kv_cache_dtype)))


def block_size_in(arguments: Sequence[str]) -> int | None:
    """Return the block size that an engine's extra arguments name, if any."""
    found = re.search(r"--(?:block|page)-size[ =](\d+)", " ".join(arguments))
    return int(found[1]) if found else None


def draft_in(arguments: Sequence[str]) -> str | None:
    """Return the draft model that an engine's extra arguments name, if any."""
    text = " ".join(arguments)
    found = re.search(r'"model": ?"([^"]+)"', text) or re.search(
        r"--speculative-draft-model-path (\S+)", text
    )
    return found[1] if found else None
