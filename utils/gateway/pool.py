"""The backends of one model: who gets the next request, and who waits."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Collection
from urllib.parse import urlsplit

from utils.gateway import balance, bucket, circuit
from utils.gateway.backend import Backend
from utils.gateway.http_errors import ApiError, unavailable
from utils.gateway.logs import LOG, say
from utils.gateway.metrics import Metrics
from utils.gateway.settings import BackendSettings, GatewaySettings, ModelSettings
from utils.http.names import Names

_FIRST_GUESS_S = 2.0
_CLOCK_STEP_S = 0.01
_DISCOVER_S = 2.0


class Pool:
    """Chooses backends and keeps the queue.

    Attributes:
        model: The model's name.
        backends: All of them, up or not.
        served_s: A running mean of how long a request holds a backend, s: what Retry-After is made of.
    """

    def __init__(
        self, settings: ModelSettings, all_settings: GatewaySettings, metrics: Metrics
    ) -> None:
        self.model = settings.name
        self.backends: list[Backend] = []
        self.served_s = _FIRST_GUESS_S
        self._metrics = metrics
        self._rng = random.Random()
        self._turn = 0
        self._waiting: list[asyncio.Future[None]] = []
        self._m_queued = metrics.queued.labels(self.model)
        self._watches: dict[Backend, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._running = False
        self._members: dict[BackendSettings, list[str]] = {}
        self._discoveries: dict[BackendSettings, asyncio.Task[None]] = {}
        self._names = Names(fresh_s=_DISCOVER_S / 2)
        self._backoff: asyncio.TimerHandle | None = None
        self._backoff_at = 0.0
        health = all_settings.health
        reserve = float(health.retry_reserve)
        # It is filled by requests instead of by time.
        self._retries = bucket.full(health.retry_share, reserve, 0.0)
        self._requests = 0
        self.configure(settings, all_settings)

    def configure(self, settings: ModelSettings, all_settings: GatewaySettings) -> None:
        """Take new settings: backends that are not in them leave, new ones come, the others go on."""
        self.policy = settings.policy
        self._settings = settings
        self._all_settings = all_settings
        self._queue_settings = all_settings.queue
        self._slack = all_settings.affinity.slack
        self._apply()

    def retire(self) -> None:
        """Let all backends leave, because the model isn't served any more."""
        self._settings = self._settings.model_copy(update={"backends": ()})
        self._apply()

    def _apply(self) -> None:
        described = [
            one
            for each in self._settings.backends
            for one in (
                map(each.at, self._members.get(_plain(each), [])) if each.discover else [each]
            )
        ]
        health = self._all_settings.health
        kept = {b.settings: b for b in self.backends if b.health == health}
        wanted = []
        for each in described:
            plain = _plain(each)
            backend = kept.pop(plain, None) or self._new_backend(plain)
            backend.leaving = each.draining
            wanted.append(backend)
        gone = [backend for backend in self.backends if backend not in wanted]
        self.backends = wanted
        self._by_name = {backend.name: backend for backend in wanted}
        self._ring = balance.make_ring(list(self._by_name))
        for backend in gone:
            self._let_leave(backend)
        if self._running:
            self.start()
        self.wake()

    def _new_backend(self, settings: BackendSettings) -> Backend:
        backend = Backend(self.model, settings, self._all_settings.health, self._metrics)
        backend.may_open = self._may_open
        backend.others_quicker = self.others_quicker
        return backend

    def _let_leave(self, backend: Backend) -> None:
        """Send it nothing more, and close it when its last request has ended."""
        backend.leaving = True
        backend.idle.clear()
        watch = self._watches.pop(backend, None)
        if watch is not None:
            watch.cancel()
        if backend.name not in self._by_name:
            backend.forget()
        if self._running:
            task = asyncio.create_task(backend.close_when_idle())
            self._leaving.add(task)
            task.add_done_callback(self._leaving.discard)

    def start(self) -> None:
        """Watch the backends that are not watched yet."""
        self._running = True
        for backend in self.backends:
            if backend not in self._watches:
                self._watches[backend] = asyncio.create_task(backend.watch(self.wake))
        wanted = {_plain(each) for each in self._settings.backends if each.discover}
        for each in self._discoveries.keys() - wanted:
            self._discoveries.pop(each).cancel()
            self._members.pop(each, None)
        for each in wanted - self._discoveries.keys():
            self._discoveries[each] = asyncio.create_task(self._discover(each))

    async def _discover(self, described: BackendSettings) -> None:
        """Look a name up for ever, and let a backend come or go with each of its addresses.

        If the name server fails, the addresses stay: their health checks tell whether the engines do.
        """
        host = urlsplit(described.url).hostname or ""
        while True:
            try:
                found = sorted(await self._names.addresses(host))
                if found != self._members.get(described):
                    self._members[described] = found
                    say("discovered", backend=described.name, addresses=found)
                    self._apply()
            except (OSError, UnicodeError) as error:
                problem = str(error) or "no answer in time"
                say("name not found", logging.WARNING, backend=described.name, error=problem)
            except Exception:  # nobody would start it again
                LOG.exception("a look-up failed by itself")
            await asyncio.sleep(_DISCOVER_S)

    async def stop(self) -> None:
        """Watch no more, and close the connections."""
        tasks = [*self._watches.values(), *self._leaving, *self._discoveries.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        if self._backoff is not None:
            self._backoff.cancel()
        for backend in self.backends:
            await backend.close()

    def _may_open(self, backend: Backend) -> bool:
        """Tell whether a circuit may open: another backend has to be left."""
        return any(
            other.up and not other.leaving and other.circuit.state == circuit.CLOSED
            for other in self.backends
            if other is not backend
        )

    def others_quicker(self, backend: Backend, waited_s: float) -> bool:
        """Tell whether another backend has answered since this one last did, and in less time.

        One that was too slow itself since then proves nothing. If all are slow, the load is the reason.
        """
        return any(
            other.answered_at > max(backend.answered_at, other.timed_out_at)
            and other.answer_s < waited_s
            for other in self.backends
            if other is not backend
        )

    async def acquire(
        self, key: str, engine: str | None, failed: Collection[str]
    ) -> tuple[Backend, int]:
        """A backend for one request, and the request's number there; `release` gives it back.

        Args:
            key: The prompt's beginning.
            engine: Only backends of this engine; None: of any.
            failed: Backends that this request has tried. They get it again only if there is no other.

        Raises:
            ApiError: 400: no such engine here. 503: no backend works. 429: too many wait, or for too long.
        """
        if not failed:
            self._requests += 1
        backend = self._look(len(self._waiting), key, engine, failed)
        if backend is None:
            backend = await self._wait(key, engine, failed)
        backend.outstanding += 1
        backend.m_in_flight.inc()
        return backend, backend.sent()

    def release(self, backend: Backend, seconds: float) -> None:
        """Gives a backend back after a request that took `seconds`."""
        backend.outstanding -= 1
        if backend.leaving and not backend.outstanding:
            backend.idle.set()
        backend.m_in_flight.dec()
        self.served_s += 0.1 * (seconds - self.served_s)
        self.wake()

    def may_retry(self) -> bool:
        """Take one retry from the budget; False if it is used up.

        The budget grows with the number of requests. So in an outage the engines get a tenth more load, and
        not three times as much.
        """
        self._retries, wait = bucket.take(self._retries, 1.0, float(self._requests))
        return wait == 0.0

    def retried(self, backend: str, reason: str) -> None:
        """Counts an attempt that failed there and is repeated."""
        self._metrics.retries.labels(self.model, backend, reason).inc()

    def failed(self, backend: str, reason: str) -> None:
        """Counts an attempt that failed there, repeated or not."""
        self._metrics.failed_attempts.labels(self.model, backend, reason).inc()

    def wake(self) -> None:
        """Lets those who wait look again, in their order: a backend has room, or came back."""
        self._wake(0)

    def _wake(self, place: int) -> None:
        if place < len(self._waiting) and not self._waiting[place].done():
            self._waiting[place].set_result(None)

    def _look(
        self, place: int, key: str, engine: str | None, failed: Collection[str]
    ) -> Backend | None:
        """What `_choose` finds, unless somebody at an earlier place is about to look.

        Those who are not have looked, and found nothing that they may take.
        """
        if any(waiter.done() for waiter in self._waiting[:place]):
            return None
        return self._choose(key, engine, failed)

    def _choose(self, key: str, engine: str | None, failed: Collection[str]) -> Backend | None:
        """A backend with room; None if all that work are full.

        Raises:
            ApiError: No backend works.
        """
        now = time.monotonic()
        ours = [b for b in self.backends if engine is None or b.engine == engine]
        if not ours and self.backends:
            raise ApiError(400, f"{self.model} is not served by {engine!r} here.", param="engine")
        up = [b for b in ours if b.up and not b.leaving]
        usable = [b for b in up if b.circuit.state == circuit.CLOSED] or up
        usable = [b for b in usable if b.name not in failed] or usable
        if not usable:
            raise unavailable(
                f"No engine that serves {self.model} works now. Try again in a moment.",
                "no_backend",
                "no_backend",
                2.0,
            )
        ready = [b for b in usable if now >= b.busy_until]
        if not ready:
            self._wait_until_ready(min(b.busy_until for b in usable), now)
            return None
        usable = ready
        free = {b.name: b.outstanding for b in usable if b.outstanding < b.settings.max_outstanding}
        return self._by_name[self._pick(free, key)] if free else None

    def _wait_until_ready(self, at: float, now: float) -> None:
        """Let those who wait look again then.

        Raises:
            ApiError: That is longer than a request may wait.
        """
        if at - now > self._queue_settings.wait_s:
            raise unavailable(
                f"All engines that serve {self.model} are busy. Try again in {at - now:.0f} s.",
                "engine_busy",
                "busy",
                at - now,
            )
        if self._backoff is None or self._backoff_at > at or self._backoff_at <= now:
            if self._backoff is not None:
                self._backoff.cancel()
            self._backoff_at = at
            # A little later, so that it isn't a little too early.
            later = at - now + _CLOCK_STEP_S
            self._backoff = asyncio.get_running_loop().call_later(later, self.wake)

    def _pick(self, outstanding: dict[str, int], key: str) -> str:
        self._turn += 1
        if self.policy == "power_of_two":
            return balance.power_of_two(outstanding, self._rng)
        if self.policy == "prefix_affinity":
            return balance.bounded_hash(self._ring, outstanding, balance.point(key), self._slack)
        if self.policy == "round_robin":
            return list(outstanding)[self._turn % len(outstanding)]
        return balance.least_outstanding(outstanding, self._turn)

    async def _wait(self, key: str, engine: str | None, failed: Collection[str]) -> Backend:
        if len(self._waiting) >= self._queue_settings.size:
            raise self._full(f"{len(self._waiting)} requests wait already")
        waiter = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        self._m_queued.inc()
        try:
            async with asyncio.timeout(self._queue_settings.wait_s):
                while True:
                    await waiter
                    place = self._waiting.index(waiter)
                    backend = self._look(place, key, engine, failed)
                    if backend is not None:
                        return backend
                    waiter = asyncio.get_running_loop().create_future()
                    self._waiting[place] = waiter
                    self._wake(place + 1)  # what is free may suit the next
        except TimeoutError:
            raise self._full(f"waited {self._queue_settings.wait_s:g} s for a place") from None
        finally:
            self._waiting.remove(waiter)
            self._m_queued.dec()
            # Whoever leaves with the turn in hand passes it on; one with a backend may leave room for more.
            if waiter.done():
                self.wake()

    def _full(self, why: str) -> ApiError:
        places = max(1, sum(b.settings.max_outstanding for b in self.backends))
        wait_s = min(30.0, self.served_s * (1 + len(self._waiting) / places))
        return ApiError(
            429,
            f"{self.model} is busy: {why}. Try again in {wait_s:.0f} s.",
            kind="rate_limit_error",
            code="queue_full",
            outcome="queue_full",
            retry_after_s=wait_s,
        )


def _plain(settings: BackendSettings) -> BackendSettings:
    """The settings of a backend, whether it drains or not."""
    return settings.model_copy(update={"draining": False})
