"""Memory of engines on a GPU: those that don't fit are refused, the others get their sizes and their turn.

`utils.memory_plan` computes what an engine needs. Here it is compared with the memory that is free now.
"""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from utils import gpu as gpus
from utils.engines.engine_errors import EngineError
from utils.engines.spec import EngineSpec, ServeOptions
from utils.gpu import Gpu
from utils.memory_plan import (
    GB,
    Need,
    block_size_in,
    draft_in,
    need,
    refusal,
    share_of,
    tokens_in,
    within_share,
)

# Public reports speak of 60 s and more until Linux has the memory of a container that ended on a Spark.
RETURN_S = 120.0
POLL_S = 1.0
TURN_POLL_S = 0.1
_last_stop = -RETURN_S
_turn = threading.Lock()


class NotEnoughMemory(EngineError):
    """An engine needs more memory than the GPU has free."""


class Ledger:
    """Memory that engines have been promised while they start.

    An engine takes its memory over a minute or more. So engines that start at the same time are compared with
    the memory that was free when the first of them asked, less what the others need.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._room = 0.0
        self._starting = 0

    def take(self, wanted: float, room: float) -> float:
        """Promise `wanted` bytes if they are there.

        Args:
            wanted: Bytes to promise.
            room: Bytes that are free now, which count if no other engine is starting.

        Returns:
            Bytes that were free for it; if they are fewer than `wanted`, nothing was promised.
        """
        with self._lock:
            if not self._starting:
                self._room = room
            free = self._room
            if wanted <= free:
                self._room -= wanted
                self._starting += 1
            return free

    def settle(self, wanted: float, *, started: bool) -> None:
        """End a promise: the engine has its memory, or it failed and needs none."""
        with self._lock:
            self._starting -= 1
            if not started:
                self._room += wanted


LEDGER = Ledger()


def unified() -> bool:
    """Tell whether this machine's GPU shares the memory of its processor."""
    gpu = gpus.this_gpu()
    return gpu is not None and gpu.unified


def note_stop() -> None:
    """Note that an engine was stopped, because its memory may come back late."""
    global _last_stop
    _last_stop = time.monotonic()


@contextlib.contextmanager
def planned(
    spec: EngineSpec,
    options: ServeOptions,
    choices: Mapping[str, Any],
    say: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> Iterator[ServeOptions]:
    """Plan an engine's memory, and hold its promise and its turn while it starts.

    On a GPU, engines start one after the other, because SGLang counts the weights that another engine loads
    meanwhile against its own cache, and because the first one fetches the model for all.

    Args:
        spec: The engine.
        options: Options for its start.
        choices: Options that the caller of `launch` gave.
        say: Shows a line of progress.
        check: Raises if the start was cancelled.

    Yields:
        The options with the sizes that the plan gives.

    Raises:
        NotEnoughMemory: It needs more than is free; names the need, the free memory and the option to lower.
    """
    gpu = gpus.this_gpu() if options.device == "cuda" else None
    if gpu is None:
        yield options
        return
    wanted = need_of(spec, options, choices, gpu)
    total = 0.0 if wanted is None else wanted.total
    if wanted is not None:
        _promise(spec.title, wanted, say, check)
    started = False
    try:
        while not _turn.acquire(timeout=TURN_POLL_S):
            say("waits until the engine before it is up")
            check()
        try:
            if wanted is not None:
                options = sized(spec, options, choices, wanted, gpus.this_gpu() or gpu)
            yield options
            started = True
        finally:
            _turn.release()
    finally:
        if wanted is not None:
            LEDGER.settle(total, started=started)


def need_of(
    spec: EngineSpec, options: ServeOptions, choices: Mapping[str, Any], gpu: Gpu
) -> Need | None:
    """Compute an engine's need from its options, or None if the size of its model isn't known."""
    wanted = need(
        spec.name,
        options.model,
        dtype=options.dtype,
        context_length=options.context_length,
        max_sequences=options.max_sequences,
        kv_cache_gib=options.kv_cache_gib,
        kv_cache_dtype=options.kv_cache_dtype,
        kv_blocks=options.kv_blocks,
        block_size=block_size_in(options.extra_arguments),
        draft=draft_in(options.extra_arguments),
    )
    share = choices.get("gpu_memory_utilization")
    return wanted if wanted is None or share is None else within_share(wanted, share, gpu)


def sized(
    spec: EngineSpec,
    options: ServeOptions,
    choices: Mapping[str, Any],
    wanted: Need,
    gpu: Gpu,
) -> ServeOptions:
    """Return the options with the size of the KV cache and the share of memory that the plan gives."""
    share = choices.get("gpu_memory_utilization") or share_of(wanted, gpu)
    options = dataclasses.replace(
        options, gpu_memory_utilization=share, kv_cache_bytes=int(wanted.kv_cache)
    )
    if spec.name == "sglang" and options.kv_blocks is None:
        tokens = tokens_in(wanted.kv_cache, options.model, options.dtype, options.kv_cache_dtype)
        options = dataclasses.replace(options, kv_blocks=tokens)
    return options


def _promise(
    title: str, wanted: Need, say: Callable[[str], None], check: Callable[[], None]
) -> None:
    """Get a promise for the need. Where memory comes back late, wait for that of a stopped engine."""
    while True:
        gpu = gpus.this_gpu()
        if gpu is None:
            raise NotEnoughMemory(f"{title}: nvidia-smi no longer answers, so nothing is started.")
        room = LEDGER.take(wanted.total, gpu.room)
        if wanted.total <= room:
            return
        late = time.monotonic() - _last_stop < RETURN_S
        if not (gpu.unified and late and wanted.total <= gpu.whole_room):
            raise NotEnoughMemory(refusal(title, wanted, room, gpu))
        say(
            f"waits for memory that a stopped engine still holds: "
            f"{room / GB:.0f} of {wanted.total / GB:.0f} GB are free"
        )
        check()
        time.sleep(POLL_S)
