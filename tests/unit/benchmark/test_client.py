"""The client against a server that does everything wrong, over real sockets."""

from __future__ import annotations

import asyncio
import errno
import json
import math
import os
import time
from collections.abc import Callable

import pytest
from benchmark_adversary import Adversary, Exchange, Script, delta, finish, sse, usage

from utils.benchmark import Client, Request, RequestTrace, WorkloadError


def ask(script: Script, request: Request | None = None, **options: object) -> RequestTrace:
    return ask_many(script, 1, request, **options)[0]


def ask_many(
    script: Script, count: int, request: Request | None = None, **options: object
) -> list[RequestTrace]:
    async def main(url: str) -> list[RequestTrace]:
        async with Client(url, "m", **options) as client:  # type: ignore[arg-type]
            return [await client.send(request or Request("hi", max_tokens=8)) for _ in range(count)]

    with Adversary(script) as server:
        return asyncio.run(main(server.base_url))


def test_a_well_behaved_stream() -> None:
    trace = ask(lambda x: x.answer("Hello", " world", usage=usage(3, 2), gap=0.02))
    assert trace.ok
    assert trace.status == 200
    assert trace.streamed
    assert (trace.text, trace.finish_reason, trace.reasoning) == ("Hello world", "stop", "")
    assert (trace.prompt_tokens, trace.completion_tokens, trace.cached_tokens) == (3, 2, None)
    assert len(trace.chunk_times) == 2
    assert trace.sent < trace.chunk_times[0] < trace.chunk_times[1] <= trace.finished
    assert trace.ttft() == pytest.approx(0.04, abs=0.03)
    assert trace.itls[0] == pytest.approx(0.04, abs=0.03)
    assert trace.tpot == pytest.approx(trace.e2el() - trace.ttft())


@pytest.mark.parametrize("api", ["chat", "completions"])
def test_request_has_right_body_and_headers(api: str) -> None:
    seen: list[Exchange] = []

    async def script(exchange: Exchange) -> None:
        seen.append(exchange)
        await exchange.answer("x", usage=usage(1, 1))

    request = Request("hi", max_tokens=5, ignore_eos=True, seed=3, extra_body={"min_p": 0.1})
    ask(script, request, api=api)
    assert seen[0].path == ("/v1/chat/completions" if api == "chat" else "/v1/completions")
    body = seen[0].body
    assert body["model"] == "m"
    assert body["max_tokens"] == 5
    assert body["temperature"] == 0
    assert body["stream"] is True
    assert body["stream_options"] == {"include_usage": True}
    assert body["ignore_eos"] is True
    assert body["seed"] == 3
    assert body["min_p"] == 0.1
    if api == "chat":
        assert body["messages"] == [{"role": "user", "content": "hi"}]
        assert "prompt" not in body
    else:
        assert body["prompt"] == "hi"
        assert "messages" not in body


def test_completions_stream() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        for text, reason in (("a", None), ("b", "length")):
            await exchange.event({"choices": [{"index": 0, "text": text, "finish_reason": reason}]})
        await exchange.event({"choices": [], "usage": usage(1, 2)})
        await exchange.event("[DONE]")
        await exchange.end()

    trace = ask(script, api="completions")
    assert (trace.text, trace.finish_reason, trace.completion_tokens) == ("ab", "length", 2)


def test_not_streamed() -> None:
    async def script(exchange: Exchange) -> None:
        assert "stream" not in exchange.body
        message = {"role": "assistant", "content": "all", "reasoning_content": "why"}
        details = {"cached_tokens": 4}
        await exchange.json(
            {
                "choices": [{"index": 0, "message": message, "finish_reason": "stop"}],
                "usage": usage(9, 2, prompt_tokens_details=details),
            }
        )

    trace = ask(script, Request("hi", stream=False))
    assert trace.ok
    assert (trace.text, trace.reasoning) == ("all", "why")
    assert (trace.completion_tokens, trace.cached_tokens) == (2, 4)
    assert not trace.streamed
    assert trace.first_token is None
    assert trace.chunk_times == ()
    assert math.isnan(trace.ttft())
    assert math.isnan(trace.tpot)
    assert trace.e2el() > 0


