"""Untrained model of 102 million parameters, for measurements of speed and of nothing else.

The tiny model is so small that a processor's caches hold much of it. This one has the same architecture and
tokenizer, but each decode step has to read 200 MB from memory. Its weights are random numbers, so its answers
are noise. It is made on this machine from a seed, at first use, and kept in a folder that git ignores.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from utils.files import fill_folder
from utils.profiles import MODELS, ROOT
from utils.tinymodel import hub
from utils.tinymodel.export import write_gguf
from utils.tinymodel.model import ModelShape

NAME = "untrained-102M"
FOLDER = ROOT / ".models" / NAME
SHAPE = ModelShape(layers=16, hidden=768, ffn=2048, heads=12, kv_heads=4)
SEED = 0
STD = 0.02  # of the weights, Qwen3Config's initializer_range
LICENSE = "CC0 (random numbers)"


def untrained_model(folder: Path = FOLDER) -> Path:
    """Return the folder of the model for transformers, and make it if it isn't there."""
    try:
        return hub.verify(folder)
    except hub.ModelIncompleteError:
        fill_folder(folder, _write)
        return hub.verify(folder)


def untrained_gguf(kind: str, folder: Path = FOLDER) -> Path:
    """Return the model's GGUF file of a kind, BF16, Q8_0 or Q4_0, and make it if it isn't there."""
    file = folder / f"{NAME}-{kind}.gguf"
    if hub.fault(file):
        write_gguf(untrained_model(folder), kind, name=NAME, license=LICENSE)
    return file


def _write(part: Path) -> None:
    tiny = MODELS / "tiny"
    for name in hub.FILES:
        if name not in ("config.json", "model.safetensors"):
            shutil.copyfile(tiny / name, part / name)
    config = json.loads((tiny / "config.json").read_text(encoding="utf-8")) | SHAPE.config()
    config["layer_types"] = config["layer_types"][: SHAPE.layers]
    (part / "config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")
    save_file(dict(random_tensors()), part / "model.safetensors", metadata={"format": "pt"})


def random_tensors(shape: ModelShape = SHAPE, seed: int = SEED) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a Qwen3 model in bfloat16: normal numbers, and ones for the norms."""
    draw = torch.Generator().manual_seed(seed)

    def matrix(rows: int, columns: int) -> Tensor:
        return (STD * torch.randn(rows, columns, generator=draw)).to(torch.bfloat16)

    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    parts = {
        "self_attn.q_proj": (q, shape.hidden),
        "self_attn.k_proj": (kv, shape.hidden),
        "self_attn.v_proj": (kv, shape.hidden),
        "self_attn.o_proj": (shape.hidden, q),
        "mlp.gate_proj": (shape.ffn, shape.hidden),
        "mlp.up_proj": (shape.ffn, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.ffn),
    }
    norms = {
        "input_layernorm": shape.hidden,
        "post_attention_layernorm": shape.hidden,
        "self_attn.q_norm": shape.head_dim,
        "self_attn.k_norm": shape.head_dim,
    }
    yield "model.embed_tokens.weight", matrix(shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        for part, size in parts.items():
            yield f"model.layers.{layer}.{part}.weight", matrix(*size)
        for part, width in norms.items():
            ones = torch.ones(width, dtype=torch.bfloat16)
            yield f"model.layers.{layer}.{part}.weight", ones
    yield "model.norm.weight", torch.ones(shape.hidden, dtype=torch.bfloat16)
