"""The gateway in front of servers that behave, and that do not: what its clients see."""

import asyncio
import dataclasses
import json
import logging

import httpx
import openai
import pytest
import uvloop
from fake_openai import FakeServer
from gateway_case import MODEL, QUICK, case

from utils.http.sse import SSEParser

FAST = {"first_byte_s": 0.3, "idle_s": 0.3, "send_s": 0.3, "deadline_s": 10}


def run(coroutine):
    async def limited():
        async with asyncio.timeout(30):
            await coroutine

    uvloop.run(limited())  # as uvicorn does


def events(data):
    return [event.data for event in SSEParser().feed(data)]


def texts(data):
    found = [json.loads(event) for event in events(data) if event != "[DONE]"]
    return "".join(c["choices"][0]["delta"]["content"] for c in found if c.get("choices"))


def test_a_stream_is_relayed_byte_for_byte():
    async def work():
        async with case() as c:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "hej då"}]}
            body |= {"stream": True, "stream_options": {"include_usage": True}}
            async with httpx.AsyncClient(trust_env=False) as direct:
                expected = await direct.post(f"{c.fakes[0].url}/v1/chat/completions", json=body)
            answer = await c.http.post("/v1/chat/completions", json=body)
            assert answer.content == expected.content and b'"usage"' in answer.content
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert answer.headers["x-gateway-backend"] == "b0"

    run(work())


def test_usage_is_counted_but_not_shown_to_who_did_not_ask():
    async def work():
        async with case() as c:
            data = await c.stream()
            assert b"usage" not in data and texts(data) == " ".join(["there"] * 5)
            assert c.fakes[0].requests[-1]["stream_options"] == {"include_usage": True}
            labels = {"model": MODEL, "backend": "b0"}
            assert c.metric("gateway_tokens_total", kind="completion", **labels) == 5
            assert c.metric("gateway_tokens_total", kind="prompt", **labels) == 7
            whole = (await c.ask()).json()
            assert whole["usage"]["completion_tokens"] == 5
            assert c.metric("gateway_tokens_total", kind="completion", **labels) == 10

    run(work())


def test_events_in_odd_pieces_come_out_whole():
    async def work():
        async with case(FakeServer("halves")) as c:
            assert texts(await c.stream("grüße")) == " ".join(["grüße"] * 5)

    run(work())


@pytest.mark.parametrize("mode", ["http_500", "mute", "head_only"])
@pytest.mark.parametrize("stream", [True, False])
def test_before_the_first_byte_another_backend_answers(mode, stream):
    if mode == "head_only" and not stream:
        pytest.skip("only streams have a head of their own")

    async def work():
        # A stream has its first byte as a limit; for the other it is the health check that says it.
        health = {"timeout_s": 5} if stream else {**QUICK, "timeout_s": 0.3}
        async with case(FakeServer(mode), FakeServer(), timeouts=FAST, health=health) as c:
            for _ in range(2):
                answer = await c.ask(stream=stream)
                assert answer.status_code == 200 and b"there" in answer.content
            assert c.gateway.pools[MODEL].backends[0].outstanding == 0

    run(work())


def test_a_backend_that_is_gone_is_not_noticed():
    async def work():
        async with case(FakeServer(), FakeServer()) as c:
            await c.fakes[0].__aexit__()
            answers = [await c.ask(stream=True) for _ in range(8)]
            assert all(answer.status_code == 200 for answer in answers)
            await c.until(lambda: not c.gateway.pools[MODEL].backends[0].up)
            assert (await c.http.get("/health/ready")).json()["backends"]["b0"] is False

    run(work())


@pytest.mark.parametrize(
    "mode, code", [("cut", "upstream_error"), ("ends", "upstream_error"), ("freezes", None)]
)
def test_a_stream_that_breaks_ends_with_an_error_event(mode, code):
    async def work():
        async with case(FakeServer(mode), FakeServer(mode), timeouts=FAST) as c:
            found = events(await c.stream())
            error = json.loads(found[-1])["error"]
            assert error["type"] == "server_error" and error["code"] == (code or "upstream_error")
            assert "[DONE]" not in found
            assert len(c.fakes[0].requests) + len(c.fakes[1].requests) == 1, "never twice"

    run(work())


