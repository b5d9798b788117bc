"""Server-sent events, read and written: the one parser of the course.

The benchmark's client and the gateway use the same parser, so they agree about where an event ends. Bytes
arrive in whatever pieces the network likes: half an event, three events at once, a multi-byte character
cut in two. The parser holds bytes until a line is complete, so nothing is decoded early.

Source: WHATWG HTML, section 9.2 "Server-sent events".
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

DONE = "[DONE]"
_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"\r\n|\n|\r")


@dataclass(slots=True)
class Event:
    """One dispatched event.

    Attributes:
        data: Its payload.
        kind: Its type, "message" unless the server names one.
        raw: Its bytes as they came, with the comments and other blocks without data before it.
    """

    data: str
    kind: str = "message"
    raw: bytes = field(default=b"", compare=False, repr=False)


class SSEParser:
    """Parser that turns pieces of a byte stream into events, whatever the pieces' borders.

    Lines end in LF, CRLF or CR, in any mix, and an event ends at an empty line. Comments and unknown
    fields are ignored. A line `error: ...`, which llama.cpp wrote in place of `data:` for years, becomes
    an event of kind "error". Each byte is looked at once, because an event may be megabytes long.

    Attributes:
        waiting: Bytes that came since the last event.
    """

    __slots__ = (
        "_before",
        "_block",
        "_data",
        "_kind",
        "_line_parts",
        "_skip_lf",
        "_started",
        "waiting",
    )

    def __init__(self) -> None:
        self.waiting = 0
        self._before = b""  # whole blocks without data
        self._block: list[bytes] = []  # whole lines of the block that is being read
        self._line_parts: list[bytes] = []  # of the line that is being read
        self._data: list[bytes] = []
        self._kind = "message"
        self._skip_lf = False
        self._started = False

    @property
    def rest(self) -> bytes:
        """The bytes of the block that isn't complete."""
        return b"".join([*self._block, *self._line_parts])

    def feed(self, piece: bytes) -> list[Event]:
        """Take the next bytes and return the events that they complete, in order."""
        # The common case, whole `data: ...\n\n` events of one line each: no line splitting needed.
        if (
            not self.waiting
            and piece.startswith(b"data: ")
            and piece.endswith(b"\n\n")
            and piece.count(b"\n") == 2 * piece.count(b"\n\ndata: ") + 2
            and b"\r" not in piece
            and not self._skip_lf
        ):
            self._started = True
            return [
                Event(data.decode("utf-8", "replace"), "message", b"data: %b\n\n" % data)
                for data in piece[6:-2].split(b"\n\ndata: ")
            ]
        return self._feed_lines(piece)

    def close(self) -> Event | None:
        """End the stream and return an event that lacks only its final empty line, if any.

        The standard discards such an event. Servers do end with a bare `data: [DONE]`, so the
        caller gets it and decides.
        """
        raw = self._before + self.rest
        if self._line_parts:
            self._line(b"".join(self._line_parts))
        found = self._dispatch(raw)
        self._before, self._block, self._line_parts, self.waiting = b"", [], [], 0
        return found

    def _feed_lines(self, piece: bytes) -> list[Event]:
        self.waiting += len(piece)
        if self._started and b"\n" not in piece and b"\r" not in piece:
            if piece:
                self._line_parts.append(piece)
                self._skip_lf = False
            return []
        buffer = b"".join([*self._line_parts, piece])
        at = block_from = 0
        if not self._started:
            if len(buffer) < len(_BOM) and _BOM.startswith(buffer):
                self._line_parts = [buffer]
                return []
            self._started = True
            at = len(_BOM) if buffer.startswith(_BOM) else 0
        if self._skip_lf and buffer.startswith(b"\n"):
            at = 1
        events: list[Event] = []
        for end in _LINE_END.finditer(buffer, at):
            line, at = buffer[at : end.start()], end.end()
            if line:
                self._line(line)
                continue
            raw = b"".join([self._before, *self._block, buffer[block_from:at]])
            self._block, block_from = [], at
            event = self._dispatch(raw)
            if event is None:
                self._before = raw
            else:
                self._before = b""
                self.waiting = len(buffer) - at
                events.append(event)
        self._skip_lf = buffer.endswith(b"\r")
        if block_from < at:
            self._block.append(buffer[block_from:at])
        self._line_parts = [buffer[at:]] if at < len(buffer) else []
        return events

    def _line(self, line: bytes) -> None:
        name, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if name == b"data":
            self._data.append(value)
        elif name == b"event":
            self._kind = value.decode("utf-8", "replace") or "message"
        elif name == b"error":
            self._kind = "error"
            self._data.append(value)

    def _dispatch(self, raw: bytes) -> Event | None:
        kind, self._kind = self._kind, "message"
        if not self._data:
            return None
        event = Event(b"\n".join(self._data).decode("utf-8", "replace"), kind, raw)
        self._data = []
        return event


def feed(buffer: bytes, piece: bytes) -> tuple[list[str], bytes]:
    """Return the data of the events that the next bytes complete, and the bytes to keep for later.

    Args:
        buffer: Bytes that the last call returned; at first empty.
        piece: Bytes as they came: half an event, three events, half a character.

    Returns:
        The data of each complete event that has some, and the bytes of the event that isn't complete.
    """
    parser = SSEParser()
    events = parser.feed(buffer + piece)
    return [event.data for event in events], parser.rest


def encode(data: str, event: str = "") -> bytes:
    """Write one event; a text of several lines becomes several `data:` lines.

    Raises:
        ValueError: If the event's name has a line break, which would start another field.
    """
    if "\r" in event or "\n" in event:
        raise ValueError("an event's name is one line")
    lines = [f"event: {event}"] if event else []
    text = data.replace("\r\n", "\n").replace("\r", "\n")
    lines += [f"data: {line}" for line in text.split("\n")]
    return ("\n".join(lines) + "\n\n").encode()


def error_event(error: Mapping[str, Any]) -> bytes:
    """Write the event that ends a broken stream, in the form that OpenAI's clients raise."""
    return encode(json.dumps({"error": error}))
