"""Trace of one request: times as the client saw them, tokens as the engine counted them.

All times are `time.perf_counter()` seconds of the client process. Definitions follow
`vllm bench serve` (vLLM 0.32.0, `vllm/benchmarks/serve.py`), with one difference, which
`METRIC_DEFINITIONS` states: a chunk counts as output only if it carries text.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from typing import Any, Literal

Clock = Literal["sent", "scheduled"]

METRIC_DEFINITIONS: Mapping[str, str] = {
    "version": "1",
    "source": "vLLM 0.32.0 vllm/benchmarks/serve.py",
    "ttft": "first chunk with text (answer, reasoning or tool call) - start, s; a role-only or "
    "empty delta is not a token",
    "e2el": "last chunk with text or finish_reason - start, s (whole body if not streamed)",
    "tpot": "(e2el - ttft) / (completion_tokens - 1), s; needs usage",
    "itl": "gap between consecutive chunks with text, s; a chunk may carry several tokens",
    "start": "'sent': when the client began to send; 'scheduled': when the request was due "
    "(open loop: no coordinated omission)",
    "tokens": "only from the engine's usage block, never from chunks",
    "failed": "counted in failed, in no latency and no throughput",
}


@dataclass(frozen=True, slots=True)
class RequestTrace:
    """One request, finished or failed.

    Attributes:
        index: Position in the request list.
        scheduled: Time when the request was due, s.
        sent: Time when the client began to send it (the first attempt if it was resent), s.
        first_token: First chunk with text; None if there was none or nothing was streamed.
        chunk_times: Arrival of each chunk with text, s. Chunks are not tokens.
        finished: Last chunk with text or finish reason, or the end of the body, or the failure.
        text: The answer.
        reasoning: Reasoning text, where the engine separates it.
        prompt_tokens, completion_tokens, cached_tokens: From `usage`; None if it lacks them.
        usage_missing: The response succeeded but had no usage block.
        error: Why it failed; None if it did not.
        status: HTTP status; None if no response began.
        finish_reason: "stop", "length", ...; None if the server gave none.
        resends: Number of times it was sent again after a kept-alive connection turned out dead.
        max_tokens: Limit that was asked for.
        streamed: True if the response was streamed.
        tag: The request's tag, for grouping ("cold", "warm", ...).
        engine_timings: Times by the engine's own clock, see `response.read_timings`. None if it sends none.
    """

    index: int
    scheduled: float
    sent: float
    finished: float
    first_token: float | None = None
    chunk_times: tuple[float, ...] = ()
    text: str = ""
    reasoning: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    usage_missing: bool = False
    error: str | None = None
    status: int | None = None
    finish_reason: str | None = None
    resends: int = 0
    max_tokens: int | None = None
    streamed: bool = True
    tag: str = ""
    engine_timings: Mapping[str, float] | None = None

    @property
    def ok(self) -> bool:
        """True if the whole response arrived."""
        return self.error is None

    def start(self, clock: Clock = "sent") -> float:
        """Time when latency begins to count, s."""
        return self.sent if clock == "sent" else self.scheduled

    def ttft(self, clock: Clock = "sent") -> float:
        """Time to first token, s; NaN if failed, not streamed or without text."""
        if not self.ok or self.first_token is None:
            return math.nan
        return self.first_token - self.start(clock)

    def e2el(self, clock: Clock = "sent") -> float:
        """End-to-end latency, s; NaN if failed."""
        return self.finished - self.start(clock) if self.ok else math.nan

    @property
    def tpot(self) -> float:
        """Time per output token after the first, s; NaN without usage or with one token."""
        if self.completion_tokens is None or self.completion_tokens < 2:
            return math.nan
        return (self.e2el() - self.ttft()) / (self.completion_tokens - 1)

    @property
    def itls(self) -> tuple[float, ...]:
        """Gaps between consecutive chunks with text, s; empty if failed."""
        if not self.ok:
            return ()
        return tuple(later - earlier for earlier, later in pairwise(self.chunk_times))

    @property
    def queued(self) -> float:
        """Time that it waited in the client after it was due, s."""
        return self.sent - self.scheduled

    def shifted(self, origin: float) -> RequestTrace:
        """Return the same trace with times counted from `origin`."""
        return replace(
            self,
            scheduled=self.scheduled - origin,
            sent=self.sent - origin,
            finished=self.finished - origin,
            first_token=None if self.first_token is None else self.first_token - origin,
            chunk_times=tuple(t - origin for t in self.chunk_times),
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RequestTrace:
        """Read `to_dict`'s output.

        Raises:
            ValueError: If a field is missing, unknown or of the wrong kind.
        """
        known = {field.name for field in fields(cls)}
        if unknown := set(values) - known:
            raise ValueError(f"unknown trace fields: {', '.join(sorted(unknown))}")
        try:
            trace = cls(**{**values, "chunk_times": tuple(values.get("chunk_times", ()))})
        except TypeError as error:
            raise ValueError(f"incomplete trace: {error}") from error
        times = [trace.scheduled, trace.sent, trace.finished, *trace.chunk_times]
        counts = (trace.first_token, trace.prompt_tokens, trace.completion_tokens)
        if not all(isinstance(time, int | float) for time in times) or not all(
            isinstance(count, int | float | None) for count in counts
        ):
            raise ValueError("a trace has times or token counts that aren't numbers")
        return trace
