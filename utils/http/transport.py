"""An httpx transport for plain HTTP that knows when each byte arrived.

httpx's own transport costs about 100 µs of CPU for each chunk of a stream and delays bursts of
requests by milliseconds; both would count as latency of the engine. This one stamps bytes with
the time at which they were read from the socket, whoever is busy with what, and knows whether
any byte of a response had come when a connection broke.

`benchmarks/client_overhead.py` measures it.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator
from time import perf_counter
from typing import cast

import httpx

from utils.http.http1 import ProtocolError, ResponseParser

_READ = 1 << 16
_HIGH_WATER = 1 << 20


class DroppedBeforeResponse(httpx.RemoteProtocolError):
    """The connection broke before any byte of a response: the request may be sent again.

    Attributes:
        reused: Whether it was a kept connection, which the server may have closed while it was idle.
    """

    reused = False


class TimedStream(httpx.AsyncByteStream):
    """The body of a response; `timed` gives each piece with its time of arrival."""

    def __init__(self, connection: _Connection, pool: AsyncioTransport) -> None:
        self._connection = connection
        self._pool = pool

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
        """All of the body that has arrived and was not read, as soon as there is some; b"" at its end.

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
        """Gives the connection back, or closes it if the body was not read to its end."""
        self._pool.release(self._connection)


class AsyncioTransport(httpx.AsyncBaseTransport):
    """Keeps connections alive between requests; never limits their number.

    After a kept-alive connection has turned out dead, each request gets a connection of its own:
    llama.cpp promises keep-alive but closes after every stream, and finding that out costs more
    than connecting.

    Args:
        connect_timeout_s: Limit for opening a connection.
        keepalive_s: Do not reuse a connection that was idle for longer.
        high_water: Bytes of one response that wait to be read before the server has to.
    """

    def __init__(
        self,
        *,
        connect_timeout_s: float = 10.0,
        keepalive_s: float = 4.0,
        high_water: int = _HIGH_WATER,
    ) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._high_water = high_water
        self._keepalive_s = keepalive_s
        self._idle: dict[tuple[str, int], deque[_Connection]] = {}
        self._reuse = True

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request whose body is in memory and returns when the response's head is here.

        Raises:
            DroppedBeforeResponse: If the connection broke before any byte of a response.
            httpx.ConnectError: If nothing listens there.
            httpx.ConnectTimeout: If connecting took too long.
            httpx.RemoteProtocolError: If what came is not HTTP/1.1.
        """
        connection = await self._connection(request)
        try:
            connection.send(_encode(request))
            while not connection.parser.status:
                if connection.failure is not None:
                    raise connection.failure
                await connection.news()
        except BaseException as error:
            if isinstance(error, DroppedBeforeResponse) and connection.idle_since:
                error.reused = True
                self._reuse = False
            connection.close()
            raise
        parser = connection.parser
        stream = TimedStream(connection, self)
        return httpx.Response(
            parser.status,
            headers=parser.headers,
            stream=stream,
            # httpx wraps the stream; this is the way to the times.
            extensions={"timed_stream": stream},
        )

    def release(self, connection: _Connection) -> None:
        """Keeps a connection for the next request, or closes it."""
        if self._reuse and connection.reusable:
            connection.idle_since = perf_counter()
            self._idle.setdefault(connection.address, deque()).append(connection)
        else:
            connection.close()

    async def aclose(self) -> None:
        """Closes every idle connection."""
        for connections in self._idle.values():
            for connection in connections:
                connection.close()
        self._idle.clear()

    async def _connection(self, request: httpx.Request) -> _Connection:
        address = (request.url.host, request.url.port or 80)
        idle = self._idle.get(address, deque())
        while idle:
            connection = idle.pop()
            if connection.open and perf_counter() - connection.idle_since < self._keepalive_s:
                return connection
            connection.close()
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                _, connection = await loop.create_connection(
                    lambda: _Connection(address, self._high_water), *address
                )
        except TimeoutError as error:
            raise httpx.ConnectTimeout(f"no connection to {address[0]}:{address[1]}") from error
        except OSError as error:
            raise httpx.ConnectError(
                f"cannot connect to {address[0]}:{address[1]}: {error.strerror or error}"
            ) from error
        return connection


class _Connection(asyncio.BufferedProtocol):
    """One connection; serves one request at a time."""

    def __init__(self, address: tuple[str, int], high_water: int) -> None:
        self.address = address
        self.high_water = high_water
        self.open = False
        self.idle_since = 0.0
        self.parser = ResponseParser()
        self.pieces: deque[tuple[float, bytes]] = deque()
        self.failure: httpx.RemoteProtocolError | None = None
        self._received = False
        self._queued = 0
        self._buffer = bytearray(_READ)
        self._view = memoryview(self._buffer)
        self._waiter: asyncio.Future[None] | None = None
        self._transport: asyncio.Transport

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
        """Waits until bytes arrive or the connection breaks."""
        self._waiter = asyncio.get_running_loop().create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def take(self) -> tuple[float, bytes]:
        """The oldest piece that was not taken."""
        at, piece = self.pieces.popleft()
        if self._queued > self.high_water >= self._queued - len(piece):
            self._transport.resume_reading()
        self._queued -= len(piece)
        return at, piece

    def close(self) -> None:
        if self.open:
            self.open = False
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by its type
        self.open = True

    def get_buffer(self, sizehint: int) -> bytearray:
        return self._buffer

    def buffer_updated(self, count: int) -> None:
        at = perf_counter()
        self._received = True
        try:
            for piece in self.parser.feed(bytes(self._view[:count])):
                self.pieces.append((at, piece))
                if self._queued <= self.high_water < self._queued + len(piece):
                    self._transport.pause_reading()
                self._queued += len(piece)
        except (ProtocolError, RecursionError) as error:  # thousands of "100 Continue" recurse
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


def _encode(request: httpx.Request) -> bytes:
    lines = [b"%s %s HTTP/1.1" % (request.method.encode(), request.url.raw_path)]
    lines += [b"%s: %s" % header for header in request.headers.raw]
    return b"\r\n".join(lines) + b"\r\n\r\n" + request.content
