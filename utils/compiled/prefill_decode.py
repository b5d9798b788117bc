"""The two steps of serving, prefill and decode, as modules that torch.export can read.

Weights and layers are those of `utils.speculative.target`; the addition is a KV cache that is handed in and
written in place, so that a built engine holds weights and code, and its caller the state.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.speculative.target import Target, TargetShape, attend, rms_norm


@dataclass(frozen=True)
class Cache:
    """Keys and values of one sequence, a pair of tensors per layer, each [1, kv_heads, slots, head_dim]."""

    keys: list[Tensor]
    values: list[Tensor]

    @classmethod
    def empty(cls, shape: TargetShape, slots: int, dtype: torch.dtype = torch.float32) -> Cache:
        """Return a cache for `slots` tokens."""
        size = (1, shape.kv_heads, slots, shape.head_dim)
        keys, values = ([torch.zeros(size, dtype=dtype) for _ in range(shape.layers)] for _ in "kv")
        return cls(keys, values)

    def copy(self) -> Cache:
        """Return the same contents in memory of its own."""
        return Cache([k.clone() for k in self.keys], [v.clone() for v in self.values])


class PrefillModule(nn.Module):
    """A whole prompt into an empty cache; causal attention over the prompt itself."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def forward(self, ids: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
        """Compute a prompt.

        Args:
            ids: int64 [1, n], 2 <= n <= slots.
            keys: Keys of each layer; positions 0 to n - 1 are written.
            values: As keys.

        Returns:
            Logits after the last token, [1, vocab].
        """
        target, n = self.target, ids.shape[1]
        x = target.embed(ids)
        table = (target.rotary.cos[None, :n].to(x.dtype), target.rotary.sin[None, :n].to(x.dtype))
        for layer, own_keys, own_values in zip(target.decoder_layers, keys, values, strict=True):
            q, k, v = layer.project(rms_norm(x, layer.input_norm, target.shape.eps), table)
            own_keys[:, :, :n] = k
            own_values[:, :, :n] = v
            k, v = (t.repeat_interleave(target.shape.group, 1) for t in (k, v))
            y = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True)
            x = layer.finish(x, y.transpose(1, 2).flatten(2))
        return _logits(target, x[:, -1])


class DecodeModule(nn.Module):
    """Decode step: one token after those in the cache."""

    def __init__(self, target: Target) -> None:
        super().__init__()
        self.target = target

    def forward(
        self, ids: Tensor, position: Tensor, keys: list[Tensor], values: list[Tensor]
    ) -> Tensor:
        """Compute one token.

        Args:
            ids: int64 [1, 1].
            position: Tokens in the cache, int64 [1]; the place that is written.
            keys: Keys of each layer.
            values: As keys.

        Returns:
            Logits, [1, vocab].
        """
        target = self.target
        x = target.embed(ids)
        table = target.rotary.at(position[None], x.dtype)
        slots = torch.arange(keys[0].shape[2], device=ids.device)
        mask = torch.where(slots <= position, 0.0, float("-inf")).to(x.dtype)[None, None, None]
        mask = mask.expand(1, 1, target.shape.group, -1)
        for layer, own_keys, own_values in zip(target.decoder_layers, keys, values, strict=True):
            q, k, v = layer.project(rms_norm(x, layer.input_norm, target.shape.eps), table)
            own_keys.index_copy_(2, position, k)
            own_values.index_copy_(2, position, v)
            x = layer.finish(x, attend(q, own_keys, own_values, mask))
        return _logits(target, x[:, -1])


def _logits(target: Target, x: Tensor) -> Tensor:
    logits: Tensor = target.head(rms_norm(x, target.norm, target.shape.eps))
    return logits


def first_layers(target: Target, layers: int) -> Target:
    """The same model with its first layers only, sharing their weights: quick to build, of no use to ask."""
    layers = min(layers, target.shape.layers)
    small = Target(replace(target.shape, layers=0), target.rotary)
    small.shape = replace(target.shape, layers=layers)
    small.embed, small.norm, small.head = target.embed, target.norm, target.head
    small.layers = nn.ModuleList(target.decoder_layers[:layers])
    small.end_of_text, small.path = target.end_of_text, target.path
    return small.requires_grad_(False).eval()
