"""Bytes that a model keeps per token, and the load that fits in a given memory.

A decoder keeps one key and one value vector per layer, per key/value head and per token:

    bytes per token = layers x kv_heads x head_dim x (bytes of a key + bytes of a value)

Every result here is *derived* from a model's ``config.json``; nothing is measured.
Source: Kwon et al., "Efficient Memory Management for Large Language Model Serving with
PagedAttention" (arXiv 2309.06180), section 3; Ainslie et al., "GQA" (arXiv 2305.13245).
"""

from __future__ import annotations

import json
import os
import pwd
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from utils.hub_cache import foreign_owner, hub_cache, hub_home

GIB = 1024**3

# (values in a group, bytes of the group): llama.cpp's quantised types carry a scale per group
# of 32 (ggml-common.h, block_q8_0 and block_q4_0).
DTYPES: dict[str, tuple[int, int]] = {
    "float32": (1, 4),
    "bfloat16": (1, 2),
    "float16": (1, 2),
    "fp8": (1, 1),
    "fp8_e4m3": (1, 1),
    "fp8_e5m2": (1, 1),
    "int8": (1, 1),
    "q8_0": (32, 34),
    "q4_0": (32, 18),
}
# Smallest size of a weight with its scales, so that a bound from it is never too low. NVFP4 has an 8-bit
# scale per 16 weights, Q8_0 has 34 bytes per 32, and Q4_K_M mixes Q4_K (144 bytes per 256) with larger types.
BITS_PER_WEIGHT: dict[str, float] = {
    "FP32": 32,
    "BF16": 16,
    "FP16": 16,
    "F16": 16,
    "FP8": 8,
    "Q8_0": 8.5,
    "Q4_0": 4.5,
    "NVFP4": 4.5,
    "Q4_K_M": 4.5,
}
ALIASES = {"bf16": "bfloat16", "f16": "float16", "half": "float16", "f32": "float32"}

_QWEN3: dict[str, Any] = {
    "model_type": "qwen3",
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "dtype": "bfloat16",
}
# Qwen/Qwen3-{size}, config.json of each.
QWEN3: dict[str, dict[str, Any]] = {
    size: {
        **_QWEN3,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "tie_word_embeddings": tied,
    }
    for size, hidden, inner, layers, heads, tied in (
        ("0.6B", 1024, 3072, 28, 16, True),
        ("1.7B", 2048, 6144, 28, 16, True),
        ("4B", 2560, 9728, 36, 32, True),
        ("8B", 4096, 12288, 36, 32, False),
    )
}


class ConfigError(ValueError):
    """A model's config does not describe a cache that these formulas cover."""


@dataclass(frozen=True)
class CacheShape:
    """Cache of a decoder per token.

    Attributes:
        layers: Attention layers, each with a cache of its own.
        kv_heads: Key/value heads per layer (fewer than query heads under GQA).
        head_dim: Values per head.
        query_heads: Query heads per layer.
        dtype: The checkpoint's own dtype.
    """

    layers: int
    kv_heads: int
    head_dim: int
    query_heads: int
    dtype: str

    @property
    def values_per_token(self) -> int:
        """Numbers in the *keys* of one token, over all layers (the values are as many)."""
        return self.layers * self.kv_heads * self.head_dim


def read_config(model: str | Path) -> dict[str, Any]:
    """Read a model's ``config.json``.

    Args:
        model: A folder that holds ``config.json``, that file, or a hub id such as
            ``Qwen/Qwen3-8B`` (fetched once, then taken from the Hugging Face cache).

    Returns:
        The config as a dict.

    Raises:
        ConfigError: There is no such file, the hub does not give it, or it is not JSON.
    """
    file = Path(model)
    if not file.exists() and not file.is_absolute() and str(model).count("/") == 1:
        file = from_hub(str(model), "config.json")
    file = file / "config.json" if file.is_dir() else file
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"No config.json at {file}: is the model folder complete?") from error
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:  # not UTF-8; nested too deeply
        raise ConfigError(f"{file} is not valid JSON: {error}") from error
    if not isinstance(config, dict):
        raise ConfigError(f"{file} holds no JSON object.")
    return config


