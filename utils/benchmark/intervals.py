"""Confidence intervals: over repeats of a run, and over the requests within one."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its confidence interval.

    Attributes:
        value: The estimate.
        low, high: The interval's ends; NaN where the data cannot give one.
        count: Number of values that it rests on.
        confidence: For example 0.95.
        method: "t" or "bootstrap".
    """

    value: float
    low: float
    high: float
    count: int
    confidence: float
    method: str

    @property
    def half_width(self) -> float:
        """Half of the interval's length."""
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """True if zero is outside. False where the data give no interval."""
        return self.low > 0 or self.high < 0

    def __str__(self) -> str:
        if math.isnan(self.low):
            return f"{self.value:,.4g} (n = {self.count}: no interval)"
        return f"{self.value:,.4g} ± {_figure(self.half_width)} (n = {self.count})"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.2g}"


def repeat_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    """Mean over repeated runs, with Student's t interval: right for 2 to about 30 repeats.

    Args:
        values: One value per run.
        confidence: Between 0 and 1.

    Raises:
        ValueError: If there are no values.
    """
    array = _checked(values, confidence)
    mean, count = float(array.mean()), int(array.size)
    if count < 2:
        return Interval(mean, math.nan, math.nan, count, confidence, "t")
    error = float(array.std(ddof=1)) / math.sqrt(count)
    reach = student_t_quantile((1 + confidence) / 2, count - 1) * error
    return Interval(mean, mean - reach, mean + reach, count, confidence, "t")


def difference_interval(
    a: Sequence[float], b: Sequence[float], *, paired: bool, confidence: float = 0.95
) -> Interval:
    """Return the interval of the difference of the means of `a` and `b`.

    Two intervals that overlap don't show that there is no difference (Schenker and Gentleman, 2001), so ask
    whether this one includes zero.

    Args:
        a: One value per run.
        b: One value per run.
        paired: True if `a[i]` and `b[i]` were measured in turn. A slow phase of the machine then counts
            for both and cancels out.
        confidence: Between 0 and 1.

    Raises:
        ValueError: There are no values, or pairs lack a partner.
    """
    if paired:
        if len(a) != len(b):
            raise ValueError(f"pairs need as many values on both sides, not {len(a)} and {len(b)}")
        return repeat_interval([x - y for x, y in zip(a, b, strict=True)], confidence)
    first, second = _checked(a, confidence), _checked(b, confidence)
    difference = float(first.mean() - second.mean())
    count = min(first.size, second.size)
    if count < 2:
        return Interval(difference, math.nan, math.nan, count, confidence, "t")
    shares = [float(values.var(ddof=1)) / values.size for values in (first, second)]
    error = math.sqrt(sum(shares))
    # Degrees of freedom by Welch and Satterthwaite.
    spread = sum(
        share**2 / (values.size - 1) for share, values in zip(shares, (first, second), strict=True)
    )
    degrees = sum(shares) ** 2 / spread if spread else count - 1
    reach = student_t_quantile((1 + confidence) / 2, degrees) * error
    return Interval(difference, difference - reach, difference + reach, count, confidence, "t")


def bootstrap_interval(
    values: Sequence[float],
    statistic: Callable[[np.ndarray], float] = np.median,
    confidence: float = 0.95,
    *,
    resamples: int = 2000,
    seed: int = 0,
) -> Interval:
    """Any statistic of the requests of one run, with a percentile bootstrap interval.

    Requests that ran together are not independent, so this is narrower than what repeats show.

    Args:
        values: One value per request; NaNs are left out.
        statistic: Takes an array [n], gives a number.
        confidence: Between 0 and 1.
        resamples: Bootstrap samples.
        seed: Random seed.

    Raises:
        ValueError: If there are no values.
    """
    array = _checked(values, confidence)
    rng = np.random.default_rng(seed)
    drawn = [float(statistic(rng.choice(array, array.size))) for _ in range(resamples)]
    tail = 50 * (1 - confidence)
    low, high = np.percentile(drawn, [tail, 100 - tail])
    estimate = float(statistic(array))
    return Interval(estimate, float(low), float(high), array.size, confidence, "bootstrap")


@lru_cache(maxsize=64)
def student_t_quantile(p: float, degrees: float) -> float:
    """Return the p-quantile (0.5 < p < 1) of Student's t distribution.

    Bisection on the distribution function, which for t = sqrt(n) tan(a) is the integral of
    cos(a)^(n-1), taken by Gauss-Legendre quadrature.
    """
    if not 0.5 < p < 1 or degrees < 1:
        raise ValueError(f"need 0.5 < p < 1 and degrees >= 1, not {p} and {degrees}")
    nodes, weights = np.polynomial.legendre.leggauss(100)
    constant = math.gamma((degrees + 1) / 2) / (math.sqrt(math.pi) * math.gamma(degrees / 2))

    def above_half(angle: float) -> float:
        half = angle / 2
        return constant * half * float(weights @ np.cos(half * (nodes + 1)) ** (degrees - 1))

    low, high = 0.0, math.pi / 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if above_half(middle) < p - 0.5 else (low, middle)
    return math.sqrt(degrees) * math.tan(low)


def _checked(values: Sequence[float], confidence: float) -> np.ndarray:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, not {confidence}")
    array = np.array([value for value in values if not math.isnan(value)], dtype=float)
    if not array.size:
        raise ValueError("no values to make an interval from")
    return array
