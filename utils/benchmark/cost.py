"""Energy and money: power of the GPUs during a run, joules per token, and the price of a million tokens."""

from __future__ import annotations

import math
import subprocess
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Self

QUERY = ("nvidia-smi", "--query-gpu=power.draw", "--format=csv,noheader,nounits")
_EVERY_MS = 200
_PATIENCE_S = 10.0


class PowerMeter:
    """Reads the power of all GPUs while a `with` block runs, in a process of its own.

    `watts` is the mean over the block, or None if `nvidia-smi` isn't there or doesn't tell (a GB10 may answer
    `[N/A]`).
    """

    def __init__(self) -> None:
        self.watts: float | None = None
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> Self:
        try:
            first = subprocess.run(QUERY, capture_output=True, text=True, timeout=_PATIENCE_S)
            if first.returncode or mean_watts(first.stdout) is None:
                return self
            self._process = subprocess.Popen(
                [*QUERY, f"--loop-ms={_EVERY_MS}"], stdout=subprocess.PIPE, text=True
            )
        except (OSError, subprocess.SubprocessError):
            self._process = None
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._process is not None:
            self._process.terminate()
            text, _ = self._process.communicate()
            gpus = _gpus()
            mean = mean_watts(text)
            self.watts = None if mean is None else mean * gpus


def mean_watts(text: str) -> float | None:
    """Return the mean of lines that hold watts; None if a line holds none, such as `[N/A]`."""
    values = []
    for line in text.split("\n"):
        if not line.strip():
            continue
        try:
            values.append(float(line))
        except ValueError:
            return None
    return sum(values) / len(values) if values else None


def costs(
    summary: Mapping[str, Any], watts: float | None = None, price_per_hour: float | None = None
) -> dict[str, float]:
    """Return what a run's tokens cost.

    Args:
        summary: Summary of the run.
        watts: Mean power during the run.
        price_per_hour: Price of the machine for an hour, in any currency.

    Returns:
        `watts`, `joules_per_output_token` and `price_per_million_output_tokens`, as far as they are known.
    """
    rate = summary.get("output_throughput")
    known = isinstance(rate, int | float) and not math.isnan(rate) and rate > 0
    found: dict[str, float] = {}
    if watts is not None:
        found["watts"] = watts
        if known:
            found["joules_per_output_token"] = watts / float(rate or 0)
    if price_per_hour is not None and known:
        found["price_per_million_output_tokens"] = price_per_hour / 3600 / float(rate or 0) * 1e6
    return found


def _gpus() -> int:
    try:
        done = subprocess.run(QUERY, capture_output=True, text=True, timeout=_PATIENCE_S)
    except (OSError, subprocess.SubprocessError):
        return 1
    return max(1, sum(bool(line.strip()) for line in done.stdout.split("\n")))
