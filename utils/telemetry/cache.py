"""The size of an engine's KV cache, by its own account.

vLLM: the labels of ``vllm:cache_config_info`` (``v1/metrics/loggers.py``, ``log_metrics_info``); the
same numbers are in the line "KV cache size: ... tokens" of its log. llama.cpp: its log.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from prometheus_client.parser import text_string_to_metric_families

from utils import loopback
from utils.engines import RunningEngine
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
    """Ask a running vLLM for its KV cache.

    Raises:
        ScrapeError: It does not answer, or is another engine: only vLLM reports this.
    """
    with loopback.client(timeout=timeout_s) as client:
        return parse_cache_report(read_text(engine, client))


def parse_cache_report(text: str) -> CacheReport:
    """Read the report from a metrics text.

    Raises:
        ScrapeError: The text has no such line, or the line lacks numbers.
    """
    line = "\n".join(row for row in text.split("\n") if row.startswith(FAMILY + "{"))
    try:
        for family in text_string_to_metric_families(line):
            labels = family.samples[0].labels
            blocks, size = int(labels["num_gpu_blocks"]), int(labels["block_size"])
            tokens = int(labels.get("kv_cache_size_tokens", blocks * size))
            return CacheReport(blocks, size, tokens, labels["cache_dtype"])
    except (KeyError, IndexError, ValueError) as error:
        raise ScrapeError(
            f"{FAMILY} lacks the size of the KV cache ({type(error).__name__}: {error}): has the "
            "engine finished starting?"
        ) from error
    raise ScrapeError(f"No {FAMILY} in the metrics: only vLLM reports its KV cache like this.")


def kv_budget_bytes(engine: RunningEngine) -> float:
    """Return the memory that a running vLLM set aside for its KV cache, in bytes.

    On a CPU the engine was told whole GiB, and on a GPU exact bytes by the memory plan. If a GPU's memory
    wasn't planned, vLLM's log has the memory that was left over after weights and a trial run, in GiB with
    two decimals (`v1/worker/gpu_worker.py`).

    Raises:
        ScrapeError: The log has no such line.
    """
    if engine.options.device == "cpu" and not engine.attached:
        return math.ceil(engine.options.kv_cache_gib) * 1024.0**3
    if engine.options.kv_cache_bytes is not None:
        return float(engine.options.kv_cache_bytes)
    found = re.search(r"Available KV cache memory: ([\d.]+) GiB", _log(engine))
    if found is None:
        raise ScrapeError(f"{engine.log_path} does not say how much memory the KV cache got.")
    return float(found[1]) * 1024**3


def llama_cpp_cache_bytes(engine: RunningEngine) -> float:
    """Return the size of llama.cpp's KV cache, in bytes, from its log.

    It is there when the engine was started with ``-lv 4``: "llama_kv_cache: size = 51.00 MiB (...)".

    Raises:
        ScrapeError: The log has no such line.
    """
    found = re.search(r"llama_kv_cache:\s+size =\s+([\d.]+) MiB", _log(engine))
    if found is None:
        raise ScrapeError(f"{engine.log_path} has no line 'llama_kv_cache: size': was it -lv 4?")
    return float(found[1]) * 1024**2


def _log(engine: RunningEngine) -> str:
    if engine.attached:
        raise ScrapeError(f"{engine.base_url} is attached: its log is with those who started it.")
    return engine.log_path.read_text(encoding="utf-8", errors="replace")
