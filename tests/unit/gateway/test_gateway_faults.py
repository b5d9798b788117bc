"""Whose fault it is if an engine fails in another way than HTTP 500: cases of real gateways' bug reports."""

import asyncio
import collections
import json

import openai
import pytest
from fake_openai import FakeServer
from gateway_case import MODEL, QUICK, case
from misbehaving_engine import DONE, PING, Engine, event, usage
from test_gateway_recovery import outcomes
from test_gateway_relay import events, run

from utils.gateway import verdict
from utils.gateway.verdict import Against, Ending

# No probe and no health check comes in between, unless a test wants it.
LONG = {"every_s": 0.05, "timeout_s": 2.0, "circuit_failures": 3, "circuit_open_s": 60}
SHORT = {"prefill_tokens_per_s": 1e9, "decode_tokens_per_s": 1e9}


def statuses(answers):
    return collections.Counter(answer.status_code for answer in answers)


def circuits(c):
    return [backend.circuit.state for backend in c.gateway.pools[MODEL].backends]


def requests_of(engine):
    return len(engine.requests)


@pytest.mark.parametrize(
    "mode", ["fast_404", "fast_401", "error_in_200", "not_json", "redirect", "method", "empty"]
)
@pytest.mark.parametrize("stream", [True, False])
def test_fault_of_set_up_is_retried_and_taken_out(mode, stream):
    special = {
        "not_json": Engine(body=b"<html>Log in</html>"),
        "redirect": Engine(answer=(307, {})),
        "method": Engine(answer=(405, {"error": "no"})),
        "empty": Engine(answer=(204, {})),
    }
    bad = special.get(mode) or Engine(mode)

    async def work():
        async with case(bad, Engine(first_s=0.01), health=LONG) as c:

            async def user():
                return [await c.ask(stream=stream) for _ in range(10)]

            users = await asyncio.gather(*[user() for _ in range(8)])
            answers = [answer for each in users for answer in each]
            assert statuses(answers) == {200: 80}
            assert circuits(c) == ["open", "closed"]
            assert requests_of(bad) <= 8, "those that were on their way when it was taken out"
            assert outcomes(c, "client_error") == 0

    run(work())


@pytest.mark.parametrize("mode", ["fast_404", "fast_401", "error_in_200"])
@pytest.mark.parametrize("stream", [True, False])
def test_fault_of_set_up_is_never_told_as_clients_error(mode, stream):
    async def work():
        async with case(Engine(mode)) as c:
            answer = await c.ask(stream=stream)
            assert answer.status_code == 502
            assert answer.json()["error"]["type"] == "server_error"
            assert answer.headers["x-should-retry"] == "false"
            assert outcomes(c, "upstream_error") == 1
            reason = {"fast_404": "http_404", "fast_401": "http_401"}.get(mode, mode)
            labels = {"model": MODEL, "backend": "b0", "reason": reason}
            assert c.metric("gateway_failed_attempts_total", **labels) == 1
            assert circuits(c) == ["closed"], "the last one never opens"

    run(work())


@pytest.mark.parametrize("stream", [True, False])
def test_hung_engine_with_good_health_is_taken_out(stream):
    limits = {"first_byte_s": 0.2, "deadline_s": 5.0, **SHORT}

    async def work():
        async with case(Engine("hung"), Engine(), health=LONG, timeouts=limits) as c:
            answers = [await c.ask(stream=stream) for _ in range(10)]
            assert statuses(answers) == {200: 10}
            assert circuits(c) == ["open", "closed"]
            assert requests_of(c.fakes[0]) == 3

    run(work())


def test_deadline_before_first_byte_counts_as_failure():
    limits = {"first_byte_s": 50, "deadline_s": 0.2, **SHORT}

    async def work():
        async with case(Engine("hung"), Engine(), health=LONG, timeouts=limits) as c:
            answers = [await c.ask(stream=i % 2 == 0) for i in range(12)]
            assert circuits(c) == ["open", "closed"]
            # If the hung engine is asked first, there is nothing to compare with yet.
            assert statuses(answers)[504] in (3, 4)

    run(work())


