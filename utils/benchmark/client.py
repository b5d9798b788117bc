"""A streaming client for OpenAI-compatible servers that measures what it receives.

Example:
    async with Client(engine.base_url, engine.model) as client:
        trace = await client.send(Request("What is a KV cache?", max_tokens=32))

Many requests under load, and notebooks, use `utils.benchmark.load.run`.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from time import perf_counter
from types import TracebackType
from typing import Any, Self

import httpx

from utils import loopback
from utils.benchmark.response import ResponseCollector, ResponseError
from utils.benchmark.trace import RequestTrace
from utils.benchmark.workload import Api, Request
from utils.files import encodable
from utils.http.answers import error_text
from utils.http.sse import SSEParser
from utils.http.transport import (
    AsyncioTransport,
    DroppedBeforeResponse,
    TimedStream,
    system_trust,
)

PATHS: Mapping[Api, str] = {"chat": "/chat/completions", "completions": "/completions"}
# Below the idle limit of every server met so far (llama.cpp's is 5 s).
KEEPALIVE_S = 4.0
TOO_MANY_FILES = "Too many open files"
# Patience for the end of the body after [DONE], which some servers never send.
_AFTER_DONE_S = 0.5
_SHOWN_BYTES = 80


class Client:
    """Client of one model on one OpenAI-compatible server.

    Args:
        base_url: Address of the API. `/v1` is added to an address without a path, such as
            "http://127.0.0.1:8000". Any other path is used as it is: requests to
            "https://host/v1beta/openai" go to "https://host/v1beta/openai/chat/completions".
        model: The served model's name.
        api: "chat" for /chat/completions, "completions" for /completions.
        api_key: Sent as a bearer token if given. It never appears in a message, trace or record.
        timeout_s: Limit for one whole request; connecting has 10 s of its own.
        proxy: Address of a proxy. None connects directly, whatever the environment says.
        extra_body: Fields of every request's body, unless the request has them itself.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api: Api = "chat",
        *,
        api_key: str | None = None,
        timeout_s: float = 300.0,
        proxy: str | None = None,
        extra_body: Mapping[str, Any] | None = None,
    ) -> None:
        if api not in PATHS:
            raise ValueError(f"unknown api {api!r}: use 'chat' or 'completions'")
        self._url = _api_url(base_url, PATHS[api])
        self.model = model
        self.api: Api = api
        self.timeout_s = timeout_s
        self._proxy = proxy
        self.extra_body = dict(extra_body or {})
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if api_key := (api_key or "").strip():
            if not (api_key.isascii() and api_key.isprintable()):
                raise ValueError(
                    "the API key holds a line break or another character that no key has"
                )
            self._headers["Authorization"] = f"Bearer {api_key}"
            self._url = self._url.copy_with(userinfo=b"")  # it would take the key's place
        self._http: httpx.AsyncClient | None = None

    @property
    def url(self) -> str:
        """Address that requests go to."""
        return str(self._url)

    @property
    def base_url(self) -> str:
        """Address of the API for people and records, without password and query."""
        path = self._url.path.removesuffix(PATHS[self.api]).removesuffix("/v1")
        return str(self._url.copy_with(path=path or "/", query=None, userinfo=b"")).rstrip("/")

    @property
    def opened(self) -> bool:
        """True if the client is inside its `async with`."""
        return self._http is not None

    async def __aenter__(self) -> Self:
        timeout = httpx.Timeout(None, connect=10.0)
        if self._proxy is None:
            # Without httpx's own transport, whose start and end take files and milliseconds.
            self._http = loopback.async_client(
                headers=self._headers,
                timeout=timeout,
                transport=AsyncioTransport(keepalive_s=KEEPALIVE_S),
            )
        else:
            # httpx doesn't tell whether a kept connection was dropped, so none is kept.
            limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
            self._http = loopback.async_client(
                headers=self._headers,
                timeout=timeout,
                limits=limits,
                proxy=self._proxy,
                verify=system_trust(),
            )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._http is not None:
            await self._http.aclose()
            self._http = None

    async def send(
        self, request: Request, *, index: int = 0, scheduled: float | None = None
    ) -> RequestTrace:
        """Send one request and read the whole response.

        Never raises for a failed request: the trace then holds the error. The request is sent once more if
        a kept connection broke before any byte of a response, because the server may have closed it while
        it was idle. The clock goes on from the first attempt.

        Args:
            request: Request to send.
            index: Its position, for the trace.
            scheduled: Time at which it was due (`perf_counter` seconds); default, now.

        Raises:
            WorkloadError: If the request cannot be expressed in this client's API.
        """
        body = json.dumps(self.extra_body | request.body(self.model, self.api)).encode()
        collector = ResponseCollector()
        status: int | None = None
        error: str | None = None
        resends = 0
        connection = self._connection()
        sent = perf_counter()
        try:
            async with asyncio.timeout(self.timeout_s):
                while True:
                    try:
                        async with connection.stream("POST", self.url, content=body) as response:
                            status = response.status_code
                            await self._read(response, request.stream, collector)
                        break
                    except DroppedBeforeResponse as dropped:
                        if not dropped.reused:
                            raise
                        resends += 1
        except TimeoutError:
            error = f"timed out after {self.timeout_s:g} s"
        except (httpx.HTTPError, ResponseError) as problem:
            error = _described(problem)
        except Exception as problem:  # one odd answer must not end a run of hundreds
            error = f"the answer could not be read: {_described(problem)}"
        now = perf_counter()
        finished = collector.finished
        times = collector.chunk_times
        return RequestTrace(
            index=index,
            scheduled=sent if scheduled is None else scheduled,
            sent=sent,
            finished=now if error is not None or finished is None else finished,
            first_token=times[0] if times else None,
            chunk_times=tuple(times),
            text=collector.text,
            reasoning=collector.reasoning,
            usage_missing=error is None and collector.usage is None,
            error=error,
            status=status,
            finish_reason=collector.finish_reason,
            resends=resends,
            max_tokens=request.max_tokens,
            streamed=collector.streamed,
            engine_timings=collector.timings,
            tag=request.tag,
            **collector.token_counts(),
        )

    async def _read(
        self, response: httpx.Response, streamed: bool, collector: ResponseCollector
    ) -> None:
        """Read a whole answer.

        Raises:
            ResponseError: The answer is an error, or incomplete.
            httpx.HTTPError: The connection broke.
        """
        await _raise_for_status(response)
        kind = response.headers.get("content-type", "")
        if not streamed or kind.startswith("application/json"):
            collector.whole(await response.aread(), perf_counter())
            return
        parser = SSEParser()
        start, events = b"", 0
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(None) as after_done:
                async for at, piece in _pieces(response):
                    if not events:
                        start = (start + piece)[:_SHOWN_BYTES]
                    for event in parser.feed(piece):
                        events += 1
                        collector.event(event, at)
                    if collector.done and after_done.when() is None:
                        after_done.reschedule(loop.time() + _AFTER_DONE_S)
        except TimeoutError:
            if not after_done.expired():
                raise
        if (last := parser.close()) is not None:
            events += 1
            collector.event(last, perf_counter())
        if not events:
            raise ResponseError(
                f"the answer isn't an event stream, but {kind or 'of no content type'}: "
                f"{start.decode('utf-8', 'replace')!r}"
            )
        collector.end()

    async def events(self, request: Request) -> AsyncIterator[tuple[float, str]]:
        """Return the raw stream: seconds since the request was sent, and each event's payload.

        Raises:
            httpx.HTTPError: If the connection or the request fails.
            ResponseError: On an HTTP error status.
        """
        body = json.dumps(self.extra_body | request.body(self.model, self.api)).encode()
        parser = SSEParser()
        sent = perf_counter()
        async with self._connection().stream("POST", self.url, content=body) as response:
            await _raise_for_status(response)
            async for at, piece in _pieces(response):
                for event in parser.feed(piece):
                    yield at - sent, event.data

    async def reachable(self, patience_s: float = 1.0) -> bool:
        """Return whether anything accepts connections at the address, tried for `patience_s` seconds."""
        if self._proxy is not None:
            return True  # only the proxy can tell
        port = self._url.port or (443 if self._url.scheme == "https" else 80)
        deadline = perf_counter() + patience_s
        while True:
            try:
                async with asyncio.timeout(patience_s):
                    _, writer = await asyncio.open_connection(self._url.host, port)
            except (OSError, TimeoutError) as problem:
                if TOO_MANY_FILES in str(problem):
                    return True  # this process's own limit says nothing about the engine
                if perf_counter() > deadline:
                    return False
                await asyncio.sleep(patience_s / 5)
            else:
                writer.close()
                return True

    async def answers(self, patience_s: float = 5.0) -> bool:
        """Return whether the server answers anything at all to GET /health, whatever it answers.

        A frozen process still accepts connections, since the kernel does, but says nothing.
        """
        try:
            async with (
                asyncio.timeout(patience_s),
                self._connection().stream("GET", self._url.copy_with(path="/health", query=None)),
            ):
                return True
        except (TimeoutError, httpx.TimeoutException):
            return False
        except httpx.HTTPError:
            return True

    def _connection(self) -> httpx.AsyncClient:
        if self._http is None:
            raise RuntimeError("the client is not open: use `async with client:`")
        return self._http


