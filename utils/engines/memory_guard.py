"""Kills the course's engines before a machine with unified memory freezes.

No OOM kill helps such a machine. If the GPU's allocations exhaust its memory, it freezes until it is
switched off and on (NVIDIA/open-gpu-kernel-modules#1358). Plans keep a reserve (`utils.host_memory`). This
guard is for memory that no plan knows of, for example that of another user's notebook.
"""

from __future__ import annotations

import sys
import threading
import weakref
from collections.abc import Callable
from typing import Protocol

from utils.host_memory import DANGER_BYTES, host_memory

POLL_S = 0.5
GB = 1e9


class Engine(Protocol):
    """An engine that can be killed."""

    def running(self) -> bool:
        """Return whether it still runs."""

    def kill(self) -> None:
        """Kill it at once."""


def _available() -> float:
    return host_memory().available


class MemoryGuard:
    """Watcher of the available memory while engines run.

    Args:
        available: Returns the memory that Linux has available, in bytes.
        warn: Shows a text to the user.
        poll_s: Time between two looks, seconds.
    """

    def __init__(
        self,
        available: Callable[[], float] = _available,
        warn: Callable[[str], None] = lambda text: print(text, file=sys.stderr, flush=True),
        poll_s: float = POLL_S,
    ) -> None:
        self._available = available
        self._warn = warn
        self._poll_s = poll_s
        self._engines: weakref.WeakSet[Engine] = weakref.WeakSet()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None

    def watch(self, engine: Engine) -> None:
        """Watch the memory until this engine, and all others that are watched, have ended."""
        with self._lock:
            self._engines.add(engine)
            if self._thread is None or not self._thread.is_alive():
                self._thread = threading.Thread(target=self._run, daemon=True)
                self._thread.start()

    def look(self) -> bool:
        """Kill all engines if too little memory is available.

        Returns:
            True if engines had to be killed.
        """
        engines = [engine for engine in list(self._engines) if engine.running()]
        available = self._available()
        if not engines or not 0 < available < DANGER_BYTES:  # 0 if the system doesn't tell
            return False
        # The engines come first, each with a thread of its own, because docker may answer late by now.
        killers = [threading.Thread(target=engine.kill, daemon=True) for engine in engines]
        for killer in killers:
            killer.start()
        self._warn(
            f"STOPPED {', '.join(map(str, engines))}: only {available / GB:.1f} GB of memory were available, "
            f"and below {DANGER_BYTES / GB:.0f} GB this machine may freeze. Close other notebooks and "
            "programs, then run the cell again that starts the engines."
        )
        for killer in killers:
            killer.join()
        return True

    def _run(self) -> None:
        wait = threading.Event()
        while True:
            with self._lock:
                if not any(engine.running() for engine in list(self._engines)):
                    self._thread = None
                    return
            self.look()
            wait.wait(self._poll_s)


GUARD = MemoryGuard()