def test_hung_engine_is_found_by_one_token_of_gateway():
    health = {**QUICK, "silence_s": 0.1, "probe_s": 0.2, "circuit_open_s": 60}

    async def work():
        async with case(Engine("hung"), Engine(), health=health) as c:
            answers = await asyncio.gather(*[c.ask() for _ in range(8)])
            assert statuses(answers) == {200: 8}, "nobody waits for a limit of a minute"
            assert circuits(c)[0] == "open"
            assert (await c.ask()).status_code == 200

    run(work())


def test_busy_engine_without_others_is_asked_for_nothing_more():
    health = {**QUICK, "silence_s": 0.1, "probe_s": 0.1}

    async def work():
        slow = Engine(first_s=1.0)
        async with case(slow, health=health) as c:
            assert (await c.ask()).status_code == 200
            assert circuits(c) == ["closed"]

    run(work())


def test_probe_of_hung_engine_is_not_a_users_request():
    async def work():
        health = {**QUICK, "probe_s": 0.1, "circuit_open_s": 0.1}
        limits = {"first_byte_s": 0.15, **SHORT}
        async with case(Engine("hung"), Engine(), health=health, timeouts=limits) as c:
            backend = c.gateway.pools[MODEL].backends[0]
            while backend.circuit.state == "closed":
                await c.ask(stream=True)
            users = sum(b'"max_tokens":1' not in body for _, _, body in c.fakes[0].requests)
            await c.until(lambda: requests_of(c.fakes[0]) >= users + 2)
            for _ in range(10):
                assert (await c.ask(stream=True)).status_code == 200
            now = sum(b'"max_tokens":1' not in body for _, _, body in c.fakes[0].requests)
            assert now == users
            c.fakes[0].mode = "good"
            await c.until(lambda: circuits(c) == ["closed", "closed"])

    run(work())


def test_busy_engines_pause_for_their_retry_after():
    async def work():
        engines = Engine("busy_503"), Engine("busy_503")
        async with case(*engines, health=LONG, queue={"wait_s": 5}) as c:
            for _ in range(3):
                answer = await c.ask()
                assert answer.status_code == 503
                assert 16 <= int(answer.headers["retry-after"]) <= 17
                assert answer.json()["error"]["code"] == "engine_busy"
            assert [requests_of(engine) for engine in engines] == [1, 1]
            assert circuits(c) == ["closed", "closed"]

    run(work())


def test_busy_engine_is_left_alone_while_another_answers():
    async def work():
        async with case(Engine("busy_503"), Engine(), health=LONG) as c:
            assert statuses([await c.ask() for _ in range(8)]) == {200: 8}
            assert requests_of(c.fakes[0]) == 1

    run(work())


def test_short_pause_is_waited_for():
    async def work():
        busy = Engine(answer=(429, {"error": {"message": "slow down"}}))
        async with case(busy, health=LONG) as c:
            asking = asyncio.create_task(c.ask())
            await c.until(lambda: requests_of(busy) == 1)
            busy.answer = None
            answer = await asking
            assert answer.status_code == 200

    run(work())


def test_slow_engines_are_not_down():
    limits = {"first_byte_s": 0.1, **SHORT}

    async def work():
        async with case(
            Engine(first_s=0.3), Engine(first_s=0.3), health=LONG, timeouts=limits
        ) as c:
            for _ in range(3):
                answers = await asyncio.gather(*[c.ask(stream=True) for _ in range(3)])
                assert statuses(answers) == {504: 3}, "none says that no engine works"
            assert circuits(c) == ["closed", "closed"]
            assert all(requests_of(engine) <= 9 for engine in c.fakes), "two attempts, not three"

    run(work())


