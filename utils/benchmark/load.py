"""Sends many requests under a load pattern and keeps what happened to each.

Example:
    result = run(Client(engine.base_url, engine.model), requests, ClosedLoop(8), warmup=others)
    result.summary()["output_throughput"]
"""

from __future__ import annotations

import asyncio
import errno
import gc
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from time import perf_counter
from typing import Any

from utils import open_files
from utils.benchmark.arrivals import ClosedLoop, LoadPattern, OpenLoop, StopRule, arrivals
from utils.benchmark.client import TOO_MANY_FILES, Client
from utils.benchmark.stats import Slo, Summary, summarise
from utils.benchmark.tally import Tally
from utils.benchmark.threads import LoadProgress, run_in_thread
from utils.benchmark.trace import Clock, RequestTrace
from utils.benchmark.workload import Conversation, Request
from utils.engines.engine_errors import EngineError

_LAG_PROBE_S = 0.02
# vLLM 0.32.0 answers HTTP 500 with these words (v1/engine/exceptions.py) while its process is
# still there; it ends, with exit code 0, up to three seconds later.
_DEATH_WORDS = ("EngineCore encountered an issue", "EngineDeadError")
_DEATH_GRACE_S = 3.0
_ASK_EVERY_S = 0.25
_MANY = 2**31  # requests in flight: no limit


class LoadWarning(UserWarning):
    """A run that finished, but not as it was asked for."""


