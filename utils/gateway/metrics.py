"""Numbers that Prometheus reads at `/metrics`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from utils.gateway.logs import dropped_lines
from utils.gateway.request_context import RequestContext
from utils.gateway.settings import ModelSettings

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_GAP = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_WHOLE = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)


class Metrics:
    """The gateway's metrics, in a registry of their own. Times are seconds."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        where = ["model", "backend"]
        self.requests = Counter(
            "gateway_requests",
            "Requests that ended, by what became of them",
            ["route", *where, "outcome"],
            registry=registry,
        )
        self.in_flight = Gauge(
            "gateway_in_flight", "Requests at a backend", where, registry=registry
        )
        self.queued = Gauge(
            "gateway_queued", "Requests that wait for a backend", ["model"], registry=registry
        )
        self.ttft = Histogram(
            "gateway_ttft_seconds",
            "From a request to the first byte of its stream",
            where,
            buckets=_FIRST,
            registry=registry,
        )
        self.itl = Histogram(
            "gateway_itl_seconds",
            "Between two pieces of a stream (a piece may hold several tokens)",
            where,
            buckets=_GAP,
            registry=registry,
        )
        self.e2e = Histogram(
            "gateway_e2e_seconds",
            "From a request to the end of its answer",
            where,
            buckets=_WHOLE,
            registry=registry,
        )
        self.tokens = Counter(
            "gateway_tokens",
            "Tokens as engines counted them",
            [*where, "kind"],
            registry=registry,
        )
        self.retries = Counter(
            "gateway_retries",
            "Attempts that failed and were repeated, by the backend that failed",
            [*where, "reason"],
            registry=registry,
        )
        self.failed_attempts = Counter(
            "gateway_failed_attempts",
            "Attempts that failed before the first token, repeated or not, by backend and reason",
            [*where, "reason"],
            registry=registry,
        )
        self.circuit = Gauge(
            "gateway_circuit_state",
            "0 closed, 1 half open, 2 open",
            where,
            registry=registry,
        )
        lost = Gauge(
            "gateway_log_lines_dropped",
            "Lines of the log that were dropped, because nobody read it",
            registry=registry,
        )
        lost.set_function(dropped_lines)
        self.up = Gauge(
            "gateway_backend_up",
            "1 if its health check answers",
            where,
            registry=registry,
        )

        key = ["key", "model"]
        self.key_requests = Counter(
            "gateway_key_requests",
            "Requests of a key that ended, by their outcome",
            [*key, "outcome"],
            registry=registry,
        )
        self.key_tokens = Counter(
            "gateway_key_tokens",
            "Tokens of a key as engines counted them",
            [*key, "kind"],
            registry=registry,
        )
        self.key_cost = Counter(
            "gateway_key_cost",
            "Cost of a key's tokens, by the prices in the settings",
            key,
            registry=registry,
        )
        self.failed_keys = Counter(
            "gateway_failed_keys", "Requests with a key that isn't known", registry=registry
        )
        # Finding the metric of some labels takes longer than counting in it.
        self.ended = cache(self.requests.labels)
        self.answered = cache(self.e2e.labels)
        self._of_key = cache(self.key_requests.labels)
        self._tokens_of_key = cache(self.key_tokens.labels)
        self._cost_of_key = cache(self.key_cost.labels)

    def note_usage(self, context: RequestContext, models: Sequence[ModelSettings]) -> None:
        """Count a request that ended for its key, if it had a known one."""
        if not context.caller:
            return
        key, model = context.caller, context.model or "none"
        self._of_key(key, model, context.outcome).inc()
        if not context.prompt_tokens + context.completion_tokens:
            return
        self._tokens_of_key(key, model, "prompt").inc(context.prompt_tokens)
        self._tokens_of_key(key, model, "completion").inc(context.completion_tokens)
        for price in (each.price for each in models if each.name == model):
            cost = context.prompt_tokens * price.prompt
            cost += context.completion_tokens * price.completion
            self._cost_of_key(key, model).inc(cost / 1e6)

    def text(self) -> bytes:
        """Return all of them, in Prometheus' text format."""
        return generate_latest(self.registry)
