"""Load patterns, the runner in a notebook's thread, interrupts and engines that die."""

from __future__ import annotations

import asyncio
import errno
import math
import os
import signal
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from benchmark_adversary import Adversary, Exchange, usage

from utils.benchmark import (
    Client,
    ClosedLoop,
    Conversation,
    EngineDied,
    LoadInterrupted,
    LoadWarning,
    OpenLoop,
    Request,
    StopRule,
    WorkloadError,
    arrival_times,
    fixed,
    load_all,
    run,
    run_async,
)
from utils.benchmark.load import LoadResult
from utils.benchmark.sweep import sweep
from utils.profiles import load_profile


async def quick(exchange: Exchange) -> None:
    await exchange.answer("a", "b", usage=usage(3, 2), gap=0.005)


def go(server: Adversary, count: int, load: ClosedLoop | OpenLoop, **options: object) -> LoadResult:
    requests = fixed(["hi"], count=count, max_tokens=2)
    options = {"progress": False} | options
    return run(Client(server.base_url, "m"), requests, load, **options)  # type: ignore[arg-type]


def go_with(server: Adversary, items: list, load: ClosedLoop | OpenLoop) -> LoadResult:
    return run(Client(server.base_url, "m"), items, load, progress=False)


@pytest.mark.parametrize("concurrency", [1, 3, 50])
def test_closed_loop_keeps_its_concurrency(concurrency: int) -> None:
    with Adversary(quick) as server:
        result = go(server, 12, ClosedLoop(concurrency))
        assert server.most_in_flight <= concurrency
        assert len(server.requests) == 12
    assert [trace.index for trace in result.traces] == list(range(12))
    assert all(trace.ok and trace.queued == 0 for trace in result.traces)
    assert result.summary().max_concurrent_requests <= concurrency
    assert result.clock == "sent"
    assert result.describe()["concurrency"] == concurrency


def test_warm_up_is_in_no_statistic() -> None:
    with Adversary(quick) as server:
        result = go(server, 4, ClosedLoop(2), warmup=fixed(["warm"], count=5))
        assert len(server.requests) == 9
    summary = result.summary()
    assert summary.completed == 4
    assert summary.total_output_tokens == 8
    assert result.warmup == 5
    assert min(t.sent for t in result.traces) >= result.started


def test_open_loop_sends_when_due() -> None:
    with Adversary(quick) as server:
        result = go(server, 20, OpenLoop(100, burstiness=math.inf))
    due = np.array([trace.scheduled for trace in result.traces]) - result.started
    assert due == pytest.approx(np.arange(1, 21) / 100)
    assert all(trace.queued >= -0.002 for trace in result.traces)
    assert result.clock == "scheduled"


def test_latency_counts_from_when_a_request_was_due() -> None:
    async def slow(exchange: Exchange) -> None:
        await exchange.answer("a", usage=usage(1, 1), gap=0.05)

    with Adversary(slow) as server:
        result = go(server, 10, OpenLoop(200, burstiness=math.inf, max_concurrency=1))
    due, sent = result.summary(), result.summary(clock="sent")
    # One at a time at 50 ms each: the last was due after 50 ms and ends after 500 ms.
    assert sent["mean_e2el_ms"] < 120
    assert due["p90_e2el_ms"] > 350
    assert due["mean_ttft_ms"] > 2 * sent["mean_ttft_ms"]
    assert due["mean_tpot_ms"] == pytest.approx(sent["mean_tpot_ms"], nan_ok=True)
    queued = [trace.queued for trace in result.traces]
    assert queued == sorted(queued)
    assert queued[-1] > 0.3


@pytest.mark.parametrize("burstiness", [0.5, 1.0, 4.0])
def test_gaps_have_the_gamma_distribution_of_vllm(burstiness: float) -> None:
    rate = 5.0
    gaps = np.diff(arrival_times(40_000, OpenLoop(rate, burstiness, seed=1)), prepend=0)
    assert gaps.mean() == pytest.approx(1 / rate, rel=0.03)
    # Coefficient of variation of a gamma distribution: 1 / sqrt(shape); Poisson: 1.
    assert gaps.std() / gaps.mean() == pytest.approx(burstiness**-0.5, rel=0.03)


