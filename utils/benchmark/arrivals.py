"""The arrivals of requests, and the number that may be in flight."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

import numpy as np

_BLOCK = 1024


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """A fixed number of users: each sends its next request when its last one ends.

    Attributes:
        concurrency: Requests in flight.
    """

    concurrency: int

    def __post_init__(self) -> None:
        if self.concurrency < 1:
            raise ValueError(f"concurrency must be at least 1, not {self.concurrency}")


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Requests arrive at times of their own, whether or not earlier ones have ended.

    Attributes:
        request_rate: Mean arrivals per second.
        burstiness: Shape of the gamma distribution of gaps, as `vllm bench serve --burstiness`:
            1 is a Poisson process (exponential gaps), below 1 burstier, above 1 more even,
            `math.inf` constant gaps.
        seed: Random seed of the gaps.
        max_concurrency: Limit of requests in flight, if any. One that waits for it goes on
            ageing: its latency counts from when it was due.
    """

    request_rate: float
    burstiness: float = 1.0
    seed: int = 0
    max_concurrency: int | None = None

    def __post_init__(self) -> None:
        if not 0 < self.request_rate < math.inf:
            raise ValueError(f"request_rate must be positive and finite, not {self.request_rate}")
        if not self.burstiness > 0:
            raise ValueError(f"burstiness must be positive, not {self.burstiness}")
        if self.max_concurrency is not None and self.max_concurrency < 1:
            raise ValueError(f"max_concurrency must be at least 1, not {self.max_concurrency}")


LoadPattern = ClosedLoop | OpenLoop


@dataclass(frozen=True, slots=True)
class StopRule:
    """Rule that ends a run before its requests do.

    Attributes:
        duration_s: Seconds after which no further request is sent. Those in flight are waited for.
        max_error_rate: Share of failed requests, 0 to 1, above which no further request is sent.
        min_ended: Requests that have to end before the error rate counts.
    """

    duration_s: float | None = None
    max_error_rate: float | None = None
    min_ended: int = 10

    def __post_init__(self) -> None:
        if self.duration_s is not None and not self.duration_s > 0:
            raise ValueError(f"duration_s must be positive, not {self.duration_s}")
        if self.max_error_rate is not None and not 0 <= self.max_error_rate <= 1:
            raise ValueError(f"max_error_rate must be between 0 and 1, not {self.max_error_rate}")


def arrivals(load: OpenLoop) -> Iterator[float]:
    """Yield the seconds after the start at which each request is due, ascending, without end.

    Unlike vLLM, gaps are not rescaled so that they add up to `count / request_rate`: that would
    take away the variance between runs which repeats are there to show.
    """
    rng = np.random.default_rng(load.seed)
    at = 0.0
    while True:
        if math.isinf(load.burstiness):
            gaps = np.full(_BLOCK, 1 / load.request_rate)
        else:
            gaps = rng.gamma(load.burstiness, 1 / (load.request_rate * load.burstiness), _BLOCK)
        for gap in gaps.tolist():
            at += gap
            yield at


def arrival_times(count: int, load: OpenLoop) -> np.ndarray:
    """Return the first `count` of `arrivals`, shape [count]."""
    return np.fromiter(islice(arrivals(load), count), float, count)
