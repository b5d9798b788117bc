"""One running engine as the gateway sees it: its connections, its health, its circuit."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress

import httpx

from utils.engines.registry import ENGINES
from utils.gateway import circuit
from utils.gateway.logs import LOG, say
from utils.gateway.metrics import Metrics
from utils.gateway.schemas import PATHS, Api
from utils.gateway.settings import BackendSettings, Health
from utils.http.transport import AsyncioTransport, DroppedBeforeResponse

CONNECT_S = 2.0
BUFFERED_BYTES = 1 << 16  # of one stream whose client reads slowly; then the engine has to wait


class Backend:
    """One engine.

    Attributes:
        name: Its name in metrics and logs.
        engine: Name of the engine.
        outstanding: Requests in flight there.
        up: Whether its health check answers. Taken for healthy until the first check.
        circuit: What its answers say about it.
        opening: Time limits of requests that wait for its first byte; they end when it goes down.
    """

    def __init__(
        self, model: str, settings: BackendSettings, health: Health, metrics: Metrics
    ) -> None:
        self.name = settings.name
        self.engine = settings.engine
        self.settings = settings
        self.model = settings.model or model
        self.outstanding = 0
        self.up = True
        self.circuit = circuit.Circuit(health.circuit_failures, health.circuit_open_s)
        self.opening: set[asyncio.Timeout] = set()
        self._health = health
        self._failed_checks = 0
        self._sent = 0
        self._probe = 0
        self._urls = {api: httpx.URL(settings.url + path) for path, api in PATHS.items()}
        self._health_url = httpx.URL(settings.url + ENGINES[settings.engine].health_path)
        self._headers = settings.headers
        self._transport: httpx.AsyncBaseTransport = (
            AsyncioTransport(connect_timeout_s=CONNECT_S, high_water=BUFFERED_BYTES)
            if settings.url.startswith("http://")
            else httpx.AsyncHTTPTransport()
        )
        labels = (model, self.name)
        self.m_in_flight = metrics.in_flight.labels(*labels)
        self.m_ttft = metrics.ttft.labels(*labels)
        self.m_itl = metrics.itl.labels(*labels)
        self.m_e2e = metrics.e2e.labels(*labels)
        self.m_prompt = metrics.tokens.labels(*labels, "prompt")
        self.m_answer = metrics.tokens.labels(*labels, "completion")
        self._m_circuit = metrics.circuit.labels(*labels)
        self._m_up = metrics.up.labels(*labels)
        self._m_up.set(1)

    def usable(self, now: float) -> bool:
        """Whether it may get a request, room aside."""
        return self.up and circuit.admits(self.circuit, now)

    def sent(self) -> int:
        """Tells its circuit that a request goes there; returns the request's number, for `result`."""
        self._sent += 1
        before = self.circuit.state
        self._event("sent")
        if before != self.circuit.state:
            self._probe = self._sent
        return self._sent

    def answers(self, number: int) -> bool:
        """The first piece of an answer is there: a probe need not end before others may follow it.

        Returns:
            Whether it was the probe, so that they may now.
        """
        if self.circuit.state != circuit.HALF_OPEN:
            return False
        self.result(number, "success")
        return self.circuit.state == circuit.CLOSED

    def result(self, number: int, event: str) -> None:
        """Tells its circuit how a request ended.

        While it is half open only the probe counts: other requests were sent before it opened.

        Args:
            number: From `sent`.
            event: `success`, `failure` or `cancelled`, as for `circuit.step`.
        """
        if self.circuit.state != circuit.HALF_OPEN or number == self._probe:
            self._event(event)

    def _event(self, event: str) -> None:
        before = self.circuit.state
        self.circuit = circuit.step(self.circuit, event, time.monotonic())
        if self.circuit.state != before:
            self._m_circuit.set(circuit.STATES.index(self.circuit.state))
            say("circuit", backend=self.name, state=self.circuit.state, before=before)

    async def send(self, api: Api, body: bytes, headers: dict[str, str]) -> httpx.Response:
        """Sends a request; returns when the head of the answer is there.

        A kept connection may have been closed by the engine while it was idle (llama.cpp does that): that
        is no fault of either, and the request goes out once more. Not so on a new connection: there it may
        be the request that brings the engine down.

        Raises:
            httpx.HTTPError: No connection, or no answer.
        """
        request = self._request(api, body, headers)
        try:
            return await self._transport.handle_async_request(request)
        except DroppedBeforeResponse as error:
            if not error.reused:
                raise
            return await self._transport.handle_async_request(request)

    def _request(self, api: Api, body: bytes, headers: dict[str, str]) -> httpx.Request:
        """One with all its headers given: httpx takes five times as long to find them out by itself."""
        url = self._urls[api]
        own = {"host": url.netloc.decode(), "content-length": str(len(body)), **self._headers}
        request = httpx.Request("POST", url, headers=headers | own, stream=httpx.ByteStream(body))
        request.read()
        return request

    async def watch(self, changed: Callable[[], None]) -> None:
        """Checks its health for ever; calls `changed` when it went up or down."""
        while True:
            await asyncio.sleep(self._health.every_s)
            try:
                await self._look(changed)
            except Exception:  # nobody would start it again
                LOG.exception("a health check failed by itself")

    async def _look(self, changed: Callable[[], None]) -> None:
        healthy = await self._answers(self._check)
        self._failed_checks = 0 if healthy else self._failed_checks + 1
        up = healthy or (self.up and self._failed_checks < self._health.failures)
        if up != self.up:
            self._turn(up)
            changed()

    def _turn(self, up: bool) -> None:
        self.up = up
        self._m_up.set(up)
        say("backend", logging.INFO if up else logging.WARNING, backend=self.name, up=up)
        if not up:
            now = asyncio.get_running_loop().time()
            for limit in self.opening:
                with suppress(RuntimeError):  # it expires at this moment by itself
                    limit.reschedule(now)

    async def _answers(self, check: Callable[[], Awaitable[bool]]) -> bool:
        try:
            async with asyncio.timeout(self._health.timeout_s):
                return await check()
        except (TimeoutError, httpx.HTTPError):
            return False

    async def _check(self) -> bool:
        request = httpx.Request("GET", self._health_url, headers=self._headers)
        response = await self._transport.handle_async_request(request)
        try:
            async for _ in _pieces(response):
                pass
        finally:
            await close_response(response)
        return response.status_code == 200

    async def close(self) -> None:
        """Closes its idle connections."""
        await self._transport.aclose()


def _pieces(response: httpx.Response) -> httpx.AsyncByteStream:
    assert isinstance(response.stream, httpx.AsyncByteStream)
    return response.stream


async def close_response(response: httpx.Response) -> None:
    """Gives its connection back; one whose answer is not complete is closed."""
    await _pieces(response).aclose()
