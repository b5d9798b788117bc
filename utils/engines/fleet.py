"""Several engines for the same measurements, side by side where the machine can carry them."""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from functools import partial
from types import TracebackType
from typing import Any, TypeVar

from utils.engines.attached import attached_url
from utils.engines.cell_runs import CellRun, remember, stop_earlier, this_run
from utils.engines.container import connect, ensure_image
from utils.engines.engine_errors import FAILURES, EngineError, StartCancelled, reason_of
from utils.engines.launch import RunningEngine, launch
from utils.engines.registry import get_spec
from utils.engines.start_progress import FleetProgress, StartProgress, StatusLine
from utils.profiles import Profile

T = TypeVar("T")
POLL_S = 0.25
# An interrupted cell waits this long for starts to end. They notice it within a fraction of a second, but an
# answer of docker or of an engine may be on its way.
CANCEL_S = 3.5
STOPPED = "These engines were stopped: run the cell that starts them again."


class Fleet:
    """Engines by a name of your choice.

    Local processes start side by side, once, which saves minutes on a CPU; an idle one takes no core.
    Engines that share one GPU's memory are started one by one, each when it is its turn, and stopped again,
    unless they are wanted `together`.

    If the cell that starts them is interrupted, all starts are cancelled, and nothing is left. If the cell is
    run again, the engines of its earlier run are stopped first.

    Args:
        profile: Where.
        variants: Options of `launch`, and `engine`, its name, where that is not `engine`.
        engine: The engine of variants that name none.
        together: True if all have to run at the same time; on a GPU their options have to leave room.
        one_by_one: True if local processes start one after the other, so that their times until they are
            ready can be compared.
        running: Engines that run already, by variant. Those that can't run next to others are stopped.
        run: Run of the cell that wants them, where that isn't the one that calls this.
        quiet: Without progress and without the ends of logs.

    Attributes:
        reasons: Why a variant does not run, in words, by variant.
    """

    def __init__(
        self,
        profile: Profile,
        variants: Mapping[str, Mapping[str, Any]],
        engine: str = "vllm",
        *,
        together: bool = False,
        one_by_one: bool = False,
        running: Mapping[str, RunningEngine] | None = None,
        run: CellRun | None = None,
        quiet: bool = False,
    ) -> None:
        self.profile = profile
        self.variants = variants
        self.reasons: dict[str, str] = {}
        self._engine = engine
        self._running: dict[str, RunningEngine] | None = None
        self._cancel = threading.Event()
        self._starting = threading.RLock()
        self._quiet = quiet
        self._attached: dict[str, str] = {}
        run = run or this_run()
        stop_earlier(run)
        remember(self, run)
        here = {name: engine for name, engine in (running or {}).items() if engine.running()}
        if together or not profile.shares_gpu:
            names = [name for name in variants if name not in here]
            groups = [[name] for name in names] if one_by_one else [names]
            self._running = dict(here)
            for group in filter(None, groups):
                self._running |= self._start(group)
        else:
            stop_together(list(here.values()))

    def each(
        self,
        work: Callable[[str, RunningEngine, int], T],
        *,
        turns: int = 1,
        only: Collection[str] | None = None,
        in_turn: bool = False,
    ) -> dict[str, list[T]]:
        """Do the same work on every engine, `turns` times, the engines in turn where all run.

        An engine that fails at its work, for example because it died, is left out from then on; `reasons`
        tells why, and the others go on.

        Args:
            work: Called with a variant's name, its engine, and the turn, from 0 on.
            turns: Number of turns.
            only: Variants to use; None for all.
            in_turn: True if engines that can't run next to others take turns too. Each of them then starts
                once for every turn.

        Returns:
            Results of `work` by variant, without the variants that don't run.
        """
        results: dict[str, list[T]] = {}
        rounds = range(turns)
        # Engines that come alone start once for all their turns, or once for each.
        passes = [[turn] for turn in rounds] if in_turn and self._running is None else [rounds]
        for these in passes:
            with closing(self._batches(only)) as batches:
                for running in batches:
                    self._work(work, running, these, results)
        return results

    def _work(
        self,
        work: Callable[[str, RunningEngine, int], T],
        running: Mapping[str, RunningEngine],
        turns: Iterable[int],
        results: dict[str, list[T]],
    ) -> None:
        for turn in turns:
            for name, engine in running.items():
                if name in self.reasons:
                    continue
                try:
                    result = work(name, engine, turn)
                except FAILURES as error:
                    self._fail(name, error)
                    results.pop(name, None)
                else:
                    results.setdefault(name, []).append(result)

    @property
    def running(self) -> list[RunningEngine]:
        """Those that run now, in the order of the variants; none of them if each comes alone."""
        return [engine for engine in (self._running or {}).values() if engine.running()]

    def at_least(self, count: int) -> list[RunningEngine]:
        """Return the engines that run now.

        Raises:
            EngineError: They are fewer than `count`; tells why.
        """
        if len(engines := self.running) >= count:
            return engines
        raise EngineError(
            f"it needs {count} engines at the same time, and {len(engines)} of {len(self.variants)} run. "
            f"{self.why()}"
        )

    def why(self) -> str:
        """Return the reasons why engines don't run, each once, with the engines that have it."""
        names: dict[str, list[str]] = {}
        for name, reason in self.reasons.items():
            names.setdefault(reason, []).append(name)
        return "; ".join(f"{', '.join(those)}: {reason}" for reason, those in names.items())

    @contextmanager
    def one(self, name: str) -> Iterator[RunningEngine]:
        """Start one of them.

        Raises:
            EngineError: It does not run; the message has the reason.
        """
        with closing(self._batches([name])) as batches:
            running = next(batches)
            if name in self.reasons:
                raise EngineError(self.reasons[name])
            yield running[name]

    def stop(self) -> None:
        """Stop all, those that are still starting too, and clean up after those that died."""
        self._cancel.set()
        ended = self._starting.acquire(timeout=CANCEL_S)
        try:
            stop_together(list((self._running or {}).values()))
        finally:
            if ended:
                self._starting.release()

    def __del__(self) -> None:
        # A cell that makes another fleet of the same name lets go of this one.
        with suppress(Exception):
            self.stop()

    def has(self, name: str) -> bool:
        """Tell whether a variant runs, or can when it is its turn; print why where it can't.

        In a container it can if docker answers and has the image, which is pulled now if it has to be.
        """
        if self._cancel.is_set():
            print(f"{name}: {STOPPED}")
            return False
        if name not in self.reasons and self._running is None:
            try:
                self._ask_docker(name)
            except EngineError as error:
                self.reasons[name] = error.reason
        elif name not in self.reasons and not (engine := (self._running or {})[name]).running():
            self.reasons[name] = f"it ended after it had started (log: {engine.log_path})"
        if name in self.reasons:
            print(f"{name}: not run here: {self.reasons[name]}")
        return name not in self.reasons

    def __enter__(self) -> Fleet:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.stop()

    def _fail(self, name: str, error: Exception) -> None:
        """Keep the short reason for later cells; print the whole one, with the end of the log, once."""
        self.reasons[name] = reason_of(error)
        if not self._quiet:
            print(f"{name}: {error}")

    def _ask_docker(self, name: str) -> None:
        kind = self.variants[name].get("engine", self._engine)
        if self.profile.runtime != "docker" or attached_url(kind):
            return
        spec = get_spec(kind)
        if spec.container is None:
            return
        progress = StartProgress(name, self._quiet, stop=self._cancel)
        ensure_image(connect(), spec.container.image, progress.say, progress.check)

    def _batches(
        self, only: Collection[str] | None
    ) -> Generator[dict[str, RunningEngine], None, None]:
        if self._cancel.is_set():
            raise EngineError(STOPPED)
        wanted = [name for name in self.variants if only is None or name in only]
        if self._running is not None:
            yield {name: self._running[name] for name in wanted if name in self._running}
            return
        for name in wanted:
            running = {} if name in self.reasons else self._start([name])
            try:
                yield running
            finally:
                stop_together(list(running.values()))

    def _start(self, names: list[str]) -> dict[str, RunningEngine]:
        with self._starting:
            return self._launch_all(names)

    def _launch_all(self, names: list[str]) -> dict[str, RunningEngine]:
        told = FleetProgress(names, StatusLine())
        pending: dict[str, Future[RunningEngine]] = {}
        try:
            for name in names:
                options = {"engine": self._engine, **self.variants[name]}
                kind = options.pop("engine")
                if attached_url(kind) and self._attached.setdefault(kind, name) != name:
                    self.reasons[name] = (
                        f"{kind} is attached ({attached_url(kind)}), and one engine can't be two: "
                        f"it is {self._attached[kind]!r} already"
                    )
                    told.hear(name)("not started, see below")
                    if not self._quiet:
                        print(f"{name}: not run here: {self.reasons[name]}")
                    continue
                progress = StartProgress(name, say=told.hear(name), stop=self._cancel)
                pending[name] = Future()
                run_in_thread(
                    partial(launch, kind, self.profile, progress=progress, **options), pending[name]
                )
            while wait(pending.values(), timeout=POLL_S).not_done:
                if not self._quiet:
                    told.show()
        except BaseException:  # an interrupted cell: nobody would ever stop these
            self._cancel.set()
            for future in pending.values():
                future.add_done_callback(_stop_started)
            wait(pending.values(), timeout=CANCEL_S)
            raise
        for name, future in pending.items():
            if future.exception() is not None:
                told.hear(name)("failed")
        if not self._quiet:
            told.end()
        return self._sort_out(pending)

    def _sort_out(self, finished: Mapping[str, Future[RunningEngine]]) -> dict[str, RunningEngine]:
        """Return those that run; note the reasons of the others."""
        running: dict[str, RunningEngine] = {}
        unexpected: BaseException | None = None
        for name, future in finished.items():
            error = future.exception()
            if error is None:
                running[name] = future.result()
            elif isinstance(error, StartCancelled):
                self.reasons[name] = error.reason
            elif isinstance(error, FAILURES):
                self._fail(name, error)
            else:
                unexpected = error
        if unexpected is not None or self._cancel.is_set():
            stop_together(list(running.values()))
            running = {}
        if unexpected is not None:
            raise unexpected
        return running