def test_engine_with_lying_health_is_avoided_and_comes_back():
    async def work():
        patient = {**QUICK, "circuit_open_s": 60}
        async with case(FakeServer("http_500"), FakeServer(), health=patient) as c:
            liar = c.gateway.pools[MODEL].backends[0]
            for _ in range(8):
                assert (await c.ask()).status_code == 200
            assert liar.up and liar.circuit.state == "open"
            assert len(c.fakes[0].requests) == 3
            assert c.metric("gateway_circuit_state", model=MODEL, backend="b0") == 2
            c.fakes[0].mode = "ok"
            a_minute_ago = liar.circuit.opened_at - 60
            liar.circuit = dataclasses.replace(liar.circuit, opened_at=a_minute_ago)
            await c.until(lambda: liar.circuit.state == "closed")
            for _ in range(4):
                await c.ask()
            assert len(c.fakes[0].requests) == 3 + 1 + 2, "three failures, a probe, and two of four"

    run(work())


def test_a_frozen_engine_is_taken_out_and_its_requests_go_elsewhere():
    async def work():
        limits, health = {**FAST, "first_byte_s": 20}, {**QUICK, "timeout_s": 0.3}
        async with case(FakeServer("mute"), FakeServer(), timeouts=limits, health=health) as c:
            answers = await asyncio.gather(*[c.ask() for _ in range(6)])
            assert all(answer.status_code == 200 for answer in answers)
            assert not c.gateway.pools[MODEL].backends[0].up
            c.fakes[0].mode = "ok"
            await c.until(lambda: c.gateway.pools[MODEL].backends[0].up)

    run(work())


def test_a_kept_connection_that_was_closed_is_nobodys_fault():
    async def work():
        async with case(FakeServer("hangs_up")) as c:
            for _ in range(6):
                assert (await c.ask()).status_code == 200
            backend = c.gateway.pools[MODEL].backends[0]
            assert backend.circuit.failures == 0
            labels = {"model": MODEL, "backend": "b0", "reason": "cut"}
            assert c.metric("gateway_retries_total", **labels) == 0

    run(work())


def test_a_wrong_request_is_the_clients_fault_and_goes_nowhere_else():
    async def work():
        async with case(FakeServer("http_400"), FakeServer("http_400")) as c:
            for _ in range(6):
                answer = await c.ask()
                assert answer.status_code == 400
                assert answer.json()["error"]["message"] == "as I was told"
            assert sum(len(fake.requests) for fake in c.fakes) == 6
            assert all(b.circuit.state == "closed" for b in c.gateway.pools[MODEL].backends)

    run(work())


@pytest.mark.parametrize("when", ["before", "during"])
def test_a_client_that_goes_away_stops_the_engine(when):
    async def work():
        fake = FakeServer(tokens=1000, gap_s=0.01, first_s=30.0 if when == "before" else 0)
        async with case(fake) as c:
            asking = asyncio.create_task(c.ask(stream=True))
            await c.until(lambda: fake.running == 1)
            await asyncio.sleep(0.1)
            asking.cancel()
            await c.until(lambda: fake.cancelled == 1 and not c.gateway.contexts)
            assert c.gateway.pools[MODEL].backends[0].outstanding == 0
            labels = {"route": "/v1/chat/completions", "model": MODEL, "backend": "b0"}
            await c.until(
                lambda: c.metric("gateway_requests_total", outcome="client_gone", **labels) == 1
            )

    run(work())


def test_a_client_that_does_not_read_is_dropped():
    async def work():
        fake = FakeServer(tokens=4000, filler="x" * 4000)
        async with case(fake, timeouts=FAST) as c:
            _, writer = await asyncio.open_connection(*c.url.removeprefix("http://").split(":"))
            body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "a"}]}
            data = json.dumps(body).encode()
            writer.write(
                b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n%s"
                % (len(data), data)
            )
            await c.until(lambda: fake.cancelled == 1, 5)
            await c.until(lambda: not c.gateway.contexts)
            assert fake.requests, "it was asked"
            writer.transport.abort()

    run(work())


