"""Sends a request to an engine and its answer to the client: byte by byte, with second chances.

Until the first byte has gone to the client, a failed attempt is repeated on another backend. After it, a
failure ends the stream with an error event: an answer is never begun twice, and never ends silently.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import httpx
import msgspec

from utils.gateway.backend import Backend, close_response
from utils.gateway.http_errors import ApiError, unavailable, upstream_error
from utils.gateway.pool import Pool
from utils.gateway.request_context import RequestContext
from utils.gateway.schemas import ParsedRequest
from utils.gateway.settings import GatewaySettings
from utils.http import sse_events
from utils.http.transport import TimedStream

Send = Any  # ASGI's
Read = Callable[[], Awaitable[bytes]]  # the next piece of an answer; b"" at its end
_LARGEST_ANSWER = 64 << 20
_LARGEST_EVENT = 16 << 20
# For the end of a response whose [DONE] has come: then its connection can be used again.
_LINGER_S = 0.1
_USAGE = (b'"usage":{', b'"usage": {')
_ERROR = (b'data: {"error"', b'data:{"error"')
EVENT_STREAM = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class _Usage(msgspec.Struct):
    prompt_tokens: int = 0
    completion_tokens: int | None = 0


class _Counted(msgspec.Struct):
    usage: _Usage | None = None
    choices: list[msgspec.Raw] = []


class UpstreamError(Exception):
    """Failure of an attempt before the first byte of its answer.

    Args:
        reason: For metrics: `connect`, `timeout`, `cut`, `http_500` and so on.
        blame: Whether it speaks against the backend.
        error: What the client gets if there is no other chance.
    """

    def __init__(self, reason: str, error: ApiError, blame: bool = True) -> None:
        super().__init__(reason)
        self.reason = reason
        self.error = error
        self.blame = blame


class UpstreamResponse:
    """Answer of an engine, of which at least the first piece is here."""

    def __init__(self, response: httpx.Response, read: Read, first: bytes, streamed: bool) -> None:
        self.status = response.status_code
        self.content_type: bytes = response.headers.get("content-type", "").encode()
        self.first = first
        self.streamed = streamed
        self.read = read
        self._response = response

    async def close(self) -> None:
        """Gives the connection back; one whose answer is not complete is closed, so the engine stops."""
        await close_response(self._response)


class Relay:
    """Answers one request."""

    def __init__(
        self, parsed: ParsedRequest, pool: Pool, settings: GatewaySettings, context: RequestContext
    ) -> None:
        self.parsed = parsed
        self.pool = pool
        self.settings = settings
        self.context = context
        self.head_sent = False
        self._refusals: list[tuple[Backend, int]] = []  # HTTP 5xx, and nobody blamed yet
        self.headers = {
            "content-type": "application/json",
            "accept": "text/event-stream" if parsed.stream else "application/json",
            "accept-encoding": "identity",
            "x-request-id": context.request_id,
        }

    async def run(self, send: Send, engine: str | None, trace: dict[str, str]) -> None:
        """The whole way: choose, send, relay.

        Args:
            send: ASGI's send.
            engine: Only backends of this engine; None: of any.
            trace: Headers of a distributed trace, handed on.

        Raises:
            ApiError: The client gets it as the answer, or as the event that ends its stream.
            asyncio.CancelledError: The request was cut; `context.cut_by` says why.
        """
        self.headers |= trace
        try:
            await self._send_with_retries(send, engine)
        finally:
            # Where several refuse, it is the request's fault.
            self._report_failure(len(self._refusals) == 1)

    async def _send_with_retries(self, send: Send, engine: str | None) -> None:
        failed: dict[str, UpstreamError] = {}
        while True:
            backend, number = await self._acquire(engine, failed)
            began = time.monotonic()
            self.context.backend = backend.name
            result: str | None = "cancelled"
            try:
                upstream = await self._open(backend)
                self._report_failure(upstream.status == 200)
                if not _says_error(upstream.first) and backend.answers(number):
                    self.pool.wake()
                try:
                    await self._answer(upstream, backend, send)
                    fine = self.context.outcome in ("ok", "client_error")
                    result = "success" if fine else "failure"
                finally:
                    await upstream.close()
                return
            except UpstreamError as failure:
                result = "failure" if failure.blame else "cancelled"
                if failure.reason.startswith("http_5") and failure.blame:
                    self._refusals.append((backend, number))
                    result = None  # `_report_failure` says it, when it is known whose fault it is
                failed.pop(backend.name, None)
                failed[backend.name] = failure  # the last is the latest
                if self.context.retries == self.settings.health.retries:
                    raise failure.error from failure
            except ApiError as error:
                result = "failure" if error.outcome in ("broken_stream", "idle") else "success"
                raise
            except asyncio.CancelledError:
                result = "failure" if self.context.cut_by == "idle" else "cancelled"
                raise
            finally:
                if result is not None:
                    backend.result(number, result)
                self.pool.release(backend, time.monotonic() - began)

    def _report_failure(self, guilty: bool) -> None:
        """Report to the circuits of backends that answered HTTP 5xx whether it counts against them."""
        for backend, number in self._refusals:
            backend.result(number, "failure" if guilty else "cancelled")
        self._refusals.clear()

    async def _acquire(
        self, engine: str | None, failed: dict[str, UpstreamError]
    ) -> tuple[Backend, int]:
        """A backend that has not failed; after a broken connection also the same one, once more.

        Raises:
            ApiError: There is none. After a failure its error says more than "no backend".
        """
        name, last = list(failed.items())[-1] if failed else ("", None)
        try:
            backend, number = await self.pool.acquire(
                self.parsed.affinity_key, engine, failed, self.context.caller, self.parsed.estimate
            )
        except ApiError as error:
            if last is None or error.outcome != "no_backend":
                raise
            raise last.error from last
        if backend.name in failed and failed[backend.name].reason not in ("connect", "cut"):
            backend.result(number, "cancelled")
            self.pool.release(backend, self.pool.served_s)
            raise failed[backend.name].error
        if last is not None:
            self.context.retries += 1
            self.pool.retried(name, last.reason)
        return backend, number

    async def _open(self, backend: Backend) -> UpstreamResponse:
        """Sends the request, and waits for the first piece of the answer's body.

        Raises:
            UpstreamError: Before that piece.
        """
        name = backend.name
        # An answer in one piece comes when all of it is done: the request's deadline is its only limit.
        limit = asyncio.timeout(self.settings.timeouts.first_byte_s if self.parsed.stream else None)
        try:
            async with limit:
                backend.opening.add(limit)
                try:
                    return await self._first_piece(backend)
                finally:
                    backend.opening.discard(limit)
        except TimeoutError:
            error = upstream_error(
                f"The engine {name} did not answer in time.", "timeout", status=504
            )
            raise UpstreamError("timeout", error) from None
        except (httpx.ConnectError, httpx.ConnectTimeout):
            raise UpstreamError("connect", upstream_error(f"The engine {name} is down.")) from None
        except httpx.HTTPError:
            error = upstream_error(f"The engine {name} broke off before its answer.")
            raise UpstreamError("cut", error) from None

    async def _first_piece(self, backend: Backend) -> UpstreamResponse:
        body = self.parsed.body_for(backend.model)
        response = await backend.send(self.parsed.api, body, self.headers)
        try:
            status = response.status_code
            read = _reader(response)
            kind = response.headers.get("content-type", "")
            if status == 200 and kind.startswith("text/event-stream"):
                first = await read()
                if not first:
                    raise httpx.RemoteProtocolError("a stream without an event")
                return UpstreamResponse(response, read, first, True)
            whole = await _whole(read)
            if status >= 500 or status == 429:
                raise _refused(backend.name, status, whole)
            return UpstreamResponse(response, read, whole, False)
        except BaseException:
            await close_response(response)
            raise

    async def _answer(self, upstream: UpstreamResponse, backend: Backend, send: Send) -> None:
        now = time.monotonic()
        if not upstream.streamed:
            if upstream.status == 200:
                self._count(upstream.first, backend)
            else:
                self.context.outcome = "client_error"
            await self._head(send, upstream.status, self._plain_headers(upstream))
            self.context.stage, self.context.since, self.context.finished = "send", now, True
            await send({"type": "http.response.body", "body": upstream.first})
            return
        backend.m_ttft.observe(now - self.context.timing.began)
        await self._head(send, 200, EVENT_STREAM)
        try:
            await self._pump(upstream, backend, send, now)
        except httpx.HTTPError:
            raise self._broken(backend) from None

    async def _pump(
        self, upstream: UpstreamResponse, backend: Backend, send: Send, last: float
    ) -> None:
        """Relays whole events as they come, unread but for the usage block and the end."""
        context, observe, clock = self.context, backend.m_itl.observe, time.monotonic
        piece, events = upstream.first, sse_events.Gatherer()
        while True:
            data = events.feed(piece)
            if _USAGE[0] in data or _USAGE[1] in data:
                data = self._without_usage(data, backend)
            done = sse_events.DONE in data and sse_events.ends(data)
            if _says_error(data):
                context.outcome = "upstream_error"
            context.finished = done
            if data:
                context.stage, context.since = "send", last
                context.pieces += 1
                await send({"type": "http.response.body", "body": data, "more_body": not done})
            if done:
                context.stage = "engine"
                await _linger(upstream.read)
                return
            context.stage, context.since = "read", clock()
            piece = await upstream.read()
            if not piece or events.waiting > _LARGEST_EVENT:
                raise self._broken(backend)
            now = clock()
            observe(now - last)
            last = now

    def _broken(self, backend: Backend) -> ApiError:
        return upstream_error(
            f"The engine {backend.name} broke off in the middle of its answer.", "broken_stream"
        )

    def _without_usage(self, data: bytes, backend: Backend) -> bytes:
        """Counts tokens; takes the block out again if the client did not ask for it."""
        kept = []
        for event in sse_events.events_in(data):
            if _USAGE[0] in event or _USAGE[1] in event:
                counted = self._count("".join(sse_events.feed(b"", event)[0][:1]).encode(), backend)
                if counted and not counted.choices and not self.parsed.wants_usage:
                    continue
            kept.append(event)
        return b"".join(kept)

    def _count(self, body: bytes, backend: Backend) -> _Counted | None:
        try:
            counted = _DECODER.decode(body)
        except msgspec.DecodeError:
            return None
        if counted.usage is not None:
            prompt, answer = counted.usage.prompt_tokens, counted.usage.completion_tokens or 0
            # Engines that repeat the block say totals: what counts is the difference.
            backend.m_prompt.inc(max(0, prompt - self.context.prompt_tokens))
            backend.m_answer.inc(max(0, answer - self.context.completion_tokens))
            self.context.prompt_tokens, self.context.completion_tokens = prompt, answer
        return counted

    def _plain_headers(self, upstream: UpstreamResponse) -> list[tuple[bytes, bytes]]:
        return [
            (b"content-type", upstream.content_type or b"application/json"),
            (b"content-length", b"%d" % len(upstream.first)),
        ]

    async def _head(self, send: Send, status: int, headers: list[tuple[bytes, bytes]]) -> None:
        self.head_sent = True
        mark = (b"x-gateway-backend", self.context.backend.encode())
        await send({"type": "http.response.start", "status": status, "headers": [*headers, mark]})


_DECODER = msgspec.json.Decoder(_Counted)


def _refused(name: str, status: int, body: bytes) -> UpstreamError:
    """An engine's own error, which another engine may not have."""
    try:
        text = str(msgspec.json.decode(body)["error"]["message"])[:500]
    except (msgspec.DecodeError, KeyError, TypeError):
        text = "no reason given"
    if status in (429, 503):
        error = unavailable(f"The engine {name} is busy: {text}", "engine_busy", "busy", 2.0)
        return UpstreamError(f"http_{status}", error, blame=False)
    return UpstreamError(
        f"http_{status}", upstream_error(f"The engine {name} answered {status}: {text}")
    )


def _says_error(data: bytes) -> bool:
    """Whether an engine tells of an error within a stream. In an answer's text the quote is escaped."""
    return _ERROR[0] in data or _ERROR[1] in data


def _reader(response: httpx.Response) -> Read:
    if isinstance(response.stream, TimedStream):
        return response.stream.read
    assert isinstance(response.stream, httpx.AsyncByteStream)
    pieces = aiter(response.stream)
    return lambda: anext(pieces, b"")


async def _whole(read: Read) -> bytes:
    found, size = [], 0
    while piece := await read():
        found.append(piece)
        size += len(piece)
        if size > _LARGEST_ANSWER:
            raise httpx.ReadError("an answer without an end")
    return b"".join(found)


async def _linger(read: Read) -> None:
    try:
        async with asyncio.timeout(_LINGER_S):
            while await read():
                pass
    except (TimeoutError, httpx.HTTPError):
        pass