def test_poisson_counts_have_the_variance_of_their_mean() -> None:
    times = arrival_times(50_000, OpenLoop(10, seed=2))
    counts = np.bincount(times.astype(int))[:-1]
    assert counts.var() / counts.mean() == pytest.approx(1, abs=0.07)


def test_arrivals_are_seeded() -> None:
    a, b, c = (arrival_times(9, OpenLoop(1, seed=seed)) for seed in (1, 1, 2))
    assert (a == b).all()
    assert (a != c).any()
    assert (np.diff(a) > 0).all()


def test_failed_requests_stay_in_the_count_and_out_of_latencies() -> None:
    async def half(exchange: Exchange) -> None:
        if exchange.number % 2:
            await exchange.json({"error": {"message": "no"}}, "500 Internal Server Error")
        else:
            await exchange.answer("a", usage=usage(1, 1), gap=0.03)

    with Adversary(half) as server:
        summary = go(server, 10, ClosedLoop(1)).summary()
    assert (summary.completed, summary.failed) == (5, 5)
    assert summary.e2el.count == 5
    assert summary["mean_e2el_ms"] > 25


def test_dead_engine_fails_rest_fast_and_keeps_results() -> None:
    server = Adversary(quick)

    async def dies(exchange: Exchange) -> None:
        if exchange.number == 7:
            server.die()
        await quick(exchange)

    server.script = dies
    with server:
        start = time.perf_counter()
        with pytest.raises(EngineDied, match="stopped answering: 7 of 500") as caught:
            go(server, 500, ClosedLoop(1))
        assert time.perf_counter() - start < 5
    result = caught.value.result
    assert len(result.traces) == 500
    assert result.summary().completed == 7
    assert result.summary().failed == 493
    assert "not sent" in str(result.traces[-1].error)
    assert "engine.tail()" in str(caught.value)


def test_dead_engine_in_open_loop_ends_schedule() -> None:
    server = Adversary(quick)

    async def dies(exchange: Exchange) -> None:
        server.die()

    server.script = dies
    with server:
        start = time.perf_counter()
        with pytest.raises(EngineDied) as caught:
            go(server, 1000, OpenLoop(20, burstiness=math.inf))
        assert time.perf_counter() - start < 5
    assert len(caught.value.result.traces) == 1000


def test_alive_is_asked_when_a_connection_fails() -> None:
    async def drops(exchange: Exchange) -> None:
        exchange.close()

    with Adversary(drops) as server, pytest.raises(EngineDied):
        go(server, 20, ClosedLoop(1), alive=lambda: False)
    with Adversary(drops) as server:
        result = go(server, 5, ClosedLoop(1), alive=lambda: True)
    assert result.summary().failed == 5


def test_nothing_answers() -> None:
    with Adversary(quick) as server:
        pass
    with pytest.raises(EngineDied, match=r"nothing answers at .*start the engine"):
        go(server, 3, ClosedLoop(1))


def test_runs_inside_a_running_event_loop_as_in_a_notebook() -> None:
    async def cell(server: Adversary) -> LoadResult:
        return go(server, 4, ClosedLoop(2))

    with Adversary(quick) as server:
        assert asyncio.run(cell(server)).summary().completed == 4


def test_run_async() -> None:
    with Adversary(quick) as server:
        client = Client(server.base_url, "m")
        result = asyncio.run(run_async(client, fixed(["x"], count=3), ClosedLoop(3)))
    assert result.summary().completed == 3


def gone(threads: set[threading.Thread]) -> bool:
    """Whether threads have ended; one that has returned is listed a moment longer."""
    for thread in threads:
        thread.join(5)
    return not any(thread.is_alive() for thread in threads)