async def _pieces(response: httpx.Response) -> AsyncIterator[tuple[float, bytes]]:
    """Return the body with arrival times: from the socket for http, from when we get it for https."""
    stream = response.extensions.get("timed_stream")
    if isinstance(stream, TimedStream):
        async for timed in stream.timed():
            yield timed
    else:
        async for piece in response.aiter_raw():
            yield perf_counter(), piece


async def _raise_for_status(response: httpx.Response) -> None:
    """Raise ResponseError, with the engine's words, for any other status than 200."""
    if response.status_code == 200:
        return
    if location := response.headers.get("location"):
        target = response.request.url.join(location).copy_with(query=None, userinfo=b"")
        raise ResponseError(
            f"HTTP {response.status_code}: the server redirects to {target}. Use that address"
        )
    body = (await response.aread()).decode("utf-8", "replace")
    raise ResponseError(f"HTTP {response.status_code}: {error_text(body)[:500]}")


def _api_url(base_url: str, path: str) -> httpx.URL:
    """Return the address of an endpoint; `/v1` comes before its path if `base_url` has no path.

    Raises:
        ValueError: `base_url` is no usable address.
    """
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(f"base_url must begin with http:// or https://, not {base_url!r}")
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url {base_url!r} isn't an address: {error}") from error
    port = 80 if url.port is None else url.port
    if not url.host or not 0 < port < 65536:
        raise ValueError(f"base_url {base_url!r} needs a host, and a port from 1 to 65535")
    base = url.path.rstrip("/")
    for suffix in PATHS.values():
        base = base.removesuffix(suffix)
    return url.copy_with(path=(base or "/v1") + path)


def _described(problem: Exception) -> str:
    text = encodable(f"{type(problem).__name__}: {problem}".rstrip(": "))
    if TOO_MANY_FILES in text:
        text += "; raise this process's limit (`ulimit -n`) or lower the concurrency"
    return text