def test_limits_grow_with_prompt_and_answer():
    limits = {"first_byte_s": 0.1, "deadline_s": 0.3}

    async def work():
        async with case(Engine(first_s=0.4), timeouts=limits | {"prefill_tokens_per_s": 1000}) as c:
            assert (await c.ask("x" * 4000, stream=True)).status_code == 200
        words = Engine(parts=[event("w ")] * 20 + [DONE], gap_s=0.03)
        async with case(words, timeouts=limits | {"decode_tokens_per_s": 20}) as c:
            assert b"[DONE]" in await c.stream(max_tokens=40)
            assert b"[DONE]" not in await c.stream(max_tokens=1)

    run(work())


def test_client_with_retries_does_not_multiply_ours():
    async def work():
        health = {**QUICK, "circuit_failures": 100}
        async with case(*[Engine("fails_500") for _ in range(3)], health=health) as c:
            client = openai.AsyncOpenAI(base_url=c.url + "/v1", api_key="x")
            messages = [{"role": "user", "content": "hello"}]
            with pytest.raises(openai.InternalServerError):
                await client.chat.completions.create(model=MODEL, messages=messages)
            assert sum(requests_of(engine) for engine in c.fakes) == 3

    run(work())


def test_retries_have_a_budget():
    async def work():
        health = {**LONG, "retry_reserve": 2, "retry_share": 0.1, "circuit_failures": 1000}
        async with case(Engine("fails_500"), Engine("fails_500"), health=health) as c:
            for _ in range(20):
                assert (await c.ask()).status_code == 502
            # Two at once, then one for ten requests.
            assert sum(requests_of(engine) for engine in c.fakes) == 20 + 2 + 1

    run(work())


def test_request_that_kills_connections_is_sent_three_times_at_most():
    async def work():
        async with case(*[Engine("drops") for _ in range(3)], health=LONG) as c:
            await c.until(lambda: all(b.answered_at == 0 for b in c.gateway.pools[MODEL].backends))
            await asyncio.sleep(0.2)  # some health checks have kept their connections
            assert (await c.ask()).status_code == 502
            assert sum(requests_of(engine) for engine in c.fakes) == 3

    run(work())


def test_total_failure_leaves_last_circuit_closed():
    async def work():
        async with case(FakeServer("http_500")) as c:
            for _ in range(6):
                assert (await c.ask()).status_code == 502
            assert circuits(c) == ["closed"]
            c.fakes[0].mode = "ok"
            assert (await c.ask()).status_code == 200, "at once, without a wait for a probe"

    run(work())


def test_doubtful_engine_serves_when_no_other_is_left():
    async def work():
        async with case(FakeServer(), FakeServer(), health=LONG) as c:
            first, second = c.gateway.pools[MODEL].backends
            for _ in range(3):
                first.result(first.sent(), "failure")
            c.fakes[1].mode = "sick"
            await c.until(lambda: not second.up)
            assert circuits(c) == ["open", "closed"]
            assert (await c.ask()).status_code == 200
            assert circuits(c) == ["closed", "closed"]

    run(work())


def test_compressed_answer_is_unpacked():
    async def work():
        async with case(Engine("gzip")) as c:
            answer = await c.ask()
            assert answer.json()["choices"]
            labels = {"model": MODEL, "backend": "b0", "kind": "completion"}
            assert c.metric("gateway_tokens_total", **labels) == 2

    run(work())


def test_error_that_is_a_text_reaches_client():
    async def work():
        async with case(Engine("error_text_500")) as c:
            assert "CUDA out of memory" in (await c.ask()).text

    run(work())


# The first token


def test_comments_are_no_first_token():
    parts = [PING, 0.1, PING, 0.1, event("", "role"), event("a"), usage(1), DONE]

    async def work():
        async with case(Engine(parts=parts)) as c:
            assert b"[DONE]" in await c.stream()
            ttft = c.metric("gateway_ttft_seconds_sum", model=MODEL, backend="b0")
            assert ttft >= 0.2

    run(work())


