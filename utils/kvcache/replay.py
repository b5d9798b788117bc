"""Replay of requests through a radix tree instead of an engine: hit rates and orders of service.

All results are derived from the tree and the prompts, without an engine or a clock.
"""

from __future__ import annotations

import itertools
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from utils.kvcache.radix import RadixCache, Tokens

# From the waiting requests' cached tokens and the number of requests served before each: whom to serve.
Choose = Callable[[list[int], list[int]], int]
_fresh = itertools.count(1)


def serve_in_order(
    prompts: Iterable[Tokens], cache: RadixCache, output_tokens: int = 2
) -> list[int]:
    """Serve prompts one after the other, in their order.

    Args:
        prompts: Prompts in order of arrival.
        cache: Cache that holds the prefixes. It also stores prompts and answers.
        output_tokens: Tokens of each answer.

    Returns:
        Cached tokens of each prompt.
    """
    return [_serve(prompt, cache, output_tokens) for prompt in prompts]


def _serve(prompt: Tokens, cache: RadixCache, output_tokens: int) -> int:
    """Look a prompt up, then store prompt and answer. Return the prompt's cached tokens.

    The model's answer isn't known here, so it is stored as tokens that no other request has. An engine
    keeps no key and value of the last token that it writes.
    """
    cached = cache.match(prompt)
    cache.insert(prompt + [-next(_fresh) for _ in range(output_tokens - 1)])
    return cached


def hit_rate(cached: Iterable[int], prompts: Iterable[Tokens]) -> float:
    """Return cached prompt tokens over all prompt tokens, 0 to 1."""
    return sum(cached) / sum(map(len, prompts))


def first_come(cached: list[int], passed_over: list[int]) -> int:
    """Pick the request that came first."""
    return 0


def longest_prefix(cached: list[int], passed_over: list[int]) -> int:
    """Pick the request with the longest cached prefix.

    Args:
        cached: Cached tokens at the start of each waiting request's prompt.
        passed_over: Number of later requests served before each of these.

    Returns:
        Index of the request to serve next. Ties go to the earliest request.
    """
    return cached.index(max(cached))


@dataclass(frozen=True)
class DrainedQueue:
    """Result of serving a whole queue.

    Attributes:
        order: Positions of the requests in the queue, in the order of service.
        hit_rate: Cached prompt tokens over all prompt tokens, 0 to 1.
        worst_wait: Largest number of later requests that were served before one request.
    """

    order: tuple[int, ...]
    hit_rate: float
    worst_wait: int


def drain_queue(
    prompts: Sequence[Tokens], cache: RadixCache, choose: Choose, output_tokens: int = 2
) -> DrainedQueue:
    """Serve a queue of prompts one after the other, in the order that a rule chooses.

    Args:
        prompts: Prompts in order of arrival.
        cache: Cache that holds the prefixes. It also stores prompts and answers.
        choose: Rule that is called before each request. It gets the cached tokens of the waiting
            requests and the number of later requests served before each, both in order of arrival. It
            returns the position of the next request.
        output_tokens: Tokens of each answer.

    Raises:
        ValueError: If `choose` returns no position in the queue.
    """
    waiting = list(range(len(prompts)))
    passed = [0] * len(prompts)
    order, cached = [], []
    while waiting:
        position = choose([cache.match(prompts[i]) for i in waiting], [passed[i] for i in waiting])
        if not hasattr(position, "__index__") or not 0 <= position < len(waiting):
            raise ValueError(f"{position!r} isn't a position in a queue of {len(waiting)}")
        position = operator.index(position)
        for overtaken in waiting[:position]:
            passed[overtaken] += 1
        index = waiting.pop(position)
        order.append(index)
        cached.append(_serve(prompts[index], cache, output_tokens))
    return DrainedQueue(tuple(order), hit_rate(cached, prompts), max(passed, default=0))
