"""uvicorn's connections: one system call for what is written in one go, and limits.

uvicorn writes the head of a response and the first piece of its body one by one; each write is a system call
and a packet. Here all that is written before the event loop goes on leaves together. Pieces of many streams
that come in one turn also leave one right after another, and a client on the same machine wakes up once for
them: written at once, each would cost a tenth more CPU time.
"""

from __future__ import annotations

import asyncio
import re
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

LINGER_S = 5.0  # after a close, for a client that reads nothing of what is left
HEAD_S = 30.0  # for the head of a request
MOST_HEAD = 1 << 16  # bytes, of a head; so much, too, of an extension of a chunk or of trailers
_HEAD_END = re.compile(rb"\n\r?\n")
_OFFER = re.compile(rb"\nupgrade:[^\n]*", re.IGNORECASE)


class Cork:
    """A transport that gathers writes until the event loop's next turn; else it is the one it wraps."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Takes bytes to be sent."""
        if not self._parts:
            self._loop.call_soon(self._flush)
        self._parts.append(data)

    def close(self) -> None:
        """Sends what is gathered, then closes; a client that does not read it cannot keep it open."""
        self._flush()
        self._transport.close()
        self._linger()

    def _linger(self, before: int | None = None) -> None:
        left = self._transport.get_write_buffer_size()
        if not left:
            return
        if left == before:
            self._transport.abort()
        else:
            self._loop.call_later(LINGER_S, self._linger, left)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)

    def _flush(self) -> None:
        if self._parts:
            data = b"".join(self._parts)
            self._parts.clear()
            if not self._transport.is_closing():  # uvloop's would raise
                self._transport.write(data)


class CorkedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP/1.1, corked, and with limits for what is no body: heads, trailers, sizes of chunks.

    On llhttp (the package httptools): a request and the head of its answer cost h11 100 µs, llhttp a tenth.
    It has no limits of its own.
    """

    _head_timer: asyncio.TimerHandle | None = None
    _at_start = True  # the next byte begins a request
    _head = b""  # what there is of one that is not complete
    _no_body = 0  # bytes since the last piece of a body, or the end of a request
    _answering: RequestResponseCycle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A client connected."""
        super().connection_made(Cork(transport, self.loop))  # type: ignore[arg-type]
        self._time_head()

    def data_received(self, data: bytes) -> None:
        """Bytes came."""
        self._no_body += len(data)
        if data := self._without_offer(data) if self._at_start else data:
            super().data_received(data)
        else:
            self._unset_keepalive_if_required()
        if self._no_body > MOST_HEAD and not self.transport.is_closing():
            self._refuse()
        self._time_head()

    def _without_offer(self, data: bytes) -> bytes:
        """The head of a request, when it is complete, without an offer to speak another protocol.

        Java's HttpClient offers HTTP/2 by default. llhttp takes it for accepted, and the body for HTTP/2.
        """
        data, self._head = self._head + data, b""
        end = _HEAD_END.search(data)
        if end is None:
            self._head = data
            return b""
        return _OFFER.sub(b"", data[: end.start()]) + data[end.start() :]

    def on_message_begin(self) -> None:
        """A request begins."""
        self._at_start = False
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        """A piece of a request's body is there."""
        self._no_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """A request is there, to its end."""
        self._no_body, self._at_start = 0, True
        super().on_message_complete()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is gone: whoever is answered hears of it, not only whose request came last."""
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
        super().connection_lost(exc)
        self._stop_timer()

    def _refuse(self) -> None:
        if self._between_requests():
            self.send_400_response(f"More than {MOST_HEAD} bytes of a head.")
        else:
            self.transport.close()

    def _time_head(self) -> None:
        """Does what uvicorn does not: its timer of idle connections ends with the first byte of a head."""
        if not self._between_requests():
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(HEAD_S, self._give_up)

    def _between_requests(self) -> bool:
        # None until the first head is complete, whatever uvicorn's annotation says.
        cycle: RequestResponseCycle | None = self.cycle
        return cycle is None or cycle.response_complete

    def _give_up(self) -> None:
        self._head_timer = None
        if self._between_requests():
            self.transport.close()

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None