def test_interrupt_keeps_what_was_measured() -> None:
    ended = threading.Event()

    async def twenty(exchange: Exchange) -> None:
        if exchange.number == 20:
            ended.set()
        if exchange.number >= 20:
            await asyncio.sleep(60)
        await quick(exchange)

    def interrupt() -> None:
        ended.wait(30)
        os.kill(os.getpid(), signal.SIGINT)

    with Adversary(twenty) as server:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt) as caught:
            go(server, 40, ClosedLoop(1))
        thread.join()
    result = caught.value.result  # type: ignore[attr-defined]
    assert isinstance(caught.value, LoadInterrupted)
    assert len(result.traces) == 20
    assert result.summary().completed == 20
    assert result.describe()["planned"] == 40
    assert result.describe()["stopped"] == "interrupted"


def test_interrupt_cancels_everything_and_returns_at_once() -> None:
    async def stuck(exchange: Exchange) -> None:
        await exchange.head()
        await asyncio.sleep(60)

    threads = set(threading.enumerate())
    with Adversary(stuck) as server:
        actual = set(threading.enumerate())
        timer = threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        start = time.perf_counter()
        with pytest.raises(KeyboardInterrupt) as caught:
            go(server, 50, ClosedLoop(10))
        assert not isinstance(caught.value, LoadInterrupted)  # nothing had ended
        assert time.perf_counter() - start < 30, "it waited for answers, which take 60 s"
        timer.join()
        deadline = time.perf_counter() + 2
        while server.in_flight and time.perf_counter() < deadline:
            time.sleep(0.02)
        assert gone(set(threading.enumerate()) - actual)
    assert gone(set(threading.enumerate()) - threads)


def test_progress_counts_failures(capsys: pytest.CaptureFixture[str]) -> None:
    async def fails(exchange: Exchange) -> None:
        await exchange.json({"error": "no"}, "500 X")

    with Adversary(fails) as server:
        go(server, 6, ClosedLoop(2), progress=True, label="my run")
    shown = capsys.readouterr().err
    assert "my run" in shown
    assert "6/6" in shown
    assert "failed=6" in shown


def test_client_lag_is_measured() -> None:
    async def blocked(server: Adversary) -> LoadResult:
        client = Client(server.base_url, "m")
        task = asyncio.create_task(run_async(client, fixed(["x"], count=40), ClosedLoop(1)))
        await asyncio.sleep(0.1)
        time.sleep(0.2)
        return await task

    with Adversary(quick) as server:
        assert go(server, 4, ClosedLoop(1)).client_lag < 0.15
        assert asyncio.run(blocked(server)).client_lag > 0.15


def test_bad_input() -> None:
    client = Client("http://127.0.0.1:9", "m")
    with pytest.raises(ValueError, match="no requests"):
        run(client, [], ClosedLoop(1))
    with pytest.raises(WorkloadError, match="completions"):
        run(client, [Request((1, 2))], ClosedLoop(1))
    for bad in (0, -1):
        with pytest.raises(ValueError, match="concurrency"):
            ClosedLoop(bad)
    for rate in (0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="request_rate"):
            OpenLoop(rate)
    with pytest.raises(ValueError, match="burstiness"):
        OpenLoop(1, burstiness=0)
    with pytest.raises(ValueError, match="max_concurrency"):
        OpenLoop(1, max_concurrency=0)


async def _dying_vllm(exchange: Exchange) -> None:
    message = "EngineCore encountered an issue. See stack trace (above) for the root cause."
    await exchange.json({"error": {"message": message}}, "500 Internal Server Error")


async def _error_500(exchange: Exchange) -> None:
    await exchange.json({"error": {"message": "no"}}, "500 Internal Server Error")


def test_an_engine_that_says_it_died_is_dead() -> None:
    with Adversary(_dying_vllm) as server:
        with pytest.raises(EngineDied, match=r"stopped answering: 0 of 30 .*EngineCore") as caught:
            go(server, 30, ClosedLoop(1))
        assert len(server.requests) == 1
    assert len(caught.value.result.traces) == 30


