"""Collects one response, streamed or whole, into the values of a trace."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from utils.benchmark.sse import DONE, Event


class ResponseError(Exception):
    """The response broke off, was malformed, or carried an error from the engine."""


class ResponseCollector:
    """Text, token counts and times of one response.

    `at` is always the time at which the bytes were read from the network, not the time at which
    they were parsed.
    """

    __slots__ = (
        "_reasoning",
        "_text",
        "chunk_times",
        "done",
        "finish_reason",
        "finished",
        "streamed",
        "usage",
    )

    def __init__(self) -> None:
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self.chunk_times: list[float] = []
        self.finished: float | None = None
        self.finish_reason: str | None = None
        self.usage: Mapping[str, Any] | None = None
        self.done = False
        self.streamed = True

    @property
    def text(self) -> str:
        """The answer so far."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        """The reasoning text so far."""
        return "".join(self._reasoning)

    def event(self, event: Event, at: float) -> None:
        """Takes one event of a stream.

        Raises:
            ResponseError: If it is an error event or not a JSON object.
        """
        if event.data == DONE:
            self.done = True
            return
        if event.kind == "error":
            raise ResponseError(f"error in mid-stream: {error_text(event.data)}")
        data = _json_object(event.data)
        if data.get("error"):
            raise ResponseError(f"error in mid-stream: {error_text(event.data)}")
        if usage := data.get("usage"):
            self.usage = usage
        self._choices(data, "delta", at)

    def whole(self, body: bytes, at: float) -> None:
        """Takes a complete response that was not streamed.

        Raises:
            ResponseError: If it is an error or not a JSON object.
        """
        text = body.decode("utf-8", "replace")
        data = _json_object(text)
        if data.get("error"):
            raise ResponseError(error_text(text))
        if not data.get("choices"):
            raise ResponseError("the response has no choices")
        self.usage = data.get("usage")
        self._choices(data, "message", at)
        self.chunk_times.clear()
        self.streamed = False
        self.finished = at
        self.done = True

    def end(self) -> None:
        """Checks, at the end of a stream, that the response is complete.

        Raises:
            ResponseError: If neither a finish reason nor [DONE] was seen.
        """
        if not self.done and self.finish_reason is None:
            raise ResponseError("the stream ended without a finish_reason or [DONE]")

    def token_counts(self) -> dict[str, int | None]:
        """Prompt, completion and cached tokens from `usage`; None where it has none."""
        usage = self.usage or {}
        details = usage.get("prompt_tokens_details") or {}
        return {
            "prompt_tokens": usage.get("prompt_tokens"),
            "completion_tokens": usage.get("completion_tokens"),
            "cached_tokens": details.get("cached_tokens"),
        }

    def _choices(self, data: Mapping[str, Any], part: str, at: float) -> None:
        try:
            for choice in data.get("choices") or ():
                self._choice(choice, choice.get(part) or choice, at)
        except (AttributeError, TypeError) as error:
            raise ResponseError(f"unexpected shape: {str(data)[:80]} ({error})") from error

    def _choice(self, choice: Mapping[str, Any], part: Mapping[str, Any], at: float) -> None:
        text = part.get("content") or part.get("text") or ""
        reasoning = part.get("reasoning_content") or part.get("reasoning") or ""
        if text:
            self._text.append(text)
        if reasoning:
            self._reasoning.append(reasoning)
        if text or reasoning or part.get("tool_calls"):
            self.chunk_times.append(at)
            self.finished = at
        if reason := choice.get("finish_reason"):
            self.finish_reason = reason
            self.finished = at


def error_text(body: str) -> str:
    """The message in an OpenAI-style error body, or the body itself."""
    try:
        data = json.loads(body)
    except json.JSONDecodeError:
        return body.strip()
    error = data.get("error", data) if isinstance(data, dict) else data
    message = error.get("message") if isinstance(error, dict) else error
    return str(message or body).strip()


def _json_object(text: str) -> Mapping[str, Any]:
    try:
        data = json.loads(text)
    except json.JSONDecodeError as error:
        raise ResponseError(f"not JSON: {text[:80]!r} ({error})") from error
    if not isinstance(data, dict):
        raise ResponseError(f"not a JSON object: {text[:80]!r}")
    return data
