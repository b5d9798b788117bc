"""A radix tree over token sequences: how SGLang finds the longest prefix that is still in its KV cache.

RadixAttention (arXiv 2312.07104, section 3) keeps the KV cache of finished requests and indexes it by
their tokens. Every edge carries a run of tokens, children differ in their first page, and a path from
the root spells a prefix. A request *locks* its path while it runs; when memory is short, leaves that
nobody locks are evicted, the least recently used first.

Follows SGLang 0.5.23 (``srt/mem_cache/radix_cache.py``: ``_match_prefix_helper``, ``_insert_helper``,
``_split_node``, ``inc_lock_ref``, ``evict``). Left out: the slots of the KV pool that each node's
tokens lie in, namespaces, other eviction policies, and the host's memory.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

Tokens = list[int]


@dataclass(eq=False)
class Node:
    """Run of tokens that is cached after its parent's.

    Attributes:
        key: The tokens, whole pages of them; empty at the root only.
        parent: The node whose tokens come before; None at the root.
        children: Nodes that follow, by their first page.
        lock_ref: Requests in flight that use these tokens; above 0 they may not be evicted.
        last_used: Time of the last request that passed here, on any clock that does not go back.
    """

    key: Tokens
    parent: Node | None = None
    children: dict[tuple[int, ...], Node] = field(default_factory=dict)
    lock_ref: int = 0
    last_used: int = 0

    def __repr__(self) -> str:
        return f"<{len(self.key)} tokens, {len(self.children)} children, lock_ref {self.lock_ref}>"


def walk(node: Node) -> Iterator[Node]:
    """Return the node and all below it, parents before children."""
    stack = [node]
    while stack:
        node = stack.pop()
        yield node
        stack.extend(node.children.values())


def shared_length(key: Tokens, tokens: Tokens, start: int = 0, page_size: int = 1) -> int:
    """Tokens that ``key`` and ``tokens[start:]`` have in common at their beginning, in whole pages.

    A binary search over slices, each compared in C: O(length).
    """
    low, high = 0, min(len(key), len(tokens) - start)
    if key[:high] != tokens[start : start + high]:
        while high - low > 1:  # the first `low` tokens agree, the first `high` do not
            middle = (low + high) // 2
            if key[low:middle] == tokens[start + low : start + middle]:
                low = middle
            else:
                high = middle
        high = low
    return high // page_size * page_size


def match_prefix(root: Node, tokens: Tokens, page_size: int = 1) -> int:
    """Length of the longest prefix of ``tokens`` that the tree holds, in whole pages of tokens."""
    node, matched = root, 0
    while child := node.children.get(tuple(tokens[matched : matched + page_size])):
        length = shared_length(child.key, tokens, matched, page_size)
        matched += length
        if length < len(child.key):
            break
        node = child
    return matched


def split(node: Node, length: int, page_size: int = 1) -> Node:
    """Cut a node in two after `length` tokens, and return the new upper half, its parent now."""
    assert node.parent is not None
    upper = Node(node.key[:length], node.parent, {}, node.lock_ref, node.last_used)
    node.parent.children[tuple(node.key[:page_size])] = upper
    node.key, node.parent = node.key[length:], upper
    upper.children[tuple(node.key[:page_size])] = node
    return upper


def insert(root: Node, tokens: Tokens, page_size: int = 1, now: int = 0) -> Node:
    """Store the whole pages of ``tokens``; every node on their path was last used ``now``.

    Returns:
        The node that they end with; the root if there is no whole page.
    """
    node, done = root, 0
    end = len(tokens) // page_size * page_size
    root.last_used = now
    while done < end:
        page = tuple(tokens[done : done + page_size])
        child = node.children.get(page)
        if child is None:
            child = node.children[page] = Node(tokens[done:end], node)
        else:
            length = shared_length(child.key, tokens, done, page_size)
            if length < len(child.key):
                child = split(child, length, page_size)
        child.last_used = now
        done += len(child.key)
        node = child
    return node


def lock(node: Node, change: int = 1) -> None:
    """Add ``change`` (1, or -1 to unlock) to the locks of a node and all above it but the root."""
    while node.parent is not None:
        node.lock_ref += change
        assert node.lock_ref >= 0, "unlocked more often than locked"
        node = node.parent


def evict(root: Node, num_tokens: int) -> int:
    """Remove unlocked leaves, the least recently used first, until ``num_tokens`` are gone.

    Returns:
        Tokens removed: fewer where everything left is locked, more where the last leaf was longer.
    """
    order = itertools.count()  # decides between leaves of the same age

    def candidate(node: Node) -> tuple[int, int, Node]:
        return node.last_used, next(order), node

    heap = [candidate(n) for n in walk(root) if n.parent and not n.children and not n.lock_ref]
    heapq.heapify(heap)
    removed = 0
    while heap and removed < num_tokens:
        *_, leaf = heapq.heappop(heap)
        parent = leaf.parent
        assert parent is not None
        page = next(page for page, child in parent.children.items() if child is leaf)
        del parent.children[page]
        removed += len(leaf.key)
        if parent.parent is not None and not parent.children and not parent.lock_ref:
            heapq.heappush(heap, candidate(parent))
    return removed


class RadixCache:
    """A radix tree in a KV pool of limited size, for requests that are served one after the other.

    Args:
        capacity: Tokens that the pool holds; None for no limit.
        page_size: Tokens per page; a prefix is shared in whole pages.
    """

    _match = staticmethod(match_prefix)
    _insert = staticmethod(insert)
    _evict = staticmethod(evict)

    def __init__(self, capacity: int | None = None, page_size: int = 1) -> None:
        self.capacity = capacity
        self.page_size = page_size
        self.root = Node([])
        self.size = 0
        self._clock = 0

    def match(self, tokens: Tokens) -> int:
        """Tokens of a prompt that need not be computed; its last one always is, to get an answer."""
        return self._match(self.root, tokens[:-1], self.page_size)

    def insert(self, tokens: Tokens) -> Node:
        """Store a sequence, and evict others first if the pool has no room for it.

        Raises:
            ValueError: The sequence alone is longer than the pool.
        """
        end = len(tokens) // self.page_size * self.page_size
        self._clock += 1
        known = self._match(self.root, tokens, self.page_size)
        if self.capacity is not None and self.size + end - known > self.capacity:
            if end > self.capacity:
                raise ValueError(f"{end} tokens do not fit a pool of {self.capacity}.")
            held = self._insert(self.root, tokens[:known], self.page_size, self._clock)
            lock(held)
            removed = self._evict(self.root, self.size + end - known - self.capacity)
            lock(held, -1)
            self.size -= removed
        self.size += end - known
        return self._insert(self.root, tokens, self.page_size, self._clock)


def cache_with(
    match: Callable[..., int], store: Callable[..., Node], drop: Callable[..., int]
) -> type[RadixCache]:
    """Return a :class:`RadixCache` on other functions than those of this module, a learner's for instance."""

    class OwnCache(RadixCache):
        _match = staticmethod(match)
        _insert = staticmethod(store)
        _evict = staticmethod(drop)

    return OwnCache
