"""Our radix tree beside SGLang's own, on the same trace: `make bench-radix`.

Runs in SGLang's environment (`make setup STEP=sglang`), since SGLang's tree needs torch. Both trees store
no KV cache: SGLang's is made with `RadixCache.create_simulated`, its own way of running without one.

Where the pool is limited a few matches differ: SGLang counts both halves of a node that a match ends in as
just used, ours only the half that was matched.
"""

from __future__ import annotations

import platform
import random
import statistics
import time
from array import array
from collections.abc import Callable

import sglang
from sglang.srt.mem_cache.base_prefix_cache import EvictParams, InsertParams, MatchPrefixParams
from sglang.srt.mem_cache.radix_cache import RadixCache as SglangCache
from sglang.srt.mem_cache.radix_cache import RadixKey

from utils.kvcache.radix import RadixCache, Tokens, match_prefix

TOKENS = 1_000_000
CAPACITY = 50_000
REPEATS = 5


class NoPool:
    """What SGLang's tree asks of a KV pool when it evicts."""

    device = "cpu"

    def free_segment(self, *arguments: object, **options: object) -> None:
        """Nothing is held, so nothing is freed."""


def trace(seed: int) -> list[Tokens]:
    """Prompts of a few long prefixes with their own endings, `TOKENS` tokens of them."""
    rng = random.Random(seed)
    shared = [[rng.randrange(32_000) for _ in range(600)] for _ in range(40)]
    prompts: list[Tokens] = []
    while sum(map(len, prompts)) < TOKENS:
        own = [rng.randrange(32_000) for _ in range(rng.randint(50, 400))]
        prompts.append(rng.choice(shared) + own)
    return prompts


def ours(prompts: list[Tokens], capacity: int | None, page_size: int) -> list[int]:
    cache = RadixCache(capacity, page_size)
    found = []
    for prompt in prompts:
        found.append(match_prefix(cache.root, prompt, page_size))
        cache.insert(prompt)
    return found


def theirs(prompts: list[Tokens], capacity: int | None, page_size: int) -> list[int]:
    cache = SglangCache.create_simulated(page_size=page_size, mock_allocator=NoPool())
    found = []
    for prompt in prompts:
        key = RadixKey(array("q", prompt))
        match = cache.match_prefix(MatchPrefixParams(key=key))
        known = match.device_prefix_len
        found.append(known)
        new = len(prompt) // page_size * page_size - known
        excess = 0 if capacity is None else cache.evictable_size() + new - capacity
        if excess > 0:
            cache.inc_lock_ref(match.last_device_node)
            cache.evict(EvictParams(num_tokens=excess))
            cache.dec_lock_ref(match.last_device_node)
        cache.insert(InsertParams(key=key))
    return found


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    prompts = trace(0)
    tokens = sum(map(len, prompts))
    print(
        f"SGLang {sglang.__version__}, Python {platform.python_version()}, {len(prompts)} prompts, "
        f"{tokens} tokens; {REPEATS} repeats, the two in turn"
    )
    for capacity, page_size in ((None, 1), (CAPACITY, 1), (None, 16), (CAPACITY, 16)):
        mine, sglangs = ours(prompts, capacity, page_size), theirs(prompts, capacity, page_size)
        same = sum(a == b for a, b in zip(mine, sglangs, strict=True)) / len(prompts)
        times: dict[str, list[float]] = {"ours": [], "SGLang's": []}
        for _ in range(REPEATS):
            times["ours"].append(seconds(lambda: ours(prompts, capacity, page_size)))  # noqa: B023
            times["SGLang's"].append(seconds(lambda: theirs(prompts, capacity, page_size)))  # noqa: B023
        fast, slow = (statistics.median(found) for found in times.values())
        print(
            f"pool {capacity or 'unlimited':>9}, pages of {page_size:2}: ours {fast:.3f} s, SGLang's "
            f"{slow:.3f} s, ratio {slow / fast:.1f}; same matches: {same:.1%}, hit rate "
            f"{sum(mine) / tokens:.1%}"
        )


if __name__ == "__main__":
    main()
