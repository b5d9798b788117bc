"""httpx transport for HTTP/1.1, with and without TLS, that knows when each byte arrived.

httpx's own transport costs about 100 µs of CPU for each chunk of a stream and delays bursts of
requests by milliseconds, and both would count as latency of the engine. This transport stamps bytes
with the time at which they were read from the socket, even if the event loop was busy afterwards.
It also knows whether any byte of a response had arrived when a connection broke. llhttp (the package
`httptools`) parses the responses.

`benchmarks/client_overhead.py` measures it.
"""

from __future__ import annotations

import asyncio
import errno
import re
import ssl
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable
from time import perf_counter
from typing import cast

import httptools
import httpx

from utils.http.names import Names

_READ = 1 << 16
_HIGH_WATER = 1 << 20
_MAX_WITHOUT_BODY = 1 << 16  # bytes of heads, chunk extensions or trailers in a row
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")  # not in a field value (RFC 9110, section 5.5)
Address = tuple[bool, str, int]  # whether TLS, host, port
_FINISH_S = 0.1
# This process, or this machine, has no more of them; the server has nothing to do with it.
_OWN_SHORTAGE = {errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM, errno.EADDRNOTAVAIL}


class ProtocolError(Exception):
    """Bytes that are not an HTTP/1.1 response, or only a part of one."""


