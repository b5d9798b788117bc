"""What vLLM says about its KV cache: the labels of ``vllm:cache_config_info``.

Source: vLLM 0.32.0 ``v1/metrics/loggers.py`` (``log_metrics_info``); the same numbers are in the
line "KV cache size: ... tokens" of its log.
"""

from __future__ import annotations

from dataclasses import dataclass

import httpx
from prometheus_client.parser import text_string_to_metric_families

from utils.telemetry.snapshot import Scrapable, ScrapeError, read_text

FAMILY = "vllm:cache_config_info"


@dataclass(frozen=True)
class CacheReport:
    """A KV cache as the engine reports it.

    Attributes:
        num_blocks: Physical blocks, the placeholder included.
        block_size: Tokens per block.
        size_tokens: Tokens that the blocks hold.
        dtype: Dtype of the cache, ``auto`` for the model's own.
    """

    num_blocks: int
    block_size: int
    size_tokens: int
    dtype: str


def cache_report(engine: Scrapable, timeout_s: float = 5.0) -> CacheReport:
    """Asks a running vLLM for its KV cache.

    Raises:
        ScrapeError: It does not answer, or is another engine: only vLLM reports this.
    """
    with httpx.Client(timeout=timeout_s) as client:
        return parse_cache_report(read_text(engine, client))


def parse_cache_report(text: str) -> CacheReport:
    """Reads the report from a metrics text.

    Raises:
        ScrapeError: The text has no such line.
    """
    line = "\n".join(row for row in text.splitlines() if row.startswith(FAMILY + "{"))
    for family in text_string_to_metric_families(line):
        labels = family.samples[0].labels
        blocks, size = int(labels["num_gpu_blocks"]), int(labels["block_size"])
        tokens = int(labels.get("kv_cache_size_tokens", blocks * size))
        return CacheReport(blocks, size, tokens, labels["cache_dtype"])
    raise ScrapeError(f"No {FAMILY} in the metrics: only vLLM reports its KV cache like this.")
