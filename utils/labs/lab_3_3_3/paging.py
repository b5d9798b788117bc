"""Keys and values of the tiny model, and dense attention, for the section about attention over pages."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

from utils.profiles import ROOT


def example(text: str) -> tuple[Tensor, Tensor, Tensor]:
    """Compute the keys and values of a text in the tiny model's first layer, on the CPU.

    Returns:
        A random query [heads, head_dim], and keys and values, each [tokens, kv_heads, head_dim].
    """
    folder = ROOT / "models" / "tiny"
    disable_progress_bar()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    ids = AutoTokenizer.from_pretrained(folder)(text, return_tensors="pt").input_ids
    with torch.no_grad():
        layer = model(ids, use_cache=True).past_key_values.layers[0]
    keys, values = (each[0].transpose(0, 1) for each in (layer.keys, layer.values))
    heads = int(model.config.num_attention_heads)
    query = torch.randn(heads, keys.shape[-1], generator=torch.manual_seed(0))
    return query, keys, values


def unused_pages(blocks: int, block_size: int, like: Tensor) -> Tensor:
    """Return blocks for the vectors of a tensor [tokens, kv_heads, head_dim], all of them full of NaN."""
    return torch.full((blocks, block_size, *like.shape[1:]), torch.nan)


def dense_attention(query: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Return PyTorch's attention of one query over all tokens, [heads, head_dim]. Shapes as in `example`."""
    inputs = (query[None, :, None], keys.transpose(0, 1)[None], values.transpose(0, 1)[None])
    return torch.nn.functional.scaled_dot_product_attention(*inputs, enable_gqa=True)[0, :, 0]
