"""Which backend gets a request: four policies, each a pure choice.

Sources: M. Mitzenmacher, "The Power of Two Choices in Randomized Load Balancing" (2001); V. Mirrokni,
M. Thorup, M. Zadimoghaddam, "Consistent Hashing with Bounded Loads" (2018).
"""

from __future__ import annotations

import hashlib
import math
import random
from bisect import bisect_left
from collections.abc import Mapping, Sequence

POLICIES = ("round_robin", "least_outstanding", "power_of_two", "prefix_affinity")
POINTS = 64  # of each backend on the ring: more points, more even shares


def least_outstanding(outstanding: Mapping[str, int], turn: int) -> str:
    """Return the backend with the fewest requests in flight.

    Equals take turns: always the first of them would get every request of an idle pool.

    Args:
        outstanding: Requests in flight, by backend; not empty.
        turn: Number of the request, 0 and up.
    """
    fewest = min(outstanding.values())
    equals = [name for name, count in outstanding.items() if count == fewest]
    return equals[turn % len(equals)]


def power_of_two(outstanding: Mapping[str, int], rng: random.Random) -> str:
    """Draw two backends at random, and return the one with fewer requests in flight."""
    names = list(outstanding)
    if len(names) == 1:
        return names[0]
    first, second = rng.sample(names, 2)
    return first if outstanding[first] <= outstanding[second] else second


def point(key: str) -> int:
    """Return a key's place on the ring, 0 to 2^64 - 1; the same in every process, unlike `hash`."""
    return int.from_bytes(hashlib.blake2b(key.encode(), digest_size=8).digest(), "big")


def make_ring(names: Sequence[str], points: int = POINTS) -> list[tuple[int, str]]:
    """Return the ring: `points` places of each backend, `point("NAME#0")` and so on, sorted."""
    return sorted((point(f"{name}#{i}"), name) for name in names for i in range(points))


def bounded_hash(
    ring: Sequence[tuple[int, str]], outstanding: Mapping[str, int], place: int, slack: float
) -> str:
    """Return the first backend with room, from a key's place on the ring onwards; the ring is round.

    With m requests in flight and this one, each of n backends may have `ceil(slack * (m + 1) / n)`. So a key
    finds the same backend again while loads are even, and a popular key cannot overload it.

    Args:
        ring: Result of `make_ring`; backends that are not in `outstanding` are passed over.
        outstanding: Requests in flight of the backends that may be chosen; not empty.
        place: Key's place on the ring, `point(key)`: the same key finds the same backend again.
        slack: 1 or more; 1.25 allows a quarter more than the mean.
    """
    limit = math.ceil(slack * (sum(outstanding.values()) + 1) / len(outstanding))
    start = bisect_left(ring, (place, ""))
    for i in range(len(ring)):
        name = ring[(start + i) % len(ring)][1]
        if name in outstanding and outstanding[name] < limit:
            return name
    raise ValueError("no backend of the ring may be chosen")
