"""A run in the JSON layout of `vllm bench serve --save-result --save-detailed` (vLLM 0.32.0)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from utils.benchmark.stats import METRICS, PERCENTILES, Latency, summarise
from utils.benchmark.trace import RequestTrace


def to_vllm(
    traces: Sequence[RequestTrace],
    duration: float,
    load: Mapping[str, Any],
    *,
    backend: str,
    model: str,
    label: str | None = None,
    date: datetime,
) -> dict[str, Any]:
    """Return the result file's keys, latencies counted from sending as vLLM does.

    Times of failed requests are 0, as there. An `output_lens` entry is None where the engine sent
    no usage; vLLM counts such a text again with a tokenizer.

    Args:
        traces: Every request of the run.
        duration: s.
        load: `LoadResult.describe()`.
        backend: The engine's name.
        model: The model's name.
        label: A name for the run.
        date: Time when it ran.
    """
    summary = summarise(traces, duration)
    rate = load.get("request_rate")
    values: dict[str, Any] = {
        "date": date.strftime("%Y%m%d-%H%M%S"),
        "endpoint_type": backend,
        "backend": backend,
        "label": label,
        "model_id": model,
        "tokenizer_id": None,
        "num_prompts": len(traces),
        "request_rate": "inf" if rate is None else rate,
        "burstiness": load.get("burstiness", 1.0),
        "max_concurrency": load.get("concurrency", load.get("max_concurrency")),
        **summary.to_dict(),
        **{
            key: value
            for name in METRICS
            for key, value in _keys(name, getattr(summary, name)).items()
        },
        "input_lens": [trace.prompt_tokens or 0 for trace in traces],
        "output_lens": [trace.completion_tokens if trace.ok else 0 for trace in traces],
        "ttfts": [_or_zero(trace.ttft()) for trace in traces],
        "itls": [list(trace.itls) for trace in traces],
        "latencies": [_or_zero(trace.e2el()) for trace in traces],
        "start_times": [trace.sent for trace in traces],
        "queue_times": [trace.queued for trace in traces],
        "generated_texts": [trace.reasoning + trace.text for trace in traces],
        "errors": [trace.error or "" for trace in traces],
        "rtfx": 0.0,
    }
    if rate is not None:
        good = [trace for trace in traces if trace.ok]
        values |= _keys("client_queue_time", Latency.of(trace.queued for trace in good))
        values |= _keys(
            "e2el_including_client_queue", Latency.of(trace.e2el("scheduled") for trace in good)
        )
    return values


def _keys(name: str, latency: Latency) -> dict[str, float]:
    return {
        f"mean_{name}_ms": latency.mean,
        f"median_{name}_ms": latency.median,
        f"std_{name}_ms": latency.std,
        **{f"p{p}_{name}_ms": latency.percentiles[p] for p in PERCENTILES},
    }


def _or_zero(value: float) -> float:
    return 0.0 if math.isnan(value) else value
