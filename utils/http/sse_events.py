"""Server-sent events by hand: written, read again, and what a relay has to know of them.

`utils.http.sse` has the parser that measures; these are the small parts of it that a gateway needs.
Source: WHATWG HTML, section 9.2 "Server-sent events".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

DONE = b"[DONE]"
_LINE_END = re.compile(rb"\r\n|\n|\r(?!\Z)")  # a CR at the very end may be half of a CRLF
_EVENT_END = re.compile(rb"\n\n|\r\r|\r\n\r\n")
_LONGEST_END = 3  # bytes of such an end that may have come before the rest of it


def encode(data: str, event: str = "") -> bytes:
    """One event; a text of several lines becomes several `data:` lines.

    Raises:
        ValueError: A line break in the event's name, which would start another field.
    """
    if "\r" in event or "\n" in event:
        raise ValueError("an event's name is one line")
    lines = [f"event: {event}"] if event else []
    text = data.replace("\r\n", "\n").replace("\r", "\n")
    lines += [f"data: {line}" for line in text.split("\n")]
    return ("\n".join(lines) + "\n\n").encode()


def feed(buffer: bytes, piece: bytes) -> tuple[list[str], bytes]:
    """The next bytes of a stream: the data of events that they complete, and what is left for later.

    Args:
        buffer: What the last call left; at first empty.
        piece: Bytes as they came: half an event, three events, half a character.

    Returns:
        The data of each complete event that has some, and the bytes of the event that is not complete.
    """
    found: list[str] = []
    data: list[bytes] = []
    buffer += piece
    start = line_start = 0  # of the event that is being read, and of its line
    for end in _LINE_END.finditer(buffer):
        line, line_start = buffer[line_start : end.start()], end.end()
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif line == b"data":
            data.append(b"")
        elif not line:
            if data:
                found.append(b"\n".join(data).decode("utf-8", "replace"))
            data, start = [], line_start
    return found, buffer[start:]


def complete_length(data: bytes) -> int:
    """How many bytes of `data` are whole events: up to the last empty line."""
    last = 0
    for end in _EVENT_END.finditer(data):
        last = end.end()
    return last


class Gatherer:
    """Makes whole events of pieces that end anywhere. Looks at each byte once: an event may be megabytes.

    Attributes:
        waiting: Bytes of the event that is not complete.
    """

    def __init__(self) -> None:
        self.waiting = 0
        self._parts: list[bytes] = []
        self._tail = b""  # of what waits: an empty line may have begun there

    def feed(self, piece: bytes) -> bytes:
        """The next bytes of a stream; returns the whole events that they complete, b"" if none."""
        if not self._parts and piece.endswith(b"\n\n"):  # as every engine sends them, almost always
            return piece
        end = complete_length(self._tail + piece) - len(self._tail)
        if end <= 0:
            self._keep(piece)
            return b""
        whole = b"".join([*self._parts, piece[:end]])
        self._parts, self._tail, self.waiting = [], b"", 0
        self._keep(piece[end:])
        return whole

    def _keep(self, piece: bytes) -> None:
        if piece:
            self._parts.append(piece)
            self._tail = (self._tail + piece[-_LONGEST_END:])[-_LONGEST_END:]
            self.waiting += len(piece)


def ends(data: bytes) -> bool:
    """Whether the event `[DONE]` is among whole events. JSON has no line break: no text looks like it."""
    return any(line.removeprefix(b"data:").strip() == DONE for line in data.splitlines())


def error_event(error: Mapping[str, Any]) -> bytes:
    """The event that ends a broken stream, in the form that OpenAI's clients raise."""
    return encode(json.dumps({"error": error}))


def events_in(data: bytes) -> list[bytes]:
    """Whole events as they stand in `data`, each with its end."""
    parts, start = [], 0
    for end in _EVENT_END.finditer(data):
        parts.append(data[start : end.end()])
        start = end.end()
    return [*parts, data[start:]] if start < len(data) else parts