@pytest.mark.parametrize("field", ["content", "reasoning_content", "reasoning", "tool_calls"])
def test_first_token_is_any_text(field):
    text = [{"index": 0, "function": {"name": "f"}}] if field == "tool_calls" else "a"
    parts = [event(text, field), 0.3, event("b"), DONE]

    async def work():
        async with case(Engine(parts=parts)) as c:
            await c.stream()
            assert c.metric("gateway_ttft_seconds_sum", model=MODEL, backend="b0") < 0.25

    run(work())


def test_engine_that_dies_after_comments_is_not_noticed():
    async def work():
        engines = Engine("pings_then_dies"), Engine()
        async with case(*engines, policy="round_robin", health=LONG) as c:
            for _ in range(4):
                assert (await c.stream()).endswith(b"data: [DONE]\n\n")
            assert engines[0].requests

    run(work())


@pytest.mark.parametrize("parts, code", [([], "timeout"), ([event("a")], "upstream_error")])
def test_comments_do_not_keep_a_stream_alive(parts, code):
    forever = [*parts, *([PING, 0.05] * 200)]
    limits = {"idle_s": 0.3, "first_byte_s": 0.3, "deadline_s": 8, **SHORT}

    async def work():
        async with case(Engine(parts=forever), timeouts=limits) as c:
            answer = await c.ask(stream=True)
            assert b"[DONE]" not in answer.content
            assert outcomes(c, "idle" if parts else "timeout") == 1

    run(work())


def test_client_that_waits_gets_comments():
    limits = {"ping_s": 0.1, "first_byte_s": 20}

    async def work():
        fake = FakeServer(first_s=0.5)
        async with case(fake, timeouts=limits) as c:
            data = await c.stream()
            assert data.startswith(b": waiting\n\n: waiting\n\n")
            assert events(data)[-1] == "[DONE]"
            ttft = c.metric("gateway_ttft_seconds_sum", model=MODEL, backend="b0")
            assert ttft >= 0.5, "our own comments are no token either"

    run(work())


def test_retry_is_possible_after_our_comments():
    limits = {"ping_s": 0.05, "first_byte_s": 0.4, **SHORT}

    async def work():
        async with case(Engine("hung"), Engine(), health=LONG, timeouts=limits) as c:
            for _ in range(2):
                assert events(await c.stream())[-1] == "[DONE]"
            assert requests_of(c.fakes[0]) == 1

    run(work())


def test_error_after_our_comments_is_an_event():
    async def work():
        limits = {"ping_s": 0.05}
        async with case(
            Engine(answer=(400, {"error": {"message": "no such field"}}), first_s=0.4),
            timeouts=limits,
        ) as c:
            answer = await c.ask(stream=True)
            assert answer.status_code == 200
            assert json.loads(events(answer.content)[-1])["error"]["message"] == "no such field"
            assert outcomes(c, "client_error") == 1

    run(work())


# Dialects of event streams


@pytest.mark.parametrize("mode", ["bare_done", "lf_crlf"])
def test_loose_end_of_stream_is_an_end(mode):
    async def work():
        async with case(Engine(mode)) as c:
            found = events(await c.stream())
            assert found[-1] == "[DONE]"
            assert not any("error" in event for event in found)
            await c.until(lambda: outcomes(c, "ok") == 1)

    run(work())


def test_finish_without_done_gets_one():
    async def work():
        parts = [event("a"), event("", finish_reason="stop")]
        async with case(Engine(parts=parts)) as c:
            found = events(await c.stream())
            assert found[-1] == "[DONE]"
            assert len(found) == 3
            await c.until(lambda: outcomes(c, "ok") == 1)

    run(work())


def test_error_as_first_event_is_retried():
    async def work():
        async with case(Engine("error_first"), Engine(), policy="round_robin", health=LONG) as c:
            for _ in range(4):
                assert b"boom" not in await c.stream()
            assert c.fakes[0].requests

    run(work())


