"""Between OpenAI's chat API and Ollama's own: bodies one way, answers the other.

Ollama's `/v1/chat/completions` ignores `options` (num_ctx and all the others) and `keep_alive`, and leaves
out its timings. `/api/chat` has them. OpenAI's fields are translated as Ollama translates them itself.

Sources: ollama docs/api.md, api/types.go, openai/openai.go at v0.24.0.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping
from typing import Any

ONLY_NATIVE = ("keep_alive", "options")
# Counts, and durations in nanoseconds, of the last line of an answer.
TIMINGS = (
    "total_duration",
    "load_duration",
    "prompt_eval_count",
    "prompt_eval_duration",
    "eval_count",
    "eval_duration",
)
# OpenAI's defaults, which Ollama sets itself on its OpenAI API; its own are 0.8 and 0.9.
_DEFAULTS = {"temperature": 1.0, "top_p": 1.0}
_OPTIONS = {
    "temperature": "temperature",
    "top_p": "top_p",
    "seed": "seed",
    "frequency_penalty": "frequency_penalty",
    "presence_penalty": "presence_penalty",
    "max_tokens": "num_predict",
    "max_completion_tokens": "num_predict",
}
_AS_THEY_ARE = ("model", "tools", "keep_alive", "think", "logprobs", "top_logprobs")


class NotTranslatable(ValueError):
    """A field that Ollama's own API cannot express; the message names it."""


def native_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The body for `/api/chat` that asks for what an OpenAI chat body asks for.

    Args:
        body: Body for `/v1/chat/completions`; it may also hold `options`, which win, and `keep_alive`.

    Raises:
        NotTranslatable: `n` above 1, a response format that is no JSON, or an image that is not in the body.
    """
    if (body.get("n") or 1) != 1:
        raise NotTranslatable("n: Ollama gives one answer a request.")
    options: dict[str, Any] = dict(_DEFAULTS)
    for field, option in _OPTIONS.items():
        if body.get(field) is not None:
            options[option] = body[field]
    if stop := body.get("stop"):
        options["stop"] = [stop] if isinstance(stop, str) else list(stop)
    native = {field: body[field] for field in _AS_THEY_ARE if body.get(field) is not None}
    if body.get("reasoning_effort") is not None:
        native["think"] = False if body["reasoning_effort"] == "none" else body["reasoning_effort"]
    if (wanted := _format(body.get("response_format"))) is not None:
        native["format"] = wanted
    if not isinstance(own := body.get("options") or {}, Mapping):
        raise NotTranslatable('options: write an object, as {"num_ctx": 8192}.')
    native["options"] = {**options, **own}
    native["messages"] = [_message(message) for message in body.get("messages") or ()]
    native["stream"] = bool(body.get("stream"))
    return native


class ChatReply:
    """Translates one answer; keeps what all its parts have in common.

    Args:
        model: The name that the client asked for.
    """

    def __init__(self, model: str) -> None:
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex[:12]}",
            "created": int(time.time()),
            "model": model,
        }
        self._calls = 0

    def chunks(self, line: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The chunks of a stream that a line stands for: one; of the last line, the usage block too.

        Raises:
            NotTranslatable: The line tells of an error; its words are in the message.
        """
        _raise_error(line)
        reason = self._reason(line)
        delta = {"role": "assistant", **self._said(line)}
        chunk = self._with("chat.completion.chunk", "delta", delta, reason)
        if not line.get("done"):
            return [chunk]
        return [{**chunk, "timings": timings(line)}, {**chunk, "choices": [], "usage": usage(line)}]

    def whole(self, line: Mapping[str, Any]) -> dict[str, Any]:
        """The body of an answer that is not streamed.

        Raises:
            NotTranslatable: It is an error; its words are in the message.
        """
        _raise_error(line)
        said = self._said(line)
        message = {"role": "assistant", "content": "", **said}
        answer = self._with("chat.completion", "message", message, self._reason(line))
        return {**answer, "usage": usage(line), "timings": timings(line)}

    def _said(self, line: Mapping[str, Any]) -> dict[str, Any]:
        message = line.get("message") or {}
        said: dict[str, Any] = {}
        if message.get("content"):
            said["content"] = message["content"]
        if message.get("thinking"):
            said["reasoning"] = message["thinking"]
        if calls := message.get("tool_calls"):
            said["tool_calls"] = [self._call(call) for call in calls]
        return said

    def _call(self, call: Mapping[str, Any]) -> dict[str, Any]:
        function = call.get("function") or {}
        arguments = json.dumps(function.get("arguments") or {})
        index, self._calls = self._calls, self._calls + 1
        return {
            "index": index,
            "id": call.get("id") or f"call_{uuid.uuid4().hex[:8]}",
            "type": "function",
            "function": {"name": function.get("name", ""), "arguments": arguments},
        }

    def _reason(self, line: Mapping[str, Any]) -> str | None:
        if not line.get("done"):
            return None
        reason = str(line.get("done_reason") or "stop")
        return "tool_calls" if reason == "stop" and self._calls else reason

    def _with(
        self, kind: str, part: str, said: dict[str, Any], reason: str | None
    ) -> dict[str, Any]:
        choice = {"index": 0, part: said, "finish_reason": reason}
        return {**self._head, "object": kind, "choices": [choice]}


def usage(line: Mapping[str, Any]) -> dict[str, int]:
    """OpenAI's usage block. A count that is missing is 0, as Go's `omitempty` means it."""
    prompt, answer = int(line.get("prompt_eval_count", 0)), int(line.get("eval_count", 0))
    return {
        "prompt_tokens": prompt,
        "completion_tokens": answer,
        "total_tokens": prompt + answer,
    }


def timings(line: Mapping[str, Any]) -> dict[str, int]:
    """Ollama's own counts and durations (ns), 0 where they are missing."""
    return {name: int(line.get(name, 0)) for name in TIMINGS}


def _raise_error(line: Mapping[str, Any]) -> None:
    if line.get("error"):
        raise NotTranslatable(str(line["error"]))


def _format(wanted: object) -> object:
    if not isinstance(wanted, Mapping) or wanted.get("type") == "text":
        return None
    if wanted.get("type") == "json_object":
        return "json"
    if wanted.get("type") == "json_schema":
        return (wanted.get("json_schema") or {}).get("schema")
    raise NotTranslatable(f"response_format: Ollama knows no {wanted.get('type')!r}.")


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content") or ""
    native: dict[str, Any] = {"role": message.get("role"), "content": content}
    if not isinstance(content, str):
        native["content"] = "".join(p.get("text") or "" for p in content if p["type"] == "text")
        if images := [_image(part) for part in content if part["type"] != "text"]:
            native["images"] = images
    if calls := message.get("tool_calls"):
        native["tool_calls"] = [_asked_call(call) for call in calls]
    if message.get("role") == "tool" and message.get("name"):
        native["tool_name"] = message["name"]
    return native


def _image(part: Mapping[str, Any]) -> str:
    url = str((part.get("image_url") or {}).get("url", ""))
    head, comma, data = url.partition(",")
    if part["type"] != "image_url" or not (comma and head.startswith("data:image/")):
        raise NotTranslatable(
            f"messages: Ollama takes images as data: URLs, and no {part['type']!r}."
        )
    return data


def _asked_call(call: Mapping[str, Any]) -> dict[str, Any]:
    function = dict(call.get("function") or {})
    if isinstance(function.get("arguments"), str):
        function["arguments"] = json.loads(function["arguments"] or "{}")
    return {"function": function}
