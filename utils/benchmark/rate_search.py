"""Search for the highest request rate at which almost every request meets its objectives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

GOOD_SHARE = 0.99


@dataclass(frozen=True)
class RateSearch:
    """Result of a search.

    Attributes:
        best: Highest rate that was measured with a good share of at least `GOOD_SHARE`, requests per second;
            None if not even the lowest was good enough.
        shares: Share of good requests by rate, in the order of the measurements.
    """

    best: float | None
    shares: dict[float, float]


def highest_rate(
    measure: Callable[[float], float], start: float, *, steps: int = 4, most: float = 10_000.0
) -> RateSearch:
    """Find the highest rate whose goodput is at least 99 % of the requests.

    The rate is doubled until too few requests are good, or halved until enough are. Then the gap between the
    best good rate and the lowest bad one is halved `steps` times.

    Args:
        measure: Function that runs a load at a rate and returns the share of good requests, 0 to 1.
        start: First rate, requests per second.
        steps: Number of halvings of the gap.
        most: Rate beyond which the search ends.
    """
    shares: dict[float, float] = {}

    def good(rate: float) -> bool:
        shares[rate] = measure(rate)
        return shares[rate] >= GOOD_SHARE

    low = high = start
    if good(start):
        while (high := low * 2) <= most and good(high):
            low = high
        if high > most:
            return RateSearch(low, shares)
    else:
        for _ in range(10):
            high, low = low, low / 2
            if good(low):
                break
        else:
            return RateSearch(None, shares)
    for _ in range(steps):
        middle = (low + high) / 2
        low, high = (middle, high) if good(middle) else (low, middle)
    return RateSearch(low, shares)
