"""A success needs a good finish reason, usage or none at all, and text or a tool call."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from benchmark_adversary import Adversary, Exchange, Script, delta, finish, usage

from utils.benchmark import Client, ClosedLoop, Request, RequestTrace, fixed, run, summarise
from utils.benchmark.response import COMPLETE


def stream(*events: Any) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        for event in events:
            await exchange.event(event)
        await exchange.end()

    return script


def counted(completion: int) -> dict[str, Any]:
    return {"choices": [], "usage": usage(3, completion)}


def ask(script: Script, **options: Any) -> RequestTrace:
    async def main(url: str) -> RequestTrace:
        async with Client(url, "m", timeout_s=10) as client:
            return await client.send(Request("hi", **options))

    with Adversary(script) as server:
        return asyncio.run(main(server.base_url))


TEXT = delta(content="a")


@pytest.mark.parametrize(
    ("events", "why"),
    [
        ((TEXT, finish("abort"), counted(1), "[DONE]"), "finish_reason 'abort'"),
        ((TEXT, finish("cancelled"), counted(1), "[DONE]"), "finish_reason 'cancelled'"),
        ((TEXT, finish("content_filter"), counted(1), "[DONE]"), "finish_reason 'content_filter'"),
        ((TEXT, finish("error"), counted(1), "[DONE]"), "finish_reason 'error'"),
        (("[DONE]",), r"\[DONE\] came without a finish_reason"),
        ((TEXT, counted(1), "[DONE]"), r"\[DONE\] came without a finish_reason"),
        ((TEXT, counted(1)), "the stream ended without a finish_reason"),
        ((delta(content=""), finish(), counted(4), "[DONE]"), "no text, although .* 4 tokens"),
        ((delta(), finish(), "[DONE]"), "neither text nor usage"),
    ],
)
def test_answer_without_evidence_is_a_failure_with_a_name(events: tuple, why: str) -> None:
    with Adversary(stream(*events)) as server:
        client = Client(server.base_url, "m")
        result = run(client, fixed(["x"], count=4), ClosedLoop(2), progress=False)
    summary = result.summary()
    assert (summary.completed, summary.failed) == (0, 4)
    for trace in result.traces:
        with pytest.raises(ValueError, match=why):
            raise ValueError(trace.error)


@pytest.mark.parametrize("reason", sorted(COMPLETE))
def test_good_finish_reasons_are_successes(reason: str) -> None:
    assert ask(stream(TEXT, finish(reason), counted(1), "[DONE]")).ok
    assert ask(stream(TEXT, finish(reason), "[DONE]")).usage_missing


@pytest.mark.parametrize(
    "part",
    [
        {"tool_calls": [{"function": {"arguments": "{"}}]},
        {"function_call": {"name": "f"}},
        {"reasoning": "because"},
    ],
)
def test_tool_call_or_reasoning_is_evidence_like_text(part: dict[str, Any]) -> None:
    assert ask(stream(delta(**part), finish("tool_calls"), counted(3), "[DONE]")).ok


def test_empty_answer_whose_usage_counts_nothing_is_a_success() -> None:
    trace = ask(stream(finish(), counted(0), "[DONE]"))
    assert trace.ok
    assert trace.first_token is None


@pytest.mark.parametrize(
    ("choice", "ok"),
    [
        ({"message": {"content": "all"}, "finish_reason": "stop"}, True),
        ({"message": {"content": "all"}, "finish_reason": "abort"}, False),
        ({"message": {"content": "all"}}, False),
        ({"message": {"content": ""}, "finish_reason": "stop"}, False),
    ],
)
def test_whole_answers_need_the_same_evidence(choice: dict[str, Any], ok: bool) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.json({"choices": [choice], "usage": usage(1, 2)})

    assert ask(script, stream=False).ok is ok


def test_each_metric_says_how_many_requests_it_rests_on() -> None:
    def trace(index: int, **values: Any) -> RequestTrace:
        times = {"scheduled": 0.0, "sent": 0.0, "finished": 1.0, "prompt_tokens": 3}
        return RequestTrace(index=index, **(times | values))

    texts = {"first_token": 0.5, "chunk_times": (0.5, 1.0), "completion_tokens": 2}
    traces = [trace(i, **texts) for i in range(4)] + [
        trace(4 + i, completion_tokens=0) for i in range(4)
    ]
    found = summarise(traces, 2.0).to_dict()
    assert found["completed"] == found["n_e2el"] == 8
    assert found["n_ttft"] == found["n_tpot"] == found["n_itl"] == 4


def test_page_in_place_of_a_stream_is_named() -> None:
    async def portal(exchange: Exchange) -> None:
        await exchange.head(kind="text/html; charset=utf-8")
        await exchange.chunk(b"<html>Please log in to the campus network</html>")
        await exchange.end()

    error = str(ask(portal).error)
    assert "text/html" in error
    assert "Please log in" in error


def test_answer_is_complete_at_done_although_the_connection_stays_open() -> None:
    async def open_ended(exchange: Exchange) -> None:
        await exchange.answer_without_end("a", usage=usage(1, 1))
        await asyncio.sleep(60)

    trace = ask(open_ended)
    assert trace.ok
    assert trace.e2el() < 5


def test_peak_is_never_below_the_average_of_a_short_run() -> None:
    times = tuple(0.1 + 0.01 * i for i in range(100))  # across a border of aligned seconds
    trace = RequestTrace(
        index=0, scheduled=0.0, sent=0.0, finished=times[-1], first_token=times[0],
        chunk_times=times, prompt_tokens=3, completion_tokens=100,
    )  # fmt: skip
    assert summarise([trace], 0.9).max_output_tokens_per_s == pytest.approx(100 / 0.9)
    apart = (0.0, 1.5)
    two = RequestTrace(
        index=0, scheduled=0.0, sent=0.0, finished=1.5, first_token=0.0, chunk_times=apart,
        prompt_tokens=3, completion_tokens=200,
    )  # fmt: skip
    assert summarise([two], 1.5).max_output_tokens_per_s == pytest.approx(200 / 1.5)
