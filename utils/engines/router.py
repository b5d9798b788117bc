"""SGLang's router (the package ``sglang-router``) in front of several engines that serve one model.

It is a Rust program of its own and needs no GPU, so it runs as a local process in every profile.
Source: sglang-router 0.3.2, ``python -m sglang_router.launch_router --help``.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import httpx

from utils import loopback
from utils.engines.engine_errors import UnsupportedOption
from utils.engines.launch import RunningEngine
from utils.engines.process import ProcessHandle
from utils.engines.runtime import free_port, new_log, wait_until_serves

POLICIES = ("cache_aware", "round_robin", "power_of_two", "random")
START_TIMEOUT_S = 60.0
POLL_S = 0.2


def arguments(workers: Sequence[str], policy: str, port: int, metrics_port: int) -> list[str]:
    """Arguments of the router.

    A worker that three health checks in a row do not reach is taken out; until then, ten failed attempts
    open its circuit breaker (`--cb-failure-threshold`, default 10). A request that a worker does not accept
    is tried up to five times (`--retry-max-retries`), most often on the same worker, and then gets HTTP 500.
    """
    return [
        *("--host", "127.0.0.1"),
        *("--port", str(port)),
        *("--policy", policy),
        *("--prometheus-host", "127.0.0.1"),
        *("--prometheus-port", str(metrics_port)),
        *("--health-check-interval-secs", "1"),
        *("--health-failure-threshold", "3"),
        *("--shutdown-grace-period-secs", "1"),  # nobody is served any more when it is stopped
        *("--worker-urls", *workers),
    ]


@contextmanager
def route(workers: Sequence[RunningEngine], policy: str) -> Iterator[str]:
    """Start the router, yield its address when it serves, and stop it at the end.

    Args:
        workers: Engines that serve the same model.
        policy: One of `POLICIES`.

    Yields:
        `http://127.0.0.1:PORT`; the OpenAI-compatible API is under `/v1`.

    Raises:
        UnsupportedOption: No such policy.
        EngineStartError: It does not serve after a minute, or ended; holds the end of its log.
    """
    if policy not in POLICIES:
        raise UnsupportedOption(f"There is no policy {policy!r}: {', '.join(POLICIES)}.")
    port = free_port()
    options = arguments([worker.base_url for worker in workers], policy, port, free_port())
    command = [sys.executable, "-m", "sglang_router.launch_router", *options]
    router = ProcessHandle(command, {}, new_log("router"))
    url = f"http://127.0.0.1:{port}"
    try:
        _wait(router, url, len(workers))
        yield url
    finally:
        router.stop()


def _wait(router: ProcessHandle, url: str, workers: int) -> None:
    """Until the router has all its workers."""
    with loopback.client(timeout=5.0) as client:

        def serves() -> bool:
            with contextlib.suppress(httpx.HTTPError, ValueError, KeyError):
                return len(client.get(f"{url}/workers").json()["workers"]) == workers
            return False

        hint = "do all workers answer GET /health? The log names the one that does not."
        limits = {"timeout_s": START_TIMEOUT_S, "poll_s": POLL_S}
        wait_until_serves(router, "The router", serves, hint, **limits)
