"""What lab 3.3.7 measures with: its tables on made-up runs, its proxy on a fake server, its prompts."""

import asyncio
import dataclasses
from types import SimpleNamespace

import httpx
import matplotlib.pyplot as plt
import pytest
from fake_openai import FakeServer

from utils.benchmark import RequestTrace
from utils.gateway.timing import on_message
from utils.labs.lab_3_3_7 import experiments, plots, tables
from utils.labs.lab_3_3_7.fault_injection import LYING, PASS, SLOW, FaultProxy
from utils.profiles import PROFILES


def trace(index, error=None, seconds=1.0):
    return RequestTrace(index, 0.0, 0.0, seconds, 0.5, (0.5,), completion_tokens=11, error=error)


FAULT_RUN = experiments.FaultRun(
    "killed",
    (
        *[trace(i, seconds=1.0 + i) for i in range(8)],
        trace(8, "ResponseError: error in mid-stream: it broke off"),
        trace(9, "ResponseError: HTTP 502: down"),
    ),
    {"connect": 2},
    {"a": 6, "b": 4},
    None,
)


def test_fault_table_counts_outcomes_and_retries():
    assert [FAULT_RUN.count(outcome) for outcome in experiments.OUTCOMES] == [8, 1, 1]
    assert FAULT_RUN.e2e_ms(0.5) == 5000
    assert FAULT_RUN.e2e_ms(0.99) == 8000
    row = tables.fault_table([FAULT_RUN]).loc["killed"]
    assert row["whole again (s)"] == "not within 10"
    assert row["requests by engine"] == "6 / 4"
    assert row["repeated, by reason"] == "connect: 2"
    assert 32 <= experiments.tokens_in(FAULT_RUN, 1.0) <= 1500


def test_plot_draws_every_request_by_its_outcome():
    faulty = dataclasses.replace(FAULT_RUN, fault_at=3.0)
    figure = plots.plot_fault_runs([FAULT_RUN, faulty])
    drawn = [[len(dots.get_offsets()) for dots in axes.collections] for axes in figure.axes]
    assert drawn == [[8, 1, 1]] * 2
    assert [len(axes.lines) for axes in figure.axes] == [0, 1], "the fault, where there was one"
    assert (
        "killed: 8 answered, 1 error event, 1 error answer, the longest 8.0 s" in figure.get_label()
    )
    plt.close(figure)
    with pytest.raises(ValueError, match="no run"):
        plots.plot_fault_runs([])


def test_balance_table_has_hit_rate_and_ttft_of_each_policy():
    turn = experiments.PolicyRun("round_robin", 0.5, 100.0, {"a": 5, "b": 5})
    affinity = experiments.PolicyRun("prefix_affinity", 0.75, 50.0, {"a": 6, "b": 4})
    table = tables.balance_table([turn, affinity])
    assert table.loc["round_robin", "hit rate"] == "50.0%"
    assert list(table["TTFT median (ms)"]) == [100.0, 50.0]
    assert table.loc["prefix_affinity", "requests by replica"] == "a: 6, b: 4"


def test_drain_table_shows_statuses_with_phases():
    seen = experiments.DrainRun([(0.1, 503, 200), (1.5, 0, 0), (2.5, 0, 0)], [2.0, None], 3.0)
    assert seen.running_at(1.0) == 2 and seen.running_at(2.5) == 1
    table = tables.drain_table(seen, lambda at, in_flight: f"{in_flight}")
    assert list(table["your phase"]) == ["2", "2", "1"]
    assert table["/health/ready"].tolist() == [503, "no connection", "no connection"]


def test_prompts_come_in_groups_that_two_replicas_in_turn_split():
    for name in ("cpu", "spark"):
        profile = PROFILES[name]
        prompts = experiments.grouped_prompts(profile, 1)
        sizes = profile.load.serving
        assert len(prompts) == sizes.groups * sizes.per_group and sizes.groups % 2
        keys = {(prompt.tag, experiments.affinity_key(prompt)) for prompt in prompts}
        assert len(keys) == sizes.groups, "the shared beginning is longer than the key"
        turn = [str(i % 2) for i in range(len(prompts))]
        assert experiments.first_visits(prompts, turn) < experiments.first_visits(
            prompts, ["0"] * len(prompts)
        )


def test_a_stream_is_cut_anywhere_and_stays_the_same():
    assert b"".join(experiments.recut(b"abc" * 100, 3)) == b"abc" * 100


def test_a_watched_answer_is_timed():
    timing = experiments.watched_answer(on_message, 0.05, 0.01)
    assert 0.04 < timing.ttft < 1.0 and timing.ended > timing.first_token and timing.status == 200


def test_the_proxy_hands_on_slows_down_and_lies():
    async def work():
        async with FakeServer() as fake:
            proxy = await asyncio.to_thread(FaultProxy, SimpleNamespace(base_url=fake.url), 0.2)
            body = {"model": "m", "prompt": "a"}
            loop = asyncio.get_running_loop()
            try:
                async with httpx.AsyncClient(base_url=proxy.base_url, trust_env=False) as http:
                    for mode, status in ((PASS, 200), (SLOW, 200), (LYING, 500)):
                        proxy.mode = mode
                        assert (await http.get("/health")).status_code == 200
                        began = loop.time()
                        answer = await http.post("/v1/completions", json=body)
                        assert answer.status_code == status
                        assert (loop.time() - began >= 0.2) or mode != SLOW
            finally:
                await asyncio.to_thread(proxy.stop)

    asyncio.run(asyncio.wait_for(work(), 20))


def test_replicas_take_turns_with_the_three_on_a_gpu_only(monkeypatch):
    made, cpu, gpu = [], PROFILES["cpu"], PROFILES["cuda"]

    class Recorded:
        def __init__(self, profile, variants, **options):
            made.append((list(variants), options))

        def stop(self):
            made.append("stopped")

    started = SimpleNamespace(result=lambda: "both")
    monkeypatch.setattr(experiments, "Fleet", Recorded)
    monkeypatch.setattr(experiments, "start_later", lambda profile, variants: started)
    three = Recorded(gpu, {"first": {}})

    made.clear()
    assert experiments.replicas_later(cpu) is started
    assert experiments.replicas_alone(cpu, three, started) == "both"
    assert experiments.three_again(cpu, three) is three
    assert made == []

    assert experiments.replicas_later(gpu) is None
    experiments.replicas_alone(gpu, three, None)
    assert made == ["stopped", (["left", "right"], {"together": True})]
    experiments.three_again(gpu, three)
    assert made[2:] == [(["first", "second", "third"], {"together": True})]


def test_patience_comes_from_the_machines_own_speed():
    def slow(factor):
        times = tuple(factor * at for at in (1.0, 1.1, 1.5))
        whole = trace(0, seconds=2 * factor)
        return dataclasses.replace(whole, first_token=times[0], chunk_times=times)

    assert experiments.patience([slow(1.0), slow(2.0)]) == {"first_byte_s": 10.0, "idle_s": 4.0}
    assert experiments.patience([slow(0.01)]) == experiments.LEAST_PATIENCE_S
    assert experiments.patience([trace(0, error="x")]) == experiments.LEAST_PATIENCE_S
