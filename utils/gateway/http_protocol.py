"""HTTP/1.1 of the gateway: uvicorn's on llhttp, with two additions for the heads of requests.

llhttp (the package httptools) reads a request in a tenth of h11's time, but it has no limit on the size of
a head. It also takes an offer of another protocol for accepted and the body that follows for that protocol.
Java's HttpClient offers HTTP/2 with every first request.

Slow clients are limited only by the gateway's own timeouts and uvicorn's idle timeout. On a public network,
put a reverse proxy such as nginx or Caddy in front, which also limits connections and slow heads.
"""

from __future__ import annotations

import re

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MAX_HEAD = 1 << 16  # bytes, of a head; also of an extension of a chunk or of trailers
_HEAD_END = re.compile(rb"\n\r?\n")
_OFFER = re.compile(rb"\nupgrade:[^\n]*", re.IGNORECASE)


class GatewayProtocol(HttpToolsProtocol):
    """One connection of a client."""

    _at_start = True  # the next byte begins a request
    _head = b""  # the beginning of a head that is not complete
    _without_body = 0  # bytes since the last piece of a body, or since the end of a request

    def data_received(self, data: bytes) -> None:
        """Hand bytes to uvicorn, but the head of a request only when it is complete."""
        self._without_body += len(data)
        if data := self._without_offer(data) if self._at_start else data:
            super().data_received(data)
        else:
            self._unset_keepalive_if_required()
        if self._without_body > MAX_HEAD and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        """Note that a request has begun (called by llhttp)."""
        self._at_start = False
        super().on_message_begin()

    def on_body(self, body: bytes) -> None:
        """Note a piece of a request's body (called by llhttp)."""
        self._without_body = 0
        super().on_body(body)

    def on_message_complete(self) -> None:
        """Note that a request is complete (called by llhttp)."""
        self._without_body, self._at_start = 0, True
        super().on_message_complete()

    def _without_offer(self, data: bytes) -> bytes:
        """Return a request's head without an offer of another protocol, or b"" while it is incomplete."""
        data, self._head = self._head + data, b""
        end = _HEAD_END.search(data)
        if end is None:
            self._head = data
            return b""
        return _OFFER.sub(b"", data[: end.start()]) + data[end.start() :]

    def _refuse(self) -> None:
        # None until the first head is complete, although uvicorn's annotation lacks it.
        cycle: RequestResponseCycle | None = self.cycle
        if cycle is None or cycle.response_complete:
            self.send_400_response(f"The request's head has more than {MAX_HEAD} bytes.")
        else:
            self.transport.close()
