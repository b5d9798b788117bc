"""Requests that wait for a backend, one queue per key, served by deficit round robin.

Source: M. Shreedhar, G. Varghese, "Efficient Fair Queueing Using Deficit Round Robin" (SIGCOMM 1995). Their
queues hold packets, and a packet costs its bytes. Ours hold requests, and a request costs its tokens.
"""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

Wish = tuple[
    str | None, frozenset[str]
]  # an engine, or None for any, and backends that have failed
QUANTUM = 256.0  # tokens that a key earns in each round
_DEAREST = 16  # quanta; an estimate is uncertain, so no request waits for more rounds than this


@dataclass(frozen=True)
class Share:
    """A key that has requests waiting, and the tokens that it has earned but not spent.

    Attributes:
        key: Name of the key.
        deficit: Tokens that it may spend now.
    """

    key: str
    deficit: float = 0.0


def next_turn(
    ring: Sequence[Share], costs: Mapping[str, float], quantum: float
) -> tuple[str, list[Share]]:
    """Choose the key whose request is served next.

    The first of the ring is served if it can pay for its request, and stays first. Otherwise it earns a
    quantum and goes to the end. A key without a cost has nothing that could be served now, so it goes to the
    end and earns nothing.

    Args:
        ring: The keys in the order of their turns.
        costs: Cost of the next request of each key; at least one key of the ring has one.
        quantum: Tokens that a key earns in each round.

    Returns:
        The key, and the ring afterwards, in which it has paid.
    """
    waiting = list(ring)
    while True:
        first, *others = waiting
        cost = costs.get(first.key)
        if cost is not None and first.deficit >= cost:
            return first.key, [replace(first, deficit=first.deficit - cost), *others]
        earned = 0.0 if cost is None else quantum
        waiting = [*others, replace(first, deficit=first.deficit + earned)]


@dataclass(eq=False)
class Waiter:
    """A request that waits.

    Attributes:
        caller: Name of its key.
        cost: Estimate of its tokens.
        affinity_key: Key for the choice of a backend.
        wish: Engine that it asks for (None for any), and the backends that it has tried.
        turn: Future of the place that it gets.
    """

    caller: str
    cost: float
    affinity_key: str
    wish: Wish
    turn: asyncio.Future[Any]


class FairQueue:
    """Waiting requests of all keys."""

    def __init__(self) -> None:
        self._queues: dict[str, list[Waiter]] = {}
        self._ring: list[Share] = []

    def __len__(self) -> int:
        return sum(map(len, self._queues.values()))

    def __iter__(self) -> Iterator[Waiter]:
        return iter([waiter for queue in self._queues.values() for waiter in queue])

    def count(self, caller: str) -> int:
        """Return the number of this key's waiting requests."""
        return len(self._queues.get(caller, ()))

    def add(self, waiter: Waiter) -> None:
        """Let a request wait at the end of its key's queue."""
        if waiter.caller not in self._queues:
            self._queues[waiter.caller] = []
            self._ring.append(Share(waiter.caller))
        self._queues[waiter.caller].append(waiter)

    def discard(self, waiter: Waiter) -> None:
        """Take a request out, if it is there. A key whose queue is empty loses what it has earned."""
        queue = self._queues.get(waiter.caller, [])
        if waiter in queue:
            queue.remove(waiter)
            if not queue:
                del self._queues[waiter.caller]
                self._ring = [share for share in self._ring if share.key != waiter.caller]

    def last_of_longest(self) -> Waiter:
        """Return the newest request of the key that has most waiting; the queue must not be empty."""
        return max(self._queues.values(), key=len)[-1]

    def next(self, servable: Collection[Wish]) -> Waiter | None:
        """Take out and return the request whose turn it is, of those with such a wish, or None."""
        heads: dict[str, Waiter] = {}
        for caller, queue in self._queues.items():
            head = next((waiter for waiter in queue if waiter.wish in servable), None)
            if head is not None:
                heads[caller] = head
        if not heads:
            return None
        costs = {
            caller: min(max(head.cost, QUANTUM), _DEAREST * QUANTUM)
            for caller, head in heads.items()
        }
        caller, self._ring = next_turn(self._ring, costs, QUANTUM)
        self.discard(heads[caller])
        return heads[caller]
