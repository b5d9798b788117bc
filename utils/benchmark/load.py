"""Sends many requests under a load pattern and keeps what happened to each.

Example:
    result = run(Client(engine.base_url, engine.model), requests, ClosedLoop(8), warmup=others)
    result.summary()["output_throughput"]
"""

from __future__ import annotations

import asyncio
import errno
import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from utils.benchmark.arrivals import ClosedLoop, LoadPattern, OpenLoop, arrival_times
from utils.benchmark.client import TOO_MANY_FILES, Client
from utils.benchmark.stats import Slo, Summary, summarise
from utils.benchmark.threads import LoadProgress, run_in_thread
from utils.benchmark.trace import Clock, RequestTrace
from utils.benchmark.workload import Request
from utils.engines.engine_errors import EngineError

_LAG_PROBE_S = 0.02
# vLLM 0.32.0 answers HTTP 500 with these words (v1/engine/exceptions.py) while its process is
# still there; it ends, with exit code 0, up to three seconds later.
_DEATH_WORDS = ("EngineCore encountered an issue", "EngineDeadError")
_DEATH_GRACE_S = 3.0
_ASK_EVERY_S = 0.25


class EngineDied(EngineError):
    """The engine stopped answering; `result` holds every request, the unsent ones as failed."""

    def __init__(self, message: str, result: LoadResult) -> None:
        super().__init__(message)
        self.result = result


@dataclass(frozen=True, slots=True)
class LoadResult:
    """One run.

    Attributes:
        load: The load pattern.
        traces: One per request, in request order; warm-up requests are not among them.
        started: `perf_counter` at the start of the measured part, s.
        duration: From the start to the end of the last request, s.
        api: "chat" or "completions".
        model: The served model's name.
        warmup: How many warm-up requests went before.
        client_lag: Worst delay of the client's own event loop, s. Latencies are uncertain by as
            much: if it is not small against them, the client is measuring itself.
    """

    load: LoadPattern
    traces: tuple[RequestTrace, ...]
    started: float
    duration: float
    api: str
    model: str
    warmup: int = 0
    client_lag: float = 0.0

    @property
    def clock(self) -> Clock:
        """Where latency counts from: "scheduled" in an open loop, else "sent"."""
        return "scheduled" if isinstance(self.load, OpenLoop) else "sent"

    def summary(self, *, slo: Slo | None = None, clock: Clock | None = None) -> Summary:
        """Statistics with the result keys of `vllm bench serve`.

        Args:
            slo: Limits for goodput.
            clock: Count latency from "sent" or "scheduled"; default, this run's `clock`.
        """
        return summarise(self.traces, self.duration, slo=slo, clock=clock or self.clock)

    def describe(self) -> dict[str, Any]:
        """The load in plain values, for records."""
        values = asdict(self.load)
        return {
            "pattern": "open" if isinstance(self.load, OpenLoop) else "closed",
            **{k: str(v) if v == float("inf") else v for k, v in values.items()},
            "num_prompts": len(self.traces),
            "warmup": self.warmup,
            "api": self.api,
            "clock": self.clock,
            "client_lag_s": self.client_lag,
        }


def run(
    client: Client,
    requests: Sequence[Request],
    load: LoadPattern,
    *,
    warmup: Sequence[Request] = (),
    progress: bool = True,
    label: str = "",
    alive: Callable[[], bool] | None = None,
) -> LoadResult:
    """Runs a load to its end; works in scripts and in notebooks.

    The event loop runs in a thread of its own, so a notebook's running loop does not matter.
    Ctrl-C cancels every request and returns at once.

    Args:
        client: Where to send; need not be open.
        requests: What to send, in this order.
        load: `ClosedLoop` or `OpenLoop`.
        warmup: Requests to send and wait for before the measurement; they are in no statistic.
            Give them prompts of their own: the engine's prefix cache remembers them.
        progress: Show a progress bar.
        label: Its title.
        alive: Tells whether the engine's process still runs; asked when a request fails, and
            again for some seconds after a run with failures.

    Raises:
        EngineDied: If the engine goes away in the middle; `.result` holds what was measured.
        ValueError: If there is nothing to send, or a request does not fit the client's API.
    """
    _check(client, requests)
    bar = LoadProgress(len(requests), label or f"{client.model} {_title(load)}", show=progress)
    return run_in_thread(
        run_async(client, requests, load, warmup=warmup, alive=alive, on_done=bar.add), bar
    )


async def run_async(
    client: Client,
    requests: Sequence[Request],
    load: LoadPattern,
    *,
    warmup: Sequence[Request] = (),
    alive: Callable[[], bool] | None = None,
    on_done: Callable[[RequestTrace], None] | None = None,
) -> LoadResult:
    """`run` for callers with an event loop of their own."""
    _check(client, requests)
    async with client:
        await _warm_up(client, warmup, load)
        session = _Session(client, requests, alive, on_done)
        with _gc_frozen():
            lag = asyncio.create_task(session.watch_lag())
            started = perf_counter()
            try:
                if isinstance(load, ClosedLoop):
                    await session.closed(load.concurrency)
                else:
                    await session.open(load, started)
            finally:
                lag.cancel()
        await session.confirm_engine_alive()
    traces = tuple(sorted(session.traces, key=lambda trace: trace.index))
    ended = max(trace.finished for trace in traces)
    result = LoadResult(
        load=load,
        traces=traces,
        started=started,
        duration=ended - started,
        api=client.api,
        model=client.model,
        warmup=len(warmup),
        client_lag=session.lag,
    )
    if session.dead:
        raise EngineDied(_death_notice(client, result, frozen=session.frozen), result)
    return result


