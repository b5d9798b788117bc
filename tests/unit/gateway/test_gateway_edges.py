"""Settings, keys, limits, and bodies that nobody should send."""

import asyncio
import json
import random

import pytest
import yaml
from fake_openai import FakeServer
from gateway_case import MODEL, case
from test_gateway_relay import run

from utils.gateway import http_protocol
from utils.gateway.auth import digest, new_key
from utils.gateway.schemas import parse
from utils.gateway.settings import Affinity, GatewayLimits, SettingsError, load_settings

GOOD = {
    "models": [
        {"name": "m", "backends": [{"name": "a", "engine": "vllm", "url": "http://127.0.0.1:1"}]}
    ],
    "allow_anonymous": True,
}


def written(tmp_path, **changes):
    path = tmp_path / "gateway.yaml"
    path.write_text(yaml.safe_dump({**GOOD, **changes}))
    return path


def test_a_file_and_the_environment_over_it(tmp_path, monkeypatch):
    monkeypatch.setenv("GATEWAY_PORT", "9000")
    monkeypatch.setenv("GATEWAY_TIMEOUTS__IDLE_S", "7")
    settings = load_settings(written(tmp_path, port=1234, host="0.0.0.0"))
    assert (settings.port, settings.host, settings.timeouts.idle_s) == (9000, "0.0.0.0", 7.0)
    monkeypatch.setenv("GATEWAY_CONFIG", str(written(tmp_path)))
    assert load_settings().models[0].backends[0].engine == "vllm"


@pytest.mark.parametrize(
    "changes, says",
    [
        ({"prot": 1}, "prot"),
        ({"port": 99999}, "port"),
        ({"models": []}, "models"),
        ({"limits": {"body_bytes": -1}}, "limits.body_bytes"),
        ({"timeouts": {"idle": 3}}, "timeouts.idle"),
        ({"allow_anonymous": False}, "allow_anonymous"),
        ({"keys": [{"name": "a", "sha256": "secret"}]}, "keys.0.sha256"),
        ({"models": [{"name": "m", "backends": []}]}, "models.0.backends"),
        ({"models": [{**GOOD["models"][0], "policy": "magic"}]}, "models.0.policy"),
        ({"models": [*GOOD["models"], *GOOD["models"]]}, "'m' occurs twice"),
        (
            {
                "models": [
                    {"name": "m", "backends": [{"name": "a", "engine": "x", "url": "http://h"}]}
                ]
            },
            "models.0.backends.0.engine",
        ),
        (
            {
                "models": [
                    {
                        "name": "m",
                        "backends": [{"name": "a", "engine": "vllm", "url": "http://h/v1"}],
                    }
                ]
            },
            "models.0.backends.0.url",
        ),
    ],
)
def test_wrong_settings_are_refused_by_name(tmp_path, changes, says):
    with pytest.raises(SettingsError, match=says.replace(".", r"\.")):
        load_settings(written(tmp_path, **changes))


def test_an_unknown_variable_and_an_unreadable_file_are_refused(tmp_path, monkeypatch):
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(tmp_path / "none.yaml")
    (tmp_path / "list.yaml").write_text("- 1")
    with pytest.raises(SettingsError, match="key: value"):
        load_settings(tmp_path / "list.yaml")
    monkeypatch.setenv("GATEWAY_PROT", "1")
    with pytest.raises(SettingsError, match="GATEWAY_PROT"):
        load_settings(written(tmp_path))


def test_keys_and_rates():
    async def work():
        key, sha256 = new_key()
        assert sha256 == digest(key) and len(key) > 40
        keys = [{"name": "ann", "sha256": sha256, "requests_per_minute": 3}]
        keys += [{"name": "bob", "sha256": digest("gw-b"), "tokens_per_minute": 100}]
        async with case(keys=keys) as c:
            url, body = "/v1/chat/completions", {"model": MODEL, "max_tokens": 60}
            body["messages"] = [{"role": "user", "content": "a"}]

            async def ask(key):
                headers = {"authorization": f"Bearer {key}"}
                return await c.http.post(url, json=body, headers=headers)

            for headers in ({}, {"authorization": "Basic x"}, {"authorization": "Bearer gw-c"}):
                answer = await c.http.post(url, json=body, headers=headers)
                assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
                assert (await c.http.get("/v1/models", headers=headers)).status_code == 401
            assert [(await ask(key)).status_code for _ in range(4)] == [200, 200, 200, 429]
            limited = await ask(key)
            assert limited.json()["error"]["code"] == "rate_limit_exceeded"
            assert 15 <= int(limited.headers["retry-after"]) <= 20
            # Each answer is estimated at 60 tokens and costs 12: five at once would not have fitted.
            assert [(await ask("gw-b")).status_code for _ in range(5)] == [200] * 4 + [429]
            assert (await c.http.get("/health/ready")).status_code == 200

    run(work())


