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


DAY = experiments.Day(
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


def test_a_day_is_counted_and_told():
    assert [DAY.count(fate) for fate in experiments.FATES] == [8, 1, 1]
    assert DAY.e2e_ms(0.5) == 5000 and DAY.e2e_ms(0.99) == 8000
    assert tables.explain_day(DAY) == (
        "killed: 8 of 10 requests had a whole answer, 2 an error that says so; 2 attempts were "
        "repeated unseen."
    )
    row = tables.fault_table([DAY]).loc["killed"]
    assert row["whole again (s)"] == "not within 10" and row["requests by engine"] == "6 / 4"
    assert row["repeated, by reason"] == "connect: 2"
    assert 32 <= experiments.tokens_in(DAY, 1.0) <= 1500


def test_a_day_is_drawn_with_every_request_and_its_fate():
    faulty = dataclasses.replace(DAY, fault_at=3.0)
    figure = plots.plot_days([DAY, faulty])
    drawn = [[len(dots.get_offsets()) for dots in axes.collections] for axes in figure.axes]
    assert drawn == [[8, 1, 1]] * 2
    assert [len(axes.lines) for axes in figure.axes] == [0, 1], "the fault, where there was one"
    assert (
        "killed: 8 answered, 1 error event, 1 error answer, the longest 8.0 s" in figure.get_label()
    )
    plt.close(figure)
    with pytest.raises(ValueError, match="no day"):
        plots.plot_days([])


def test_balance_says_when_nothing_was_gained():
    turn = experiments.Balanced("round_robin", 0.5, 100.0, {"a": 5, "b": 5})
    same = experiments.Balanced("prefix_affinity", 0.75, 99.0, {"a": 6, "b": 4})
    better = experiments.Balanced("prefix_affinity", 0.75, 50.0, {"a": 6, "b": 4})
    assert "little or nothing" in tables.explain_balance(turn, same)
    assert "2.00 times" in tables.explain_balance(turn, better)
    assert tables.balance_table([turn, same]).loc["round_robin", "hit rate"] == "50.0%"


def test_draining_is_shown_beside_the_phases():
    seen = experiments.Drained([(0.1, 503, 200), (1.5, 0, 0), (2.5, 0, 0)], [2.0, None], 3.0)
    assert seen.running_at(1.0) == 2 and seen.running_at(2.5) == 1
    table = tables.drain_table(seen, lambda at, flying: f"{flying}")
    assert list(table["your phase"]) == ["2", "2", "1"]
    assert table["/health/ready"].tolist() == [503, "no connection", "no connection"]
    assert "1 of 2 running streams ended whole" in tables.explain_drain(seen)


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
    assert 0.04 < timing.ttft < 1.0 and timing.ended > timing.first_byte and timing.status == 200


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
