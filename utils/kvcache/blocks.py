"""Paged KV memory: blocks with reference counts, block tables, copy-on-write.

PagedAttention (arXiv 2309.06180, sections 4.2 to 4.4) cuts the KV cache into blocks of a few
tokens. A sequence's *block table* maps its logical blocks to physical ones, which need not be
neighbours; two sequences with a common prefix point at the same physical blocks, and a reference
count per block tells how many tables do. A sequence that writes to a shared block copies it first.

In vLLM 0.32 (`v1/core/block_pool.py`) `get_new_blocks` takes from the free queue, `touch` adds a reference,
also to a free block that still has its content, and `free_blocks` drops one. Prefixes are shared in full
blocks only, to which nobody writes, so nothing is copied. `prefix_blocks.py` has such a pool.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from utils.model_sizes import blocks_for


class OutOfBlocks(RuntimeError):
    """No free block is left: the scheduler has to preempt somebody."""


class BlockPool:
    """A fixed set of physical blocks with a free list and reference counts.

    Args:
        num_blocks: Physical blocks, numbered from 0.
        block_size: Tokens per block.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(f"A pool needs blocks and tokens, not {num_blocks} x {block_size}.")
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.free: deque[int] = deque(range(num_blocks))
        self.references = [0] * num_blocks

    def allocate(self) -> int:
        """Take a free block, with one reference.

        Raises:
            OutOfBlocks: All blocks are in use.
        """
        if not self.free:
            raise OutOfBlocks(f"All {self.num_blocks} blocks are in use.")
        block = self.free.popleft()
        assert self.references[block] == 0
        self.references[block] = 1
        return block

    def share(self, block: int) -> None:
        """Add a reference to a block in use. vLLM's `touch` also revives a free one.

        Raises:
            ValueError: The block is free.
        """
        if self.references[block] == 0:
            raise ValueError(f"Block {block} is free: nothing in it to share.")
        self.references[block] += 1

    def release(self, block: int) -> None:
        """Drop a reference; the last one returns the block to the free list.

        Raises:
            ValueError: The block is free already.
        """
        if self.references[block] == 0:
            raise ValueError(f"Block {block} was freed twice.")
        self.references[block] -= 1
        if self.references[block] == 0:
            self.free.append(block)

    @property
    def used(self) -> int:
        """Blocks that somebody holds."""
        return self.num_blocks - len(self.free)

    @property
    def usage(self) -> float:
        """Share of the blocks in use, 0 to 1, as ``vllm:kv_cache_usage_perc``."""
        return self.used / self.num_blocks


@dataclass
class BlockTable:
    """The blocks of one sequence, in order.

    Attributes:
        pool: Pool of the blocks.
        blocks: Physical block of each logical block.
        num_tokens: Tokens stored; the last block may be partly filled.
    """

    pool: BlockPool
    blocks: list[int] = field(default_factory=list)
    num_tokens: int = 0

    def blocks_to_grow(self, tokens: int) -> int:
        """Free blocks that :meth:`grow` by ``tokens`` would take, a copy included."""
        if tokens == 0:
            return 0
        new = blocks_for(self.num_tokens + tokens, self.pool.block_size) - len(self.blocks)
        return new + self._writes_to_shared_block()

    def grow(self, tokens: int = 1) -> tuple[int, int] | None:
        """Make room for ``tokens`` more tokens.

        All or nothing: where blocks run out, the table stays as it was.

        Args:
            tokens: Number of tokens.

        Returns:
            ``(source, copy)`` if the last block was shared and had to be copied before writing;
            the caller copies the contents. ``None`` otherwise.

        Raises:
            OutOfBlocks: Too few free blocks.
        """
        needed = self.blocks_to_grow(tokens)
        if needed > len(self.pool.free):
            raise OutOfBlocks(f"{needed} blocks needed, {len(self.pool.free)} free.")
        copied = None
        if tokens and self._writes_to_shared_block():
            source, copy = self.blocks[-1], self.pool.allocate()
            self.blocks[-1] = copy
            self.pool.release(source)
            copied = (source, copy)
            needed -= 1
        self.blocks += [self.pool.allocate() for _ in range(needed)]
        self.num_tokens += tokens
        return copied

    def fork(self) -> BlockTable:
        """Return a second sequence with the same tokens: shares every block, copies none."""
        for block in self.blocks:
            self.pool.share(block)
        return BlockTable(self.pool, list(self.blocks), self.num_tokens)

    def release(self) -> None:
        """Give all blocks back, the last first, as vLLM does: prefixes live longest."""
        for block in reversed(self.blocks):
            self.pool.release(block)
        self.blocks, self.num_tokens = [], 0

    def slot(self, position: int) -> tuple[int, int]:
        """Return a token's place: `(physical block, offset in it)`."""
        if not 0 <= position < self.num_tokens:
            raise IndexError(f"Token {position} of {self.num_tokens}.")
        return self.blocks[position // self.pool.block_size], position % self.pool.block_size

    def _writes_to_shared_block(self) -> bool:
        partly_filled = self.num_tokens % self.pool.block_size != 0
        return partly_filled and self.pool.references[self.blocks[-1]] > 1


class PagedStore:
    """A KV cache that holds one integer per token, so that sharing and copying can be seen.

    Args:
        pool: The blocks; the store keeps an int64 array ``[num_blocks, block_size]``.
    """

    def __init__(self, pool: BlockPool) -> None:
        self.pool = pool
        self.cells: NDArray[np.int64] = np.full((pool.num_blocks, pool.block_size), -1)

    def append(self, table: BlockTable, tokens: Sequence[int]) -> None:
        """Write tokens at the end of a sequence, copying a shared block first."""
        start = table.num_tokens
        copied = table.grow(len(tokens))
        if copied:
            source, copy = copied
            self.cells[copy] = self.cells[source]
        for position, token in enumerate(tokens, start):
            self.cells[table.slot(position)] = token

    def read(self, table: BlockTable) -> list[int]:
        """Return the tokens of a sequence, gathered through its block table."""
        return [int(self.cells[table.slot(i)]) for i in range(table.num_tokens)]
