"""One reading of an engine's metrics, in the same words for every engine.

An engine names its metrics in its spec (`utils.engines.spec.MetricNames`). A metric that it does not
offer is None here, never 0. Sources of the names: ``vllm/v1/metrics/loggers.py`` (0.32.0),
``sglang/srt/observability`` (0.5.23), TensorRT-LLM ``/prometheus/metrics``, llama.cpp
``tools/server/README.md``.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from time import perf_counter
from typing import Protocol

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from utils import loopback
from utils.engines.engine_errors import EngineError
from utils.engines.spec import EngineSpec, MetricNames
from utils.telemetry.histogram import Histogram

RATIOS = frozenset({"kv_usage", "prefix_hit_rate"})
HISTOGRAMS = frozenset({"ttft", "itl", "tpot", "e2e"})


class ScrapeError(EngineError):
    """Metrics that could not be read; the message has a remedy."""


class Scrapable(Protocol):
    """Fields of a running engine that are needed; `utils.engines.launch` yields one."""

    @property
    def base_url(self) -> str:
        """Address without a path."""

    @property
    def spec(self) -> EngineSpec:
        """The engine's declaration."""


@dataclass(frozen=True)
class Snapshot:
    """An engine's account of itself at one moment.

    Gauges and counters add up over an engine's label sets (data-parallel ranks); shares are their
    mean; counters run from the engine's start.

    Attributes:
        time: ``time.perf_counter()`` of the reading, in seconds: the clock of the request traces.
        running: Requests in the running batch.
        waiting: Requests in the queue.
        kv_usage: Share of the KV cache in use, 0 to 1.
        prefix_hits: Prompt tokens found in the prefix cache.
        prefix_queries: Prompt tokens looked up there.
        prefix_hit_rate: Their ratio, 0 to 1, where an engine gives only that.
        ttft: Time to first token, seconds.
        itl: Inter-token latency, seconds.
        tpot: Time per output token of a request, seconds.
        e2e: End-to-end latency, seconds.
        prompt_tokens: Prompt tokens processed.
        generated_tokens: Tokens generated.
        preemptions: Requests that lost their cache to others.
        drafts: Drafts verified.
        drafted_tokens: Tokens drafted.
        accepted_tokens: Drafted tokens accepted.
    """

    time: float
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    prefix_hits: float | None = None
    prefix_queries: float | None = None
    prefix_hit_rate: float | None = None
    ttft: Histogram | None = None
    itl: Histogram | None = None
    tpot: Histogram | None = None
    e2e: Histogram | None = None
    prompt_tokens: float | None = None
    generated_tokens: float | None = None
    preemptions: float | None = None
    drafts: float | None = None
    drafted_tokens: float | None = None
    accepted_tokens: float | None = None

    @property
    def hit_rate(self) -> float | None:
        """Share of looked-up prompt tokens that were cached, 0 to 1; None before the first."""
        if self.prefix_hits is not None and self.prefix_queries:
            return self.prefix_hits / self.prefix_queries
        return self.prefix_hit_rate

    @property
    def acceptance_length(self) -> float | None:
        """Tokens per verified draft, the bonus token included: ``1 + accepted / drafts``."""
        if self.accepted_tokens is None or not self.drafts:
            return None
        return 1 + self.accepted_tokens / self.drafts

    def numbers(self) -> dict[str, float | None]:
        """Return all fields but the histograms, and the two ratios derived from them."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name not in HISTOGRAMS}
        return {**plain, "hit_rate": self.hit_rate, "acceptance_length": self.acceptance_length}


def scrape(engine: Scrapable, timeout_s: float = 5.0) -> Snapshot:
    """Read a running engine's metrics once.

    Args:
        engine: Engine from `launch`.
        timeout_s: Seconds to wait for the answer.

    Returns:
        The reading.

    Raises:
        ScrapeError: The engine has no Prometheus endpoint, does not answer, or sends no metrics.
    """
    with loopback.client(timeout=timeout_s) as client:
        return parse(read_text(engine, client), engine.spec.metrics)


def read_text(engine: Scrapable, client: httpx.Client) -> str:
    """Return the text of an engine's metrics endpoint.

    Raises:
        ScrapeError: As `scrape`.
    """
    return decoded(read_bytes(engine, client))


def decoded(data: bytes) -> str:
    """Return a reading as text; the exposition format is UTF-8."""
    return data.decode("utf-8", "replace")


def read_bytes(engine: Scrapable, client: httpx.Client) -> bytes:
    """Return an engine's metrics as they came, without looking at them.

    Raises:
        ScrapeError: As `scrape`.
    """
    if engine.spec.metrics_path is None:
        raise ScrapeError(f"{engine.spec.title} offers no Prometheus endpoint.")
    url = engine.base_url + engine.spec.metrics_path
    try:
        response = client.get(url)
    except httpx.HTTPError as error:
        raise ScrapeError(f"{url} did not answer ({type(error).__name__}: {error}).") from error
    if response.status_code != 200:
        raise ScrapeError(
            f"{url} answered {response.status_code}: are metrics switched on when it is started?"
        )
    return response.content


def parse(text: str, names: MetricNames, time: float | None = None) -> Snapshot:
    """Read a Prometheus text into the schema.

    Args:
        text: The exposition format.
        names: The engine's names for the schema's fields.
        time: Time when it was read (`perf_counter`); now, if left out.

    Returns:
        The reading; fields that the text lacks are None.

    Raises:
        ScrapeError: The text is not in the exposition format, or a histogram is damaged.
    """
    wanted = tuple(name for f in fields(names) if (name := getattr(names, f.name)) is not None)
    samples = samples_by_name(text, wanted)
    values: dict[str, float | Histogram | None] = {}
    for field in fields(names):
        name = getattr(names, field.name)
        if name is None:
            continue
        if field.name in HISTOGRAMS:
            values[field.name] = _histogram(samples, name)
        elif found := [sample.value for sample in _of_one_rank(samples.get(name, ()))]:
            total = sum(found)
            values[field.name] = total / len(found) if field.name in RATIOS else total
    return Snapshot(time=perf_counter() if time is None else time, **values)  # type: ignore[arg-type]


def samples_by_name(text: str, wanted: tuple[str, ...]) -> Mapping[str, list[Sample]]:
    """Sample of an exposition, by sample name (``..._total``, ``..._bucket``).

    Other lines are skipped unread: an engine may send hundreds, and parsing them all would take
    milliseconds from a client that is measuring in the same process.

    Args:
        text: The exposition format.
        wanted: Beginnings of the names of interest.

    Raises:
        ScrapeError: The text is not in the exposition format.
    """
    samples: defaultdict[str, list[Sample]] = defaultdict(list)
    # Lines end in \n alone, because a label may hold any other character that Python takes for a line's end.
    relevant = "\n".join(line for line in text.split("\n") if line.startswith(wanted))
    try:
        for family in text_string_to_metric_families(relevant or text):
            for sample in family.samples:
                samples[sample.name].append(sample)
    except ValueError as error:
        raise ScrapeError(f"The endpoint sent no Prometheus text: {text[:80]!r}.") from error
    return samples


def _of_one_rank(samples: Iterable[Sample]) -> list[Sample]:
    """Leave out what further tensor-parallel ranks repeat.

    With `--enable-metrics-for-all-schedulers`, each rank of SGLang reports the same requests.
    """
    found = list(samples)
    ranks = {sample.labels["tp_rank"] for sample in found if "tp_rank" in sample.labels}
    if len(ranks) < 2:
        return found
    first = min(ranks, key=lambda rank: (len(rank), rank))
    return [sample for sample in found if sample.labels.get("tp_rank", first) == first]


def _histogram(samples: Mapping[str, list[Sample]], name: str) -> Histogram | None:
    totals: defaultdict[float, float] = defaultdict(float)
    for sample in _of_one_rank(samples.get(f"{name}_bucket", ())):
        try:
            totals[float(sample.labels["le"])] += sample.value
        except (KeyError, ValueError) as error:
            raise ScrapeError(
                f"A bucket of {name} has no bound that is a number (labels {sample.labels})."
            ) from error
    if not totals:
        return None
    bounds = tuple(sorted(totals))
    total = sum(sample.value for sample in _of_one_rank(samples.get(f"{name}_sum", ())))
    try:
        return Histogram(bounds, tuple(totals[bound] for bound in bounds), total)
    except ValueError as error:
        raise ScrapeError(f"The histogram {name} is damaged: {error}") from error