class StartingFleet:
    """A fleet that starts in the background; `result` waits for it."""

    def __init__(self, started: Future[Fleet]) -> None:
        self._started = started

    def result(self) -> Fleet:
        """Wait for the engines and return them, whether they run or not."""
        line, waited = StatusLine(), 0.0
        while wait([self._started], timeout=POLL_S).not_done:
            waited += POLL_S
            if waited >= 1.0:
                line.show(f"engines are starting in the background, {waited:.0f} s")
        return self._started.result()


def start_later(
    profile: Profile, variants: Mapping[str, Mapping[str, Any]], **options: Any
) -> StartingFleet:
    """Start a fleet in the background; takes the options of `Fleet`."""
    run = this_run()
    started: Future[Fleet] = Future()
    run_in_thread(partial(Fleet, profile, variants, run=run, quiet=True, **options), started)
    return StartingFleet(started)


def run_in_thread(work: Callable[[], T], future: Future[T]) -> None:
    """Do `work` for `future` in a thread that a program's end doesn't wait for."""

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()


def _stop_started(starting: Future[RunningEngine]) -> None:
    if starting.exception() is None:
        starting.result().stop()


def stop_together(engines: Collection[RunningEngine]) -> None:
    """Stop engines at the same time, because some take seconds to end."""
    if engines:
        with ThreadPoolExecutor(len(engines)) as pool:
            list(pool.map(lambda engine: engine.stop(), engines))
