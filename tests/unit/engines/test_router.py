"""SGLang's router in front of nobody: what it is started with, and that it is gone when it fails."""

from types import SimpleNamespace

import psutil
import pytest

from utils.engines import EngineStartError, UnsupportedOption, router
from utils.engines.runtime import free_port


def test_router_listens_on_loopback_and_knows_workers():
    command = router.arguments(["http://a:1", "http://b:2"], "cache_aware", 5, 6)
    assert command[-3:] == ["--worker-urls", "http://a:1", "http://b:2"]
    pairs = dict(zip(command[:-3:2], command[1:-3:2], strict=True))
    assert pairs["--host"] == pairs["--prometheus-host"] == "127.0.0.1"
    assert (pairs["--port"], pairs["--prometheus-port"], pairs["--policy"]) == (
        "5",
        "6",
        "cache_aware",
    )


def test_an_unknown_policy_is_refused():
    with (
        pytest.raises(UnsupportedOption, match="no policy 'fair': cache_aware, round_robin"),
        router.route([], "fair"),
    ):
        pass


def test_without_a_worker_it_says_so_and_nothing_is_left(monkeypatch):
    monkeypatch.setattr(router, "START_TIMEOUT_S", 4.0)
    nobody = SimpleNamespace(base_url=f"http://127.0.0.1:{free_port()}")
    with (
        pytest.raises(EngineStartError, match="do all workers answer GET /health"),
        router.route([nobody], "round_robin"),
    ):
        pass
    left = [
        p for p in psutil.process_iter(["cmdline"]) if nobody.base_url in (p.info["cmdline"] or [])
    ]
    assert left == []
