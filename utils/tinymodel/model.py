"""A lean Qwen3 for training on a CPU; its parameters bear transformers' names, so export is a copy."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a Qwen3 model, named as in the code; `transformers` names are in `config`."""

    layers: int = 24
    hidden: int = 192
    ffn: int = 448
    heads: int = 4
    kv_heads: int = 1
    head_dim: int = 64
    vocab: int = 2048
    context: int = 2048
    theta: float = 10000.0
    eps: float = 1e-6

    def config(self) -> dict[str, object]:
        """Return the arguments of `transformers.Qwen3Config` for this shape."""
        return {
            "vocab_size": self.vocab,
            "hidden_size": self.hidden,
            "intermediate_size": self.ffn,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "max_position_embeddings": self.context,
            "rope_parameters": {"rope_type": "default", "rope_theta": self.theta},
            "rms_norm_eps": self.eps,
            "tie_word_embeddings": True,
        }


class RMSNorm(nn.Module):
    """Root-mean-square norm over the last axis."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Norm x [..., size]; same shape and dtype."""
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


def _linear(inputs: int, outputs: int) -> nn.Linear:
    return nn.Linear(inputs, outputs, bias=False)


class Attention(nn.Module):
    """Causal grouped-query attention with normed queries and keys, and rotary positions."""

    def __init__(self, s: ModelShape) -> None:
        super().__init__()
        self.shape = s
        self.q_proj = _linear(s.hidden, s.heads * s.head_dim)
        self.k_proj = _linear(s.hidden, s.kv_heads * s.head_dim)
        self.v_proj = _linear(s.hidden, s.kv_heads * s.head_dim)
        self.o_proj = _linear(s.heads * s.head_dim, s.hidden)
        self.q_norm = RMSNorm(s.head_dim, s.eps)
        self.k_norm = RMSNorm(s.head_dim, s.eps)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [batch, length, hidden]; cos, sin: [length, head_dim]; returns the shape of x."""
        s = self.shape
        batch, length, _ = x.shape

        def split(y: Tensor, heads: int) -> Tensor:
            return y.view(batch, length, heads, s.head_dim)

        q = _rotate(self.q_norm(split(self.q_proj(x), s.heads)).transpose(1, 2), cos, sin)
        k = _rotate(self.k_norm(split(self.k_proj(x), s.kv_heads)).transpose(1, 2), cos, sin)
        v = split(self.v_proj(x), s.kv_heads).transpose(1, 2)
        k, v = (t.repeat_interleave(s.heads // s.kv_heads, 1) for t in (k, v))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        out: Tensor = self.o_proj(y.transpose(1, 2).reshape(batch, length, -1))
        return out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    low, high = x.chunk(2, -1)
    return x * cos + torch.cat((-high, low), -1) * sin


class MLP(nn.Module):
    """SwiGLU."""

    def __init__(self, s: ModelShape) -> None:
        super().__init__()
        self.gate_proj = _linear(s.hidden, s.ffn)
        self.up_proj = _linear(s.hidden, s.ffn)
        self.down_proj = _linear(s.ffn, s.hidden)

    def forward(self, x: Tensor) -> Tensor:
        """x: [..., hidden]; returns the same shape."""
        out: Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class TransformerBlock(nn.Module):
    """One pre-norm transformer layer."""

    def __init__(self, s: ModelShape) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(s.hidden, s.eps)
        self.self_attn = Attention(s)
        self.post_attention_layernorm = RMSNorm(s.hidden, s.eps)
        self.mlp = MLP(s)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x: [batch, length, hidden]; cos, sin: [length, head_dim]; returns the shape of x."""
        x = x + self.self_attn(self.input_layernorm(x), cos, sin)
        out: Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


class Decoder(nn.Module):
    """Embedding, layers and last norm, under transformers' names."""

    def __init__(self, s: ModelShape) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(s.vocab, s.hidden)
        self.layers = nn.ModuleList(TransformerBlock(s) for _ in range(s.layers))
        self.norm = RMSNorm(s.hidden, s.eps)


class TinyQwen3(nn.Module):
    """The model. `forward` gives the cross-entropy of each target token, float32 [batch, length]."""

    def __init__(self, shape: ModelShape) -> None:
        super().__init__()
        self.shape = shape
        self.model = Decoder(shape)
        for name, p in self.named_parameters():
            if name.endswith(("o_proj.weight", "down_proj.weight")):
                nn.init.zeros_(p)
            elif p.ndim == 2:
                nn.init.normal_(p, std=0.02 if "embed" in name else p.shape[1] ** -0.5)

    def forward(self, ids: Tensor, targets: Tensor) -> Tensor:
        """ids, targets: int64 [batch, length]."""
        length, half = ids.shape[1], torch.arange(0, self.shape.head_dim, 2)
        angles = torch.arange(length)[:, None] * self.shape.theta ** (-half / self.shape.head_dim)
        cos, sin = (torch.cat((f(angles),) * 2, -1) for f in (torch.cos, torch.sin))
        dtype = torch.bfloat16 if torch.is_autocast_enabled("cpu") else torch.float32
        x = self.model.embed_tokens(ids).to(dtype)
        for layer in self.model.layers:
            x = layer(x, cos.to(dtype), sin.to(dtype))
        logits = F.linear(self.model.norm(x), self.model.embed_tokens.weight).float()
        loss = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        return loss.view_as(targets)


def grow(state: dict[str, Tensor], layers: int, wanted: int) -> dict[str, Tensor]:
    """Deepen a model without changing what it computes.

    Each old layer is followed by copies of itself whose two output projections are zero, so that a new
    layer adds nothing at first and learns what to add (compare gradual stacking, arXiv:1912.05671).

    Args:
        state: parameters of a model of `layers` layers.
        layers: its depth.
        wanted: the new depth, at least `layers`.

    Raises:
        ValueError: if `wanted` is smaller than `layers`.
    """
    if wanted < layers:
        raise ValueError(f"cannot shrink from {layers} to {wanted} layers")
    grown = {k: v for k, v in state.items() if ".layers." not in k}
    previous = -1
    for new in range(wanted):
        old = new * layers // wanted
        prefix = f"model.layers.{old}."
        for key in [k for k in state if k.startswith(prefix)]:
            value = state[key].clone()
            if old == previous and key.endswith(("o_proj.weight", "down_proj.weight")):
                value.zero_()
            grown[f"model.layers.{new}.{key.removeprefix(prefix)}"] = value
        previous = old
    return grown
