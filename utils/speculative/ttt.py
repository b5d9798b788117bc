"""The view of a draft that is trained as it is used: the attention of training-time test as one mask."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.speculative.heads import _attend


def ttt_mask(rows: int, step: int) -> list[list[bool]]:
    """Which keys each query of a step of training-time test sees (EAGLE-3, section 3.2, figure 6).

    Step 0 read the target's features; every later step reads the output of the step before it. The keys of
    steps 0 to `step` lie side by side, `rows` of each. Row i sees those of step 0 up to i, and of each later
    step only its own chain's, number i.

    Args:
        rows: Queries, and keys of each step.
        step: Step of the queries, from 0 on.

    Returns:
        [rows][rows x (step + 1)], true for a key that is seen.
    """
    return [
        [key <= row if of == 0 else key == row for of in range(step + 1) for key in range(rows)]
        for row in range(rows)
    ]


def attend_masked(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], mask: Sequence[Sequence[bool]]
) -> Tensor:
    """Attention of one step under a mask, written plainly; `heads.unroll` computes the same in less time.

    Args:
        q: [batch, heads, rows, head_dim].
        keys: Per step [batch, heads, at least rows, head_dim]; entries after `rows` are not used.
        values: Same shapes as the keys.
        mask: Mask of `ttt_mask`.

    Returns:
        [batch, heads, rows, head_dim].
    """
    rows = q.shape[2]
    all_keys = torch.cat([k[:, :, :rows] for k in keys], 2)
    all_values = torch.cat([v[:, :, :rows] for v in values], 2)
    return F.scaled_dot_product_attention(q, all_keys, all_values, attn_mask=torch.tensor(mask))


def attention_gap(mask_of: Callable[[int, int], list[list[bool]]], rows: int, step: int) -> float:
    """Greatest difference between attention under a mask and `heads.unroll`, on random values.

    Args:
        mask_of: Mask of rows and step, such as `ttt_mask`.
        rows: Queries.
        step: Step of the queries.
    """
    generator = torch.Generator().manual_seed(rows + step)

    def drawn() -> Tensor:
        return torch.randn(2, 3, rows, 8, generator=generator)

    q, keys, values = (
        drawn(),
        [drawn() for _ in range(step + 1)],
        [drawn() for _ in range(step + 1)],
    )
    actual = attend_masked(q, keys, values, mask_of(rows, step))
    return float((actual - _attend(q, keys, values)).abs().max())