def test_a_server_that_cannot_stream_is_not_given_a_first_token() -> None:
    async def script(exchange: Exchange) -> None:
        choice = {"message": {"content": "all"}, "finish_reason": "stop"}
        await exchange.json({"choices": [choice], "usage": usage(1, 1)})

    trace = ask(script)
    assert trace.ok
    assert trace.text == "all"
    assert not trace.streamed
    assert trace.first_token is None


def test_several_tokens_a_chunk() -> None:
    trace = ask(lambda x: x.answer("a b c d", " e f g h", usage=usage(1, 8), gap=0.02))
    assert trace.completion_tokens == 8
    assert len(trace.chunk_times) == 2
    assert trace.tpot == pytest.approx((trace.e2el() - trace.ttft()) / 7)


def test_several_events_in_one_read() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        events = [delta(content=letter) for letter in "abc"]
        await exchange.chunk(b"".join(sse(event) for event in [*events, finish()]))
        await exchange.chunk(sse({"choices": [], "usage": usage(1, 3)}) + sse("[DONE]"))
        await exchange.end()

    trace = ask(script)
    assert (trace.text, trace.completion_tokens, len(trace.chunk_times)) == ("abc", 3, 3)
    assert trace.itls == (0.0, 0.0)


def test_events_and_characters_cut_anywhere() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        stream = sse(json.dumps(delta(content="日本🙂"), ensure_ascii=False)) + sse(finish())
        stream += b": ping\r\n\r\n" + sse({"choices": [], "usage": usage(1, 3)}) + sse("[DONE]")
        for i in range(0, len(stream), 3):
            await exchange.chunk(stream[i : i + 3])
            if i % 30 == 0:
                await asyncio.sleep(0.001)
        await exchange.end()

    trace = ask(script)
    assert trace.ok
    assert trace.text == "日本🙂"
    assert trace.completion_tokens == 3


@pytest.mark.parametrize("name", ["reasoning", "reasoning_content"])
def test_the_first_reasoning_delta_is_the_first_token(name: str) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.event(delta(role="assistant", content=""))
        await exchange.event(delta(**{name: "because"}))
        await asyncio.sleep(0.05)
        await exchange.event(delta(content="42"))
        await exchange.event(finish())
        await exchange.event({"choices": [], "usage": usage(1, 2)})
        await exchange.event("[DONE]")
        await exchange.end()

    trace = ask(script)
    assert (trace.reasoning, trace.text, len(trace.chunk_times)) == ("because", "42", 2)
    assert trace.first_token == trace.chunk_times[0]
    assert trace.itls[0] > 0.03


def test_empty_deltas_are_not_tokens() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.event(delta(role="assistant", content=""))
        await exchange.event(delta())
        await asyncio.sleep(0.05)
        await exchange.event(delta(content="x"))
        await exchange.event(delta(content=""))
        await exchange.event(delta(content=None))
        await exchange.event(finish())
        await exchange.event({"choices": [], "usage": usage(1, 1)})
        await exchange.event("[DONE]")
        await exchange.end()

    trace = ask(script)
    assert len(trace.chunk_times) == 1
    assert trace.ttft() > 0.03


def test_tool_calls_are_tokens() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.event(delta(tool_calls=[{"function": {"arguments": "{"}}]))
        await exchange.event(finish("tool_calls"))
        await exchange.event("[DONE]")
        await exchange.end()

    trace = ask(script)
    assert trace.ok
    assert trace.first_token is not None
    assert trace.finish_reason == "tool_calls"


