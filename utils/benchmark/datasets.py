"""Requests from files: your own JSONL, and conversations in the layout of ShareGPT."""

from __future__ import annotations

import itertools
import json
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from utils.benchmark.workload import (
    DEFAULT_MAX_TOKENS,
    Conversation,
    Request,
    Source,
    WorkloadError,
)

_USER = {"human", "user"}
_ASSISTANT = {"gpt", "assistant", "chatgpt", "bing", "bard"}
_LONGEST = 2048  # tokens of an answer, whatever the file's own answer
_TOKENS_PER_WORD = 4 / 3


def read_requests(
    path: str | Path,
    *,
    max_tokens: int | None = None,
    turns: bool = False,
    think_s: float = 0.0,
    seed: int = 0,
) -> list[Request | Conversation]:
    """Read a file with one JSON object a line, or with one JSON array.

    An object has `prompt` (a text), `messages` (as in the chat API) or `conversations` (ShareGPT: `from` and
    `value`). The limit of the answer is the object's `max_tokens`, or about the length of the file's own
    answer.

    Args:
        path: File to read.
        max_tokens: Limit of every answer in place of the file's.
        turns: True if conversations are held turn by turn with the engine's own answers. Otherwise only their
            first turn is sent.
        think_s: Mean time between an answer and the next turn, seconds; exponentially distributed.
        seed: Random seed of these times.

    Raises:
        WorkloadError: The file can't be read, or an object has no prompt; names file and line.
    """
    source = Source(f"{Path(path).name}", seed=seed if turns and think_s else None)
    rng = random.Random(seed)
    found: list[Request | Conversation] = []
    for number, item in _objects(Path(path)):
        try:
            found.append(_request(item, max_tokens, turns, think_s, rng, source))
        except (WorkloadError, TypeError, KeyError, AttributeError, ValueError) as error:
            raise WorkloadError(f"{path}, object {number}: {error}") from error
    if not found:
        raise WorkloadError(f"{path} holds no requests")
    return found


def endless(requests: list[Request | Conversation]) -> Iterator[Request | Conversation]:
    """Go round a list for ever, for a run by duration. From the second round on, prefix caches help."""
    return itertools.cycle(requests)


def _objects(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
    except (OSError, UnicodeError) as error:
        raise WorkloadError(f"cannot read {path}: {error}") from error
    if text.startswith("["):
        try:
            yield from enumerate(json.loads(text), 1)
        except ValueError as error:
            raise WorkloadError(f"{path} isn't valid JSON: {error}") from error
        return
    for number, line in enumerate(text.split("\n"), 1):
        if line.strip():
            try:
                yield number, json.loads(line)
            except ValueError as error:
                raise WorkloadError(f"{path}, line {number} isn't valid JSON: {error}") from error


def _request(
    item: Mapping[str, Any],
    max_tokens: int | None,
    turns: bool,
    think_s: float,
    rng: random.Random,
    source: Source,
) -> Request | Conversation:
    if not isinstance(item, Mapping):
        raise WorkloadError(f"expected a JSON object, but got {str(item)[:40]!r}")
    limit = max_tokens or item.get("max_tokens")
    if isinstance(prompt := item.get("prompt"), str) and prompt:
        return Request(prompt=prompt, max_tokens=limit or DEFAULT_MAX_TOKENS, source=source)
    messages = _messages(item)
    asked = [message["content"] for message in messages if message["role"] == "user"]
    if not asked:
        raise WorkloadError(
            "there is no `prompt`, and no user's turn in `messages` or `conversations`"
        )
    answers = [message["content"] for message in messages if message["role"] == "assistant"]
    if not limit:
        words = len(answers[0].split()) if answers else 0
        limit = min(_LONGEST, round(words * _TOKENS_PER_WORD)) or DEFAULT_MAX_TOKENS
    system = tuple(message for message in messages if message["role"] == "system")
    if turns:
        pauses = tuple(rng.expovariate(1 / think_s) if think_s else 0.0 for _ in asked[1:])
        first = Request(messages=system, max_tokens=limit, source=source)
        return Conversation(tuple(asked), pauses, first)
    if item.get("messages"):  # the caller's own history goes along
        upto = max(i for i, message in enumerate(messages) if message["role"] == "user")
        return Request(messages=tuple(messages[: upto + 1]), max_tokens=limit, source=source)
    first_turn = (*system, {"role": "user", "content": asked[0]})
    return Request(messages=first_turn, max_tokens=limit, source=source)


def _messages(item: Mapping[str, Any]) -> list[dict[str, str]]:
    found = []
    for message in item.get("messages") or item.get("conversations") or ():
        role = message.get("role") or message.get("from")
        content = message.get("content", message.get("value"))
        if not isinstance(content, str):
            raise WorkloadError("a message has no text")
        kind = "user" if role in _USER else "assistant" if role in _ASSISTANT else "system"
        found.append({"role": kind, "content": content})
    return found
