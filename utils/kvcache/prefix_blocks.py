"""Block pool of vLLM v1: full blocks stay findable by a chained hash until they are given out again.

Nothing is copied when requests share a prefix. A full block is never written to again, so a later request
with the same tokens points its block table at it. A block that nobody holds any more joins the end of the
free queue with its content. It comes back to life if its tokens are asked for in time, and it is
forgotten once it is the first of the queue and another request needs a block.

Source: vLLM 0.32, `BlockPool` in `v1/core/block_pool.py`, `hash_block_tokens` in `v1/core/kv_cache_utils.py`,
and `KVCacheManager.get_computed_blocks` in `v1/core/kv_cache_manager.py`.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Sequence
from hashlib import sha256

from utils.kvcache.blocks import OutOfBlocks
from utils.model_sizes import blocks_for


def chained_hashes(tokens: Sequence[int], block_size: int) -> list[bytes]:
    """Return one hash for each full block of a text.

    A block's hash covers the hash of the block before it. Therefore equal hashes mean that all tokens up
    to the end of the block are equal, and not only those inside it.

    Args:
        tokens: Token ids.
        block_size: Tokens of a block.

    Returns:
        Hashes of the `len(tokens) // block_size` full blocks, in order.
    """
    found: list[bytes] = []
    parent = b""
    for start in range(0, len(tokens) - block_size + 1, block_size):
        content = array("q", tokens[start : start + block_size]).tobytes()
        parent = sha256(parent + content).digest()
        found.append(parent)
    return found


class PrefixBlockPool:
    """Physical blocks whose contents outlive their requests.

    Args:
        num_blocks: Number of blocks for tokens. vLLM has one more, its placeholder.
        block_size: Tokens of a block.

    Attributes:
        free: Blocks that nobody holds, in the order in which they are given out.
        references: Number of requests that hold each block.
        hashes: Hash of each block's content, or None if the content can't be found.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        if num_blocks < 1 or block_size < 1:
            raise ValueError(
                f"A pool needs blocks and tokens, but got {num_blocks} x {block_size}."
            )
        self.block_size = block_size
        self.free: OrderedDict[int, None] = OrderedDict.fromkeys(range(num_blocks))
        self.references = [0] * num_blocks
        self.hashes: list[bytes | None] = [None] * num_blocks
        self._found_by: dict[bytes, dict[int, None]] = {}  # blocks with equal content, oldest first

    def match(self, prompt: Sequence[int]) -> list[int]:
        """Return the blocks that hold the beginning of a prompt, in order.

        The prompt's last token never counts, because its hidden state is needed for the first answer token.
        """
        blocks = []
        for key in chained_hashes(prompt[:-1], self.block_size):
            if key not in self._found_by:
                break
            blocks.append(next(iter(self._found_by[key])))
        return blocks

    def touch(self, blocks: Sequence[int]) -> None:
        """Add a reference to each of these blocks. A free one leaves the queue with its content."""
        for block in blocks:
            if not self.references[block]:
                del self.free[block]
            self.references[block] += 1

    def take(self, count: int) -> list[int]:
        """Take the first blocks of the free queue, and forget their contents.

        Raises:
            OutOfBlocks: If fewer are free. Then nothing is taken.
        """
        if count > len(self.free):
            raise OutOfBlocks(f"{count} blocks were asked for, but only {len(self.free)} are free.")
        blocks = [self.free.popitem(last=False)[0] for _ in range(count)]
        for block in blocks:
            self.references[block] = 1
            key, self.hashes[block] = self.hashes[block], None
            if key is not None:
                del self._found_by[key][block]
                if not self._found_by[key]:
                    del self._found_by[key]
        return blocks

    def store(self, blocks: Sequence[int], tokens: Sequence[int]) -> None:
        """Let the full blocks of a request be found.

        Args:
            blocks: Block table of the request.
            tokens: Tokens whose keys and values are in these blocks.
        """
        for block, key in zip(blocks, chained_hashes(tokens, self.block_size), strict=False):
            if self.hashes[block] is None:
                self.hashes[block] = key
                self._found_by.setdefault(key, {})[block] = None

    def release(self, blocks: Sequence[int]) -> None:
        """Drop a request's references. Blocks that nobody holds then become free.

        The end of a text is worth less than its beginning, so the last blocks are the first to be given out
        again. Blocks without a hash go to the front of the queue, because nobody can find their contents.

        Args:
            blocks: Block table of the request.
        """
        unfindable = []
        for block in reversed(blocks):
            self.references[block] -= 1
            if self.references[block]:
                continue
            if self.hashes[block] is None:
                unfindable.append(block)
            else:
                self.free[block] = None
        for block in reversed(unfindable):
            self.free[block] = None
            self.free.move_to_end(block, last=False)


def serve_alone(pool: PrefixBlockPool, prompt: Sequence[int], answer: Sequence[int]) -> int:
    """Serve one request while no other runs, and leave its blocks in the free queue.

    Args:
        pool: Pool, changed in place.
        prompt: Token ids of the prompt.
        answer: Token ids of the answer. The last one is never fed back, so it has no keys and values.

    Returns:
        Prompt tokens that weren't computed, because they were found (`cached_tokens` in `usage`).

    Raises:
        OutOfBlocks: If the request is longer than the pool. Then the pool stays as it was.
    """
    computed = [*prompt, *answer[:-1]]
    blocks = pool.match(prompt)
    cached = len(blocks) * pool.block_size
    if blocks_for(len(computed), pool.block_size) > len(pool.references):
        raise OutOfBlocks(f"{len(computed)} tokens don't fit into {len(pool.references)} blocks.")
    pool.touch(blocks)
    blocks += pool.take(blocks_for(len(computed), pool.block_size) - len(blocks))
    pool.store(blocks, computed)
    pool.release(blocks)
    return cached
