"""The meaning of an OpenAI-style answer: when the model has said something, and which error it holds.

The benchmark's client, the gateway and its TTFT metric share these rules. Otherwise the same stream would
have two first tokens.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec

from utils.files import encodable
from utils.http.sse import DONE, SSEParser

# Anthropic's Messages API: the parts of a `content_block_delta`.
_MESSAGE_FIELDS = ("text", "thinking", "partial_json")


def part_has_text(part: Mapping[str, Any]) -> bool:
    """Tell whether a delta, a message or a choice has text: an answer, reasoning or a tool call."""
    get = part.get
    return bool(
        get("content")
        or get("text")
        or get("reasoning_content")
        or get("reasoning")
        or get("tool_calls")
        or get("refusal")
        or get("function_call")
    )


def data_has_text(data: str | bytes) -> bool:
    """Tell whether the JSON of one event, or of a whole answer, has text.

    A chunk that holds only a role, a finish reason or a token count has none. Besides chats and
    completions, it knows the events of the Responses and Messages APIs.
    """
    try:
        found = msgspec.json.decode(data)
    except (msgspec.DecodeError, RecursionError):
        return False
    if not isinstance(found, dict):
        return False
    choices, delta = found.get("choices"), found.get("delta")
    if isinstance(choices, list):
        return any(
            part_has_text(part)
            for choice in choices
            if isinstance(choice, dict)
            for part in (choice, choice.get("delta"), choice.get("message"))
            if isinstance(part, dict)
        )
    if isinstance(delta, dict):
        return any(delta.get(name) for name in _MESSAGE_FIELDS)
    if isinstance(delta, str):
        return bool(delta)
    return bool(found.get("output") or found.get("content"))


def has_text(body: bytes) -> bool:
    """Tell whether a piece of an answer's body has text, as whole server-sent events or as JSON.

    Comments such as `: ping` have none: servers send them while the model has said nothing yet.
    """
    if body[:1] == b"{":
        return data_has_text(body)
    parser = SSEParser()
    events = parser.feed(body)
    return any(event.data != DONE and data_has_text(event.data) for event in events)


def error_text(body: str) -> str:
    """Return the message in an OpenAI-style error body, or the body itself."""
    try:
        data = json.loads(body)
        error = data.get("error", data) if isinstance(data, dict) else data
        message = error.get("message") if isinstance(error, dict) else error
        return encodable(str(message or body).strip())
    except (ValueError, RecursionError):
        return body.strip()