def test_each_choice_and_the_best_of_several_are_counted():
    def estimate(**fields):
        body = json.dumps({"model": MODEL, "prompt": "", "max_tokens": 10, **fields}).encode()
        return parse("completions", body, GatewayLimits(), Affinity()).estimate

    assert [estimate(), estimate(n=2), estimate(n=2, best_of=5)] == [10, 20, 50]


def test_variables_that_kubernetes_sets_for_a_service_are_no_settings(tmp_path, monkeypatch):
    address = "tcp://10.0.0.1:8080"
    monkeypatch.setenv("GATEWAY_SERVICE_HOST", "10.0.0.1")
    monkeypatch.setenv("GATEWAY_SERVICE_PORT", "8080")
    monkeypatch.setenv("GATEWAY_SERVICE_PORT_HTTP", "8080")
    monkeypatch.setenv("GATEWAY_PORT", address)
    monkeypatch.setenv("GATEWAY_PORT_8080_TCP", address)
    monkeypatch.setenv("GATEWAY_PORT_8080_TCP_ADDR", "10.0.0.1")
    assert load_settings(written(tmp_path, port=1234)).port == 1234


def test_without_keys_no_web_page_of_others_may_have_its_visitors_ask():
    async def work():
        async def ask(c, origin, **headers):
            body = json.dumps({"model": MODEL, "messages": MESSAGES})
            headers |= {"origin": origin, "content-type": "text/plain"}
            return await c.http.post("/v1/chat/completions", content=body, headers=headers)

        async with case(cors_origins=["https://page.example"]) as c:
            for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
                answer = await ask(c, origin)
                assert answer.status_code == 403 and "cors_origins" in answer.text
            assert not c.fakes[0].requests
            for origin in (c.url, "https://page.example"):
                assert (await ask(c, origin)).status_code == 200
        async with case(keys=[{"name": "k", "sha256": digest("gw-k")}]) as c:
            assert (await ask(c, "https://x.example", authorization="Bearer gw-k")).is_success

    run(work())


POST = b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\n"


def post(body, *headers):
    lines = [*headers, b"content-length: %d" % len(body)]
    return POST + b"\r\n".join(lines) + b"\r\n\r\n" + body


@pytest.mark.parametrize(
    "start, answer",
    [
        (b"GET / HTTP/1.1\r\nx: ", b"HTTP/1.1 400"),
        (b"GET /health/live HTTP/1.1\r\n\r\nGET / HTTP/1.1\r\nx: ", b"HTTP/1.1 400"),
        (POST + b"transfer-encoding: chunked\r\n\r\n1;", b""),
        (POST + b"transfer-encoding: chunked\r\n\r\n0\r\nx: ", b""),
    ],
)
def test_all_but_body_of_request_has_a_limit(start, answer):
    async def work():
        async with case() as c:
            reader, writer = await asyncio.open_connection(
                *c.url.removeprefix("http://").split(":")
            )
            for data in (start[:20], start[20:], b"x" * (http_protocol.MAX_HEAD + 1)):
                writer.write(data)
                await asyncio.sleep(0.02)
            found = await asyncio.wait_for(reader.read(), 5)
            assert found.count(b"HTTP/1.1") == start.count(b"GET") and answer in found
            writer.close()

    run(work())


def test_offer_of_http_2_is_answered_in_http_1_1():
    async def work():
        body = json.dumps({"model": MODEL, "messages": MESSAGES}).encode()
        offer = b"connection: upgrade, http2-settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABk"
        async with case() as c:
            reader, writer = await asyncio.open_connection(
                *c.url.removeprefix("http://").split(":")
            )
            for _ in range(2):
                for part in post(body, offer).partition(b"grade"):
                    writer.write(part)
                    await asyncio.sleep(0.02)
                assert b" 200 " in await reader.readline()
                head = await reader.readuntil(b"\r\n\r\n")
                size = int(head.lower().partition(b"content-length: ")[2].split(b"\r")[0])
                assert b"a a a a a" in await reader.readexactly(size)
            writer.close()

    run(work())


def test_other_origins_may_not_unless_they_are_named():
    async def work():
        ask = {"origin": "https://page.example", "access-control-request-method": "POST"}
        async with case() as c:
            answer = await c.http.options("/v1/models", headers=ask)
            assert "access-control-allow-origin" not in answer.headers
        async with case(cors_origins=["https://page.example"]) as c:
            answer = await c.http.options("/v1/models", headers=ask)
            assert answer.headers["access-control-allow-origin"] == "https://page.example"

    run(work())


def deep(levels):
    return b'{"model":"toy","messages":' + b"[" * levels + b"]" * levels + b"}"


