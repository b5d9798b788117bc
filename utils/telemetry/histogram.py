"""A Prometheus histogram: cumulative counts per upper bound."""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise


@dataclass(frozen=True)
class Histogram:
    """Observations in buckets, in seconds for every latency of this course.

    Attributes:
        bounds: Upper bounds, rising, the last one infinite.
        cumulative: Observations up to each bound.
        sum: Sum of all observations.
    """

    bounds: tuple[float, ...]
    cumulative: tuple[float, ...]
    sum: float

    def __post_init__(self) -> None:
        if len(self.bounds) != len(self.cumulative) or not self.bounds:
            raise ValueError("A histogram needs one count per bound.")
        rising = all(low < high for low, high in pairwise(self.bounds))
        if self.bounds[-1] != math.inf or not rising:
            raise ValueError(f"Bounds have to rise up to infinity: {self.bounds}.")

    @property
    def count(self) -> float:
        """Observations in all."""
        return self.cumulative[-1]

    @property
    def mean(self) -> float | None:
        """Mean observation; None where there is none."""
        return self.sum / self.count if self.count else None

    def quantile(self, q: float) -> float | None:
        """Estimate a quantile as PromQL's ``histogram_quantile`` does.

        Observations are taken to be spread evenly within their bucket, so the error is up to the
        width of that bucket; beyond the last finite bound, that bound is returned.

        Args:
            q: 0 to 1.

        Returns:
            The estimate; None where there is no observation.

        Raises:
            ValueError: ``q`` outside 0 to 1.
        """
        if not 0 <= q <= 1:
            raise ValueError(f"A quantile is between 0 and 1, but got {q}.")
        if not self.count:
            return None
        rank = q * self.count
        index = next(i for i, total in enumerate(self.cumulative) if total >= rank and total)
        if math.isinf(self.bounds[index]):
            return self.bounds[index - 1] if index else None
        below = self.cumulative[index - 1] if index else 0.0
        start = self.bounds[index - 1] if index else min(0.0, self.bounds[0])
        share = (rank - below) / (self.cumulative[index] - below)
        return start + (self.bounds[index] - start) * share

    def since(self, earlier: Histogram) -> Histogram:
        """Return the observations made after an earlier reading of the same histogram.

        Raises:
            ValueError: Other buckets, or counts that went down: the engine was restarted.
        """
        if earlier.bounds != self.bounds:
            raise ValueError("The two readings have different buckets.")
        pairs = zip(self.cumulative, earlier.cumulative, strict=True)
        cumulative = tuple(now - before for now, before in pairs)
        if min(cumulative) < 0:
            raise ValueError("Counts went down between the readings: was the engine restarted?")
        return Histogram(self.bounds, cumulative, self.sum - earlier.sum)
