"""Whose fault a failure is, who gets the next place, and how a backend comes back."""

import asyncio
import dataclasses
import json
import socket

import httpx
import pytest
from fake_openai import FakeServer
from gateway_case import MODEL, QUICK, case
from opentelemetry import trace
from test_gateway_relay import FAST, events, run

from utils.gateway import circuit
from utils.http.transport import AsyncioTransport

ROUTE = "/v1/chat/completions"


def outcomes(c, outcome, model=MODEL, backend="b0"):
    labels = {"route": ROUTE, "model": model, "backend": backend, "outcome": outcome}
    return c.metric("gateway_requests_total", **labels)


def open_circuit(backend):
    """Open, and for so long that a probe may go."""
    backend.circuit = dataclasses.replace(backend.circuit, state=circuit.OPEN, opened_at=-1e9)


def test_an_answer_in_one_piece_may_take_longer_than_a_first_byte():
    async def work():
        fake = FakeServer(first_s=0.6)
        async with case(fake, timeouts=FAST) as c:
            assert (await c.ask()).status_code == 200 and len(fake.requests) == 1
            assert (await c.ask(stream=True)).status_code == 504, "a stream may not"

    run(work())


def test_open_circuit_gets_probe_of_gateway_and_no_request():
    async def work():
        async with case(FakeServer(), FakeServer()) as c:
            broken, _ = c.gateway.pools[MODEL].backends
            c.fakes[0].open.clear()
            open_circuit(broken)
            for _ in range(4):
                assert (await c.ask()).status_code == 200
            await c.until(lambda: c.fakes[0].requests)
            probe = c.fakes[0].requests[0]
            assert len(c.fakes[0].requests) == 1
            assert (probe["max_tokens"], probe["model"]) == (1, MODEL)
            assert len(c.fakes[1].requests) == 4
            c.fakes[0].open.set()
            await c.until(lambda: broken.circuit.state == "closed")

    run(work())


def test_result_of_request_from_before_opening_changes_nothing():
    async def work():
        async with case(FakeServer(), FakeServer()) as c:
            backend = c.gateway.pools[MODEL].backends[0]
            old = backend.sent()
            for _ in range(3):
                backend.result(backend.sent(), "failure")
            assert backend.circuit.state == "open"
            for event in ("success", "failure", "cancelled"):
                backend.result(old, event)
                assert backend.circuit.state == "open"
            backend.result(backend.sent(), "success")
            assert backend.circuit.state == "closed", "sent there because no other was left"

    run(work())


@pytest.mark.parametrize("other, status", [("http_500", 502), ("http_400", 400)])
def test_a_request_that_every_engine_refuses_opens_no_circuit(other, status):
    async def work():
        async with case(FakeServer("http_500"), FakeServer(other)) as c:
            for _ in range(5):
                assert (await c.ask()).status_code == status
            assert all(len(fake.requests) > 1 for fake in c.fakes)
            assert all(b.circuit.failures == 0 for b in c.gateway.pools[MODEL].backends)
            assert all(b.circuit.state == "closed" for b in c.gateway.pools[MODEL].backends)

    run(work())


def test_an_engine_that_tells_of_an_error_in_its_stream_has_failed():
    async def work():
        async with case(FakeServer("says_error")) as c:
            found = events(await c.stream())
            assert found[-1] == "[DONE]" and "error" in json.loads(found[-2])
            await c.until(lambda: outcomes(c, "upstream_error") == 1)
            assert c.gateway.pools[MODEL].backends[0].circuit.failures == 1

    run(work())


def test_a_retry_that_nobody_can_take_is_not_counted():
    async def work():
        async with case(FakeServer("http_500")) as c:
            assert (await c.ask()).status_code == 502
            labels = {"model": MODEL, "backend": "b0", "reason": "http_500"}
            assert c.metric("gateway_retries_total", **labels) == 0

    run(work())


def test_a_request_to_a_new_connection_is_not_repeated_there():
    async def work():
        async with case(FakeServer("drops"), health={**QUICK, "retries": 0}) as c:
            c.gateway.pools[MODEL].backends[0]._transport._keep_after = float("inf")
            assert (await c.ask()).status_code == 502 and len(c.fakes[0].requests) == 1

    run(work())


def test_a_client_that_does_not_take_the_end_is_dropped_too():
    async def work():
        fake = FakeServer(tokens=2, filler="x" * 500_000, gap_s=0.3)
        async with case(fake, timeouts=FAST) as c:
            c.server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
            sock = socket.socket()
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            host, port = c.url.removeprefix("http://").split(":")
            sock.connect((host, int(port)))
            _, writer = await asyncio.open_connection(sock=sock)
            writer.transport.pause_reading()
            body = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "a"}]}
            data = json.dumps(body).encode()
            head = b"POST %s HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n\r\n"
            writer.write(head % (ROUTE.encode(), len(data)) + data)
            await c.until(lambda: outcomes(c, "slow_client") == 1, 8)
            assert not c.gateway.contexts
            writer.transport.abort()

    run(work())