class _Session:
    """The measured part of one run."""

    def __init__(
        self,
        client: Client,
        requests: Sequence[Request],
        alive: Callable[[], bool] | None,
        on_done: Callable[[RequestTrace], None] | None,
    ) -> None:
        self.client = client
        self.requests = requests
        self.traces: list[RequestTrace] = []
        self.dead = False
        self.frozen = False
        self.lag = 0.0
        self._asked = 0.0
        self._asking = asyncio.Lock()
        self._alive = alive
        self._on_done = on_done

    async def closed(self, concurrency: int) -> None:
        """Each of `concurrency` users takes the next request as soon as its last one ends."""
        queue = iter(enumerate(self.requests))

        async def user() -> None:
            for index, request in queue:
                await self._one(index, request, None)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, len(self.requests))):
                group.create_task(user())

    async def open(self, load: OpenLoop, started: float) -> None:
        """Each request is sent when it is due, or when `max_concurrency` lets it."""
        limit = asyncio.Semaphore(load.max_concurrency or len(self.requests))

        async def arrive(index: int, request: Request, due: float) -> None:
            async with limit:
                await self._one(index, request, due)

        async with asyncio.TaskGroup() as group:
            times = started + arrival_times(len(self.requests), load)
            for index, (request, due) in enumerate(zip(self.requests, times, strict=True)):
                if not self.dead and (wait := due - perf_counter()) > 0:
                    await asyncio.sleep(wait)
                group.create_task(arrive(index, request, float(due)))

    async def watch_lag(self) -> None:
        """Keeps the worst lateness of a timer in this event loop."""
        while True:
            due = perf_counter() + _LAG_PROBE_S
            await asyncio.sleep(_LAG_PROBE_S)
            self.lag = max(self.lag, perf_counter() - due)

    async def _one(self, index: int, request: Request, due: float | None) -> None:
        if self.dead:
            now = perf_counter()
            trace = RequestTrace(
                index=index,
                scheduled=now if due is None else due,
                sent=now,
                finished=now,
                error="not sent: the engine had stopped answering",
                max_tokens=request.max_tokens,
                tag=request.tag,
            )
        else:
            trace = await self.client.send(request, index=index, scheduled=due)
            if trace.error is not None:
                async with self._asking:  # many fail together: one asks for all
                    self.dead = self.dead or await self._is_dead(trace.error, trace.status)
        self.traces.append(trace)
        if self._on_done is not None:
            self._on_done(trace)

    async def confirm_engine_alive(self) -> None:
        """After a run with failures: whether the engine ends now, as a dying one does."""
        failed = any(t.error is not None and TOO_MANY_FILES not in t.error for t in self.traces)
        deadline = perf_counter() + _DEATH_GRACE_S
        while failed and not self.dead and self._alive is not None:
            self.dead = self._gone()
            if perf_counter() > deadline:
                return
            await asyncio.sleep(0.1)

    async def _is_dead(self, error: str, status: int | None) -> bool:
        if TOO_MANY_FILES in error:
            return False
        if any(words in error for words in _DEATH_WORDS):
            return True
        if status is not None:
            if perf_counter() - self._asked < _ASK_EVERY_S:
                return False
            self._asked = perf_counter()
            return self._gone()
        if self._gone() or not await self.client.reachable():
            return True
        self.frozen = error.startswith("timed out") and not await self.client.answers()
        return self.frozen

    def _gone(self) -> bool:
        try:
            return self._alive is not None and not self._alive()
        except OSError as error:
            if error.errno in (errno.EMFILE, errno.ENFILE):
                return False
            raise


def _check(client: Client, requests: Sequence[Request]) -> None:
    if not requests:
        raise ValueError("no requests to send")
    for request in requests:
        request.body(client.model, client.api)


async def _warm_up(client: Client, requests: Sequence[Request], load: LoadPattern) -> None:
    width = load.concurrency if isinstance(load, ClosedLoop) else load.max_concurrency
    limit = asyncio.Semaphore(width or max(len(requests), 1))

    async def one(request: Request) -> None:
        async with limit:
            await client.send(request)

    async with asyncio.TaskGroup() as group:
        for request in requests:
            group.create_task(one(request))


@contextmanager
def _gc_frozen() -> Iterator[None]:
    """Keeps what is already in memory (torch, a notebook's data) out of collection pauses."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def _title(load: LoadPattern) -> str:
    if isinstance(load, ClosedLoop):
        return f"concurrency {load.concurrency}"
    return f"{load.request_rate:g} requests/s"


def _death_notice(client: Client, result: LoadResult, *, frozen: bool) -> str:
    good = sum(trace.ok for trace in result.traces)
    first = next(trace.error for trace in result.traces if not trace.ok)
    if frozen:
        return (
            f"the engine at {client.base_url} accepts connections but does not answer (frozen?): "
            f"{good} of {len(result.traces)} requests succeeded ({first}). Look at its log "
            "(engine.tail()), stop it and start it again; what was measured is in this error's "
            ".result"
        )
    if not good and all(trace.status is None for trace in result.traces):
        return (
            f"nothing answers at {client.base_url} ({first}): "
            "start the engine, or check the address"
        )
    return (
        f"the engine at {client.base_url} stopped answering: {good} of {len(result.traces)} "
        f"requests succeeded ({first}). Look at the end of its log (engine.tail()), "
        "then start it again; what was measured is in this error's .result"
    )