MESSAGES = [{"role": "user", "content": "a"}]
WRONG = [
    b"",
    b"{",
    b"[]",
    b"null",
    b'"text"',
    b'{"model": NaN}',
    b"\xff\xfe{}",
    b'{"model": "toy", "messages": [{"role": "user", "content": "\xff"}]}',
    b'{"model": "toy", "messages": [{"role": "user", "content": "\\ud800"}]}',
    b'{"model": "toy", "max_tokens": 1' + b"0" * 5000 + b', "messages": []}',
    deep(100),
    deep(100_000),
    *[
        json.dumps({"model": MODEL, "messages": MESSAGES, **change}).encode()
        for change in (
            {"messages": []},
            {"messages": "a"},
            {"messages": [5]},
            {"messages": [{"role": "king", "content": "a"}]},
            {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
            {"messages": [{"role": "user", "content": {"a": 1}}]},
            {"messages": MESSAGES * 1001},
            {"model": 7},
            {"model": ""},
            {"model": "x" * 300},
            {"model": "other"},
            {"max_tokens": 0},
            {"max_tokens": "5"},
            {"max_tokens": 10**30},
            {"n_predict": "many"},
            {"max_new_tokens": 1.5},
            {"kv_transfer_params": {"remote_host": "10.0.0.1"}},
            {"custom_logit_processor": "code"},
            {"n": 1000},
            {"n": -1},
            {"temperature": 3},
            {"temperature": "hot"},
            {"top_p": -1},
            {"stop": ["a"] * 99},
            {"stop": 5},
            {"stream": "yes"},
            {"stream_options": {"include_usage": 3}},
            {"seed": 2**70},
            {"tools": [{}]},
            {"tools": [{"type": "function", "function": {}}]},
            {"logit_bias": {"1": 999}},
            {"response_format": "json"},
        )
    ],
]


def test_bodies_that_nobody_should_send_get_a_4xx():
    async def work():
        async with case() as c:
            for body in WRONG:
                answer = await c.http.post("/v1/chat/completions", content=body)
                assert 400 <= answer.status_code < 500, (body[:80], answer.text)
                assert answer.json()["error"]["message"], body[:80]
            assert c.fakes[0].requests == [], "none of them reached an engine"
            for prompt in (
                5,
                [],
                [[]],
                [[1], []],
                [[1], "a"],
                ["a", 1],
                {"a": 1},
                None,
                [-1],
                [[-1]],
            ):
                body = {"model": MODEL, "prompt": prompt}
                assert (await c.http.post("/v1/completions", json=body)).status_code == 400
            assert (await c.http.get("/v1/none")).status_code == 404
            assert (await c.http.get("/v1/completions")).status_code == 405

    run(work())


def test_random_damage_to_a_good_body_is_never_a_5xx():
    async def work():
        rng = random.Random(7)
        good = json.dumps({"model": MODEL, "messages": MESSAGES, "max_tokens": 5}).encode()
        async with case() as c:
            for _ in range(120):
                body = bytearray(good)
                for _ in range(rng.randint(1, 4)):
                    body[rng.randrange(len(body))] = rng.randrange(256)
                answer = await c.http.post("/v1/chat/completions", content=bytes(body))
                assert answer.status_code < 500, bytes(body)

    run(work())


def test_a_body_of_100_mb_is_refused_and_not_kept():
    async def work():
        async def pieces():
            for _ in range(100):
                yield b"x" * (1 << 20)

        async with case() as c:
            answer = await c.http.post("/v1/chat/completions", content=pieces())
            assert answer.status_code == 413
            answer = await c.http.post("/v1/chat/completions", content=b"x" * (33 << 20))
            assert answer.status_code == 413

    run(work())


def test_a_body_that_does_not_come_is_given_up():
    async def work():
        async with case(timeouts={"body_s": 0.1}) as c:
            host, port = c.url.removeprefix("http://").split(":")
            reader, writer = await asyncio.open_connection(host, port)
            writer.write(
                b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\n\r\n{"
            )
            assert b"408" in await reader.readline()
            writer.close()

    run(work())


def test_the_openapi_document_describes_what_is_checked():
    async def work():
        async with case() as c:
            document = (await c.http.get("/openapi.json")).json()
            text = json.dumps(document)
            assert "$defs" not in text and {"/v1/models", "/health/ready"} <= set(document["paths"])
            schema = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]
            assert "messages" in schema["application/json"]["schema"]["required"]

    run(work())


@pytest.mark.parametrize(
    "policy", ["round_robin", "least_outstanding", "power_of_two", "prefix_affinity"]
)
def test_every_policy_answers_and_affinity_keeps_prefixes_together(policy):
    async def work():
        async with case(FakeServer(), FakeServer(), FakeServer(), policy=policy) as c:
            used = {}
            for i in range(24):
                messages = [{"role": "user", "content": f"conversation {i % 4}"}]
                messages += [{"role": "assistant", "content": f"turn {i}"}, *messages]
                body = {"model": MODEL, "messages": messages}
                answer = await c.http.post("/v1/chat/completions", json=body)
                assert answer.status_code == 200
                used.setdefault(i % 4, set()).add(answer.headers["x-gateway-backend"])
            if policy == "prefix_affinity":
                assert all(len(backends) == 1 for backends in used.values())
            if policy == "round_robin":
                assert all(len(fake.requests) == 8 for fake in c.fakes)

    run(work())
