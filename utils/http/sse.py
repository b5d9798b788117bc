"""Incremental parser for server-sent events.

Bytes arrive in whatever pieces the network likes: half an event, three events at once, a
multi-byte character cut in two. The parser holds bytes until a line is complete, so nothing is
decoded early.

Source: WHATWG HTML, section 9.2.6 "Interpreting an event stream".
"""

from __future__ import annotations

from typing import NamedTuple

DONE = "[DONE]"
_BOM = b"\xef\xbb\xbf"


class Event(NamedTuple):
    """One dispatched event: its payload and its type ("message" unless the server names one)."""

    data: str
    kind: str = "message"


class SSEParser:
    """Turns pieces of a byte stream into events, whatever the pieces' borders.

    Lines end in LF, CRLF or CR; an event ends at an empty line. Comments and unknown fields are
    ignored. A line `error: ...`, which llama.cpp wrote in place of `data:` for years, becomes an
    event of kind "error".
    """

    __slots__ = ("_buffer", "_data", "_kind", "_skip_lf", "_started")

    def __init__(self) -> None:
        self._buffer = b""
        self._data: list[bytes] = []
        self._kind = "message"
        self._skip_lf = False
        self._started = False

    def feed(self, piece: bytes) -> list[Event]:
        """Takes the next bytes and returns the events that they complete, in order."""
        # The common case, one whole `data: ...\n\n` event: no line splitting needed.
        if (
            piece.startswith(b"data: ")
            and piece.endswith(b"\n\n")
            and piece.count(b"\n") == 2
            and b"\r" not in piece
            and not (self._buffer or self._data or self._skip_lf)
        ):
            self._started = True
            kind, self._kind = self._kind, "message"
            return [Event(piece[6:-2].decode("utf-8", "replace"), kind)]
        return self._feed_lines(piece)

    def close(self) -> Event | None:
        """Ends the stream and returns an event that lacks only its final empty line, if any.

        The standard discards such an event. Servers do end with a bare `data: [DONE]`, so the
        caller gets it and decides.
        """
        if self._buffer:
            self._line(self._buffer)
            self._buffer = b""
        return self._dispatch()

    def _feed_lines(self, piece: bytes) -> list[Event]:
        if not piece:
            return []
        if self._skip_lf:
            piece = piece.removeprefix(b"\n")
            self._skip_lf = False
        buffer = self._buffer + piece
        if not self._started:
            if len(buffer) < len(_BOM) and _BOM.startswith(buffer):
                self._buffer = buffer
                return []
            buffer = buffer.removeprefix(_BOM)
            self._started = True
        self._skip_lf = buffer.endswith(b"\r")
        *lines, self._buffer = (
            buffer.replace(b"\r\n", b"\n").replace(b"\r", b"\n").split(b"\n")
            if b"\r" in buffer
            else buffer.split(b"\n")
        )
        events: list[Event] = []
        for line in lines:
            if line:
                self._line(line)
            elif (event := self._dispatch()) is not None:
                events.append(event)
        return events

    def _line(self, line: bytes) -> None:
        field, _, value = line.partition(b":")
        value = value.removeprefix(b" ")
        if field == b"data":
            self._data.append(value)
        elif field == b"event":
            self._kind = value.decode("utf-8", "replace") or "message"
        elif field == b"error":
            self._kind = "error"
            self._data.append(value)

    def _dispatch(self) -> Event | None:
        kind, self._kind = self._kind, "message"
        if not self._data:
            return None
        event = Event(b"\n".join(self._data).decode("utf-8", "replace"), kind)
        self._data = []
        return event
