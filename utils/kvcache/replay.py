"""Requests played through a radix tree in place of an engine: hit rates, and who is served when.

Everything here is derived from the tree and the prompts: no engine, no clock.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from utils.kvcache.radix import RadixCache, Tokens

# Of the waiting requests: tokens each would find cached, and how often each has been passed over.
Choose = Callable[[list[int], list[int]], int]
_fresh = itertools.count(1)


def serve(cache: RadixCache, prompt: Tokens, output_tokens: int) -> int:
    """Plays one request, alone: looks its prompt up, then stores prompt and answer.

    What the model will answer is not known here, so the answer is stored as tokens that nobody else has.
    An engine keeps no key and value of the last token that it writes.

    Returns:
        Prompt tokens that were cached.
    """
    cached = cache.match(prompt)
    cache.insert(prompt + [-next(_fresh) for _ in range(output_tokens - 1)])
    return cached


def hit_rate(cached: Iterable[int], prompts: Iterable[Tokens]) -> float:
    """Cached prompt tokens over all prompt tokens, 0 to 1."""
    return sum(cached) / sum(map(len, prompts))


def first_come(cached: list[int], passed_over: list[int]) -> int:
    """First come, first served."""
    return 0


def longest_prefix(cached: list[int], passed_over: list[int]) -> int:
    """Whoever finds most of its prompt in the cache; the first of equals."""
    return cached.index(max(cached))


@dataclass(frozen=True)
class Served:
    """A queue that was worked off.

    Attributes:
        order: Positions of the requests in the queue, as they were served.
        hit_rate: Of all prompt tokens, 0 to 1.
        worst_wait: Requests that came later and were served before, at worst.
    """

    order: tuple[int, ...]
    hit_rate: float
    worst_wait: int


def work_off(
    prompts: Sequence[Tokens], cache: RadixCache, choose: Choose, output_tokens: int = 2
) -> Served:
    """Serves a queue of prompts one after the other.

    Args:
        prompts: First come first.
        cache: Where prefixes are found.
        choose: Called before each request with what the waiting, first come first, would find cached,
            and how often each was passed over by one that came later; returns the position of the next.
        output_tokens: Tokens of each answer.

    Raises:
        ValueError: `choose` returned no position in the queue.
    """
    waiting = list(range(len(prompts)))
    passed = [0] * len(prompts)
    order, cached = [], []
    while waiting:
        position = choose([cache.match(prompts[i]) for i in waiting], [passed[i] for i in waiting])
        if not hasattr(position, "__index__") or not 0 <= position < len(waiting):
            raise ValueError(f"{position!r} is no position in a queue of {len(waiting)}")
        position = operator.index(position)
        for overtaken in waiting[:position]:
            passed[overtaken] += 1
        index = waiting.pop(position)
        order.append(index)
        cached.append(serve(cache, prompts[index], output_tokens))
    return Served(tuple(order), hit_rate(cached, prompts), max(passed, default=0))
