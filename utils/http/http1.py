"""Incremental parser for one HTTP/1.1 response.

h11, which httpx uses, costs more per chunk than everything else the client does; this parser
does only what an event stream needs. `tests/unit/http/test_http1.py` holds it to h11.

Source: RFC 9112, sections 4 to 7.
"""

from __future__ import annotations

_MAX_HEAD = 1 << 16
_MAX_LINE = 1 << 12
_HEX = b"0123456789abcdefABCDEF"


class ProtocolError(Exception):
    """The bytes are not an HTTP/1.1 response, or it broke off."""


class ResponseParser:
    """Bytes in, pieces of the body out.

    Attributes:
        status: Status code; 0 until the head is complete.
        headers: Names and values as received.
        complete: Whether the whole response was seen.
        keep_alive: Whether the connection may be used again afterwards.
    """

    __slots__ = (
        "_buffer",
        "_chunked",
        "_in_trailer",
        "_left",
        "complete",
        "headers",
        "keep_alive",
        "status",
    )

    def __init__(self) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.complete = False
        self.keep_alive = False
        self._buffer = b""
        self._chunked = False
        self._in_trailer = False
        # Bytes left of the body or the chunk; None: until the connection closes.
        self._left: int | None = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Takes the next bytes and returns the pieces of the body in them.

        Raises:
            ProtocolError: If they are not HTTP/1.1, or go on after the end of the response.
        """
        data = self._buffer + data
        self._buffer = b""
        if not self.status:
            if (rest := self._head(data)) is None:
                return []
            data = rest
        if self.complete:
            if data:
                raise ProtocolError("bytes after the end of the response")
            return []
        if self._chunked:
            return self._chunks(data)
        return self._plain(data)

    def end(self) -> None:
        """Takes the end of the connection.

        Raises:
            ProtocolError: If the response was not complete.
        """
        if self.status and not self._chunked and self._left is None:
            self.complete = True
        if not self.complete:
            raise ProtocolError("the connection closed in the middle of the response")

    def _head(self, data: bytes) -> bytes | None:
        end = data.find(b"\r\n\r\n")
        if end < 0:
            if len(data) > _MAX_HEAD or not b"HTTP/1.".startswith(data[:7]):
                raise ProtocolError(f"not an HTTP/1.1 response: {data[:40]!r}")
            self._buffer = data
            return None
        first, *lines = data[:end].split(b"\r\n")
        version, _, rest = first.partition(b" ")
        if version not in (b"HTTP/1.1", b"HTTP/1.0") or not rest[:3].isdigit():
            raise ProtocolError(f"not an HTTP/1.1 response: {first[:40]!r}")
        if rest[:1] == b"1":  # 100 Continue and its like: the real head follows
            return self._head(data[end + 4 :])
        headers = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon:
                raise ProtocolError(f"not a header: {line[:40]!r}")
            self.headers.append((name, value.strip()))
            headers[name.lower()] = value.strip().lower()
        self.status = int(rest[:3])
        if self.status < 200:
            raise ProtocolError(f"not a status: {rest[:3]!r}")
        self._framing(headers, version)
        return data[end + 4 :]

    def _framing(self, headers: dict[bytes, bytes], version: bytes) -> None:
        connection = headers.get(b"connection", b"")
        self.keep_alive = (
            b"close" not in connection if version == b"HTTP/1.1" else b"keep-alive" in connection
        )
        length = headers.get(b"content-length")
        if self.status in (204, 304):
            self.complete = True
        elif headers.get(b"transfer-encoding", b"").endswith(b"chunked"):
            self._chunked = True
        elif length is None:
            self._left = None
            self.keep_alive = False
        elif not length.isdigit() or len(length) > 18:
            raise ProtocolError(f"not a content length: {length[:40]!r}")
        else:
            self._left = int(length)
            self.complete = self._left == 0

    def _plain(self, data: bytes) -> list[bytes]:
        if self._left is not None:
            if len(data) > self._left:
                raise ProtocolError("bytes after the end of the response")
            self._left -= len(data)
            self.complete = self._left == 0
        return [data] if data else []

    def _chunks(self, data: bytes) -> list[bytes]:
        pieces: list[bytes] = []
        at = 0
        while at < len(data):
            if self._in_trailer:
                end = data.find(b"\r\n", at)
                if end < 0:
                    break
                self.complete = end == at
                at = end + 2
                if self.complete:
                    break
                continue
            assert self._left is not None
            if self._left > 2:  # inside a chunk; its own CRLF is counted in
                piece = data[at : at + self._left - 2]
                pieces.append(piece)
                at += len(piece)
                self._left -= len(piece)
            if self._left == 2 or self._left == 1:
                ending = data[at : at + self._left]
                if not b"\r\n"[2 - self._left :].startswith(ending):
                    raise ProtocolError(f"no end of line after a chunk: {ending!r}")
                at += len(ending)
                self._left -= len(ending)
            if self._left == 0:
                at = self._chunk_size(data, at)
                if self._left == 0 and not self._in_trailer:
                    break
        if self.complete and at < len(data):
            raise ProtocolError("bytes after the end of the response")
        self._buffer = data[at:]
        return pieces

    def _chunk_size(self, data: bytes, at: int) -> int:
        end = data.find(b"\r\n", at)
        if end < 0:
            if len(data) - at > _MAX_LINE:
                raise ProtocolError("a chunk size without an end")
            return at
        text = data[at:end].split(b";", 1)[0].strip()
        if not text or text.strip(_HEX):
            raise ProtocolError(f"not a chunk size: {text[:40]!r}")
        size = int(text, 16)
        self._in_trailer = size == 0
        self._left = size + 2 if size else 0
        return end + 2