def cache_shape(config: Mapping[str, Any]) -> CacheShape:
    """Read the shape of the KV cache from a Hugging Face config.

    Args:
        config: The parsed ``config.json``; a multimodal config's ``text_config`` is used.

    Returns:
        The shape.

    Raises:
        ConfigError: A needed field is missing, or the model keeps something other than one key
            and one value per token (latent attention, sliding windows, recurrent layers).
    """
    config = _text_config(config)
    _refuse_other_caches(config)
    query_heads = _positive(config, "num_attention_heads")
    kv_heads = query_heads
    if config.get("num_key_value_heads") is not None:
        kv_heads = _positive(config, "num_key_value_heads")
    if query_heads % kv_heads:
        raise ConfigError(f"{query_heads} query heads do not divide among {kv_heads} KV heads.")
    if config.get("head_dim") is not None:
        head_dim = _positive(config, "head_dim")
    elif not (head_dim := _positive(config, "hidden_size") // query_heads):
        raise ConfigError(f"hidden_size is smaller than the number of heads, {query_heads}.")
    dtype = str(config.get("dtype") or config.get("torch_dtype") or "bfloat16")
    layers = _positive(config, "num_hidden_layers")
    return CacheShape(layers, kv_heads, head_dim, query_heads, _known(dtype))


def dtype_bytes(values: int, dtype: str) -> int:
    """Bytes that hold ``values`` numbers of a dtype, the scales of quantised types included.

    Args:
        values: Number of values; a multiple of the type's group (32 for ``q8_0``).
        dtype: A key of :data:`DTYPES`, or an alias such as ``bf16``.

    Returns:
        Bytes.

    Raises:
        ConfigError: Unknown dtype, or a number of values that does not fill whole groups.
    """
    group, size = DTYPES[_known(dtype)]
    if values % group:
        raise ConfigError(f"{dtype} stores groups of {group} values; {values} do not divide.")
    return values // group * size


def bytes_per_token(config: Mapping[str, Any], kv_dtype: str = "auto", v_dtype: str = "") -> int:
    """Bytes of KV cache that one token occupies, over all layers.

    Args:
        config: A Hugging Face config.
        kv_dtype: Dtype of the cache; ``auto`` is the checkpoint's, as in a vLLM without ``--dtype``.
        v_dtype: Dtype of the values where it differs from the keys' (llama.cpp ``-ctv``).

    Returns:
        Bytes per token.
    """
    shape = cache_shape(config)
    k_dtype = shape.dtype if kv_dtype == "auto" else kv_dtype
    keys = dtype_bytes(shape.values_per_token, k_dtype)
    return keys + dtype_bytes(shape.values_per_token, v_dtype or k_dtype)


def blocks_in(
    budget_bytes: float, config: Mapping[str, Any], block_size: int, kv_dtype: str = "auto"
) -> int:
    """Blocks of ``block_size`` tokens that a KV budget holds, rounded down as vLLM does.

    Source: vLLM 0.32 ``v1/core/kv_cache_utils.py`` (available memory // page size // layers).
    One of them, block 0, is vLLM's placeholder (``BlockPool.null_block``) and holds no tokens.
    """
    if block_size < 1:
        raise ValueError(f"A block holds at least one token, not {block_size}.")
    shape = cache_shape(config)
    page = bytes_per_token(config, kv_dtype) * block_size // shape.layers
    return int(budget_bytes) // page // shape.layers


def blocks_for(tokens: int, block_size: int) -> int:
    """Blocks that ``tokens`` tokens occupy: the last one may be partly empty."""
    return -(-tokens // block_size)


def weight_bytes(model_path: str | Path) -> int:
    """Bytes of a checkpoint's tensors, read from its ``*.safetensors`` headers.

    Raises:
        ConfigError: The folder holds no safetensors file.
    """
    files = sorted(Path(model_path).glob("*.safetensors"))
    if not files:
        raise ConfigError(f"No *.safetensors in {model_path}: is the model folder complete?")
    total = 0
    for file in files:
        with file.open("rb") as stream:
            header_length = int.from_bytes(stream.read(8), "little")
        total += file.stat().st_size - 8 - header_length
    return total


def decoder_parameters(config: Mapping[str, Any]) -> int:
    """Parameters of a dense decoder of the Llama and Qwen3 kind, counted from its config.

    Embedding, and the output head where it is not tied; per layer the four attention projections,
    the three matrices of the gated MLP and the norms (with Qwen3's norms of queries and keys).
    """
    config = _text_config(config)
    shape = cache_shape(config)
    hidden = _positive(config, "hidden_size")
    query, kv = shape.query_heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer = hidden * (2 * query + 2 * kv + 3 * _positive(config, "intermediate_size"))
    layer += 2 * hidden + (2 * shape.head_dim if config.get("model_type") == "qwen3" else 0)
    return table_parameters(config) + shape.layers * layer + hidden


def table_parameters(config: Mapping[str, Any]) -> int:
    """Return the parameters of the embedding, and of the output head if it has its own."""
    config = _text_config(config)
    tables = 1 if config.get("tie_word_embeddings") else 2
    return tables * _positive(config, "vocab_size") * _positive(config, "hidden_size")


def activation_bytes(config: Mapping[str, Any], batch_tokens: int, dtype: str = "auto") -> int:
    """Return an estimate of the largest intermediate tensors of one forward step.

    Counts, for ``batch_tokens`` tokens at once, the residual stream twice, the two halves of the
    gated MLP, and the logits in float32 (all batch tokens: the worst case). Engines profile this
    with a dry run instead; treat the figure as an order of magnitude.
    """
    config = _text_config(config)
    shape = cache_shape(config)
    width = 2 * _positive(config, "hidden_size") + 2 * _positive(config, "intermediate_size")
    hidden = dtype_bytes(batch_tokens * width, shape.dtype if dtype == "auto" else dtype)
    return hidden + 4 * batch_tokens * _positive(config, "vocab_size")


@dataclass(frozen=True)
class MemoryPlan:
    """Memory of an engine, in bytes: total = weights + KV cache + activations."""

    weights: int
    kv_cache: int
    activations: int

    @property
    def total(self) -> int:
        """The sum, in bytes."""
        return self.weights + self.kv_cache + self.activations


def plan_memory(
    config: Mapping[str, Any],
    weights: int,
    requests: int,
    tokens_per_request: int,
    batch_tokens: int = 2048,
    kv_dtype: str = "auto",
) -> MemoryPlan:
    """Return the memory that ``requests`` requests of a given length need at the same time.

    Args:
        config: A Hugging Face config.
        weights: Bytes of the weights (:func:`weight_bytes`).
        requests: Requests that run together.
        tokens_per_request: Prompt and output tokens of each.
        batch_tokens: Tokens in the largest forward step.
        kv_dtype: Dtype of the cache.

    Returns:
        The three parts and their total, in bytes.
    """
    kv_cache = requests * tokens_per_request * bytes_per_token(config, kv_dtype)
    return MemoryPlan(weights, kv_cache, activation_bytes(config, batch_tokens))


def requests_that_fit(
    kv_budget_bytes: float,
    config: Mapping[str, Any],
    tokens_per_request: int,
    block_size: int = 16,
    kv_dtype: str = "auto",
) -> int:
    """Requests of one length that a paged KV cache of this size holds at once."""
    if tokens_per_request < 1:
        raise ValueError("A request has at least one token.")
    usable = blocks_in(kv_budget_bytes, config, block_size, kv_dtype)
    return usable // blocks_for(tokens_per_request, block_size)


def from_hub(model: str, name: str) -> Path:
    """Return the local path of a model's file on the hub, after a download if needed.

    Raises:
        ConfigError: The hub did not give it; the message names the things to check.
    """
    from huggingface_hub import hf_hub_download

    try:
        return Path(hf_hub_download(model, name))
    except PermissionError as error:
        raise ConfigError(denied_in_cache(name, model, error)) from error
    except Exception as error:
        raise ConfigError(
            f"The hub gave no {name} of {model} ({type(error).__name__}). Check the name and "
            "the network; a gated model also needs HF_TOKEN."
        ) from error


def denied_in_cache(name: str, model: str, error: PermissionError) -> str:
    """Return what to do if the model cache can't be written, usually because a container has made it."""
    cache = hub_cache(os.environ)
    found = foreign_owner(cache, os.getuid())
    where, owner = found if found else (Path(error.filename or cache), None)
    whose = "can't be written" if owner is None else f"belongs to {_user_name(owner)}"
    return (
        f"{name} of {model} can't be stored in the model cache, because {where} {whose}. Start an engine of "
        "the course in a container, which gives its folders back to you, or give them back yourself: "
        f"sudo chown -R $USER {hub_home(os.environ)}"
    )


def _user_name(number: int) -> str:
    try:
        return pwd.getpwuid(number).pw_name
    except KeyError:
        return f"the user with id {number}"


@lru_cache
def tokenizer_file(model: str) -> Path:
    """Return the `tokenizer.json` of a local folder or a hub model. The hub is asked once per model.

    Raises:
        ConfigError: The hub doesn't give it.
    """
    folder = Path(model)
    return folder / "tokenizer.json" if folder.exists() else from_hub(model, "tokenizer.json")


def _known(dtype: str) -> str:
    name = dtype.removeprefix("torch.").lower()
    name = ALIASES.get(name, name)
    if name not in DTYPES:
        raise ConfigError(f"Unknown dtype {dtype!r}. Known: {', '.join(DTYPES)}.")
    return name


def _positive(config: Mapping[str, Any], key: str) -> int:
    value = config.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(f"The config has no usable {key!r} (found {value!r}).")
    return value


def _text_config(config: Mapping[str, Any]) -> Mapping[str, Any]:
    inner = config.get("text_config") or config
    if not isinstance(inner, Mapping):
        raise ConfigError(f"The config's text_config isn't an object (found {inner!r}).")
    return inner


def _refuse_other_caches(config: Mapping[str, Any]) -> None:
    if config.get("kv_lora_rank"):
        raise ConfigError(
            "This model uses multi-head latent attention (kv_lora_rank is set): it caches one "
            "compressed latent per token, not keys and values per head. The formula "
            "layers x kv_heads x head_dim x 2 does not apply; see arXiv 2405.04434, section 2.1."
        )
    kinds = set(config.get("layer_types") or ()) - {"full_attention"}
    if config.get("use_sliding_window") and config.get("sliding_window"):
        kinds.add("sliding_attention")
    if kinds:
        raise ConfigError(
            f"This model mixes layers of kind {', '.join(sorted(kinds))}: their cache does not "
            "grow with every token, so one number of bytes per token would be wrong."
        )
