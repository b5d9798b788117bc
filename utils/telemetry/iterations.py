"""TensorRT-LLM's statistics of every step, `/metrics` in JSON, read into the common schema.

The engine keeps them only with `enable_iter_perf_stats: true`, and gives each step once: reading drains the
list. Source: NVIDIA/TensorRT-LLM tensorrt_llm/metrics/collector.py and its test, whose names these are.
"""

from __future__ import annotations

from collections.abc import Mapping
from time import perf_counter
from typing import Any

import httpx

from utils import loopback
from utils.engines.tensorrt_llm import ITERATIONS_PATH
from utils.telemetry.sampler import Series
from utils.telemetry.snapshot import Scrapable, ScrapeError, Snapshot


def read_iterations(engine: Scrapable, timeout_s: float = 5.0) -> Series:
    """Return the steps since the last reading, as a series.

    Raises:
        ScrapeError: The engine does not answer, or sends no list of steps.
    """
    url = engine.base_url + ITERATIONS_PATH
    try:
        answer = loopback.get(url, timeout=timeout_s)
        rows = answer.json()
    except (httpx.HTTPError, ValueError) as error:
        raise ScrapeError(f"{url} gave no JSON ({type(error).__name__}: {error}).") from error
    return series_of(rows, perf_counter())


def series_of(rows: Any, time: float) -> Series:
    """Readings from the JSON of `/metrics`, one a step, oldest first.

    Steps carry how long they took and not when they ended: they are placed end to end before `time`.

    Args:
        rows: The parsed answer.
        time: Time when it was read, `perf_counter` seconds.

    Raises:
        ScrapeError: It is no list of steps.
    """
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise ScrapeError(f"No list of steps: {str(rows)[:80]!r}. Is enable_iter_perf_stats on?")
    lengths = [_number(row, "iterLatencyMS") or 0.0 for row in rows]
    started = time - sum(lengths) / 1000
    snapshots: list[Snapshot] = []
    at, drafted, accepted = started, 0.0, 0.0
    for row, length in zip(rows, lengths, strict=True):
        at += length / 1000
        speculation = _part(row, "specDecodingStats")
        drafted += _number(speculation, "numDraftTokens") or 0.0
        accepted += _number(speculation, "numAcceptedTokens") or 0.0
        snapshots.append(_snapshot(row, at, (drafted, accepted) if speculation else None))
    mean = sum(lengths) / 1000 / len(lengths) if lengths else 0.0
    return Series(tuple(snapshots), (), started, round(mean, 6))


def _snapshot(row: Mapping[str, Any], at: float, counted: tuple[float, float] | None) -> Snapshot:
    cache = _part(row, "kvCacheStats")
    used, blocks = _number(cache, "usedNumBlocks"), _number(cache, "maxNumBlocks")
    return Snapshot(
        time=at,
        running=_number(row, "numActiveRequests"),
        waiting=_number(row, "numQueuedRequests"),
        kv_usage=used / blocks if used is not None and blocks else None,
        prefix_hit_rate=_number(cache, "cacheHitRate"),
        drafted_tokens=counted[0] if counted else None,
        accepted_tokens=counted[1] if counted else None,
    )


def _part(row: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = row.get(key)
    return value if isinstance(value, dict) else {}


def _number(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None
