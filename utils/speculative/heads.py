"""The drafters' networks: Medusa's heads, and EAGLE's one-layer models, and their training passes."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.speculative.target import DecoderLayer, TargetShape, rms_norm


class MedusaHeads(nn.Module):
    """K heads on the target's last hidden state; head k guesses the token k + 2 positions on.

    Head k: h + SiLU(W h + b), `layers` times, then a language-model head of its own (Medusa, section 2.1.1).
    The target's own head guesses the next token; head 0 guesses the one after that.

    Args:
        heads: Number of heads.
        hidden: Width of a hidden state.
        vocab: Tokens.
        layers: Residual blocks of a head.
    """

    def __init__(self, heads: int, hidden: int, vocab: int, layers: int = 1) -> None:
        super().__init__()
        self.count, self.layers = heads, layers
        self.blocks = nn.Parameter(torch.zeros(layers, heads, hidden, hidden))  # [.., in, out]
        self.biases = nn.Parameter(torch.zeros(layers, heads, 1, hidden))
        self.lm_heads = nn.Parameter(torch.zeros(heads, hidden, vocab))

    @torch.no_grad()
    def start_from(self, head: Tensor) -> None:
        """Begin as the target's own head [vocab, hidden]: the blocks add nothing at first."""
        self.lm_heads.copy_(head.t().expand_as(self.lm_heads))

    def forward(self, hidden: Tensor) -> Tensor:
        """Logits of all heads; hidden: [n, hidden] to [heads, n, vocab]."""
        x = hidden.expand(self.count, -1, -1)
        for weight, bias in zip(self.blocks, self.biases, strict=True):
            x = x + F.silu(torch.baddbmm(bias, x, weight))
        return torch.bmm(x, self.lm_heads)


@dataclass(frozen=True)
class EagleShape:
    """Settings of an EAGLE draft.

    Attributes:
        layer: Sizes of its one decoder layer; `vocab` is the target's.
        draft_vocab: Tokens it can guess.
        aux_layers: Hidden states of the target that it fuses (EAGLE-3); empty for EAGLE-1.
    """

    layer: TargetShape
    draft_vocab: int
    aux_layers: tuple[int, ...]


def default_aux_layers(layers: int) -> tuple[int, int, int]:
    """EAGLE-3's low, middle and high hidden state of a target with so many layers."""
    return 2, layers // 2, layers - 3


class Eagle3Draft(nn.Module):
    """EAGLE-3: one decoder layer over a token's embedding and a fused feature of the target.

    Position i reads the embedding of token i + 1 and g_i = fc([low; middle; high hidden state of token i]),
    and guesses token i + 2 from its output a_i; drafting on, a_i takes the place of g_(i+1) (EAGLE-3,
    section 3.1). It guesses among `draft_vocab` frequent tokens; `d2t` maps them to the target's.

    Args:
        shape: Sizes.
    """

    d2t: Tensor

    def __init__(self, shape: EagleShape) -> None:
        super().__init__()
        layer = shape.layer
        self.shape = shape
        self.fc = nn.Linear(len(shape.aux_layers) * layer.hidden, layer.hidden, bias=False)
        self.layer = DecoderLayer(layer, 2 * layer.hidden)
        self.feature_norm = nn.Parameter(torch.ones(layer.hidden))
        self.norm = nn.Parameter(torch.ones(layer.hidden))
        self.lm_head = nn.Linear(layer.hidden, shape.draft_vocab, bias=False)
        self.register_buffer("d2t", torch.arange(shape.draft_vocab))

    def fuse(self, features: Tensor) -> Tensor:
        """Fused g of the target's features [..., aux x hidden]: [..., hidden]."""
        fused: Tensor = self.fc(features)
        return fused

    def inputs(self, embedded: Tensor, feature: Tensor) -> Tensor:
        """Return the input of queries, keys and values, [..., 2 x hidden]."""
        eps = self.shape.layer.eps
        return torch.cat(
            (
                rms_norm(embedded, self.layer.input_norm, eps),
                rms_norm(feature, self.feature_norm, eps),
            ),
            -1,
        )

    def residual(self, embedded: Tensor, feature: Tensor) -> Tensor:
        """Return the value to which the layer adds its output: the feature, before its norm."""
        return feature

    def logits(self, output: Tensor) -> Tensor:
        """Over the draft vocabulary, of the layer's output [..., hidden]."""
        logits: Tensor = self.lm_head(rms_norm(output, self.norm, self.shape.layer.eps))
        return logits


