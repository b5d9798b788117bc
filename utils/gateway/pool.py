"""The backends of one model: who gets the next request, and who waits."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Collection, Sequence

from utils.gateway import balance
from utils.gateway.backend import Backend
from utils.gateway.http_errors import ApiError, unavailable
from utils.gateway.metrics import Metrics
from utils.gateway.settings import GatewaySettings, ModelSettings

_FIRST_GUESS_S = 2.0


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
        self.policy = settings.policy
        self.backends: Sequence[Backend] = [
            Backend(settings.name, backend, all_settings.health, metrics)
            for backend in settings.backends
        ]
        self.served_s = _FIRST_GUESS_S
        self._queue_settings = all_settings.queue
        self._slack = all_settings.affinity.slack
        self._rng = random.Random()
        self._turn = 0
        self._by_name = {backend.name: backend for backend in self.backends}
        self._ring = balance.make_ring(list(self._by_name))
        self._waiting: list[asyncio.Future[None]] = []
        self._m_queued = metrics.queued.labels(self.model)
        self._m_retries = metrics.retries

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
        backend = self._look(len(self._waiting), key, engine, failed)
        if backend is None:
            backend = await self._wait(key, engine, failed)
        backend.outstanding += 1
        backend.m_in_flight.inc()
        return backend, backend.sent()

    def release(self, backend: Backend, seconds: float) -> None:
        """Gives a backend back after a request that took `seconds`."""
        backend.outstanding -= 1
        backend.m_in_flight.dec()
        self.served_s += 0.1 * (seconds - self.served_s)
        self.wake()

    def retried(self, backend: str, reason: str) -> None:
        """Counts an attempt that failed there and is repeated."""
        self._m_retries.labels(self.model, backend, reason).inc()

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
        if not ours:
            raise ApiError(400, f"{self.model} is not served by {engine!r} here.", param="engine")
        usable = [b for b in ours if b.usable(now)]
        usable = [b for b in usable if b.name not in failed] or usable
        if not usable:
            raise unavailable(
                f"No engine that serves {self.model} works now. Try again in a moment.",
                "no_backend",
                "no_backend",
                2.0,
            )
        free = {b.name: b.outstanding for b in usable if b.outstanding < b.settings.max_outstanding}
        return self._by_name[self._pick(free, key)] if free else None

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
        places = sum(b.settings.max_outstanding for b in self.backends)
        wait_s = min(30.0, self.served_s * (1 + len(self._waiting) / places))
        return ApiError(
            429,
            f"{self.model} is busy: {why}. Try again in {wait_s:.0f} s.",
            kind="rate_limit_error",
            code="queue_full",
            outcome="queue_full",
            retry_after_s=wait_s,
        )
