"""Description of the requests of a run, which records keep and which decides what a repeat is."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from utils.benchmark.trace import RequestTrace
from utils.benchmark.workload import Conversation, Request, Source


class Tally:
    """Collects the sources and the sampling of requests as they are sent."""

    def __init__(self) -> None:
        self._sources: dict[Source, None] = {}
        self._sampling: dict[str, Mapping[str, Any]] = {}
        self._limits: list[int] = []
        self._think_s: list[float] = []

    def add(self, item: Request | Conversation) -> None:
        """Count one request or conversation."""
        request = item
        if isinstance(item, Conversation):
            self._think_s += item.think_s
            request = item.request
        assert isinstance(request, Request)
        self._sources[request.source] = None
        self._limits = [
            min([request.max_tokens, *self._limits]),
            max([request.max_tokens, *self._limits]),
        ]
        sampling = {
            "temperature": request.temperature,
            "ignore_eos": request.ignore_eos,
            "stream": request.stream,
            "seeded": request.seed is not None,
            "fields": sorted(request.extra_body),
        }
        self._sampling[repr(sampling)] = sampling

    def describe(self, traces: Sequence[RequestTrace] = ()) -> dict[str, Any]:
        """Return the workload in plain values.

        Args:
            traces: Outcomes of the requests, for the lengths that the engine counted.

        Returns:
            Data sets, lengths that were asked for, seeds and sampling; and as `prompt_tokens` and
            `output_tokens` the mean, least and most tokens of the successes.
        """
        sources = list(self._sources)
        done = [trace for trace in traces if trace.ok]
        values: dict[str, Any] = {
            "dataset": _joined(source.dataset for source in sources),
            "prompt_length": _joined(source.prompt_length for source in sources),
            "output_length": _joined(source.output_length for source in sources),
            "max_tokens": self._limits,
            "seeds": [source.seed for source in sources if source.seed is not None],
            "fresh": bool(sources) and all(source.fresh for source in sources),
            "sampling": list(self._sampling.values()),
            "prompt_tokens": _spread(trace.prompt_tokens for trace in done),
            "output_tokens": _spread(trace.completion_tokens for trace in done),
        }
        if self._think_s:
            values["think_s"] = sum(self._think_s) / len(self._think_s)
        return values


def _joined(texts: Iterable[str]) -> str:
    return "; ".join(dict.fromkeys(text for text in texts if text))


def _spread(counts: Iterable[int | None]) -> dict[str, float] | None:
    known = [count for count in counts if count is not None]
    if not known:
        return None
    return {"mean": sum(known) / len(known), "min": min(known), "max": max(known)}
