"""When requests arrive, and how many may be in flight."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np


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


def arrival_times(count: int, load: OpenLoop) -> np.ndarray:
    """Seconds after the start at which each request is due, shape [count], ascending.

    Unlike vLLM, gaps are not rescaled so that they add up to `count / request_rate`: that would
    take away the variance between runs which repeats are there to show.
    """
    if math.isinf(load.burstiness):
        gaps = np.full(count, 1 / load.request_rate)
    else:
        scale = 1 / (load.request_rate * load.burstiness)
        gaps = np.random.default_rng(load.seed).gamma(load.burstiness, scale, count)
    times: np.ndarray = np.cumsum(gaps)
    return times
