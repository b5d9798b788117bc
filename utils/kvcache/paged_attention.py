"""Attention over pages: one query reads keys and values through a block table, block by block.

The blocks of a sequence may lie anywhere in memory. The kernel follows the table and never needs all
scores at once, because softmax can be computed *online*: it keeps the largest score so far, the sum of
exponentials and the weighted sum of values, and scales the two sums whenever a larger score appears.

Source: PagedAttention, arXiv 2309.06180, section 4.1, equation 4. Online softmax: arXiv 1805.02867,
algorithm 3; FlashAttention uses it the same way (arXiv 2205.14135, section 3.1).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def write_pages(pages: Tensor, table: Sequence[int], values: Tensor) -> None:
    """Store one vector for each token in the blocks of a table.

    Args:
        pages: Memory of one layer's keys or values, [blocks, block_size, kv_heads, head_dim]. It is changed.
        table: Physical block of each logical block.
        values: Vectors of the tokens, in order, [tokens, kv_heads, head_dim].

    Raises:
        ValueError: If the table has too few blocks.
    """
    size = pages.shape[1]
    if len(values) > size * len(table):
        raise ValueError(f"{len(values)} tokens don't fit into {len(table)} blocks of {size}.")
    for block, start in zip(table, range(0, len(values), size), strict=False):
        chunk = values[start : start + size]
        pages[block, : len(chunk)] = chunk


def paged_attention(
    query: Tensor, keys: Tensor, values: Tensor, table: Sequence[int], tokens: int
) -> Tensor:
    """Return the attention output of one query over a sequence that is stored in blocks.

    Args:
        query: Query of the newest token, [heads, head_dim].
        keys: Keys of all sequences, [blocks, block_size, kv_heads, head_dim].
        values: Values of all sequences, of the same shape.
        table: Physical block of each logical block of this sequence.
        tokens: Number of tokens of the sequence. Slots beyond them in the last block are ignored.

    Returns:
        Weighted mean of the values, [heads, head_dim]. Query heads share KV heads in groups (GQA).
    """
    heads, width = query.shape
    block_size, kv_heads = keys.shape[1], keys.shape[2]
    grouped = query.view(kv_heads, heads // kv_heads, width) / width**0.5
    largest = query.new_full((kv_heads, heads // kv_heads, 1), -torch.inf)
    total = torch.zeros_like(largest)
    weighted = torch.zeros_like(grouped)
    for logical, physical in enumerate(table):
        filled = min(block_size, tokens - logical * block_size)
        if filled <= 0:
            break
        key, value = keys[physical, :filled], values[physical, :filled]
        scores = torch.einsum("hgd,thd->hgt", grouped, key)
        new_largest = torch.maximum(largest, scores.amax(-1, keepdim=True))
        shrink = torch.exp(largest - new_largest)
        weights = torch.exp(scores - new_largest)
        total = total * shrink + weights.sum(-1, keepdim=True)
        weighted = weighted * shrink + torch.einsum("hgt,thd->hgd", weights, value)
        largest = new_largest
    return (weighted / total).reshape(heads, width)
