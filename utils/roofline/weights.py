"""The cost of a model's weights per token: bytes to read and operations to do.

Counted from the tensors of a safetensors or GGUF file. One row of the embedding table is read per
token, so the table is no decode traffic; where the output head shares it (tied), the whole table
is read as the head, and counts once.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from utils.model_sizes import cache_shape, dtype_bytes

# The leading dot keeps llama.cpp's `blk.0.attn_output.weight` apart from its head.
_EMBEDDINGS = (".embed_tokens.weight", ".token_embd.weight", ".wte.weight")
_HEADS = (".lm_head.weight", ".output.weight")
# Dtypes of a safetensors file that an engine converts to the one it was told; others are quantised.
_CONVERTED = ("BF16", "F16", "F32")


class WeightsError(ValueError):
    """A weights file that is missing, damaged, or of a kind these formulas do not cover."""


class Tensor(NamedTuple):
    """One tensor of a weights file."""

    name: str
    parameters: int
    bytes: int


@dataclass(frozen=True, slots=True)
class WeightTraffic:
    """Use of the weights by one decode step and one prompt token.

    Attributes:
        total_bytes: All weights.
        decode_bytes: Read once per decode step, whatever the batch: all but a lookup table.
        decode_parameters: Parameters multiplied per generated token.
        prefill_parameters: Parameters multiplied per prompt token (the head only sees the last).
        note: Way of counting the embedding.
    """

    total_bytes: int
    decode_bytes: float
    decode_parameters: int
    prefill_parameters: int
    note: str


def read_weights(path: str | Path, dtype: str | None = None) -> WeightTraffic:
    """Count a model's weights from its file headers; no tensor is loaded.

    Args:
        path: A folder with safetensors (or one GGUF) files, or one such file.
        dtype: Data type to which an engine converts them; None keeps the stored one. A GGUF file, and
            quantised tensors, are served as they are.

    Raises:
        WeightsError: If there are none, or a file is damaged.
    """
    place = Path(path)
    files = [place] if place.is_file() else sorted(place.glob("*.safetensors"))
    if place.is_dir() and not files:
        files = sorted(place.glob("*.gguf"))[:1]
    if not files:
        raise WeightsError(f"no weights at {place}: give a .safetensors or .gguf file or a folder")
    tensors: list[Tensor] = []
    for file in files:
        tensors += _gguf(file) if file.suffix == ".gguf" else _safetensors(file, dtype)
    return count_tensors(tensors)


def count_tensors(tensors: Iterable[Tensor]) -> WeightTraffic:
    """Decode and prefill traffic of a list of tensors.

    Raises:
        WeightsError: If there are routed experts: a token reads only some of them.
    """
    tensors = list(tensors)
    if any("experts." in t.name or "_exps." in t.name for t in tensors):
        raise WeightsError("a mixture of experts: a token reads only some of its weights")
    embedding = [t for t in tensors if f".{t.name}".endswith(_EMBEDDINGS)]
    head = [t for t in tensors if f".{t.name}".endswith(_HEADS)]
    rest = [t for t in tensors if t not in embedding and t not in head]
    read = rest + (head or embedding)
    # Vectors (norms, biases) are read but not multiplied as matrices; they are under 0.1 %.
    return WeightTraffic(
        total_bytes=sum(t.bytes for t in tensors),
        decode_bytes=sum(t.bytes for t in read),
        decode_parameters=sum(t.parameters for t in read),
        prefill_parameters=sum(t.parameters for t in rest),
        note="embedding left out: a lookup" if head else "embedding tied to the head: read once",
    )


def weights_of_config(config: Mapping[str, Any], bits_per_weight: float = 16) -> WeightTraffic:
    """Return the same from a Hugging Face config of the Llama and Qwen3 kind, for a model not at hand.

    Args:
        config: The parsed `config.json` of a dense decoder.
        bits_per_weight: Mean size of a weight, scales included, the same for all tensors.

    Raises:
        WeightsError: If the model is a mixture of experts.
    """
    if any("expert" in key for key in config):
        raise WeightsError("a mixture of experts: a token reads only some of its weights")
    shape = cache_shape(config)
    hidden, query = config["hidden_size"], shape.query_heads * shape.head_dim
    layer = hidden * (2 * query + 2 * shape.kv_heads * shape.head_dim)
    layer += 3 * hidden * config["intermediate_size"] + 2 * hidden
    body = shape.layers * layer + hidden
    table = config["vocab_size"] * hidden
    tied = bool(config.get("tie_word_embeddings"))
    return WeightTraffic(
        total_bytes=round((body + table * (1 if tied else 2)) * bits_per_weight / 8),
        decode_bytes=(body + table) * bits_per_weight / 8,
        decode_parameters=body + table,
        prefill_parameters=body,
        note="embedding tied to the head: read once" if tied else "embedding left out: a lookup",
    )


def _safetensors(file: Path, dtype: str | None) -> list[Tensor]:
    try:
        with file.open("rb") as stream:
            (length,) = struct.unpack("<Q", stream.read(8))
            if length > file.stat().st_size:
                raise WeightsError(f"{file} is damaged: its header is longer than the file")
            header = json.loads(stream.read(length))
        return [
            _as_loaded(name, tensor, dtype)
            for name, tensor in header.items()
            if name != "__metadata__"
        ]
    except (OSError, struct.error, ValueError, RecursionError) as error:
        if isinstance(error, WeightsError):
            raise
        raise WeightsError(f"cannot read {file}: {error}") from error
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsError(
            f"{file} is damaged: its header does not give every tensor a shape and offsets "
            f"({type(error).__name__}: {error})"
        ) from error


def _as_loaded(name: str, tensor: Mapping[str, Any], dtype: str | None) -> Tensor:
    parameters = math.prod(tensor["shape"])
    if dtype and tensor["dtype"] in _CONVERTED:
        return Tensor(name, parameters, dtype_bytes(parameters, dtype))
    return Tensor(name, parameters, tensor["data_offsets"][1] - tensor["data_offsets"][0])


def _gguf(file: Path) -> list[Tensor]:
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
    except (OSError, ValueError, IndexError) as error:
        raise WeightsError(f"cannot read {file}: {error}") from error
    return [Tensor(t.name, int(t.n_elements), int(t.n_bytes)) for t in reader.tensors]
