"""The backends of one model: who gets the next request, and who waits."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Collection, Sequence

from utils.gateway import balance
from utils.gateway.backend import Backend
from utils.gateway.fair_queue import FairQueue, Waiter, Wish
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
        self._waiting = FairQueue()
        self._m_queued = metrics.queued.labels(self.model)
        self._m_retries = metrics.retries

    async def acquire(
        self,
        affinity_key: str,
        engine: str | None,
        failed: Collection[str],
        caller: str = "",
        cost: float = 0.0,
    ) -> tuple[Backend, int]:
        """Return a backend for one request, and the request's number there; `release` gives it back.

        Args:
            affinity_key: Key of the policy `prefix_affinity`.
            engine: Only backends of this engine; None: of any.
            failed: Backends that this request has tried. They get it again only if there is no other.
            caller: Name of the key that asks. If requests have to wait, the keys take turns.
            cost: Estimate of the request's tokens.

        Raises:
            ApiError: 400: no such engine here. 503: no backend works. 429: too many wait, or for too long.
        """
        # Those who wait cannot have what is free now, or `wake` would have given it to them.
        if free := self._free(engine, failed):
            return self._take(free, affinity_key)
        return await self._wait(
            Waiter(
                caller,
                cost,
                affinity_key,
                (engine, frozenset(failed)),
                asyncio.get_running_loop().create_future(),
            )
        )

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
        """Give what is free to those who wait: a backend has room, or came back, or none is left."""
        while len(self._waiting):
            free: dict[Wish, dict[str, int]] = {}
            for waiter in self._waiting:
                try:
                    if waiter.wish not in free:
                        free[waiter.wish] = self._free(*waiter.wish)
                except ApiError as error:
                    self._waiting.discard(waiter)
                    waiter.turn.set_exception(error)
            servable = {wish for wish, backends in free.items() if backends}
            chosen = self._waiting.next(servable)
            if chosen is None:
                return
            chosen.turn.set_result(self._take(free[chosen.wish], chosen.affinity_key))

    def _take(self, free: dict[str, int], affinity_key: str) -> tuple[Backend, int]:
        backend = self._by_name[self._pick(free, affinity_key)]
        backend.outstanding += 1
        backend.m_in_flight.inc()
        return backend, backend.sent()

    def _free(self, engine: str | None, failed: Collection[str]) -> dict[str, int]:
        """Return the requests in flight of each backend that has room; none if all that work are full.

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
        return {b.name: b.outstanding for b in usable if b.outstanding < b.settings.max_outstanding}

    def _pick(self, outstanding: dict[str, int], affinity_key: str) -> str:
        self._turn += 1
        if self.policy == "power_of_two":
            return balance.power_of_two(outstanding, self._rng)
        if self.policy == "prefix_affinity":
            return balance.bounded_hash(
                self._ring, outstanding, balance.point(affinity_key), self._slack
            )
        if self.policy == "round_robin":
            return list(outstanding)[self._turn % len(outstanding)]
        return balance.least_outstanding(outstanding, self._turn)

    async def _wait(self, waiter: Waiter) -> tuple[Backend, int]:
        self._make_room(waiter.caller)
        self._waiting.add(waiter)
        self._m_queued.inc()
        try:
            async with asyncio.timeout(self._queue_settings.wait_s):
                try:
                    place: tuple[Backend, int] = await waiter.turn
                    return place
                except asyncio.CancelledError:
                    self._give_back(waiter.turn)
                    raise
        except TimeoutError:
            raise self._full(f"waited {self._queue_settings.wait_s:g} s for a place") from None
        finally:
            self._waiting.discard(waiter)
            self._m_queued.dec()

    def _give_back(self, turn: asyncio.Future[tuple[Backend, int]]) -> None:
        """Release the place of a request that was cancelled just when it got one."""
        if turn.done() and not turn.cancelled() and turn.exception() is None:
            backend, number = turn.result()
            backend.result(number, "cancelled")
            self.release(backend, self.served_s)

    def _make_room(self, caller: str) -> None:
        """Send the newest request of the longest queue away if all is full and this caller has fewer.

        Raises:
            ApiError: The queues are full, and this caller has as many requests as any other.
        """
        if len(self._waiting) < self._queue_settings.size:
            return
        refusal = self._full(f"{len(self._waiting)} requests wait already")
        if not len(self._waiting):
            raise refusal
        last = self._waiting.last_of_longest()
        if self._waiting.count(caller) + 1 >= self._waiting.count(last.caller):
            raise refusal
        self._waiting.discard(last)
        last.turn.set_exception(refusal)

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