@pytest.mark.parametrize("value", [b"\xff", b"x" * 5000])
def test_a_strange_trace_is_not_handed_on(value):
    async def work():
        async with case() as c:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "a"}]}
            answer = await c.http.post(ROUTE, json=body, headers={b"traceparent": value})
            assert answer.status_code == 200 and "traceparent" not in c.fakes[0].headers[-1]

    run(work())


class Provider(trace.TracerProvider, trace.Tracer):
    """What an OpenTelemetry SDK does for us: each span is number 7 of its parent's trace."""

    def get_tracer(self, *_, **__):
        return self

    def start_span(self, name, context=None, **_):
        parent = trace.get_current_span(context).get_span_context()
        actual = trace.SpanContext(
            parent.trace_id, 7, is_remote=False, trace_flags=parent.trace_flags
        )
        return trace.NonRecordingSpan(actual)

    def start_as_current_span(self, name, context=None, **_):
        return trace.use_span(self.start_span(name, context))


@pytest.mark.parametrize(
    "provider, parent", [(None, "00000000000000aa"), (Provider(), f"{7:016x}")]
)
def test_the_engines_parent_is_our_span_where_there_is_one(monkeypatch, provider, parent):
    monkeypatch.setattr(trace, "_TRACER_PROVIDER", provider)

    async def work():
        async with case() as c:
            body = {"model": MODEL, "messages": [{"role": "user", "content": "a"}], "stream": True}
            headers = {"traceparent": f"00-{0xBB:032x}-00000000000000aa-01"}
            assert (await c.http.post(ROUTE, json=body, headers=headers)).is_success
            assert c.fakes[0].headers[-1]["traceparent"] == f"00-{0xBB:032x}-{parent}-01"

    run(work())


def test_a_wrong_method_is_the_clients_error():
    async def work():
        async with case() as c:
            answer = await c.http.get(ROUTE)
            assert answer.status_code == 405 and answer.headers["allow"] == "POST"
            assert outcomes(c, "client_error", "none", "none") == 1

    run(work())


def test_wait_for_one_engine_does_not_hold_up_others():
    async def work():
        both = {"max_outstanding": 1}
        async with case(FakeServer(), FakeServer(), backend=both) as c:
            pool = c.gateway.pools[MODEL]
            pool.backends[1].engine = "vllm"
            first, _ = await pool.acquire("a", "llama_cpp", ())
            waits = asyncio.create_task(pool.acquire("b", "llama_cpp", ()))
            await asyncio.sleep(0)
            other, _ = await pool.acquire("c", "vllm", ())
            assert other.name == "b1", "one that comes later"
            behind = asyncio.create_task(pool.acquire("d", "vllm", ()))
            await asyncio.sleep(0)
            pool.release(other, 0.1)
            assert (await asyncio.wait_for(behind, 2))[0].name == "b1", "one that waits behind"
            assert not waits.done()
            pool.release(first, 0.1)
            assert (await asyncio.wait_for(waits, 2))[0].name == "b0"
            for backend in pool.backends:
                pool.release(backend, 0.1)
            assert c.metric("gateway_queued", model=MODEL) == 0

    run(work())


def test_places_are_given_in_the_order_of_arrival():
    async def work():
        async with case(FakeServer(), backend={"max_outstanding": 2}) as c:
            pool, order = c.gateway.pools[MODEL], []

            async def one(i):
                backend, _ = await pool.acquire("a", None, ())
                order.append(i)
                return backend

            held = [await one(i) for i in (0, 1)]
            waiting = []
            for i in (2, 3, 4):
                waiting.append(asyncio.create_task(one(i)))
                await asyncio.sleep(0)
            for backend in held:
                pool.release(backend, 0.1)
            waiting.append(asyncio.create_task(one(5)))
            for at in (0, 1, 2, 3):
                pool.release(await asyncio.wait_for(waiting[at], 2), 0.1)
            assert order == [0, 1, 2, 3, 4, 5]

    run(work())


def test_request_ended_by_force_is_not_counted_as_answered():
    async def work():
        fake = FakeServer(tokens=1000, gap_s=0.02)
        async with case(fake) as c:
            asking = asyncio.create_task(c.stream())
            await c.until(lambda: fake.running == 1)
            next(iter(c.gateway.contexts)).task.cancel()
            await c.until(lambda: outcomes(c, "draining") == 1)
            await asyncio.gather(asking, return_exceptions=True)

    run(work())


def test_a_connection_given_back_unread_is_not_used_again():
    async def work():
        async with FakeServer(filler="x" * 2000) as fake:
            transport = AsyncioTransport(high_water=1000)
            body = json.dumps({"model": MODEL, "messages": [{"content": "a"}]}).encode()
            headers = {"content-length": str(len(body))}
            for _ in range(2):
                request = httpx.Request("POST", fake.url + ROUTE, content=body, headers=headers)
                async with asyncio.timeout(5):
                    response = await transport.handle_async_request(request)
                    while not response.extensions["timed_stream"]._connection.complete:
                        await asyncio.sleep(0.01)
                await response.stream.aclose()
            await transport.aclose()

    run(work())