class LoadInterrupted(KeyboardInterrupt):
    """An interrupt during a run; `result` holds the requests that had ended."""

    def __init__(self, result: LoadResult) -> None:
        done = len(result.traces)
        super().__init__(f"{done} requests had ended; they are in this error's .result")
        self.result = result


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
        warmup: Number of warm-up requests that went before.
        client_lag: Worst delay of the client's own event loop, s. Latencies are uncertain by as
            much: if it is not small against them, the client is measuring itself.
        workload: Description of the requests, see `Tally.describe`.
        planned: Number of requests that were asked for; None for a run by duration.
        warmup_failed: Number of warm-up requests that failed.
        stopped: Reason why fewer requests were sent than planned; "" if all were.
    """

    load: LoadPattern
    traces: tuple[RequestTrace, ...]
    started: float
    duration: float
    api: str
    model: str
    warmup: int = 0
    client_lag: float = 0.0
    workload: Mapping[str, Any] = field(default_factory=dict)
    planned: int | None = None
    warmup_failed: int = 0
    stopped: str = ""

    @property
    def clock(self) -> Clock:
        """The beginning of latency: "scheduled" in an open loop, else "sent"."""
        return "scheduled" if isinstance(self.load, OpenLoop) else "sent"

    def summary(self, *, slo: Slo | None = None, clock: Clock | None = None) -> Summary:
        """Statistics with the result keys of `vllm bench serve`.

        Args:
            slo: Limits for goodput.
            clock: Count latency from "sent" or "scheduled"; default, this run's `clock`.
        """
        return summarise(self.traces, self.duration, slo=slo, clock=clock or self.clock)

    def describe(self) -> dict[str, Any]:
        """Return the load in plain values, for records."""
        values = asdict(self.load)
        return {
            "pattern": "open" if isinstance(self.load, OpenLoop) else "closed",
            **{k: str(v) if v == float("inf") else v for k, v in values.items()},
            "num_prompts": len(self.traces),
            "planned": self.planned,
            "stopped": self.stopped,
            "warmup": self.warmup,
            "warmup_failed": self.warmup_failed,
            "api": self.api,
            "clock": self.clock,
            "client_lag_s": self.client_lag,
        }


Item = Request | Conversation


def run(
    client: Client,
    requests: Iterable[Item],
    load: LoadPattern,
    *,
    warmup: Sequence[Request] = (),
    stop: StopRule | None = None,
    progress: bool = True,
    label: str = "",
    alive: Callable[[], bool] | None = None,
) -> LoadResult:
    """Run a load to its end, in a script or in a notebook.

    The event loop runs in a thread of its own, so a notebook's running loop does not matter.
    Ctrl-C cancels every request and returns at once.

    Args:
        client: Client that sends; it must not be open, because it would belong to another event loop.
        requests: Requests and conversations, sent in this order. A run by duration also takes an iterator
            without end.
        load: `ClosedLoop` or `OpenLoop`.
        warmup: Requests to send and wait for before the measurement; they are in no statistic.
            Give them prompts of their own: the engine's prefix cache remembers them.
        stop: Rule that ends the run early.
        progress: Show a progress bar.
        label: Its title.
        alive: Function that tells whether the engine's process still runs; it is called when a request
            fails, and again for some seconds after a run with failures.

    Raises:
        EngineDied: If the engine goes away in the middle; `.result` holds what was measured.
        LoadInterrupted: On Ctrl-C after the first request has ended; `.result` holds what was measured.
        WorkloadError: If a request does not fit the client's API.
        ValueError: If there is nothing to send, the open client belongs to another event loop, or the
            load needs more open files than this process may have.
    """
    if client.opened:
        raise ValueError(
            "the client is open: use `await run_async(...)`, or leave out `async with`"
        )
    session = _Session(client, requests, load, warmup, stop, alive)
    title = label or f"{client.model} {_title(load)}"
    bar = LoadProgress(session.planned, title, show=progress)
    session.on_done = bar.add
    try:
        result = run_in_thread(session.run(), bar)
    except KeyboardInterrupt as interrupt:
        session.stopped = "interrupted"
        if not session.traces:
            raise
        raise LoadInterrupted(session.result()) from interrupt
    finally:
        session.tell()
    return result


async def run_async(
    client: Client,
    requests: Iterable[Item],
    load: LoadPattern,
    *,
    warmup: Sequence[Request] = (),
    stop: StopRule | None = None,
    alive: Callable[[], bool] | None = None,
    on_done: Callable[[RequestTrace], None] | None = None,
) -> LoadResult:
    """Run a load like `run`, for callers with an event loop of their own.

    An open client stays open.
    """
    session = _Session(client, requests, load, warmup, stop, alive)
    session.on_done = on_done
    result = await session.run()
    session.tell()
    return result


class _Session:
    """One run."""

    def __init__(
        self,
        client: Client,
        requests: Iterable[Item],
        load: LoadPattern,
        warmup: Sequence[Request],
        stop: StopRule | None,
        alive: Callable[[], bool] | None,
    ) -> None:
        self.client = client
        self.load = load
        self.warmup = warmup
        self.stop = stop or StopRule()
        self.traces: list[RequestTrace] = []
        self.dead = False
        self.frozen = False
        self.lag = 0.0
        self.stopped = ""
        self.started = 0.0
        self.on_done: Callable[[RequestTrace], None] | None = None
        self.planned: int | None = None
        self._failed = 0
        self._tally = Tally()
        self._warmup_errors: list[str] = []
        self._asked = 0.0
        self._asking = asyncio.Lock()
        self._alive = alive
        self._items = self._checked(requests)
        _check_files(load, self.planned)

    async def run(self) -> LoadResult:
        """Warm up, send everything and put the result together.

        Raises:
            EngineDied: The engine stopped answering.
        """
        async with AsyncExitStack() as stack:
            if not self.client.opened:
                await stack.enter_async_context(self.client)
            await self._warm_up()
            with _gc_frozen():
                lag = asyncio.create_task(self.watch_lag())
                self.started = perf_counter()
                try:
                    if isinstance(self.load, ClosedLoop):
                        await self.closed(self.load.concurrency)
                    else:
                        await self.open(self.load)
                finally:
                    lag.cancel()
            await self.confirm_engine_alive()
        result = self.result()
        if self.dead:
            raise EngineDied(_death_notice(self.client, result, frozen=self.frozen), result)
        return result

    def result(self) -> LoadResult:
        """Return what has ended so far."""
        traces = tuple(sorted(self.traces, key=lambda trace: trace.index))
        ended = max((trace.finished for trace in traces), default=perf_counter())
        return LoadResult(
            load=self.load,
            traces=traces,
            started=self.started,
            duration=ended - self.started,
            api=self.client.api,
            model=self.client.model,
            warmup=len(self.warmup),
            client_lag=self.lag,
            workload=self._tally.describe(traces),
            planned=self.planned,
            warmup_failed=len(self._warmup_errors),
            stopped=self.stopped,
        )

    def tell(self) -> None:
        """Warn about a warm-up that failed and about requests that were not sent."""
        if self._warmup_errors:
            warnings.warn(
                f"{len(self._warmup_errors)} of {len(self.warmup)} warm-up requests failed, so the engine "
                f"may have been cold when the measurement began: {self._warmup_errors[0]}",
                LoadWarning,
                stacklevel=3,
            )
        if self.stopped and self.stopped != "interrupted":
            warnings.warn(f"the run ended early: {self.stopped}", LoadWarning, stacklevel=3)

    async def closed(self, concurrency: int) -> None:
        """Let each of `concurrency` users take the next request as soon as their last one ends."""
        items = iter(self._items)

        async def user() -> None:
            for index, item in items:
                if self._finished():
                    return
                await self._one(index, item, None)

        async with asyncio.TaskGroup() as group:
            for _ in range(min(concurrency, self.planned or concurrency)):
                group.create_task(user())

    async def open(self, load: OpenLoop) -> None:
        """Send each request when it is due, or when `max_concurrency` lets it."""
        limit = asyncio.Semaphore(load.max_concurrency or _MANY)

        async def arrive(index: int, item: Item, due: float) -> None:
            await self._one(index, item, due, limit)

        async with asyncio.TaskGroup() as group:
            for (index, item), after in zip(self._items, arrivals(load), strict=False):
                due = self.started + after
                if not self.dead:
                    await asyncio.sleep(max(0.0, due - perf_counter()))
                if self._finished():
                    return
                group.create_task(arrive(index, item, due))

    async def watch_lag(self) -> None:
        """Keep the worst lateness of a timer in this event loop."""
        while True:
            due = perf_counter() + _LAG_PROBE_S
            await asyncio.sleep(_LAG_PROBE_S)
            self.lag = max(self.lag, perf_counter() - due)

    async def _one(
        self, index: int, item: Item, due: float | None, limit: asyncio.Semaphore | None = None
    ) -> None:
        """Send a request, or a conversation turn by turn."""
        gate = limit or nullcontext()
        if isinstance(item, Request):
            async with gate:
                await self._send(index, item, due)
            return
        answers: list[str] = []
        for number in range(len(item.turns)):
            request = item.turn(number, answers)
            if number == len(answers):  # every turn so far was answered
                async with gate:
                    trace = await self._send(index + number, request, due)
                if trace.ok:
                    answers.append(trace.text)
                if trace.ok and number < len(item.think_s):
                    due = trace.finished + item.think_s[number]
                    await asyncio.sleep(max(0.0, due - perf_counter()))
            else:
                self._end(_unsent(index + number, request, due, "an earlier turn failed"))

    async def _send(self, index: int, request: Request, due: float | None) -> RequestTrace:
        if self.dead:
            trace = _unsent(index, request, due, "the engine had stopped answering")
        else:
            trace = await self.client.send(request, index=index, scheduled=due)
            if trace.error is not None:
                async with self._asking:  # many fail together: one asks for all
                    self.dead = self.dead or await self._is_dead(trace.error, trace.status)
        self._end(trace)
        return trace

    def _end(self, trace: RequestTrace) -> None:
        self.traces.append(trace)
        self._failed += not trace.ok
        if self.on_done is not None:
            self.on_done(trace)

    def _finished(self) -> bool:
        """Return whether no further request is to be sent, and note the reason."""
        if self.stopped:
            return True
        rule, ended = self.stop, len(self.traces)
        if rule.duration_s is not None and perf_counter() - self.started >= rule.duration_s:
            self.stopped = f"its {rule.duration_s:g} s were over" if self.planned else ""
            return True
        if self.dead:
            return (
                self.planned is None
            )  # a list is gone through, so that each request is accounted for
        limit = rule.max_error_rate
        if limit is not None and ended >= rule.min_ended and self._failed > limit * ended:
            first = next(trace.error for trace in self.traces if not trace.ok)
            self.stopped = f"{self._failed} of {ended} requests had failed ({first})"
            return True
        return False

    def _checked(self, requests: Iterable[Item]) -> Iterable[tuple[int, Item]]:
        """Check what can be checked before anything is sent, and give each item its first index."""
        if isinstance(requests, Sequence):
            for item in requests:
                self._check(item)
            self.planned = sum(_turns(item) for item in requests)
            if not self.planned:
                raise ValueError("no requests to send")
        elif self.stop.duration_s is None:
            raise ValueError("an iterator may have no end: give stop=StopRule(duration_s=...)")
        return self._numbered(requests)

    def _numbered(self, requests: Iterable[Item]) -> Iterator[tuple[int, Item]]:
        index = 0
        for item in requests:
            if self.planned is None:
                self._check(item)
            yield index, item
            index += _turns(item)

    def _check(self, item: Item) -> None:
        request = item.turn(0, []) if isinstance(item, Conversation) else item
        request.body(self.client.model, self.client.api)
        self._tally.add(item)

    async def _warm_up(self) -> None:
        load = self.load
        width = load.concurrency if isinstance(load, ClosedLoop) else load.max_concurrency
        limit = asyncio.Semaphore(width or max(len(self.warmup), 1))

        async def one(request: Request) -> None:
            async with limit:
                trace = await self.client.send(request)
            if trace.error is not None:
                self._warmup_errors.append(trace.error)

        async with asyncio.TaskGroup() as group:
            for request in self.warmup:
                group.create_task(one(request))

    async def confirm_engine_alive(self) -> None:
        """Ask for some seconds after a run with failures whether the engine ends, as a dying one does."""
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


def _turns(item: Item) -> int:
    return len(item.turns) if isinstance(item, Conversation) else 1


def _unsent(index: int, request: Request, due: float | None, why: str) -> RequestTrace:
    now = perf_counter()
    return RequestTrace(
        index=index,
        scheduled=now if due is None else due,
        sent=now,
        finished=now,
        error=f"not sent: {why}",
        max_tokens=request.max_tokens,
        tag=request.tag,
    )


def _check_files(load: LoadPattern, planned: int | None) -> None:
    """Refuse a load that needs more connections than this process may open.

    Raises:
        ValueError: It does.
    """
    width = load.concurrency if isinstance(load, ClosedLoop) else load.max_concurrency
    if width is None:
        open_files.raise_limit()
        return  # only its own latencies decide how many are in flight
    needed = min(width, planned or width)
    if needed > (free := open_files.free_files()):
        raise ValueError(
            f"{needed} requests in flight need as many open files, but this process can open only {free} "
            f"more. Lower the concurrency, or raise the hard limit (`ulimit -Hn`) before you start Python"
        )


@contextmanager
def _gc_frozen() -> Iterator[None]:
    """Keep the objects already in memory (torch, a notebook's data) out of collection pauses."""
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
