"""Loads against real limits of open files, each in a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest
from benchmark_adversary import Adversary, Exchange, usage

from utils.profiles import ROOT

SCRIPT = """
import resource, sys
url, soft, hard, loads = sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4:]
from utils.benchmark import Client, ClosedLoop, OpenLoop, fixed, run
resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
for load in loads:
    kind, count = load.split(":")
    pattern = ClosedLoop(int(count)) if kind == "closed" else OpenLoop(1e6)
    try:
        result = run(Client(url, "m"), fixed(["x"], count=int(count)), pattern, progress=False)
    except ValueError as error:
        print("refused:", error)
    else:
        errors = {trace.error for trace in result.traces if trace.error}
        print(result.summary().completed, result.summary().failed, *errors)
"""


def lines(server: Adversary, soft: int, hard: int, *loads: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, server.base_url, str(soft), str(hard), *loads],
        capture_output=True, text=True, timeout=60, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout.splitlines()


@pytest.fixture
def server():
    async def together(exchange: Exchange) -> None:
        await exchange.answer("a", usage=usage(1, 1), gap=0.3)  # so that all are in flight at once

    with Adversary(together) as running:
        yield running


def test_soft_limit_is_raised_to_the_hard_one(server):
    assert lines(server, 64, 1024, "closed:80") == ["80 0"]


def test_load_that_cannot_fit_is_refused_before_it_is_sent(server):
    refused, small = lines(server, 64, 64, "closed:80", "closed:2")
    assert refused.startswith("refused: 80 requests in flight need as many open files")
    assert "ulimit -Hn" in refused
    assert small == "2 0"
    assert len(server.requests) == 2


def test_open_file_limit_fails_requests_but_not_runs(server):
    burst, small = lines(server, 64, 64, "open:80", "closed:2")
    completed, failed = map(int, burst.split()[:2])
    assert completed + failed == 80
    assert completed > 30
    assert failed > 10
    assert "Too many open files" in burst
    assert small == "2 0"
