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
from utils.gateway.fair_queue import FairQueue, Waiter, Wish
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
        self._waiting = FairQueue()
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
        if not failed:
            self._requests += 1
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
        """Give a backend back after a request that took `seconds`."""
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
        """Count an attempt that failed there and is repeated."""
        self._metrics.retries.labels(self.model, backend, reason).inc()

    def failed(self, backend: str, reason: str) -> None:
        """Count an attempt that failed there, repeated or not."""
        self._metrics.failed_attempts.labels(self.model, backend, reason).inc()

    def wake(self) -> None:
        """Give what is free to those who wait: a backend has room, or came back, or none is left."""
        self._forget_gone()
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
            return {}
        return {b.name: b.outstanding for b in ready if b.outstanding < b.settings.max_outstanding}

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

    def _forget_gone(self) -> None:
        """Take out the requests that were cancelled, whose tasks haven't run since then."""
        for waiter in self._waiting:
            if waiter.turn.done():
                self._waiting.discard(waiter)

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
        self._forget_gone()
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
    """Return the settings of a backend, whether it drains or not."""
    return settings.model_copy(update={"draining": False})