def test_alive_is_asked_after_an_http_error() -> None:
    with Adversary(_error_500) as server:
        with pytest.raises(EngineDied, match="stopped answering"):
            go(server, 30, ClosedLoop(1), alive=lambda: False)
        assert len(server.requests) == 1


def test_an_engine_that_ends_after_its_last_answer_is_noticed() -> None:
    start = time.perf_counter()
    with Adversary(_error_500) as server, pytest.raises(EngineDied) as caught:
        go(server, 3, ClosedLoop(3), alive=lambda: time.perf_counter() - start < 1)
    assert caught.value.result.summary().failed == 3


def test_a_frozen_engine_is_not_waited_for_again_and_again() -> None:
    async def frozen(exchange: Exchange) -> None:
        if exchange.number >= 2:
            await asyncio.sleep(60)
        await quick(exchange)

    async def silent(self: Client, patience_s: float = 5.0) -> bool:
        return await real(self, 0.3)

    real = Client.answers
    with Adversary(frozen) as server, pytest.MonkeyPatch.context() as patch:
        patch.setattr(Client, "answers", silent)
        client = Client(server.base_url, "m", timeout_s=0.3)
        start = time.perf_counter()
        with pytest.raises(EngineDied, match=r"does not answer \(frozen\?\): 2 of 50") as caught:
            run(client, fixed(["hi"], count=50), ClosedLoop(1), progress=False, alive=lambda: True)
    assert time.perf_counter() - start < 3
    assert len(caught.value.result.traces) == 50


def test_a_slow_engine_that_still_answers_is_not_frozen() -> None:
    async def slow(exchange: Exchange) -> None:
        if exchange.path == "/health":
            await exchange.json({})
        else:
            await asyncio.sleep(60)

    with Adversary(slow) as server:
        client = Client(server.base_url, "m", timeout_s=0.1)
        result = run(client, fixed(["hi"], count=4), ClosedLoop(1), progress=False)
    assert result.summary().failed == 4


