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
from typing import Self

import httpx

from utils import loopback
from utils.benchmark.response import ResponseCollector, ResponseError
from utils.benchmark.trace import RequestTrace
from utils.benchmark.workload import Api, Request
from utils.files import encodable
from utils.http.answers import error_text
from utils.http.sse import SSEParser
from utils.http.transport import AsyncioTransport, DroppedBeforeResponse, TimedStream

PATHS: Mapping[Api, str] = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
MAX_RESENDS = 2
# Below the idle limit of every server met so far (llama.cpp's is 5 s).
KEEPALIVE_S = 4.0
TOO_MANY_FILES = "Too many open files"


class Client:
    """Sends requests to one model behind one OpenAI-compatible server.

    Args:
        base_url: "http://127.0.0.1:8000", with or without "/v1".
        model: The served model's name.
        api: "chat" for /v1/chat/completions, "completions" for /v1/completions.
        api_key: Sent as a bearer token if given.
        timeout_s: Limit for one whole request; connecting has 10 s of its own.
    """

    def __init__(
        self,
        base_url: str,
        model: str,
        api: Api = "chat",
        *,
        api_key: str | None = None,
        timeout_s: float = 300.0,
    ) -> None:
        if api not in PATHS:
            raise ValueError(f"unknown api {api!r}: use 'chat' or 'completions'")
        if not base_url.startswith(("http://", "https://")):
            raise ValueError(f"base_url must begin with http:// or https://, not {base_url!r}")
        _check_address(base_url)
        self.base_url = base_url.rstrip("/").removesuffix("/v1")
        self.model = model
        self.api: Api = api
        self.timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._http: httpx.AsyncClient | None = None

    @property
    def url(self) -> str:
        """Where requests go."""
        return self.base_url + PATHS[self.api]

    async def __aenter__(self) -> Self:
        self._http = loopback.async_client(
            headers=self._headers,
            timeout=httpx.Timeout(None, connect=10.0),
            limits=httpx.Limits(
                max_connections=None, max_keepalive_connections=None, keepalive_expiry=KEEPALIVE_S
            ),
            mounts={"http://": AsyncioTransport(keepalive_s=KEEPALIVE_S)},
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
        """Sends one request and reads the whole response.

        Never raises for a failed request: the trace then holds the error. Resends, at most
        `MAX_RESENDS` times, when the connection broke before any byte of a response; the clock
        goes on from the first attempt.

        Args:
            request: What to ask.
            index: Its position, for the trace.
            scheduled: When it was due (`perf_counter` seconds); default, now.

        Raises:
            WorkloadError: If the request cannot be expressed in this client's API.
        """
        body = json.dumps(request.body(self.model, self.api)).encode()
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
                    except DroppedBeforeResponse:
                        if resends == MAX_RESENDS:
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
        if not streamed or response.headers.get("content-type", "").startswith("application/json"):
            collector.whole(await response.aread(), perf_counter())
            return
        parser = SSEParser()
        async for at, piece in _pieces(response):
            for event in parser.feed(piece):
                collector.event(event, at)
        if (last := parser.close()) is not None:
            collector.event(last, perf_counter())
        collector.end()

    async def events(self, request: Request) -> AsyncIterator[tuple[float, str]]:
        """The raw stream: seconds since the request was sent, and each event's payload.

        Raises:
            httpx.HTTPError: If the connection or the request fails.
            ResponseError: On an HTTP error status.
        """
        body = json.dumps(request.body(self.model, self.api)).encode()
        parser = SSEParser()
        sent = perf_counter()
        async with self._connection().stream("POST", self.url, content=body) as response:
            await _raise_for_status(response)
            async for at, piece in _pieces(response):
                for event in parser.feed(piece):
                    yield at - sent, event.data

    async def reachable(self, patience_s: float = 1.0) -> bool:
        """Whether anything accepts connections at the address, tried for `patience_s` seconds."""
        url = httpx.URL(self.base_url)
        port = url.port or (443 if url.scheme == "https" else 80)
        deadline = perf_counter() + patience_s
        while True:
            try:
                async with asyncio.timeout(patience_s):
                    _, writer = await asyncio.open_connection(url.host, port)
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
        """Whether the server answers anything at all to GET /health, whatever it answers.

        A frozen process still accepts connections, since the kernel does, but says nothing.
        """
        try:
            async with (
                asyncio.timeout(patience_s),
                self._connection().stream("GET", self.base_url + "/health"),
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
    """The body with arrival times: from the socket for http, from when we get it for https."""
    stream = response.extensions.get("timed_stream")
    if isinstance(stream, TimedStream):
        async for timed in stream.timed():
            yield timed
    else:
        async for piece in response.aiter_raw():
            yield perf_counter(), piece


async def _raise_for_status(response: httpx.Response) -> None:
    """Raises ResponseError, with the engine's words, for any other status than 200."""
    if response.status_code == 200:
        return
    body = (await response.aread()).decode("utf-8", "replace")
    raise ResponseError(f"HTTP {response.status_code}: {error_text(body)[:500]}")


def _check_address(base_url: str) -> None:
    try:
        url = httpx.URL(base_url)
    except httpx.InvalidURL as error:
        raise ValueError(f"base_url {base_url!r} is no address: {error}") from error
    port = 80 if url.port is None else url.port
    if not url.host or not 0 < port < 65536:
        raise ValueError(f"base_url {base_url!r} needs a host, and a port from 1 to 65535")


def _described(problem: Exception) -> str:
    text = encodable(f"{type(problem).__name__}: {problem}".rstrip(": "))
    if TOO_MANY_FILES in text:
        text += "; raise this process's limit (`ulimit -n`) or lower the concurrency"
    return text