class Eagle1Draft(nn.Module):
    """EAGLE-1: regresses the target's next feature, and reads it with the target's own head.

    x_i = fc([embedding of token i + 1; last hidden state of token i]) goes through one decoder layer without
    an input norm; its output is the guess at the hidden state of token i + 1 (EAGLE, section 4.1).

    Args:
        shape: Sizes; `draft_vocab` is the target's vocabulary, `aux_layers` is empty.
        head: The target's language-model head [vocab, hidden]; not trained, not saved.
    """

    d2t: Tensor
    head: Tensor

    def __init__(self, shape: EagleShape, head: Tensor) -> None:
        super().__init__()
        self.shape = shape
        self.fc = nn.Linear(2 * shape.layer.hidden, shape.layer.hidden)
        self.layer = DecoderLayer(shape.layer)
        del self.layer.input_norm
        self.register_buffer("head", head, persistent=False)
        self.register_buffer("d2t", torch.arange(shape.layer.vocab), persistent=False)

    def fuse(self, features: Tensor) -> Tensor:
        """Return the feature itself."""
        return features

    def inputs(self, embedded: Tensor, feature: Tensor) -> Tensor:
        """Both through fc: [..., hidden]."""
        mixed: Tensor = self.fc(torch.cat((embedded, feature), -1))
        return mixed

    def residual(self, embedded: Tensor, feature: Tensor) -> Tensor:
        """Return the same: there is no norm in between."""
        return self.inputs(embedded, feature)

    def logits(self, output: Tensor) -> Tensor:
        """Over the whole vocabulary, of a guessed feature [..., hidden]."""
        return F.linear(output, self.head)


Eagle = Eagle3Draft | Eagle1Draft


def unroll(
    eagle: Eagle,
    embed: Tensor,
    tables: tuple[Tensor, Tensor],
    ids: Tensor,
    features: Tensor,
    steps: int,
) -> list[Tensor]:
    """Training-time test: the layer's outputs when it drafts `steps` tokens on from every position at once.

    Step s reads the output of step s - 1 in place of a feature of the target, as in decoding. Its query at
    position i sees the keys of step 0 up to i, which came from the target, and of steps 1 to s only its own
    chain's: the diagonal (EAGLE-3, section 3.2, figure 6).

    Args:
        eagle: The draft.
        embed: Embeddings of the target [vocab, hidden].
        tables: Tables of `Rotary.at` for positions 0 to length + steps, [1, positions, 1, head_dim].
        ids: Tokens [batch, length].
        features: Features of the target at the same tokens, [batch, length, k x hidden].
        steps: How many; 1 is training without it.

    Returns:
        Per step the outputs [batch, length - 1 - s, hidden] of step s: row i guesses token i + 2 + s.
    """
    shape = eagle.shape.layer
    count = ids.shape[1] - 1
    feature = eagle.fuse(features[:, :count])
    keys: list[Tensor] = []
    values: list[Tensor] = []
    outputs = []
    for step in range(steps):
        rows = count - step
        if rows < 1:
            break
        feature = feature[:, :rows]
        embedded = F.embedding(ids[:, 1 + step : 1 + step + rows], embed)
        table = (tables[0][:, step : step + rows], tables[1][:, step : step + rows])
        q, k, v = eagle.layer.project(eagle.inputs(embedded, feature), table)
        keys.append(k.repeat_interleave(shape.group, 1))
        values.append(v.repeat_interleave(shape.group, 1))
        attended = _attend(q.transpose(1, 2), keys, values).transpose(1, 2).flatten(2)
        output = eagle.layer.finish(eagle.residual(embedded, feature), attended)
        outputs.append(output)
        feature = output
    return outputs


def _attend(q: Tensor, keys: list[Tensor], values: list[Tensor]) -> Tensor:
    """Queries [batch, heads, rows, d] over the keys of step 0 causally, over later ones on the diagonal."""
    if len(keys) == 1:
        return F.scaled_dot_product_attention(q, keys[0], values[0], is_causal=True)
    rows, scale = q.shape[2], q.shape[3] ** -0.5
    first = (q @ keys[0][:, :, :rows].transpose(2, 3)) * scale
    hidden = torch.ones(rows, rows, dtype=torch.bool, device=q.device).triu(1)
    first = first.masked_fill(hidden, float("-inf"))
    later = [(q * k[:, :, :rows]).sum(-1, keepdim=True) * scale for k in keys[1:]]
    weights = torch.softmax(torch.cat((first, *later), -1), -1)
    out = weights[..., :rows] @ values[0][:, :, :rows]
    for i, value in enumerate(values[1:]):
        out = out + weights[..., rows + i : rows + i + 1] * value[:, :, :rows]
    return out
