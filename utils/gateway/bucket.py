"""A token bucket: a rate with room for bursts.

Source: "token bucket" as in RFC 2697 and in every router since; here with debt, because what an answer
costs is known only when it has ended.
"""

from __future__ import annotations

from dataclasses import dataclass, replace


@dataclass(frozen=True)
class Bucket:
    """Level of a bucket, and the time of its last change.

    Attributes:
        rate: Units that flow in, per second.
        capacity: Most that it holds: the largest burst.
        level: Units in it at time `at`; below 0 it owes.
        at: Time of the last change, s.
    """

    rate: float
    capacity: float
    level: float
    at: float


def full(rate: float, capacity: float, now: float) -> Bucket:
    """Return a new bucket, full."""
    return Bucket(rate, capacity, capacity, now)


def take(bucket: Bucket, cost: float, now: float) -> tuple[Bucket, float]:
    """Take `cost` units out, if they are there.

    A cost above the capacity would wait for ever: it is admitted when the bucket is full, and leaves a debt.

    Args:
        bucket: Before.
        cost: Units wanted, 0 or more.
        now: Time, s. One that lies before `bucket.at` lets nothing flow in.

    Returns:
        The bucket after, and 0.0 if admitted; else nothing is taken, and the seconds until it would be.
    """
    elapsed = max(0.0, now - bucket.at)
    level = min(bucket.capacity, bucket.level + elapsed * bucket.rate)
    filled = replace(bucket, level=level, at=max(now, bucket.at))
    needed = min(cost, bucket.capacity)
    if level >= needed:
        return replace(filled, level=level - cost), 0.0
    return filled, (needed - level) / bucket.rate


def refund(bucket: Bucket, difference: float) -> Bucket:
    """Refund units that were taken but not used (> 0), or take the missing ones (< 0)."""
    return replace(bucket, level=min(bucket.capacity, bucket.level + difference))