def test_the_queue_has_an_end():
    async def work():
        fake = FakeServer()
        fake.open.clear()
        limits = {"size": 2, "wait_s": 20}
        async with case(fake, queue=limits, backend={"max_outstanding": 1}) as c:
            asking = [asyncio.create_task(c.ask()) for _ in range(6)]
            await c.until(lambda: sum(task.done() for task in asking) == 3)
            fake.open.set()
            answers = await asyncio.gather(*asking)
            codes = sorted(answer.status_code for answer in answers)
            assert codes == [200, 200, 200, 429, 429, 429]
            refused = next(answer for answer in answers if answer.status_code == 429)
            assert refused.json()["error"]["code"] == "queue_full"
            assert int(refused.headers["retry-after"]) >= 1
            assert c.metric("gateway_queued", model=MODEL) == 0

    run(work())


def test_long_wait_is_answered_with_error():
    async def work():
        limits = {"size": 8, "wait_s": 0.1}
        fake = FakeServer()
        fake.open.clear()
        async with case(fake, queue=limits, backend={"max_outstanding": 1}) as c:
            asking = [asyncio.create_task(c.ask()) for _ in range(3)]
            await c.until(lambda: sum(task.done() for task in asking) == 2)
            fake.open.set()
            answers = await asyncio.gather(*asking)
            assert sorted(answer.status_code for answer in answers) == [200, 429, 429]

    run(work())


def test_a_deadline_ends_a_stream_and_a_silence():
    async def work():
        fake = FakeServer(tokens=1000, gap_s=0.02)
        async with case(fake, timeouts={"deadline_s": 0.3}) as c:
            error = json.loads(events(await c.stream(max_tokens=1))[-1])["error"]
            assert error["code"] == "deadline"
            fake.first_s = 30
            assert (await c.ask(max_tokens=1)).status_code == 504

    run(work())


def test_drain_says_not_ready_lets_finish_and_refuses():
    async def work():
        fake = FakeServer(tokens=200, gap_s=0.1)
        async with case(fake, drain={"notice_s": 1.5, "limit_s": 20}) as c:
            stream = asyncio.create_task(c.stream())
            await c.until(lambda: fake.running == 1)
            c.server.handle_exit(15, None)
            assert (await c.http.get("/health/ready")).status_code == 503
            assert (await c.http.get("/health/live")).status_code == 200
            assert (await c.ask()).status_code == 200, "still served"
            await c.until(lambda: not c.server.servers[0].is_serving(), 10)
            with pytest.raises(httpx.ConnectError):
                async with httpx.AsyncClient(trust_env=False) as late:
                    await late.get(f"{c.url}/health/live")
            assert not stream.done()
            fake.gap_s = 0
            assert events(await stream)[-1] == "[DONE]", "nobody was cut off"

    run(work())


def test_drain_has_a_limit_and_says_so():
    async def work():
        fake = FakeServer(tokens=1000, gap_s=0.02)
        async with case(fake, drain={"notice_s": 0, "limit_s": 0.3}) as c:
            stream = asyncio.create_task(c.stream())
            await c.until(lambda: fake.running == 1)
            c.server.handle_exit(15, None)
            assert json.loads(events(await stream)[-1])["error"]["code"] == "draining"

    run(work())