class ResponseParser:
    """Incremental parser for one HTTP/1.1 response.

    llhttp has no limit on the size of a head and reports interim responses (100 Continue) like final
    ones, so this class adds both. Framing follows RFC 9112, section 6.3. A response with both a content
    length and a transfer encoding is refused, because two readers might see different ends.

    Attributes:
        status: Status code, or 0 until the head is complete.
        headers: Names and values as received.
        complete: True if the whole response was seen.
        keep_alive: True if the connection may be used again afterwards.
    """

    __slots__ = (
        "_interim",
        "_llhttp",
        "_pieces",
        "_until_close",
        "_without_body",
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
        self._pieces: list[bytes] = []
        self._without_body = 0
        self._interim = False
        self._until_close = False
        self._llhttp: httptools.HttpResponseParser | None = httptools.HttpResponseParser(self)

    def feed(self, data: bytes | memoryview) -> list[bytes]:
        """Parse the next bytes and return the pieces of the body in them.

        Raises:
            ProtocolError: If they are not HTTP/1.1, or continue after the end of the response.
        """
        if self._llhttp is None:
            if data:
                raise ProtocolError("bytes after the end of the response")
            return []
        self._without_body += len(data)
        try:
            self._llhttp.feed_data(data)
        except httptools.HttpParserCallbackError as error:  # ours, from one of the callbacks below
            raise ProtocolError(str(error.__context__)) from error
        except httptools.HttpParserUpgrade as error:
            raise ProtocolError("not an HTTP/1.1 response: another protocol follows") from error
        except httptools.HttpParserError as error:
            raise ProtocolError(f"not an HTTP/1.1 response: {error}") from error
        if self._without_body > _MAX_WITHOUT_BODY:
            raise ProtocolError(f"more than {_MAX_WITHOUT_BODY} bytes of headers")
        if self.complete:
            self._llhttp = (
                None  # which refers to this object; no collector runs during a measurement
            )
        pieces, self._pieces = self._pieces, []
        return pieces

    def end(self) -> None:
        """Note that the connection was closed.

        Raises:
            ProtocolError: If the response was not complete.
        """
        if self._until_close:
            self.complete = True
        if not self.complete:
            raise ProtocolError("the connection closed in the middle of the response")

    def on_message_begin(self) -> None:
        """Refuse a second response (called by llhttp)."""
        if self.complete:
            raise ProtocolError("bytes after the end of the response")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Keep a header of the head, but not of the trailer (called by llhttp)."""
        if not self.status:
            self.headers.append((name, value.rstrip()))

    def on_headers_complete(self) -> None:
        """Note status and framing (called by llhttp)."""
        assert self._llhttp is not None
        status = self._llhttp.get_status_code()
        version = self._llhttp.get_http_version()
        if version not in ("1.1", "1.0") or not 100 <= status <= 999:
            raise ProtocolError(f"not an HTTP/1.1 response: HTTP/{version} {status}")
        self._interim = status < 200
        if self._interim:
            self.headers.clear()
            return
        self.status = status
        values = {name.lower(): value.lower() for name, value in self.headers}
        self._until_close = not (
            status in (204, 304)
            or b"content-length" in values
            or values.get(b"transfer-encoding", b"").endswith(b"chunked")
        )
        self.keep_alive = self._llhttp.should_keep_alive() and not self._until_close

    def on_body(self, piece: bytes) -> None:
        """Keep a piece of the body (called by llhttp)."""
        self._pieces.append(piece)
        self._without_body = 0

    def on_message_complete(self) -> None:
        """Note the end of a final response (called by llhttp)."""
        self.complete = not self._interim


class DroppedBeforeResponse(httpx.RemoteProtocolError):
    """The connection broke before any byte of a response: the request may be sent again.

    Attributes:
        reused: True if it was a kept connection, which the server may have closed while it was idle.
    """

    reused = False


class OwnShortage(httpx.ConnectError):
    """No connection, because this process has no more file descriptors, ports or memory.

    It says nothing about the server.
    """


class TimedStream(httpx.AsyncByteStream):
    """Body of a response; `timed` gives each piece with its time of arrival.

    Attributes:
        status: Status code of the response.
        headers: Names and values of its head, as received.
    """

    def __init__(self, connection: _Connection, pool: AsyncioTransport) -> None:
        self._connection = connection
        self._pool = pool
        self.status = connection.parser.status
        self.headers = connection.parser.headers

    def header(self, name: bytes) -> str:
        """Return the first value of a header, whose name is given in lower case, or ""."""
        for key, value in self.headers:
            if key.lower() == name:
                return value.decode("latin-1")
        return ""

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for _, piece in self.timed():
            yield piece

    async def timed(self) -> AsyncIterator[tuple[float, bytes]]:
        """Pieces of the body with the `perf_counter` time at which they were read, s.

        Raises:
            httpx.RemoteProtocolError: If the response breaks off or is malformed.
        """
        connection = self._connection
        while True:
            while connection.pieces:
                yield connection.take()
            if connection.failure is not None:
                raise connection.failure
            if connection.complete:
                return
            await connection.news()

    async def read(self) -> bytes:
        """Return all of the body that has arrived and was not read, as soon as there is some; b"" at its end.

        Raises:
            httpx.RemoteProtocolError: As `timed` does, after what came before.
        """
        connection = self._connection
        while not connection.pieces:
            if connection.failure is not None:
                raise connection.failure
            if connection.complete:
                return b""
            await connection.news()
        if len(connection.pieces) == 1:
            return connection.take()[1]
        return b"".join([connection.take()[1] for _ in range(len(connection.pieces))])

    async def aclose(self) -> None:
        """Give the connection back, or close it if the body was not read to its end."""
        self._pool.release(self._connection)

    def finish(self) -> None:
        """Give the connection back, although the end of the body may still be on its way.

        Use it when the content is complete by itself, for example after an event `[DONE]`. Bytes that
        come are thrown away. The connection is closed if the end doesn't come within a tenth of a second.
        """
        self._pool.finish(self._connection)


class AsyncioTransport(httpx.AsyncBaseTransport):
    """Keeps connections alive between requests; never limits their number.

    After a kept-alive connection has turned out dead, each request gets a connection of its own:
    llama.cpp promises keep-alive but closes after every stream, and finding that out costs more
    than connecting.

    Args:
        connect_timeout_s: Limit for opening a connection.
        keepalive_s: Do not reuse a connection that was idle for longer.
        high_water: Bytes of one response that wait to be read before the server has to.
        ssl_context: Trust for https; the system's if None (see `system_trust`).
        distrust_s: After a kept-alive connection turned out dead, no connection is kept for so long, s.
    """

    def __init__(
        self,
        *,
        connect_timeout_s: float = 10.0,
        keepalive_s: float = 4.0,
        high_water: int = _HIGH_WATER,
        ssl_context: ssl.SSLContext | None = None,
        distrust_s: float = float("inf"),
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._high_water = high_water
        self._keepalive_s = keepalive_s
        self._ssl_context = ssl_context
        self._idle: dict[Address, deque[_Connection]] = {}
        self._distrust_s = distrust_s
        self._keep_after = 0.0
        self._names = Names(connect_timeout_s)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send a request whose body is in memory and return when the response's head is here.

        Raises:
            DroppedBeforeResponse: If the connection broke before any byte of a response.
            httpx.LocalProtocolError: If a header holds a line break or another control character.
            httpx.ConnectError: If nothing listens there, or the server's certificate isn't trusted.
            OwnShortage: If this process can't open another connection.
            httpx.ConnectTimeout: If connecting took too long.
            httpx.RemoteProtocolError: If what came is not HTTP/1.1.
        """
        head = encode_head(request.method, request.url.raw_path, request.headers.raw)
        stream = await self.open(address_of(request.url), head + b"\r\n" + request.content)
        return httpx.Response(
            stream.status,
            headers=stream.headers,
            stream=stream,
            # httpx wraps the stream; this is the way to the times.
            extensions={"timed_stream": stream},
        )

    async def open(self, address: Address, data: bytes) -> TimedStream:
        """Send the bytes of a request and return when the head of the response is here.

        It does the work of `handle_async_request` without httpx's objects, which cost more than the rest.

        Args:
            address: Server that gets the request.
            data: Head of the request (see `encode_head`), an empty line, and the body.

        Raises:
            httpx.HTTPError: As `handle_async_request` does.
        """
        connection = await self._connection(address)
        try:
            connection.send(data)
            while not connection.parser.status:
                if connection.failure is not None:
                    raise connection.failure
                await connection.news()
        except BaseException as error:
            if isinstance(error, DroppedBeforeResponse) and connection.idle_since:
                error.reused = True
                self._keep_after = perf_counter() + self._distrust_s
                await self.aclose()  # the other idle connections are just as old
            connection.close()
            raise
        return TimedStream(connection, self)

    def release(self, connection: _Connection) -> None:
        """Keep a connection for the next request, or close it."""
        if connection.reusable and perf_counter() >= self._keep_after:
            connection.idle_since = perf_counter()
            self._idle.setdefault(connection.address, deque()).append(connection)
        else:
            connection.close()

    def finish(self, connection: _Connection) -> None:
        """Keep a connection for the next request once the end of its response is here."""
        connection.discard()
        if connection.complete or not connection.open:
            self.release(connection)
            return
        limit = asyncio.get_running_loop().call_later(_FINISH_S, connection.close)

        def ended() -> None:
            limit.cancel()
            connection.discard()
            self.release(connection)

        connection.on_end = ended

    async def aclose(self) -> None:
        """Close every idle connection."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    async def _connection(self, address: Address) -> _Connection:
        idle = self._idle.get(address, deque())
        while idle:
            connection = idle.pop()
            if connection.open and perf_counter() - connection.idle_since < self._keepalive_s:
                return connection
            connection.close()
        secure, host, port = address
        where = f"{host}:{port}"
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                return await self._connect(address)
        except TimeoutError as error:
            hint = ". Is it an http:// address?" if secure else ""
            raise httpx.ConnectTimeout(f"no connection to {where}{hint}") from error
        except ssl.SSLError as error:
            raise httpx.ConnectError(
                f"no TLS connection to {where}: {_tls_reason(error)}"
            ) from error
        except (OSError, UnicodeError) as error:
            number = getattr(error, "errno", None)
            kind = OwnShortage if number in _OWN_SHORTAGE else httpx.ConnectError
            reason = getattr(error, "strerror", None) or error
            raise kind(f"cannot connect to {where}: {reason}") from error

    async def _connect(self, address: Address) -> _Connection:
        loop = asyncio.get_running_loop()
        secure, host, port = address
        if secure and self._ssl_context is None:
            self._ssl_context = system_trust()
        found = await self._names.addresses(host)
        for number, ip in enumerate(found, 1):
            try:
                _, connection = await loop.create_connection(
                    lambda: _Connection(address, self._high_water),
                    ip,
                    port,
                    ssl=self._ssl_context if secure else None,
                    server_hostname=host if secure else None,
                )
            except OSError:
                if number == len(found):
                    raise
            else:
                return connection
        raise OSError(f"{host} has no address")


class _Connection(asyncio.BufferedProtocol):
    """One connection; serves one request at a time."""

    def __init__(self, address: Address, high_water: int) -> None:
        self.address = address
        self.high_water = high_water
        self.open = False
        self.idle_since = 0.0
        self.parser = ResponseParser()
        self.pieces: deque[tuple[float, bytes]] = deque()
        self.failure: httpx.RemoteProtocolError | None = None
        self._received = False
        self._queued = 0
        self._view = memoryview(bytearray(_READ))
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport
        self.on_end: Callable[[], None] | None = None  # called once, at the response's end

    @property
    def complete(self) -> bool:
        return self.parser.complete

    @property
    def reusable(self) -> bool:
        read = self.complete and not self.pieces  # else reading may be paused
        return self.open and read and self.parser.keep_alive and self.failure is None

    def send(self, data: bytes) -> None:
        self.parser = ResponseParser()
        self.pieces.clear()
        self.failure = None
        self._received = False
        self._queued = 0
        if self.open:
            self._transport.write(data)
        else:
            self._fail("the connection was closed", None)

    async def news(self) -> None:
        """Wait until bytes arrive or the connection breaks."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def take(self) -> tuple[float, bytes]:
        """Return the oldest piece that was not taken."""
        at, piece = self.pieces.popleft()
        if self._queued > self.high_water >= self._queued - len(piece):
            self._transport.resume_reading()
        self._queued -= len(piece)
        return at, piece

    def discard(self) -> None:
        """Throw away what was not taken."""
        while self.pieces:
            self.take()

    def close(self) -> None:
        if self.open:
            self.open = False
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self.open = True

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view  # TLS fills a slice of it, which of a bytearray would be a copy

    def buffer_updated(self, count: int) -> None:
        at = perf_counter()
        self._received = True
        try:
            for piece in self.parser.feed(self._view[:count]):
                self.pieces.append((at, piece))
                if self._queued <= self.high_water < self._queued + len(piece):
                    self._transport.pause_reading()
                self._queued += len(piece)
        except ProtocolError as error:
            self._fail(str(error), error)
            self.close()
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self.open = False
        if self.complete or self.failure is not None:
            return
        try:
            self.parser.end()
        except ProtocolError as error:
            self._fail(str(exc or error), exc or error)
        self._wake()

    def _fail(self, message: str, cause: Exception | None) -> None:
        kind = httpx.RemoteProtocolError if self._received else DroppedBeforeResponse
        self.failure = kind(message if self._received else f"no response: {message}")
        self.failure.__cause__ = cause

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self.on_end is not None and (self.complete or not self.open):
            ended, self.on_end = self.on_end, None
            ended()


def address_of(url: httpx.URL) -> Address:
    """Return the server that a URL names."""
    secure = url.scheme == "https"
    return secure, url.host, url.port or (443 if secure else 80)


def system_trust() -> ssl.SSLContext:
    """Return the trust of this system's certificate authorities.

    OpenSSL also reads the variables `SSL_CERT_FILE` and `SSL_CERT_DIR`, which name private authorities.
    """
    return ssl.create_default_context()


def _tls_reason(error: ssl.SSLError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return (
            f"its certificate isn't trusted ({error.verify_message}). If it is from a private authority, "
            "name the authority's certificate in SSL_CERT_FILE"
        )
    if error.reason in ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE"):
        return "the server doesn't speak TLS. Use an http:// address"
    return str(error.reason or error)


def encode_head(method: str, path: bytes, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the first line and headers of a request, without the empty line at the head's end.

    Raises:
        httpx.LocalProtocolError: As `encode_headers` does.
    """
    return b"%s %s HTTP/1.1\r\n" % (method.encode(), path) + encode_headers(headers)


def encode_headers(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the lines of headers.

    Raises:
        httpx.LocalProtocolError: If a value holds a line break or another control character.
    """
    lines = []
    for name, value in headers:
        if _CONTROL.search(value):
            # Without the value, because it may be a key.
            raise httpx.LocalProtocolError(
                f"the header {name.decode('latin-1')} holds a line break or another control character"
            )
        lines.append(b"%s: %s\r\n" % (name, value))
    return b"".join(lines)
