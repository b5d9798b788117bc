"""The model that is sped up: a lean decoder with a static KV cache, for one token or a whole tree of them.

Plain decoding, tree verification and the one-layer drafts of EAGLE run through the same layers, so a ratio of
two of them compares methods and not implementations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.speculative.speculation_error import SpeculationError
from utils.speculative.tree import DraftTree

if TYPE_CHECKING:
    from utils.speculative.compiled_step.step import CompiledStep

# Attention runs over a multiple of this many slots, so shapes seldom change. The compiled step keeps keys in
# panels of as many slots.
PAD_ATTENTION = 64


@dataclass(frozen=True)
class TargetShape:
    """Sizes of a decoder of the Llama family, of which Qwen3 is one.

    Attributes:
        layers: Decoder layers.
        hidden: Width of a hidden state.
        ffn: Inner width of the feed-forward block.
        heads: Query heads.
        kv_heads: Key and value heads; divides `heads`.
        head_dim: Width of a head.
        vocab: Tokens.
        eps: Epsilon of the norms.
        qk_norm: True if queries and keys are normed (Qwen3).
    """

    layers: int
    hidden: int
    ffn: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    eps: float
    qk_norm: bool

    @property
    def group(self) -> int:
        """Query heads that share a key head."""
        return self.heads // self.kv_heads

    @classmethod
    def of(cls, config: Any) -> TargetShape:
        """Return the shape in a transformers configuration of a Llama or Qwen3 model."""
        if config.model_type not in ("llama", "qwen3"):
            raise SpeculationError(
                f"The target is a {config.model_type} model; this loop reads llama and qwen3."
            )
        head_dim = getattr(config, "head_dim", None)
        return cls(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            ffn=config.intermediate_size,
            heads=config.num_attention_heads,
            kv_heads=config.num_key_value_heads,
            head_dim=head_dim or config.hidden_size // config.num_attention_heads,
            vocab=config.vocab_size,
            eps=config.rms_norm_eps,
            qk_norm=config.model_type == "qwen3",
        )


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """RMS norm: x / sqrt(mean(x²) + eps) times weight; x: [..., size].

    On a CPU F.rms_norm is six small operations. [x, -x] has mean 0 and the same mean square, so its layer
    norm, one operation, holds the same numbers in half the time.
    """
    size = x.shape[-1]
    # The weight is multiplied outside, because F.rms_norm takes none that broadcasts, and the one of the
    # queries' and keys' norm is [heads, size].
    if x.is_cuda:
        y = F.rms_norm(x, (size,), None, eps)
    else:
        y = F.layer_norm(torch.cat((x, -x), -1), (2 * size,), None, None, eps)[..., :size]
    return y if weight is None else y * weight


class Rotary(nn.Module):
    """Tables of rotary positions, [positions, 1, head_dim]; the sine has the sign of the rotation."""

    cos: Tensor
    sin: Tensor

    def __init__(
        self,
        inverse: Tensor,
        positions: int,
        scale: float = 1.0,
        config: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__()
        self.config = dict(config or {})  # as a configuration file has it
        angles = torch.arange(positions, dtype=torch.float64)[:, None] * inverse.double()
        self.register_buffer("cos", (scale * torch.cat((angles.cos(),) * 2, -1)).float()[:, None])
        signed = torch.cat((-angles.sin(), angles.sin()), -1)
        self.register_buffer("sin", (scale * signed).float()[:, None])

    def at(self, positions: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Cosine and sine for int64 positions [batch or 1, n], each [batch or 1, n, 1, head_dim]."""
        return self.cos[positions].to(dtype), self.sin[positions].to(dtype)


