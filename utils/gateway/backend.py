"""One running engine as the gateway sees it: its connections, its health, its circuit."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

import httpx
import msgspec

from utils.engines.registry import ENGINES
from utils.gateway import circuit, verdict
from utils.gateway.logs import LOG, say
from utils.gateway.metrics import Metrics
from utils.gateway.request_context import RequestContext
from utils.gateway.schemas import PATHS, Api
from utils.gateway.settings import BackendSettings, Health
from utils.gateway.verdict import Verdict
from utils.http.transport import (
    AsyncioTransport,
    OwnShortage,
    TimedStream,
    address_of,
    encode_head,
    encode_headers,
)

CONNECT_S = 2.0
DISTRUST_S = (
    30.0  # after a kept connection turned out dead (llama.cpp closes them while they are idle)
)
BUFFERED_BYTES = 1 << 16  # of one stream whose client reads slowly; then the engine has to wait
PROBES: dict[Api, dict[str, Any]] = {
    "chat": {"messages": [{"role": "user", "content": "hi"}]},
    "completions": {"prompt": "hi"},
}


class Backend:
    """One engine.

    Attributes:
        name: Its name in metrics and logs.
        engine: Name of the engine.
        outstanding: Requests in flight there.
        up: True if its health check answers. Taken for healthy until the first check.
        circuit: State that follows from its answers.
        waiting: Requests that wait for the first token of their answer; they go elsewhere if it goes down.
        busy_until: Until then it gets no requests, because it asked for a pause (429 or 503), s.
        answered_at: Time when an answer began last, s.
        answer_s: Time for which that one had taken to begin, s.
        timed_out_at: Time when a request there last waited too long for its beginning, s.
        heard_at: Time when anything but a comment came from it last, s.
        leaving: True if it gets no more requests, because it is to be removed.
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
        self.waiting: set[RequestContext] = set()
        self.busy_until = self.answered_at = self.timed_out_at = self.heard_at = 0.0
        self.answer_s = 0.0
        self.leaving = False
        self.may_open: Callable[[Backend], bool] = lambda backend: True
        self.others_quicker: Callable[[Backend, float], bool] = lambda backend, waited_s: False
        self.health = health
        self.idle = asyncio.Event()  # set once it leaves and its last request has ended
        self._failed_checks = 0
        self._sent = 0
        self._sent_when_opened = 0
        self._failed_api: Api = "completions"
        self._probing: asyncio.Task[None] | None = None
        url = httpx.URL(settings.url)
        self._address = address_of(url)
        headers = {"host": url.netloc.decode(), **settings.headers}
        own = [(name.encode(), value.encode()) for name, value in headers.items()]
        base = url.raw_path.rstrip(b"/")
        self._heads: dict[Api, bytes] = {
            api: encode_head("POST", base + path.encode(), own) for path, api in PATHS.items()
        }
        health_path = base + ENGINES[settings.engine].health_path.encode()
        self._health_request = encode_head("GET", health_path, own) + b"\r\n"
        secure = url.scheme == "https"
        trust = ssl.create_default_context(cafile=settings.ca_file) if secure else None
        self._transport = _new_transport(trust)
        # Of their own, so that a check's kept connection is never the one that a request finds dead.
        self._checks = _new_transport(trust)
        self._metrics = metrics
        self._labels = labels = (model, self.name)
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
        """Return whether it may get a request now, room aside."""
        return (
            self.up
            and not self.leaving
            and self.circuit.state == circuit.CLOSED
            and now >= self.busy_until
        )

    def sent(self) -> int:
        """Count a request that goes there; return the request's number, for `result`."""
        self._sent += 1
        return self._sent

    def opened(self, now: float, took_s: float) -> None:
        """Note that an answer has begun, `took_s` after its request was sent."""
        self.answered_at = self.heard_at = now
        self.answer_s = took_s

    def result(self, number: int, event: str, api: Api | None = None) -> None:
        """Tell its circuit how a request ended.

        An open circuit is closed by a probe. It also closes if a request that was sent later had an answer:
        such a request was sent there because no other backend was left.

        Args:
            number: From `sent`.
            event: `success`, `failure` or `cancelled`, as for `circuit.step`.
            api: The request's API; after a failure the probe asks the same.
        """
        if event == "failure" and api is not None and api in PROBES:
            self._failed_api = api
        if (
            event != "failure"
            and self.circuit.state == circuit.CLOSED
            and not self.circuit.failures
        ):
            return  # it changes nothing
        if self.circuit.state == circuit.OPEN:
            if event == "success" and number > self._sent_when_opened:
                self._event("sent")
                self._event("success")
        elif self.circuit.state == circuit.CLOSED:
            self._event(event)

    def _event(self, event: str) -> None:
        before = self.circuit
        after = circuit.step(before, event, time.monotonic())
        opens = after.state == circuit.OPEN and before.state == circuit.CLOSED
        if opens and not self.may_open(self):
            return  # the last one: a doubtful engine is better than none
        self.circuit = after
        if after.state == before.state:
            return
        self._m_circuit.set(circuit.STATES.index(after.state))
        if after.state == circuit.OPEN:
            self._sent_when_opened = self._sent
        quiet = circuit.HALF_OPEN in (before.state, after.state) and after.state != circuit.CLOSED
        level = logging.DEBUG if quiet else logging.INFO
        say("circuit", level, backend=self.name, state=after.state, before=before.state)

    def pause(self, seconds: float) -> None:
        """Send nothing there for a while, because the engine asked for it."""
        self.busy_until = max(self.busy_until, time.monotonic() + seconds)

    async def send(self, api: Api, body: bytes, headers: Mapping[str, str]) -> TimedStream:
        """Send a request; return when the head of the answer is there.

        Raises:
            httpx.HTTPError: No connection, or no answer.
        """
        return await self._transport.open(self._address, self._request(api, body, headers))

    def _request(self, api: Api, body: bytes, headers: Mapping[str, str]) -> bytes:
        found = [(name.encode(), value.encode()) for name, value in headers.items()]
        length = b"content-length: %d\r\n\r\n" % len(body)
        return b"".join((self._heads[api], encode_headers(found), length, body))

    async def watch(self, changed: Callable[[], None]) -> None:
        """Check its health for ever; call `changed` when it can be used again, or no longer."""
        while True:
            await asyncio.sleep(self.health.every_s)
            try:
                await self._look(changed)
                if self.up and self._probing is None and self._doubtful(time.monotonic()):
                    self._probing = asyncio.create_task(self._probe(changed))
            except Exception:  # nobody would start it again
                LOG.exception("a health check failed by itself")

    async def _look(self, changed: Callable[[], None]) -> None:
        healthy = await self._answers(self._check, self.health.timeout_s)
        if healthy is None:
            return
        self._failed_checks = 0 if healthy else self._failed_checks + 1
        up = healthy or (self.up and self._failed_checks < self.health.failures)
        if up != self.up:
            self._turn(up)
            changed()

    def _turn(self, up: bool) -> None:
        self.up = up
        self.busy_until = 0.0  # of the process that is gone
        self._m_up.set(up)
        say("backend", logging.INFO if up else logging.WARNING, backend=self.name, up=up)
        if up and self.circuit.state == circuit.OPEN:
            self.circuit = dataclasses.replace(self.circuit, opened_at=float("-inf"))  # probe now
        if not up:
            self._abandon_waiting()

    def _abandon_waiting(self) -> None:
        for context in list(self.waiting):
            context.abandon("down")

    def _doubtful(self, now: float) -> bool:
        """Return whether to ask for one token: the circuit is open for long enough, or nothing comes.

        An engine can hang and keep its health check well. If it has room and work, but nothing has come from
        it for `silence_s`, it has to show that it can still answer.
        """
        if self.circuit.state == circuit.OPEN:
            return circuit.admits(self.circuit, now)
        if not self.waiting or self.outstanding >= self.settings.max_outstanding:
            return False
        since = max(self.heard_at, min(context.since for context in self.waiting))
        return now - since >= self.health.silence_s

    async def _probe(self, changed: Callable[[], None]) -> None:
        """Ask for one token, on the gateway's own account, and tell the circuit what became of it."""
        try:
            was_open = self.circuit.state == circuit.OPEN
            if was_open:
                self._event("sent")
            began = time.monotonic()
            works = await self._answers(self._one_token, self.health.probe_s)
            now = time.monotonic()
            if works:
                self.opened(now, now - began)
            if was_open:
                self._event("cancelled" if works is None else "success" if works else "failure")
                changed()
            elif works is False and self.others_quicker(self, now - began):
                self._event("failure")
                if self.circuit.state == circuit.OPEN:
                    self._abandon_waiting()
                    changed()
        finally:
            self._probing = None

    async def _answers(
        self, check: Callable[[], Awaitable[bool | None]], limit_s: float
    ) -> bool | None:
        """Return what a check found, or None if nothing could be found out."""
        try:
            async with asyncio.timeout(limit_s):
                return await check()
        except OwnShortage:
            return None
        except (TimeoutError, httpx.HTTPError):
            return False

    async def _check(self) -> bool:
        return (await self._asked(self._health_request))[0] == 200

    async def _one_token(self) -> bool | None:
        """Ask for one token. None means that the engine is busy, so it is there but can't show more."""
        body = msgspec.json.encode(
            {"model": self.model, "max_tokens": 1} | PROBES[self._failed_api]
        )
        headers = {"content-type": "application/json", "accept": "application/json"}
        status, answer, after = await self._asked(self._request(self._failed_api, body, headers))
        found = verdict.of_status(status)
        if found is Verdict.BUSY:
            self.pause(verdict.busy_for(after))
            return None
        if found is Verdict.ANSWER:
            try:
                said = msgspec.json.decode(answer)
            except (msgspec.DecodeError, RecursionError):
                return False
            return isinstance(said, dict) and not said.get("error")
        return found is Verdict.REQUEST

    async def _asked(self, request: bytes) -> tuple[int, bytes, str]:
        response = await self._checks.open(self._address, request)
        try:
            body = b"".join([piece async for piece in response])
        finally:
            await response.aclose()
        return response.status, body, response.header(b"retry-after")

    async def close(self) -> None:
        """Close its idle connections, and forget its metrics."""
        if self._probing is not None:
            self._probing.cancel()
            await asyncio.gather(self._probing, return_exceptions=True)
        await self._transport.aclose()
        await self._checks.aclose()

    async def close_when_idle(self) -> None:
        """Close it when its last request has ended."""
        if self.outstanding:
            await self.idle.wait()
        await self.close()
        say("backend", backend=self.name, removed=True)

    def forget(self) -> None:
        """Take its state out of the metrics, because it isn't configured any more."""
        for gauge in (self._metrics.in_flight, self._metrics.circuit, self._metrics.up):
            with suppress(KeyError):
                gauge.remove(*self._labels)


def _new_transport(trust: ssl.SSLContext | None) -> AsyncioTransport:
    return AsyncioTransport(
        connect_timeout_s=CONNECT_S,
        high_water=BUFFERED_BYTES,
        distrust_s=DISTRUST_S,
        ssl_context=trust,
    )
