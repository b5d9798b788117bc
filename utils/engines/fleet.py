"""Several engines for the same measurements, side by side where the machine can carry them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import closing, contextmanager, suppress
from types import TracebackType
from typing import Any, TypeVar

from utils.engines.engine_errors import EngineError
from utils.engines.launch import RunningEngine, launch
from utils.profiles import Profile

T = TypeVar("T")


class Fleet:
    """Engines by a name of your choice.

    Local processes start side by side, once, which saves minutes on a CPU; an idle one takes no core.
    Containers share one GPU's memory: unless they are wanted `together`, each is started when it is its
    turn, and stopped again.

    Args:
        profile: Where.
        variants: Options of `launch`, and `engine`, its name, where that is not `engine`.
        engine: The engine of variants that name none.
        together: Whether all have to run at the same time; on a GPU their options have to leave room.
        one_by_one: Whether local processes start one after the other, so that their times until they are
            ready can be compared.
        running: Engines that run already, by variant. Those that can't run next to others are stopped.

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
    ) -> None:
        self.profile = profile
        self.variants = variants
        self.reasons: dict[str, str] = {}
        self._engine = engine
        self._running: dict[str, RunningEngine] | None = None
        self._stopped = False
        here = {name: engine for name, engine in (running or {}).items() if engine.running()}
        if together or profile.runtime == "process":
            names = [name for name in variants if name not in here]
            groups = [[name] for name in names] if one_by_one else [names]
            self._running = dict(here)
            try:
                for group in filter(None, groups):
                    self._running |= self._start(group)
            except BaseException:
                self.stop()
                raise
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

        Args:
            work: Called with a variant's name, its engine, and the turn, from 0 on.
            turns: How often.
            only: Variants to work on; all if None.
            in_turn: Whether engines that can't run next to others take turns too. Each of them then starts
                once for every turn.

        Returns:
            What `work` returned, by variant; a variant that does not run is not among them.
        """
        results: dict[str, list[T]] = {}
        if in_turn and self._running is None:
            for turn in range(turns):
                with closing(self._batches(only)) as batches:
                    for running in batches:
                        for name, engine in running.items():
                            results.setdefault(name, []).append(work(name, engine, turn))
            return results
        with closing(self._batches(only)) as batches:
            for running in batches:
                for turn in range(turns):
                    for name, engine in running.items():
                        results.setdefault(name, []).append(work(name, engine, turn))
        return results

    @property
    def running(self) -> list[RunningEngine]:
        """Those that run now, in the order of the variants; none of them if each comes alone."""
        return [engine for engine in (self._running or {}).values() if engine.running()]

    @contextmanager
    def one(self, name: str) -> Iterator[RunningEngine]:
        """One of them, running.

        Raises:
            EngineError: It does not run; says why.
        """
        with closing(self._batches([name])) as batches:
            running = next(batches)
            if name not in running:
                raise EngineError(self.reasons[name])
            yield running[name]

    def stop(self) -> None:
        """Stops all, and cleans up after those that died. Twice does no harm."""
        self._stopped = True
        stop_together(list((self._running or {}).values()))

    def __del__(self) -> None:
        # A cell that makes another fleet of the same name lets go of this one.
        with suppress(Exception):
            self.stop()

    def has(self, name: str) -> bool:
        """Whether a variant runs, or will when it is its turn; prints why where it does not."""
        if name in self.reasons:
            print(f"{name}: {self.reasons[name]}")
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

    def _batches(
        self, only: Collection[str] | None
    ) -> Generator[dict[str, RunningEngine], None, None]:
        if self._stopped:
            raise EngineError("These engines were stopped: run the cell that starts them again.")
        wanted = [name for name in self.variants if only is None or name in only]
        if self._running is not None:
            yield {name: self._running[name] for name in wanted if name in self._running}
            return
        for name in wanted:
            running = self._start([name])
            try:
                yield running
            finally:
                stop_together(list(running.values()))

    def _start(self, names: list[str]) -> dict[str, RunningEngine]:
        pending: dict[str, Future[RunningEngine]] = {}
        with ThreadPoolExecutor(len(names)) as pool:
            for name in names:
                options = {"engine": self._engine, **self.variants[name]}
                kind = options.pop("engine")
                pending[name] = pool.submit(launch, kind, self.profile, quiet=True, **options)
            try:
                wait(pending.values())
            except BaseException:  # an interrupted cell: nobody would ever stop these
                for future in pending.values():
                    future.add_done_callback(_stop_started)
                raise
        running: dict[str, RunningEngine] = {}
        unexpected: BaseException | None = None
        for name, future in pending.items():
            error = future.exception()
            if error is None:
                running[name] = future.result()
            elif isinstance(error, EngineError):
                self.reasons[name] = str(error)
            else:
                unexpected = error
        if unexpected is not None:
            stop_together(list(running.values()))
            raise unexpected
        return running


def start_later(profile: Profile, variants: Mapping[str, Mapping[str, Any]]) -> Future[Fleet]:
    """Starts vLLM with several sets of options in the background: `.result()` waits for them."""
    pool = ThreadPoolExecutor(1)
    starting = pool.submit(Fleet, profile, variants)
    pool.shutdown(wait=False)
    return starting


def _stop_started(starting: Future[RunningEngine]) -> None:
    if not starting.cancelled() and starting.exception() is None:
        starting.result().stop()


def stop_together(engines: Collection[RunningEngine]) -> None:
    """Stops engines at the same time: some take seconds to end."""
    if engines:
        with ThreadPoolExecutor(len(engines)) as pool:
            list(pool.map(lambda engine: engine.stop(), engines))