def test_llama_cpps_own_times_are_kept_in_seconds() -> None:
    text = {"prompt_n": 5, "prompt_ms": 20.0, "predicted_n": 9, "predicted_ms": 90.0, "cache_n": 2}

    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.event(delta(content="x"))
        await exchange.event({**finish(), "timings": text})
        await exchange.end()

    trace = ask(script)
    assert trace.ok
    assert trace.engine_timings == {
        "prefill_s": 0.02,
        "decode_s": 0.09,
        "prefill_tokens": 5,
        "decode_tokens": 9,
    }
    assert ask(lambda x: x.answer("x")).engine_timings is None


def test_missing_usage_is_said_and_nothing_is_guessed() -> None:
    trace = ask(lambda x: x.answer("a", "b", "c"))
    assert trace.ok
    assert trace.usage_missing
    assert trace.completion_tokens is None
    assert math.isnan(trace.tpot)
    assert trace.ttft() > 0


def test_cached_tokens() -> None:
    details = {"cached_tokens": 16}
    trace = ask(lambda x: x.answer("a", usage=usage(20, 1, prompt_tokens_details=details)))
    assert trace.cached_tokens == 16
    trace = ask(lambda x: x.answer("a", usage=usage(20, 1, prompt_tokens_details=None)))
    assert trace.ok
    assert trace.cached_tokens is None


