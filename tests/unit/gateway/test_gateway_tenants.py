"""Keys that share the engines: parallel limits, turns, rate headers, tokens and cost, wrong keys."""

import asyncio
import collections

from fake_openai import FakeServer
from gateway_case import MODEL, case
from test_gateway_relay import run

from utils.gateway.auth import FailedKeys, digest
from utils.gateway.settings import Price

PRICE = Price(prompt=2.0, completion=10.0)


def key(name, **more):
    return {"name": name, "sha256": digest(name), "requests_per_minute": 100_000, **more}


def ask(c, name, **fields):
    body = {"model": MODEL, "messages": [{"role": "user", "content": "hello"}], **fields}
    headers = {"authorization": f"Bearer {name}"}
    return c.http.post("/v1/chat/completions", json=body, headers=headers)


def test_light_key_is_served_next_to_heavy_one():
    async def work():
        keys = [key("heavy", max_parallel=100), key("light")]
        options = {"backend": {"max_outstanding": 8}, "queue": {"size": 64, "wait_s": 20}}
        async with case(FakeServer(first_s=0.05), keys=keys, **options) as c:

            async def loop():
                while True:
                    if (await ask(c, "heavy")).status_code == 429:
                        await asyncio.sleep(0.02)

            loops = [asyncio.create_task(loop()) for _ in range(90)]
            await c.until(lambda: c.metric("gateway_queued", model=MODEL) >= 40, patience_s=20)
            statuses = collections.Counter([(await ask(c, "light")).status_code for _ in range(20)])
            for each in loops:
                each.cancel()
            await asyncio.gather(*loops, return_exceptions=True)
        assert statuses[200] >= 18, statuses

    run(work())


def test_parallel_limit_refuses_one_key_only():
    async def work():
        fake = FakeServer()
        fake.open.clear()
        async with case(fake, keys=[key("ann", max_parallel=2), key("bob")]) as c:
            running = [asyncio.create_task(ask(c, "ann")) for _ in range(2)]
            await c.until(lambda: len(fake.requests) == 2)
            third = await ask(c, "ann")
            assert third.status_code == 429
            assert third.json()["error"]["code"] == "parallel_limit_exceeded"
            assert third.headers["retry-after"] == "1"
            running.append(asyncio.create_task(ask(c, "bob")))
            await c.until(lambda: len(fake.requests) == 3)
            fake.open.set()
            assert [(await each).status_code for each in running] == [200] * 3
            assert (await ask(c, "ann")).status_code == 200, "its places are free again"

    run(work())


def test_full_queue_makes_room_for_key_with_fewer_requests():
    async def work():
        fake = FakeServer()
        fake.open.clear()
        options = {"backend": {"max_outstanding": 1}, "queue": {"size": 3, "wait_s": 20}}
        async with case(fake, keys=[key("heavy"), key("light")], **options) as c:
            heavy = [asyncio.create_task(ask(c, "heavy")) for _ in range(4)]
            await c.until(lambda: c.metric("gateway_queued", model=MODEL) == 3)
            assert (await ask(c, "heavy")).status_code == 429, "its own queue is the longest"
            light = asyncio.create_task(ask(c, "light"))
            done, _ = await asyncio.wait(heavy, return_when=asyncio.FIRST_COMPLETED)
            assert [each.result().status_code for each in done] == [429]
            fake.open.set()
            assert (await light).status_code == 200
            answers = collections.Counter([(await each).status_code for each in heavy])
        assert answers == {200: 3, 429: 1}

    run(work())


def test_answers_carry_rate_limit_headers():
    async def work():
        keys = [key("ann", requests_per_minute=3, tokens_per_minute=6000)]
        async with case(keys=keys) as c:
            answer = await ask(c, "ann", max_tokens=100)
            assert answer.headers["x-ratelimit-limit-requests"] == "3"
            assert answer.headers["x-ratelimit-remaining-requests"] == "2"
            assert answer.headers["x-ratelimit-limit-tokens"] == "6000"
            assert 5800 < int(answer.headers["x-ratelimit-remaining-tokens"]) <= 5900
            assert 19 < float(answer.headers["x-ratelimit-reset-requests"].removesuffix("s")) <= 20
            await ask(c, "ann")
            await ask(c, "ann")
            refused = await ask(c, "ann")
            assert refused.status_code == 429
            assert refused.headers["x-ratelimit-remaining-requests"] == "0"

    run(work())


def test_metrics_show_tokens_and_cost_by_key():
    async def work():
        async with case(FakeServer(tokens=5), keys=[key("ann"), key("bob")]) as c:
            priced = c.gateway.settings.models[0].model_copy(update={"price": PRICE})
            c.gateway.configure(c.gateway.settings.model_copy(update={"models": (priced,)}))
            for stream in (True, False):
                await ask(c, "ann", stream=stream)
            await ask(c, "bob", messages=[])

            def count(name, **labels):
                return c.metric(name, model=MODEL, **labels)

            assert count("gateway_key_tokens_total", key="ann", kind="prompt") == 14
            assert count("gateway_key_tokens_total", key="ann", kind="completion") == 10
            cost = count("gateway_key_cost_total", key="ann")
            assert abs(cost - (14 * 2.0 + 10 * 10.0) / 1e6) < 1e-12
            refused = {"key": "bob", "model": "none", "outcome": "client_error"}
            assert c.metric("gateway_key_requests_total", **refused) == 1

    run(work())


def test_wrong_keys_are_counted_and_slowed_but_right_ones_are_not():
    async def work():
        async with case(keys=[key("ann")]) as c:
            statuses = [(await ask(c, f"guess {i}")).status_code for i in range(12)]
            assert statuses == [401] * 10 + [429] * 2
            slowed = await ask(c, "guess")
            assert slowed.json()["error"]["code"] == "too_many_wrong_keys"
            assert int(slowed.headers["retry-after"]) >= 1
            assert (await ask(c, "ann")).status_code == 200
            assert c.metric("gateway_failed_keys_total") == 13

    run(work())


def test_each_address_has_its_own_failures_and_few_are_remembered(monkeypatch):
    monkeypatch.setattr("utils.gateway.auth._MOST_ADDRESSES", 2)
    failed = FailedKeys()
    assert [failed.add("a", 0.0) > 0 for _ in range(11)] == [False] * 10 + [True]
    assert failed.add("b", 0.0) == 0.0
    assert failed.add("c", 0.0) == 0.0
    assert failed.add("a", 0.0) == 0.0, "the oldest address was forgotten"


def test_anthropics_header_holds_a_key_too():
    async def work():
        async with case(keys=[key("ann")]) as c:
            answer = await c.http.get("/v1/models", headers={"x-api-key": "ann"})
            assert answer.status_code == 200

    run(work())