def test_error_event_is_told_once_and_in_openais_form():
    async def work():
        async with case(Engine("error_event")) as c:
            errors = [e for e in events(await c.stream()) if "error" in e]
            assert len(errors) == 1
            assert json.loads(errors[0])["error"]["message"] == "boom"
            await c.until(lambda: outcomes(c, "upstream_error") == 1)

    run(work())


def test_error_key_is_found_anywhere_in_event():
    async def work():
        late = b'data: {"id": "x", "choices": [], "error": {"message": "boom"}}\n\n'
        text = event('say "error": now')
        async with case(Engine(parts=[text, late])) as c:
            data = await c.stream()
            assert data.count(b"boom") == 1
            await c.until(lambda: outcomes(c, "upstream_error") == 1)
        async with case(Engine(parts=[text, event("", finish_reason="error"), DONE])) as c:
            await c.stream()
            await c.until(lambda: outcomes(c, "ok") == 1)

    run(work())


def test_wrong_request_that_is_told_in_stream_is_clients_error():
    async def work():
        wrong = b'data: {"error": {"message": "too long", "code": 400}}\n\n'
        async with case(Engine(parts=[wrong, DONE]), Engine(parts=[wrong, DONE])) as c:
            answer = await c.ask(stream=True)
            assert (answer.status_code, answer.json()["error"]["message"]) == (400, "too long")
            assert sum(requests_of(engine) for engine in c.fakes) == 1

    run(work())


def test_timings_of_llama_cpp_reach_client_that_asked_no_usage():
    finish = event("", finish_reason="stop")
    parts = [event("a"), finish, usage(1, timings={"predicted_per_second": 9.5}), DONE]

    async def work():
        async with case(Engine(parts=parts)) as c:
            found = [json.loads(e) for e in events(await c.stream())[:-1]]
            assert [bool(chunk["choices"]) for chunk in found] == [True, True]
            assert found[-1]["timings"] == {"predicted_per_second": 9.5}
            assert found[-1]["choices"][0]["finish_reason"] == "stop"
            assert not any("usage" in chunk for chunk in found)
            asked = events(await c.stream(stream_options={"include_usage": True}))
            assert json.loads(asked[-2])["usage"]["completion_tokens"] == 1

    run(work())


@pytest.mark.parametrize(
    "against, ending, failed, quicker, expected",
    [
        (Against.ALWAYS, Ending.NOTHING, 0, False, True),
        (Against.UNLESS_ALL, Ending.ANSWERED, 2, False, True),
        (Against.UNLESS_ALL, Ending.NOTHING, 1, False, True),
        (Against.UNLESS_ALL, Ending.NOTHING, 2, True, False),
        (Against.UNLESS_ALL, Ending.REFUSED, 1, False, False),
        (Against.SETUP, Ending.REFUSED, 1, False, True),
        (Against.SETUP, Ending.NOTHING, 3, False, False),
        (Against.IF_SLOWER, Ending.NOTHING, 0, False, False),
        (Against.IF_SLOWER, Ending.NOTHING, 0, True, True),
        (Against.IF_SLOWER, Ending.ANSWERED, 0, False, True),
        (Against.NEVER, Ending.ANSWERED, 1, True, False),
    ],
)
def test_failure_counts_by_comparison(against, ending, failed, quicker, expected):
    assert verdict.counts(against, ending, failed, quicker) is expected


@pytest.mark.parametrize(
    "header, seconds",
    [
        (None, 1.0),
        ("17", 17.0),
        ("0.5", 0.5),
        ("soon", 1.0),
        ("-3", 0.0),
        ("9999", 60.0),
        ("nan", 1.0),
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0.0),
    ],
)
def test_retry_after_is_read(header, seconds):
    assert verdict.busy_for(header) == seconds
