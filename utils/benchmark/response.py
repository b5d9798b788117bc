"""Collects one response, streamed or whole, into the values of a trace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from utils.files import encodable
from utils.http.answers import error_text, part_has_text
from utils.http.sse import DONE, Event

# Endings of a complete answer. "repetition" is vLLM's, for a rule that the request itself asked for. Every
# other reason is a failure: "abort" (vLLM, SGLang), "cancelled" (TensorRT-LLM) and "error" cut an answer
# short, and "content_filter" withholds a part of it.
COMPLETE = frozenset({"stop", "length", "tool_calls", "function_call", "repetition"})
# No real count comes near; beyond it, floats are no longer exact.
_MOST_TOKENS = 2**53
# Our name: llama.cpp's name, and its unit in seconds (1 for counts).
_TIMINGS = {
    "prefill_s": ("prompt_ms", 1e-3),
    "decode_s": ("predicted_ms", 1e-3),
    "prefill_tokens": ("prompt_n", 1),
    "decode_tokens": ("predicted_n", 1),
}


class ResponseError(Exception):
    """The response broke off, was malformed, or carried an error from the engine."""


class ResponseCollector:
    """Text, token counts and times of one response.

    `at` is always the time at which the bytes were read from the network, not the time at which
    they were parsed.
    """

    __slots__ = (
        "_has_text",
        "_reasoning",
        "_text",
        "chunk_times",
        "done",
        "finish_reason",
        "finished",
        "streamed",
        "timings",
        "usage",
    )

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._has_text = False
        self.chunk_times: list[float] = []
        self.finished: float | None = None
        self.finish_reason: str | None = None
        self.usage: Mapping[str, Any] | None = None
        self.timings: Mapping[str, float] | None = None
        self.done = False
        self.streamed = True

    @property
    def text(self) -> str:
        """The answer so far; half a surrogate pair, which UTF-8 cannot hold, becomes U+FFFD."""
        return encodable("".join(self._text))

    @property
    def reasoning(self) -> str:
        """The reasoning text so far."""
        return encodable("".join(self._reasoning))

    def event(self, event: Event, at: float) -> None:
        """Take one event of a stream.

        Raises:
            ResponseError: If it is an error event, not a JSON object, or holds values of the wrong
                kind.
        """
        if event.data == DONE:
            self.done = True
            return
        if event.kind == "error":
            raise ResponseError(f"error in mid-stream: {error_text(event.data)}")
        data = _json_object(event.data)
        if data.get("error"):
            raise ResponseError(f"error in mid-stream: {error_text(event.data)}")
        self._take_usage(data)
        self._choices(data, "delta", at)

    def whole(self, body: bytes, at: float) -> None:
        """Take a complete response that was not streamed.

        Raises:
            ResponseError: If it is an error, not a JSON object, holds values of the wrong kind, or isn't
                complete (see `end`).
        """
        text = body.decode("utf-8", "replace")
        data = _json_object(text)
        if data.get("error"):
            raise ResponseError(error_text(text))
        if not data.get("choices"):
            raise ResponseError("the response has no choices")
        self._take_usage(data)
        self._choices(data, "message", at)
        self.chunk_times.clear()
        self.streamed = False
        self.finished = at
        self.done = True
        self.end()

    def end(self) -> None:
        """Check, at the end of a response, that there is evidence for the whole answer.

        Raises:
            ResponseError: The finish reason is missing or isn't one of `COMPLETE`, or there is no text and
                no tool call although tokens were counted or nothing was counted at all.
        """
        if self.finish_reason is None:
            after = "[DONE] came" if self.done else "the stream ended"
            raise ResponseError(f"{after} without a finish_reason")
        if self.finish_reason not in COMPLETE:
            raise ResponseError(
                f"the engine broke the answer off: finish_reason {self.finish_reason!r}"
            )
        if self._has_text:
            return
        if self.usage is None:
            raise ResponseError("the answer has neither text nor usage")
        if tokens := self.token_counts()["completion_tokens"]:
            raise ResponseError(
                f"the answer has no text, although its usage counts {tokens} tokens"
            )

    def token_counts(self) -> dict[str, int | None]:
        """Prompt, completion and cached tokens from `usage`; None where it has none."""
        return _counts(self.usage or {})

    def _take_usage(self, data: Mapping[str, Any]) -> None:
        self.timings = read_timings(data.get("timings")) or self.timings
        usage = data.get("usage")
        if usage is None:
            return
        if not isinstance(usage, dict):
            raise ResponseError(f"usage is {_shown(usage)}, not an object")
        _counts(usage)
        self.usage = usage or self.usage

    def _choices(self, data: Mapping[str, Any], part: str, at: float) -> None:
        try:
            for choice in data.get("choices") or ():
                self._choice(choice, choice.get(part) or choice, at)
        except (AttributeError, TypeError) as error:
            raise ResponseError(f"unexpected shape: {_shown(data)} ({error})") from error

    def _choice(self, choice: Mapping[str, Any], part: Mapping[str, Any], at: float) -> None:
        text = _text(part, "content") or _text(part, "text")
        reasoning = _text(part, "reasoning_content") or _text(part, "reasoning")
        if text:
            self._text.append(text)
        if reasoning:
            self._reasoning.append(reasoning)
        if part_has_text(part):
            self._has_text = True
            self.chunk_times.append(at)
            self.finished = at
        if reason := _text(choice, "finish_reason"):
            self.finish_reason = reason
            self.finished = at


def read_timings(values: object) -> dict[str, float] | None:
    """Read the `timings` of llama.cpp's last chunk (tools/server/README.md), by its own clock.

    Returns:
        `prefill_s` and `decode_s` in seconds, `prefill_tokens` and `decode_tokens`. None for anything else.
    """
    if not isinstance(values, Mapping) or "predicted_ms" not in values:
        return None
    return {ours: _number(values.get(name)) * unit for ours, (name, unit) in _TIMINGS.items()}


def _json_object(text: str) -> Mapping[str, Any]:
    try:
        data = msgspec.json.decode(text)
    except (msgspec.DecodeError, RecursionError):
        try:
            data = json.loads(
                text
            )  # slower, but it reads half a surrogate pair, as engines send it
        except (ValueError, RecursionError) as error:  # too many digits; nested too deeply
            raise ResponseError(f"not JSON: {text[:80]!r} ({error})") from error
    if not isinstance(data, dict):
        raise ResponseError(f"not a JSON object: {text[:80]!r}")
    return data


def _text(values: Mapping[str, Any], name: str) -> str:
    value = values.get(name)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise ResponseError(f"{name} is {_shown(value)}, not text")
    return value


def _counts(usage: Mapping[str, Any]) -> dict[str, int | None]:
    details = usage.get("prompt_tokens_details")
    if details is not None and not isinstance(details, dict):
        raise ResponseError(f"prompt_tokens_details is {_shown(details)}, not an object")
    return {
        "prompt_tokens": _count(usage, "prompt_tokens"),
        "completion_tokens": _count(usage, "completion_tokens"),
        "cached_tokens": _count(details or {}, "cached_tokens"),
    }


def _count(values: Mapping[str, Any], name: str) -> int | None:
    value = values.get(name)
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= _MOST_TOKENS:
        raise ResponseError(f"{name} is {_shown(value)}, not a number of tokens")
    return value


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0


def _shown(value: object) -> str:
    try:
        return repr(value)[:80]
    except (ValueError, RecursionError):
        return f"a {type(value).__name__}"
