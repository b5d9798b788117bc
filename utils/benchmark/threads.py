"""Runs a coroutine in a thread next to a notebook's own event loop, with a progress bar and Ctrl-C."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

from tqdm.auto import tqdm

from utils.benchmark.trace import RequestTrace

T = TypeVar("T")
_REFRESH_S = 0.25
_CANCEL_S = 5.0


class LoadProgress:
    """A progress bar that is fed from one thread and drawn in another.

    Drawing stays in the thread that waits: a notebook shows output there, and the measuring
    thread does not pay for it.
    """

    def __init__(self, total: int | None, label: str, *, show: bool) -> None:
        self._bar = tqdm(total=total, desc=label, unit="req", disable=not show, leave=True)
        self._done = 0
        self._failed = 0

    def add(self, trace: RequestTrace) -> None:
        """Count one finished request."""
        self._done += 1
        self._failed += not trace.ok

    def draw(self) -> None:
        """Show the counts."""
        if self._failed:
            self._bar.set_postfix(failed=self._failed, refresh=False)
        self._bar.update(self._done - self._bar.n)

    def close(self) -> None:
        """Draw a last time and end the bar."""
        self.draw()
        self._bar.close()


def run_in_thread(coroutine: Coroutine[Any, Any, T], progress: LoadProgress | None = None) -> T:
    """Run a coroutine to its end in a new thread and return its result.

    On `KeyboardInterrupt` in the waiting thread the coroutine is cancelled, the thread ends, and
    the interrupt goes on.

    Raises:
        Exception: Whatever the coroutine raises.
    """
    loop = asyncio.new_event_loop()
    task = loop.create_task(coroutine)
    outcome: list[T] = []
    failure: list[BaseException] = []

    def work() -> None:
        asyncio.set_event_loop(loop)
        try:
            outcome.append(loop.run_until_complete(task))
        except BaseException as error:
            failure.append(error)
        finally:
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    thread = threading.Thread(target=work, name="benchmark", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_REFRESH_S)
            if progress is not None:
                progress.draw()
    except BaseException:
        if not loop.is_closed():
            loop.call_soon_threadsafe(task.cancel)
        thread.join(_CANCEL_S)
        raise
    finally:
        if progress is not None:
            progress.close()
    if failure:
        raise failure[0]
    return outcome[0]