def test_a_request_id_reaches_the_engine_and_the_log_but_no_prompt_does(caplog):
    async def work():
        async with case() as c:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "SECRET"}]}
            headers = {"x-request-id": "my-id-1", "traceparent": "00-1-2-01"}
            answer = await c.http.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.headers["x-request-id"] == "my-id-1"
            assert c.fakes[0].headers[-1]["x-request-id"] == "my-id-1"
            assert c.fakes[0].headers[-1]["traceparent"] == "00-1-2-01"
            strange = await c.http.post(
                "/v1/chat/completions", json=body, headers={"x-request-id": "a b\tc"}
            )
            assert len(strange.headers["x-request-id"]) == 32

    with caplog.at_level(logging.INFO, logger="gateway"):
        run(work())
    fields = [record.fields for record in caplog.records if record.message == "request"]
    assert fields[0]["id"] == "my-id-1" and fields[0]["completion_tokens"] == 5
    assert "SECRET" not in str([record.__dict__ for record in caplog.records])


def test_openais_client_is_at_home():
    async def work():
        keys = [{"name": "k", "sha256": _sha("gw-right")}]
        async with case(FakeServer(), keys=keys) as c:
            http = httpx.AsyncClient(trust_env=False)
            client = openai.AsyncOpenAI(
                base_url=f"{c.url}/v1", api_key="gw-right", http_client=http
            )
            ask = client.chat.completions.create
            messages = [{"role": "user", "content": "one two"}]
            assert [m.id async for m in client.models.list()] == [MODEL]
            assert (await client.models.retrieve(MODEL)).id == MODEL
            tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
            whole = await ask(model=MODEL, messages=messages, tools=tools)
            assert whole.choices[0].message.tool_calls[0].function.name == "f"
            assert c.fakes[0].requests[-1]["tools"] == tools
            options = {"include_usage": True}
            parts = [
                p
                async for p in await ask(
                    model=MODEL, messages=messages, stream=True, stream_options=options
                )
            ]
            assert parts[-1].usage.completion_tokens == 5
            text = await client.completions.create(model=MODEL, prompt="a b", max_tokens=3)
            assert text.choices[0].text == "b b b b b"
            with pytest.raises(openai.NotFoundError) as missing:
                await ask(model="other", messages=messages)
            assert missing.value.code == "model_not_found"
            with pytest.raises(openai.BadRequestError) as wrong:
                await ask(model=MODEL, messages=messages, temperature=9)
            assert wrong.value.param == "temperature"
            with pytest.raises(openai.AuthenticationError):
                await client.with_options(api_key="gw-wrong").models.list()
            c.fakes[0].mode = "cut"
            with pytest.raises(openai.APIError, match="broke off"):
                async for _ in await ask(model=MODEL, messages=messages, stream=True):
                    pass
            c.fakes[0].mode, c.fakes[0].first_s = "ok", 5
            with pytest.raises(openai.APITimeoutError):
                await client.with_options(timeout=0.2, max_retries=0).chat.completions.create(
                    model=MODEL, messages=messages
                )

    run(work())


def test_openais_client_tries_again_when_told_to():
    async def work():
        limits = {"size": 0, "wait_s": 1}
        fake = FakeServer(first_s=0.4)
        async with case(fake, queue=limits, backend={"max_outstanding": 1}) as c:
            http = httpx.AsyncClient(trust_env=False)
            client = openai.AsyncOpenAI(
                base_url=f"{c.url}/v1", api_key="x", http_client=http, max_retries=3
            )
            messages = [{"role": "user", "content": "one"}]
            ask = client.chat.completions.create(model=MODEL, messages=messages)
            first = asyncio.create_task(ask)
            await c.until(lambda: bool(fake.requests))
            answer = await client.chat.completions.create(model=MODEL, messages=messages)
            assert answer.choices[0].message.content and (await first).choices

    run(work())


def test_the_engine_can_be_chosen():
    async def work():
        async with case(FakeServer()) as c:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}
            for engine, status in (("llama_cpp", 200), ("vllm", 400)):
                answer = await c.http.post(
                    "/v1/chat/completions", json=body, headers={"x-gateway-engine": engine}
                )
                assert answer.status_code == status
            entry = (await c.http.get("/v1/models")).json()["data"][0]
            assert entry["engines"] == [{"name": "llama_cpp", "up": True}]

    run(work())


def _sha(key):
    from utils.gateway.auth import digest

    return digest(key)
