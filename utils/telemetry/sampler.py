"""Reads an engine's metrics again and again while something else runs."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from time import perf_counter
from types import TracebackType
from typing import Any

import pandas as pd

from utils import loopback
from utils.telemetry.snapshot import (
    Scrapable,
    ScrapeError,
    Snapshot,
    decoded,
    parse,
    read_bytes,
)


@dataclass(frozen=True)
class Gap:
    """A reading that failed: when (``perf_counter``, seconds) and why."""

    time: float
    reason: str


@dataclass(frozen=True)
class Series:
    """The readings of one run.

    Attributes:
        snapshots: In order of time.
        gaps: Readings that failed.
        started: ``perf_counter`` at the start, seconds.
        interval_s: Seconds between readings, as it was at the end (see :class:`Sampler`).
    """

    snapshots: tuple[Snapshot, ...]
    gaps: tuple[Gap, ...]
    started: float
    interval_s: float

    def __len__(self) -> int:
        return len(self.snapshots)

    def __iter__(self) -> Iterator[Snapshot]:
        return iter(self.snapshots)

    @property
    def note(self) -> str:
        """In words: how complete the series is, and whether the engine fell silent."""
        words = f"{len(self.snapshots)} readings, one every {self.interval_s:g} s"
        if self.restarts:
            words += f"; the engine began to count again {self.restarts} times (restarted?)"
        if not self.gaps:
            return words + "."
        last_good = self.snapshots[-1].time if self.snapshots else self.started
        first_silent = next((gap for gap in self.gaps if gap.time > last_good), None)
        if first_silent is None:
            return f"{words}; {len(self.gaps)} failed in between: {self.gaps[0].reason}"
        after = first_silent.time - self.started
        return (
            f"{words}; from {after:.1f} s on the engine did not answer any more: "
            f"{first_silent.reason} Look at the end of its log (engine.tail())."
        )

    def values(self, name: str) -> list[float]:
        """Return a field of every reading that has it, in order of time.

        Args:
            name: A key of :meth:`Snapshot.numbers`.

        Raises:
            KeyError: No such field.
        """
        found = [snapshot.numbers()[name] for snapshot in self.snapshots]
        return [value for value in found if value is not None]

    def peak(self, name: str) -> float | None:
        """Return the largest value of a field; None where the engine does not offer it."""
        return max(self.values(name), default=None)

    def increase(self, name: str) -> float | None:
        """Return how much a counter grew from the first to the last reading; None without readings.

        An engine may show a counter only once it has counted something (SGLang's cached tokens). If the
        first reading lacks it, it was 0. A counter that falls began again at 0, because the engine was
        restarted, as PromQL's `increase` has it.
        """
        values = self.values(name)
        if not values:
            return None
        before = [self.snapshots[0].numbers()[name] or 0.0, *values]
        return sum(_growth(earlier, later) for earlier, later in pairwise(before))

    @property
    def restarts(self) -> int:
        """Number of times that the engine began to count again."""
        counts = self.values("generated_tokens")
        return sum(later < earlier for earlier, later in pairwise(counts))

    def to_dict(self) -> dict[str, Any]:
        """Plain values for a record: the columns of :meth:`to_frame`, and the note."""
        frame = self.to_frame().dropna(axis="columns", how="all").reset_index()
        columns = {str(name): frame[name].tolist() for name in frame.columns}
        return {"note": self.note, "interval_s": self.interval_s, **columns}

    def to_frame(self) -> pd.DataFrame:
        """Return one row per reading, indexed by seconds since the start.

        Columns are the keys of :meth:`Snapshot.numbers`, NaN where the engine offers nothing, and
        ``generated_per_s``, tokens per second since the reading before.
        """
        index = pd.Index([s.time - self.started for s in self.snapshots], name="seconds")
        rows = [snapshot.numbers() for snapshot in self.snapshots]
        columns = list(Snapshot(time=0.0).numbers())
        frame = pd.DataFrame(rows, index=index, columns=columns).astype(float)
        frame = frame.drop(columns="time")
        grown = frame["generated_tokens"].diff()
        grown = grown.where(~(grown < 0), frame["generated_tokens"])
        frame["generated_per_s"] = grown / index.to_series().diff()
        return frame


class Sampler:
    """Samples an engine through a ``with`` block, in a thread of its own.

    Example:
        with Sampler(engine) as sampler:
            result = run(client, requests, ClosedLoop(32))
        sampler.series.to_frame()

    During the block it only fetches bytes; `series` parses them. Memory is bounded: when `max_samples` are
    held (of 53 kB each for vLLM), every second one is dropped and the interval doubles. If the engine dies in
    the middle, the load goes on; the gaps are kept and `Series.note` tells.

    Args:
        engine: Engine from `launch`.
        interval_s: Seconds between readings.
        max_samples: Readings held, at most.
        timeout_s: Seconds that one reading may take.

    Raises:
        ScrapeError: On entering, if the engine has no readable metrics at all.
    """

    def __init__(
        self,
        engine: Scrapable,
        interval_s: float = 0.25,
        max_samples: int = 1000,
        timeout_s: float = 5.0,
    ) -> None:
        if interval_s <= 0 or max_samples < 2:
            raise ValueError("A sampler needs a positive interval and room for two readings.")
        self.engine = engine
        self.interval_s = interval_s
        self.max_samples = max_samples
        self.started = perf_counter()
        self._texts: list[tuple[float, bytes]] = []
        self._parsed: dict[float, Snapshot] = {}
        self._gaps: list[Gap] = []
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._client = loopback.client(timeout=timeout_s)
        self._thread = threading.Thread(target=self._work, name="telemetry", daemon=True)

    def __enter__(self) -> Sampler:
        self.started = perf_counter()
        try:
            data = read_bytes(self.engine, self._client)
            self._texts.append((perf_counter(), data))
            self._parse(*self._texts[0])  # refuses an engine without readable metrics
        except BaseException:
            self._client.close()
            raise
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._thread.join()
        self._record()
        self._client.close()

    @property
    def series(self) -> Series:
        """Readings so far, parsed now; ask for them when the load is over."""
        with self._lock:
            texts, gaps = tuple(self._texts), list(self._gaps)
        snapshots = []
        for time, data in texts:
            try:
                snapshots.append(self._parse(time, data))
            except Exception as error:  # one odd reading must not cost the others
                gaps.append(Gap(time, _described(error)))
        gaps.sort(key=lambda gap: gap.time)
        return Series(tuple(snapshots), tuple(gaps), self.started, self.interval_s)

    def _work(self) -> None:
        while not self._stop.wait(self.interval_s):
            self._record()

    def _parse(self, time: float, data: bytes) -> Snapshot:
        if time not in self._parsed:
            self._parsed[time] = parse(decoded(data), self.engine.spec.metrics, time)
        return self._parsed[time]

    def _record(self) -> None:
        """Fetch the metrics and keep them as they are.

        Parsing takes milliseconds of the interpreter, which the client in this process needs to stamp tokens.
        """
        gap = None
        try:
            data = read_bytes(self.engine, self._client)
        except Exception as error:  # the thread outlives whatever one reading does
            gap = Gap(perf_counter(), _described(error))
        with self._lock:
            if gap is not None:
                self._gaps = self._thinned(self._gaps)
                self._gaps.append(gap)
                return
            if len(self._texts) >= self.max_samples:
                self._texts = self._texts[::2]
                self.interval_s *= 2
            self._texts.append((perf_counter(), data))

    def _thinned(self, gaps: Sequence[Gap]) -> list[Gap]:
        """Keep the first gap of a silence, which tells when it began, and the latest ones."""
        keep = self.max_samples - 1
        return list(gaps) if len(gaps) <= keep else [gaps[0], *gaps[-keep + 1 :]]


def _growth(earlier: float, later: float) -> float:
    return later - earlier if later >= earlier else later


def _described(error: Exception) -> str:
    return str(error) if isinstance(error, ScrapeError) else f"{type(error).__name__}: {error}."