def rotate(x: Tensor, table: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary positions on x [batch, n, heads, head_dim] (halves convention of Llama)."""
    cos, sin = table
    return torch.addcmul(x * cos, x.roll(x.shape[-1] // 2, -1), sin)


class DecoderLayer(nn.Module):
    """One decoder layer, in three pieces so that callers bring their own attention pattern.

    Args:
        shape: Sizes.
        inputs: Width of what queries, keys and values are computed from: `hidden`, or 2 x hidden in EAGLE-3.
    """

    def __init__(self, shape: TargetShape, inputs: int | None = None) -> None:
        super().__init__()
        self.shape = shape
        heads = shape.heads + 2 * shape.kv_heads
        width = shape.head_dim
        self.qkv = nn.Linear(inputs or shape.hidden, heads * width, bias=False)
        self.o = nn.Linear(shape.heads * width, shape.hidden, bias=False)
        self.gate_up = nn.Linear(shape.hidden, 2 * shape.ffn, bias=False)
        self.down = nn.Linear(shape.ffn, shape.hidden, bias=False)
        self.input_norm = nn.Parameter(torch.ones(shape.hidden))
        self.post_norm = nn.Parameter(torch.ones(shape.hidden))
        if shape.qk_norm:
            self.qk_weight = nn.Parameter(torch.ones(shape.heads + shape.kv_heads, width))

    def project(self, x: Tensor, table: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values.

        Args:
            x: Normed input [batch, n, inputs].
            table: Table of `Rotary.at`.

        Returns:
            [batch, n, heads, head_dim], and twice [batch, kv_heads, n, head_dim].
        """
        s = self.shape
        y = self.qkv(x).view(x.shape[0], x.shape[1], s.heads + 2 * s.kv_heads, s.head_dim)
        qk, v = torch.split(y, [s.heads + s.kv_heads, s.kv_heads], 2)
        if s.qk_norm:
            qk = rms_norm(qk, self.qk_weight, s.eps)
        q, k = torch.split(rotate(qk, table), [s.heads, s.kv_heads], 2)
        return q, k.transpose(1, 2), v.transpose(1, 2)

    def finish(self, residual: Tensor, attended: Tensor) -> Tensor:
        """Output projection and feed-forward block.

        Args:
            residual: [batch, n, hidden].
            attended: [batch, n, heads x head_dim].

        Returns:
            [batch, n, hidden].
        """
        x = residual + self.o(attended)
        gate, up = self.gate_up(rms_norm(x, self.post_norm, self.shape.eps)).chunk(2, -1)
        out: Tensor = x + self.down(F.silu(gate) * up)
        return out


def attend(q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
    """Attention of a few queries over a cache.

    Query heads that share a key head become rows of one matrix: no key is copied or read twice.

    Args:
        q: [batch, n, heads, head_dim].
        keys: [batch, kv_heads, slots, head_dim].
        values: As keys.
        mask: Additive, [batch, 1, n x group, slots], group = heads / kv_heads; of `attention_mask`.

    Returns:
        [batch, n, heads x head_dim].
    """
    batch, n, heads, width = q.shape
    kv_heads = keys.shape[1]
    rows = q.view(batch, n, kv_heads, -1, width).transpose(1, 2)
    rows = rows.reshape(batch, kv_heads, -1, width)
    y = F.scaled_dot_product_attention(rows, keys, values, attn_mask=mask)
    y = y.view(batch, kv_heads, n, -1, width).transpose(1, 2)
    return y.reshape(batch, n, heads * width)


class KVCache:
    """Keys and values of every layer in one tensor, allocated once.

    A slot is overwritten when its node was rejected; `lengths` tells how many slots of a row count.

    Args:
        shape: Sizes; `layers` of them are kept.
        rows: Sequences.
        slots: Tokens a sequence can hold, tree nodes under verification included.
        compiled: True if the compiled step reads it, which wants keys in panels of `PAD_ATTENTION` slots.
    """

    def __init__(
        self,
        shape: TargetShape,
        rows: int,
        slots: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype = torch.float32,
        compiled: bool = False,
    ) -> None:
        self.compiled = compiled
        slots = -(-slots // PAD_ATTENTION) * PAD_ATTENTION
        self.data = torch.zeros(
            (shape.layers, 2, rows, shape.kv_heads, slots, shape.head_dim),
            device=device,
            dtype=dtype,
        )
        self.lengths = [0] * rows

    @property
    def slots(self) -> int:
        """Tokens a sequence can hold."""
        return self.data.shape[4]

    def span(self, tokens: int) -> int:
        """Slots that attention over so many tokens runs over."""
        return min(self.slots, -(-tokens // PAD_ATTENTION) * PAD_ATTENTION)

    def select(self, rows: list[int]) -> None:
        """Keep some rows only, in this order."""
        self.data = self.data[:, :, rows].contiguous()
        self.lengths = [self.lengths[row] for row in rows]

    def write(self, layer: int, k: Tensor, v: Tensor) -> None:
        """Store n new keys and values of each row after its length; k, v: [rows, kv_heads, n, d]."""
        n, first = k.shape[2], self.lengths[0]
        keys, values = self.data[layer]
        if all(length == first for length in self.lengths):
            keys[:, :, first : first + n] = k
            values[:, :, first : first + n] = v
            return
        for row, length in enumerate(self.lengths):
            keys[row, :, length : length + n] = k[row]
            values[row, :, length : length + n] = v[row]

    def keep(self, row: int, nodes: list[int]) -> None:
        """Commit tree nodes of a row: their keys and values move together, the length grows.

        Args:
            row: Which sequence.
            nodes: Accepted nodes, root first, ascending.
        """
        start, count = self.lengths[row], len(nodes)
        if nodes[-1] != count - 1:  # not simply the first ones
            source = torch.tensor(nodes, device=self.data.device) + start
            if self.compiled:
                self._keep_in_panels(row, source, start)
            else:
                self.data[:, :, row, :, start : start + count] = self.data[:, :, row, :, source]
        self.lengths[row] = start + count

    def _keep_in_panels(self, row: int, source: Tensor, start: int) -> None:
        """Move some slots of a row to `start` and on, where keys are [slots / panel, head_dim, panel]."""
        keys, values = self.data[:, 0, row], self.data[:, 1, row]
        target = torch.arange(start, start + len(source))
        width = self.data.shape[-1]
        panels = keys.view(*keys.shape[:2], -1, width, PAD_ATTENTION)
        panels[:, :, target // PAD_ATTENTION, :, target % PAD_ATTENTION] = panels[
            :, :, source // PAD_ATTENTION, :, source % PAD_ATTENTION
        ]
        values[:, :, start : start + len(source)] = values[:, :, source]


def attention_mask(
    trees: list[DraftTree], lengths: list[int], slots: int, group: int, like: Tensor
) -> Tensor:
    """Additive mask for `attend`: a node sees the sequence so far, its ancestors and itself.

    Args:
        trees: One per row.
        lengths: Tokens that each row's cache holds.
        slots: Slots of the cache that take part.
        group: Query heads that share a key head.
        like: Gives data type and device.

    Returns:
        [rows, 1, n x group, slots]; smaller trees are filled up with nodes that see themselves alone.
    """
    size = max(tree.size for tree in trees)
    masks = like.new_full((len(trees), 1, size, slots), float("-inf"))
    for row, (tree, length) in enumerate(zip(trees, lengths, strict=True)):
        if tree.size < size:
            masks[row, 0, :, length : length + size].fill_diagonal_(0)
        masks[row, 0, : tree.size, :length] = 0
        inside = masks[row, 0, : tree.size, length : length + tree.size]
        inside.masked_fill_(tree.mask.to(like.device), 0)
    return masks.repeat_interleave(group, 2)


@dataclass(frozen=True)
class Seen:
    """Values that the target computed for n nodes of each row.

    Attributes:
        hidden: States after the last norm, [rows, n, hidden], which the language-model head reads.
        features: Hidden states of the auxiliary layers side by side, [rows, n, k x hidden]; None if unasked.
    """

    hidden: Tensor
    features: Tensor | None

    def of(self, row: int, nodes: list[int] | slice) -> tuple[Tensor, Tensor | None]:
        """Hidden states and features of some nodes of a row."""
        if isinstance(nodes, list) and nodes[-1] == len(nodes) - 1:
            nodes = slice(len(nodes))  # ascending, so these are the first ones: no copy
        features = None if self.features is None else self.features[row, nodes]
        return self.hidden[row, nodes], features


class Target(nn.Module):
    """The target model.

    Args:
        shape: Sizes.
        rotary: Positions.

    Attributes:
        aux_layers: Whose hidden states `forward` returns as features: k is the output of layer k - 1, as in
            transformers' `hidden_states[k]` and vLLM's `eagle_aux_hidden_state_layer_ids`.
        end_of_text: Tokens that end an answer.
        path: File from which it was read.
        compiled: The compiled step, if it runs (see `use_compiled_step`); None for the PyTorch loop.
    """

    def __init__(self, shape: TargetShape, rotary: Rotary) -> None:
        super().__init__()
        self.shape, self.rotary = shape, rotary
        self.embed = nn.Embedding(shape.vocab, shape.hidden)
        self.layers = nn.ModuleList(DecoderLayer(shape) for _ in range(shape.layers))
        self.norm = nn.Parameter(torch.ones(shape.hidden))
        self.head = nn.Linear(shape.hidden, shape.vocab, bias=False)
        self.aux_layers: tuple[int, ...] = ()
        self.end_of_text: frozenset[int] = frozenset()
        self.path = ""
        self.compiled: CompiledStep | None = None

    @property
    def decoder_layers(self) -> list[DecoderLayer]:
        """The layers, first to last."""
        return list(self.layers)  # type: ignore[arg-type]

    @property
    def device(self) -> torch.device:
        """Device of the weights."""
        return self.norm.device

    @property
    def dtype(self) -> torch.dtype:
        """Data type of the weights and of the KV cache."""
        return self.norm.dtype

    def cache(self, rows: int, slots: int) -> KVCache:
        """Return an empty KV cache for `rows` sequences of up to `slots` tokens.

        Raises:
            SpeculationError: More slots than the model has positions.
        """
        if slots > len(self.rotary.cos):
            raise SpeculationError(
                f"Prompt, answer and draft tree need {slots} positions; the model has "
                f"{len(self.rotary.cos)}. Ask for fewer tokens."
            )
        return KVCache(self.shape, rows, slots, self.device, self.dtype, self.compiled is not None)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits of last hidden states, [..., hidden] to [..., vocab]."""
        if self.compiled:
            return self.compiled.logits(hidden)
        logits: Tensor = self.head(hidden)
        return logits

    def forward(self, ids: Tensor, trees: list[DraftTree], cache: KVCache) -> Seen:
        """Compute the nodes of one tree per row after the cached tokens; commit nothing.

        Args:
            ids: Tokens of the nodes, int64 [rows, n].
            trees: One per row, of at most n nodes.
            cache: Gets keys and values of the nodes after each row's length.
        """
        n = ids.shape[1]
        longest = max(cache.lengths) + n
        if longest > cache.slots:
            raise SpeculationError(f"The KV cache has {cache.slots} slots, {longest} are needed.")
        if self.compiled and cache.compiled:
            return self.compiled.forward(ids, trees, cache)
        used = cache.span(longest)
        x = self.embed(ids)
        mask = attention_mask(trees, cache.lengths, used, self.shape.group, x)
        table = self.rotary.at(positions_of(trees, cache.lengths, n).to(ids.device), x.dtype)
        aux = []
        for i, layer in enumerate(self.decoder_layers):
            if i in self.aux_layers:
                aux.append(x)
            q, k, v = layer.project(rms_norm(x, layer.input_norm, self.shape.eps), table)
            cache.write(i, k, v)
            keys, values = cache.data[i, :, :, :, :used]
            x = layer.finish(x, attend(q, keys, values, mask))
        if self.shape.layers in self.aux_layers:
            aux.append(x)
        hidden = rms_norm(x, self.norm, self.shape.eps)
        return Seen(hidden, torch.cat(aux, -1) if aux else None)

    def causal(self, ids: Tensor) -> Tensor:
        """Last hidden states of whole sequences, without a cache, so that gradients flow.

        Args:
            ids: int64 [batch, length].

        Returns:
            [batch, length, hidden].
        """
        x = self.embed(ids)
        table = self.rotary.at(torch.arange(ids.shape[1], device=ids.device)[None], x.dtype)
        for layer in self.decoder_layers:
            q, k, v = layer.project(rms_norm(x, layer.input_norm, self.shape.eps), table)
            k, v = (t.repeat_interleave(self.shape.group, 1) for t in (k, v))
            y = F.scaled_dot_product_attention(q.transpose(1, 2), k, v, is_causal=True)
            x = layer.finish(x, y.transpose(1, 2).flatten(2))
        return rms_norm(x, self.norm, self.shape.eps)


def positions_of(trees: list[DraftTree], lengths: list[int], n: int) -> Tensor:
    """Position of each node: its row's length plus its depth; int64 [rows, n]."""
    rows = [
        F.pad(tree.depths, (0, n - tree.size)) + length
        for tree, length in zip(trees, lengths, strict=True)
    ]
    return torch.stack(rows)


def load_target(path: str, *, device: str = "cpu", dtype: torch.dtype = torch.float32) -> Target:
    """Read a Llama or Qwen3 model: a local folder, or an id of the model hub.

    Args:
        path: As for transformers' `from_pretrained`, which reads it.
        device: Device that runs it.
        dtype: float32 for outputs that are the same in every batch and tree.

    Raises:
        SpeculationError: Another kind of model.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path)
    shape = TargetShape.of(config)
    model = AutoModelForCausalLM.from_pretrained(path, dtype=dtype)
    rope = model.model.rotary_emb
    target = Target(
        shape,
        Rotary(
            rope.inv_freq,
            config.max_position_embeddings,
            float(rope.attention_scaling),
            {"rope_parameters": config.rope_parameters},
        ),
    )
    target.load_state_dict(_translate(model.state_dict(), shape), strict=False, assign=True)
    target.path = str(path)
    ends = model.generation_config.eos_token_id
    target.end_of_text = frozenset(ends if isinstance(ends, list) else [ends])
    return target.to(device=device, dtype=dtype).requires_grad_(False).eval()


def _translate(tensors: dict[str, Tensor], shape: TargetShape) -> dict[str, Tensor]:
    """Transformers' tensors under our names, those that are multiplied together joined."""
    ours = {
        "embed.weight": tensors["model.embed_tokens.weight"],
        "norm": tensors["model.norm.weight"],
        "head.weight": tensors["lm_head.weight"],
    }
    for i in range(shape.layers):
        layer = layer_tensors(tensors, f"model.layers.{i}.", shape)
        ours |= {f"layers.{i}.{name}": value for name, value in layer.items()}
    return ours


def layer_tensors(tensors: dict[str, Tensor], prefix: str, shape: TargetShape) -> dict[str, Tensor]:
    """Return one decoder layer of transformers' naming as a `DecoderLayer`'s state."""

    def get(name: str) -> Tensor:
        return tensors[f"{prefix}{name}.weight"]

    ours = {
        "qkv.weight": torch.cat([get(f"self_attn.{p}_proj") for p in "qkv"]),
        "o.weight": get("self_attn.o_proj"),
        "gate_up.weight": torch.cat([get("mlp.gate_proj"), get("mlp.up_proj")]),
        "down.weight": get("mlp.down_proj"),
        "post_norm": get("post_attention_layernorm"),
    }
    if f"{prefix}input_layernorm.weight" in tensors:
        ours["input_norm"] = get("input_layernorm")
    if shape.qk_norm:
        q, k = get("self_attn.q_norm"), get("self_attn.k_norm")
        ours["qk_weight"] = torch.cat([q.expand(shape.heads, -1), k.expand(shape.kv_heads, -1)])
    return ours


def layer_to_transformers(
    ours: dict[str, Tensor], prefix: str, shape: TargetShape
) -> dict[str, Tensor]:
    """Return the inverse of `layer_tensors`, without norms of queries and keys."""
    d = shape.head_dim
    sizes = [shape.heads * d, shape.kv_heads * d, shape.kv_heads * d]
    q, k, v = torch.split(ours["qkv.weight"], sizes)
    gate, up = ours["gate_up.weight"].chunk(2)
    parts = {
        "self_attn.q_proj": q,
        "self_attn.k_proj": k,
        "self_attn.v_proj": v,
        "self_attn.o_proj": ours["o.weight"],
        "mlp.gate_proj": gate,
        "mlp.up_proj": up,
        "mlp.down_proj": ours["down.weight"],
        "post_attention_layernorm": ours["post_norm"],
    }
    return {f"{prefix}{name}.weight": value for name, value in parts.items()}