@pytest.mark.parametrize(
    "event",
    [
        sse({"error": {"message": "out of blocks", "code": 500}}),
        b'event: error\ndata: {"message": "out of blocks"}\n\n',
        b'error: {"message": "out of blocks"}\n\n',
        sse({"error": "out of blocks"}),
    ],
)
def test_an_error_in_mid_stream_is_a_failure(event: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.event(delta(content="half"))
        await exchange.chunk(event)
        await exchange.event("[DONE]")
        await exchange.end()

    trace = ask(script)
    assert not trace.ok
    assert "out of blocks" in str(trace.error)
    assert trace.text == "half"
    assert trace.status == 200
    assert math.isnan(trace.ttft())
    assert math.isnan(trace.e2el())
    assert trace.itls == ()


async def _ends_early(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.event(delta(content="half"))
    await exchange.end()


async def _cut_chunk(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.event(delta(content="half"))
    await exchange.raw(b"fff\r\ndata: {")
    exchange.close()


async def _reset(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.event(delta(content="half"))
    await asyncio.sleep(0.02)
    exchange.reset()


async def _not_json(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.event("{half")
    await exchange.end()


async def _odd_shape(exchange: Exchange) -> None:
    await exchange.head()
    await exchange.event({"choices": ["text"]})
    await exchange.end()


async def _garbage(exchange: Exchange) -> None:
    await exchange.raw(b"\x00\x01 what\r\n\r\n")
    exchange.close()


async def _half_head(exchange: Exchange) -> None:
    await exchange.raw(b"HTTP/1.1 200 O")
    exchange.close()


async def _bare_error(exchange: Exchange) -> None:
    await exchange.json({"error": {"message": "no such model"}}, "404 Not Found")


async def _html_error(exchange: Exchange) -> None:
    body = b"<html>Bad Gateway"
    await exchange.raw(b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 17\r\n\r\n" + body)


async def _error_with_200(exchange: Exchange) -> None:
    await exchange.json({"error": {"message": "overloaded"}})


@pytest.mark.parametrize(
    ("script", "message", "status"),
    [
        (_ends_early, "without a finish_reason", 200),
        (_cut_chunk, "closed in the middle", 200),
        (_reset, "reset", 200),
        (_not_json, "not JSON", 200),
        (_odd_shape, "unexpected shape", 200),
        (_garbage, "not an HTTP/1.1 response", None),
        (_half_head, "closed in the middle", None),
        (_bare_error, "HTTP 404: no such model", 404),
        (_html_error, "HTTP 502: <html>Bad Gateway", 502),
        (_error_with_200, "overloaded", 200),
    ],
)
def test_failures_name_their_cause_and_are_not_resent(
    script: Callable[[Exchange], object], message: str, status: int | None
) -> None:
    seen: list[Exchange] = []

    async def counted(exchange: Exchange) -> None:
        seen.append(exchange)
        await script(exchange)  # type: ignore[misc]

    trace = ask(counted)
    assert not trace.ok
    assert message in str(trace.error).replace("Reset", "reset")
    assert trace.status == status
    assert trace.resends == 0
    assert len(seen) == 1
    assert trace.finished >= trace.sent
    assert math.isnan(trace.e2el())


def test_a_dropped_keep_alive_connection_is_resent_and_counted() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.number == 1:
            exchange.close()
        await exchange.answer("x", usage=usage(1, 1))

    traces = ask_many(script, 3)
    assert all(trace.ok for trace in traces)
    assert [trace.resends for trace in traces] == [0, 1, 0]


def test_connection_that_breaks_when_fresh_is_a_failure_and_not_resent() -> None:
    seen: dict[str, int] = {}

    async def flaky(exchange: Exchange) -> None:
        prompt = exchange.body["messages"][0]["content"]
        seen[prompt] = seen.get(prompt, 0) + 1
        if seen[prompt] < 3:
            exchange.reset()
        await exchange.answer("a", usage=usage(1, 1))

    async def main(url: str) -> list[RequestTrace]:
        async with Client(url, "m") as client:
            return [await client.send(Request(f"prompt {i}")) for i in range(20)]

    with Adversary(flaky) as server:
        traces = asyncio.run(main(server.base_url))
        assert len(server.requests) == 20
    assert not any(trace.ok or trace.resends for trace in traces)


def test_broken_keep_alive_leads_to_fresh_connections() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.on_connection:
            exchange.reset()
        await exchange.answer("x", usage=usage(1, 1))

    traces = ask_many(script, 6)
    assert all(trace.ok for trace in traces)
    assert [trace.resends for trace in traces] == [0, 1, 0, 0, 0, 0]


def test_a_connection_closed_while_idle_is_not_used() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer("x", usage=usage(1, 1))
        exchange.close()

    async def main(url: str) -> list[RequestTrace]:
        traces = []
        async with Client(url, "m") as client:
            for _ in range(3):
                traces.append(await client.send(Request("hi")))
                await asyncio.sleep(0.05)
        return traces

    with Adversary(script) as server:
        traces = asyncio.run(main(server.base_url))
        assert server.connections == 3
    assert all(trace.ok and trace.resends == 0 for trace in traces)


def test_no_answer_on_a_fresh_connection_is_a_failure() -> None:
    async def script(exchange: Exchange) -> None:
        exchange.close()

    trace = ask(script)
    assert not trace.ok
    assert trace.resends == 0
    assert trace.status is None
    assert "no response" in str(trace.error)


def test_resending_does_not_restart_the_clock() -> None:
    async def script(exchange: Exchange) -> None:
        if exchange.number == 1:
            await asyncio.sleep(0.1)
            exchange.close()
        await exchange.answer("x", usage=usage(1, 1))

    trace = ask_many(script, 2)[1]
    assert trace.ok
    assert trace.resends == 1
    assert trace.ttft() > 0.095


def test_a_kept_alive_connection_is_reused() -> None:
    with Adversary(lambda x: x.answer("x", usage=usage(1, 1))) as server:

        async def main() -> None:
            async with Client(server.base_url + "/v1/", "m") as client:
                for _ in range(5):
                    assert (await client.send(Request("hi"))).ok

        asyncio.run(main())
        assert server.connections == 1


def test_timeout() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        await exchange.event(delta(content="x"))
        await asyncio.sleep(5)

    start = time.perf_counter()
    trace = ask(script, timeout_s=0.2)
    assert not trace.ok
    assert trace.error == "timed out after 0.2 s"
    assert trace.text == "x"
    assert time.perf_counter() - start < 2


def test_nobody_listens() -> None:
    with Adversary(_reset) as server:
        url = server.base_url

    async def main() -> tuple[RequestTrace, bool]:
        async with Client(url, "m") as client:
            return await client.send(Request("hi")), await client.reachable(0.2)

    trace, reachable = asyncio.run(main())
    assert not trace.ok
    assert "cannot connect" in str(trace.error)
    assert trace.resends == 0
    assert not reachable


def test_a_slow_reader_loses_nothing() -> None:
    words = [f"word{i} " + "x" * 3000 for i in range(2000)]

    async def script(exchange: Exchange) -> None:
        await exchange.answer(*words, usage=usage(1, len(words)))

    async def main(url: str) -> tuple[RequestTrace, int]:
        async def block() -> int:
            blocks = 0
            while True:
                await asyncio.sleep(0.005)
                time.sleep(0.03)
                blocks += 1

        async with Client(url, "m") as client:
            busy = asyncio.create_task(block())
            trace = await client.send(Request("hi"))
            busy.cancel()
            return trace, len(trace.chunk_times)

    with Adversary(script) as server:
        trace, chunks = asyncio.run(main(server.base_url))
    assert trace.ok
    assert trace.text == "".join(words)
    assert chunks == trace.completion_tokens == len(words)


def test_a_reader_that_stops_does_not_fill_the_memory() -> None:
    sent = 0

    async def script(exchange: Exchange) -> None:
        nonlocal sent
        await exchange.head()
        for _ in range(2000):
            await exchange.event(delta(content="x" * 50_000))
            sent += 50_000
        await exchange.event("[DONE]")
        await exchange.end()

    async def main(url: str) -> tuple[int, int]:
        async with Client(url, "m") as client:
            stream = client.events(Request("hi"))
            await anext(stream)
            await asyncio.sleep(0.5)
            held = sent
            rest = 1 + len([event async for event in stream])
            return held, rest

    with Adversary(script) as server:
        held, events = asyncio.run(main(server.base_url))
    assert held < 50_000_000
    assert events == 2001


def test_raw_events() -> None:
    async def main(url: str) -> list[tuple[float, str]]:
        async with Client(url, "m") as client:
            return [pair async for pair in client.events(Request("hi"))]

    with Adversary(lambda x: x.answer("a", "b", usage=usage(1, 2), gap=0.01)) as server:
        events = asyncio.run(main(server.base_url))
    times = [at for at, _ in events]
    assert len(events) == 6
    assert events[-1][1] == "[DONE]"
    assert times == sorted(times)
    assert json.loads(events[1][1])["choices"][0]["delta"] == {"content": "a"}


def test_bytes_are_stamped_when_they_arrive_not_when_they_are_parsed() -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.answer(*"abcdefgh", usage=usage(1, 8), gap=0.02)

    async def main(url: str) -> list[RequestTrace]:
        async with Client(url, "m") as client:
            return await asyncio.gather(*(client.send(Request("hi")) for _ in range(20)))

    with Adversary(script) as server:
        traces = asyncio.run(main(server.base_url))
    for trace in traces:
        assert trace.ok
        assert trace.e2el() == pytest.approx(0.16, abs=0.12)


def test_bad_requests_are_refused_before_they_are_sent() -> None:
    async def main(request: Request, api: str) -> None:
        async with Client("http://127.0.0.1:9", "m", api) as client:  # type: ignore[arg-type]
            await client.send(request)

    with pytest.raises(WorkloadError, match="completions"):
        asyncio.run(main(Request((1, 2)), "chat"))
    with pytest.raises(WorkloadError, match="chat"):
        asyncio.run(main(Request(messages=({"role": "user", "content": "x"},)), "completions"))
    with pytest.raises(ValueError, match="unknown api"):
        Client("http://x", "m", "responses")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="http://"):
        Client("127.0.0.1:8000", "m")
    with pytest.raises(RuntimeError, match="async with"):
        asyncio.run(Client("http://127.0.0.1:9", "m").send(Request("x")))


def _stream(*events: bytes) -> Script:
    async def script(exchange: Exchange) -> None:
        await exchange.head()
        for event in events:
            await exchange.chunk(b"data: " + event + b"\n\n")
        await exchange.end()

    return script


def _choice(field: str, value: str) -> bytes:
    return f'{{"choices": [{{"delta": {{"{field}": {value}}}}}]}}'.encode()


def _usage(value: str) -> bytes:
    return f'{{"choices": [], "usage": {value}}}'.encode()


@pytest.mark.parametrize(
    "event",
    [
        *[_usage(value) for value in ('"12"', "[1]", "5", "0", '{"prompt_tokens": "3"}')],
        *[_usage(f'{{"completion_tokens": {n}}}') for n in ("-1", "1.5", "true", "[2]", "NaN")],
        _usage(f'{{"completion_tokens": {10**30}}}'),
        _usage('{"prompt_tokens_details": [1]}'),
        _usage('{"prompt_tokens_details": {"cached_tokens": "x"}}'),
        *[_choice("content", value) for value in ("5", '[{"text": "a"}]', '{"a": 1}')],
        _choice("reasoning_content", '["a"]'),
        b'{"choices": [{"delta": {}, "finish_reason": {"type": "stop"}}]}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"choices": [], "usage": {"completion_tokens": ' + b"9" * 5000 + b"}}",
    ],
    ids=lambda event: event[:60].decode(),
)
def test_an_odd_answer_is_a_failed_request_and_no_crash(event: bytes) -> None:
    last = b'{"choices": [{"delta": {}, "finish_reason": "stop"}]}'
    trace = ask(_stream(_choice("content", '"a"'), event, last))
    assert not trace.ok
    assert "ResponseError" in str(trace.error)
    assert trace.text == "a"
    assert trace.prompt_tokens is None
    assert trace.completion_tokens is None


@pytest.mark.parametrize("body", [b"[" * 100_000, b"9" * 5000, b'"\\ud83d"', b'{"error": [1]}'])
def test_odd_error_bodies(body: bytes) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.head("503 X", "application/json")
        await exchange.chunk(body)
        await exchange.end()

    trace = ask(script)
    assert not trace.ok
    assert str(trace.error).startswith("ResponseError: HTTP 503")
    assert str(trace.error).encode()


def test_unforeseen_error_is_a_failed_request(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("surprise")

    monkeypatch.setattr("utils.benchmark.response.ResponseCollector.event", broken)
    trace = ask(lambda x: x.answer("a", usage=usage(1, 1)))
    assert "ZeroDivisionError: surprise" in str(trace.error)


def test_half_a_surrogate_pair_becomes_a_replacement_character() -> None:
    halves = (_choice("content", '"a\\ud83d"'), _choice("content", '"\\ude00 \\ud83d"'))
    trace = ask(_stream(*halves, b'{"choices": [{"delta": {}, "finish_reason": "stop"}]}'))
    assert trace.ok
    assert trace.text == "a\U0001f600 \N{REPLACEMENT CHARACTER}"


def test_too_many_open_files_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    async def refused(*_: object, **__: object) -> None:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> tuple[RequestTrace, bool]:
        async with Client("http://127.0.0.1:9", "m") as client:
            loop = asyncio.get_running_loop()
            monkeypatch.setattr(loop, "create_connection", refused)
            return await client.send(Request("hi")), await client.reachable(0.1)

    trace, reachable = asyncio.run(main())
    assert "ulimit -n" in str(trace.error)
    assert "concurrency" in str(trace.error)
    assert reachable


@pytest.mark.parametrize("url", ["http://127.0.0.1:99999", "http://x:0", "http://", "http://a:b"])
def test_addresses_that_are_none(url: str) -> None:
    with pytest.raises(ValueError, match="base_url"):
        Client(url, "m")


def test_a_client_that_is_not_open_says_so() -> None:
    with pytest.raises(RuntimeError, match="not open"):
        asyncio.run(Client("http://127.0.0.1:9", "m").send(Request("hi")))