def test_too_many_open_files_are_no_death(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    def cannot_look() -> bool:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> LoadResult:
        client = Client("http://127.0.0.1:9", "m")
        monkeypatch.setattr(asyncio.get_running_loop(), "create_connection", refused)
        requests = fixed(["hi"], count=6)
        return await run_async(client, requests, ClosedLoop(3), alive=cannot_look)

    result = asyncio.run(main())
    assert all("ulimit -n" in str(trace.error) for trace in result.traces)


def test_a_sweep_stops_at_a_level_where_nothing_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COURSE_RECORDS", str(tmp_path))
    spec = SimpleNamespace(title="broken", benchmark_api="completions")
    with Adversary(_error_500) as server:
        engine = SimpleNamespace(
            base_url=server.base_url, model="m", spec=spec, name="x", version="1",
            model_path="org/none", quantisation="BF16", command=["x"], start_seconds=1.0,
            memory_bytes=lambda: 1, running=lambda: True,
        )  # fmt: skip
        with (
            pytest.warns(LoadWarning),
            pytest.raises(RuntimeError, match=r"broken, 2 in flight: no request .*HTTP 500: no"),
        ):
            sweep(engine, load_profile("cpu"), levels=[2, 4], requests_at=[3, 3])  # type: ignore[arg-type]
    assert [record.load["concurrency"] for record in load_all(tmp_path)] == [2]


def test_client_that_the_caller_opened_stays_open() -> None:
    async def main(url: str) -> str | None:
        async with Client(url, "m") as client:
            await run_async(client, fixed(["a"], count=2), ClosedLoop(1))
            with pytest.raises(ValueError, match="run_async"):
                run(client, fixed(["a"]), ClosedLoop(1), progress=False)
            return (await client.send(Request(prompt="x"))).error

    with Adversary(quick) as server:
        assert asyncio.run(main(server.base_url)) is None


def test_failed_warm_up_is_told_with_its_first_error() -> None:
    async def cold(exchange: Exchange) -> None:
        if exchange.number < 4:
            await exchange.json({"error": {"message": "no such model"}}, "404 Not Found")
        else:
            await quick(exchange)

    with Adversary(cold) as server:
        message = r"4 of 4 warm-up requests failed.*HTTP 404: no such model"
        with pytest.warns(LoadWarning, match=message):
            result = go(server, 4, ClosedLoop(1), warmup=fixed(["warm"], count=4))
    assert result.describe()["warmup_failed"] == 4


@pytest.mark.parametrize("load", [ClosedLoop(4), OpenLoop(200)])
def test_run_stops_at_an_error_rate(load: ClosedLoop | OpenLoop) -> None:
    async def busy(exchange: Exchange) -> None:
        await exchange.json({"error": {"message": "slow down"}}, "429 Too Many Requests")

    with Adversary(busy) as server:
        with pytest.warns(LoadWarning, match=r"requests had failed .*slow down"):
            result = go(server, 500, load, stop=StopRule(max_error_rate=0.5))
        assert len(server.requests) < 200
    assert 10 <= len(result.traces) < 200
    assert result.planned == 500


@pytest.mark.parametrize("load", [ClosedLoop(2), OpenLoop(100)])
def test_run_by_duration_takes_requests_without_end(load: ClosedLoop | OpenLoop) -> None:
    def endless():
        while True:
            yield Request("hi", max_tokens=2)

    with Adversary(quick) as server:
        client = Client(server.base_url, "m")
        result = run(client, endless(), load, stop=StopRule(duration_s=0.4), progress=False)
        with pytest.raises(ValueError, match="duration_s"):
            run(client, endless(), load, progress=False)
    assert 0.3 < result.duration < 2
    assert len(result.traces) > 3
    assert [trace.index for trace in result.traces] == list(range(len(result.traces)))
    assert all(trace.ok for trace in result.traces)
    assert result.planned is None


def test_next_turn_holds_last_answer_after_think_time() -> None:
    system = ({"role": "system", "content": "be short"},)
    talk = Conversation(("one", "two", "three"), (0.05, 0.1), Request(messages=system))

    async def echo(exchange: Exchange) -> None:
        number = len(exchange.body["messages"])
        await exchange.answer(f"answer to {number}", usage=usage(number, 3))

    with Adversary(echo) as server:
        result = go_with(server, [talk, Request("alone")], ClosedLoop(1))
        contents = [[m["content"] for m in x.body["messages"]] for x in server.requests]
    assert contents[2] == ["be short", "one", "answer to 2", "two", "answer to 4", "three"]
    assert [m["role"] for m in server.requests[2].body["messages"]] == [
        "system", "user", "assistant", "user", "assistant", "user",
    ]  # fmt: skip
    assert contents[3] == ["alone"]
    first, second, third, _ = result.traces
    assert second.sent - first.finished >= 0.05
    assert third.sent - second.finished >= 0.1
    assert [trace.tag for trace in result.traces] == ["turn 1", "turn 2", "turn 3", ""]
    assert result.planned == 4
    assert result.workload["think_s"] == pytest.approx(0.075)


def test_turns_after_a_failed_one_stay_in_the_count() -> None:
    async def second_fails(exchange: Exchange) -> None:
        if len(exchange.body["messages"]) > 1:
            await exchange.json({"error": "no"}, "500 X")
        else:
            await quick(exchange)

    talk = Conversation(("one", "two", "three"), (0.0, 0.0), Request(messages=()))
    with Adversary(second_fails) as server:
        result = go_with(server, [talk, talk], OpenLoop(100))
        assert len(server.requests) == 4
    assert [trace.ok for trace in result.traces] == [True, False, False] * 2
    assert result.traces[2].error == "not sent: an earlier turn failed"
    with pytest.raises(WorkloadError, match="chat"):
        run(Client("http://127.0.0.1:9", "m", "completions"), [talk], ClosedLoop(1))
    with pytest.raises(WorkloadError, match="time to think"):
        Conversation(("one", "two"), (), Request(messages=()))
