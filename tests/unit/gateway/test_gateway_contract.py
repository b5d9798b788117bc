"""The contract with clients that exist (fields, paths, headers, browsers) and with engines that need keys."""

import json
import random

import pytest
from fake_openai import FakeServer
from gateway_case import MODEL, case
from misbehaving_engine import Engine
from test_gateway_relay import run

from utils.gateway import balance
from utils.gateway.auth import digest
from utils.gateway.schemas import IMAGE_TOKENS, parse
from utils.gateway.settings import Affinity, GatewayLimits, SettingsError, load_settings

MESSAGES = [{"role": "user", "content": "a"}]
LONG = {"every_s": 60.0, "circuit_open_s": 60.0}
LIMITS = GatewayLimits(max_tokens=100)


def parsed(api, session="", **fields):
    body = json.dumps({"model": MODEL, **fields}).encode()
    return parse(api, body, LIMITS, Affinity(), session)


def sent(request):
    """The fields that an engine gets."""
    return json.loads(request.body_for(MODEL))


@pytest.mark.parametrize(
    "field, asked, expected",
    [
        ("max_tokens", 32000, 100),
        ("max_completion_tokens", 100_000, 100),
        ("max_new_tokens", 101, 100),
        ("n_predict", -1, 100),
        ("n_predict", 50, 50),
        ("max_tokens", 100, 100),
    ],
)
@pytest.mark.parametrize(
    "api, prompt", [("chat", {"messages": MESSAGES}), ("completions", {"prompt": "a"})]
)
def test_length_of_answer_is_clamped_under_each_name(api, prompt, field, asked, expected):
    request = parsed(api, **prompt, **{field: asked})
    assert sent(request)[field] == expected
    assert request.estimate == request.prompt_estimate + min(expected, 100)


def test_body_without_change_reaches_engine_as_it_came():
    request = parsed("chat", messages=MESSAGES, max_tokens=100, top_k=7)
    assert request.body_for(MODEL) is request.body


@pytest.mark.parametrize(
    "field", ["kv_transfer_params", "bootstrap_host", "custom_logit_processor"]
)
def test_field_for_operators_is_refused(field):
    with pytest.raises(Exception, match=f"{field}: this field is for the engine's operator"):
        parsed("chat", messages=MESSAGES, **{field: "x"})


@pytest.mark.parametrize(
    "prompt, tokens, count",
    [
        ("abcd" * 3, 3, 1),
        (["abcd", "abcdefgh"], 3, 2),
        ([1, 2, 3], 3, 1),
        ([[1, 2, 3], [4]], 4, 2),
    ],
)
def test_prompt_may_be_texts_or_token_ids(prompt, tokens, count):
    for api, field in (("completions", "prompt"), ("embeddings", "input")):
        request = parsed(api, **{field: prompt})
        assert request.prompt_estimate == tokens
        answers = 0 if api == "embeddings" else 100 * count
        assert request.estimate == tokens + answers


def test_image_counts_as_tokens_and_not_as_characters():
    data = "data:image/png;base64," + "A" * 400_000
    content = [{"type": "text", "text": "what?"}, {"type": "image_url", "image_url": {"url": data}}]
    request = parsed("chat", messages=[{"role": "user", "content": content}])
    assert request.prompt_estimate == IMAGE_TOKENS + 5 / 4


def test_body_of_images_passes():
    async def work():
        async with case() as c:
            answer = await c.ask("A" * 3_000_000)
            assert answer.status_code == 200
            assert len(c.fakes[0].requests[0]["messages"][0]["content"]) == 3_000_000

    run(work())


# Affinity


def chat(number, turns=0, system="Rules. " * 100):
    messages = [{"role": "system", "content": system}]
    messages.append({"role": "user", "content": f"conversation {number}"})
    messages += [{"role": "assistant", "content": "yes"}, {"role": "user", "content": "on"}] * turns
    return messages


def test_affinity_key_tells_conversations_with_one_system_prompt_apart():
    keys = {parsed("chat", messages=chat(number)).affinity_key for number in range(64)}
    assert len(keys) == 64


def test_affinity_key_stays_for_all_turns_of_conversation():
    keys = {parsed("chat", messages=chat(7, turns)).affinity_key for turns in range(8)}
    assert len(keys) == 1


def test_affinity_key_is_session_then_cache_key_then_text():
    fields = {"messages": chat(1), "prompt_cache_key": "mine"}
    assert parsed("chat", "session 5", **fields).affinity_key == "session 5"
    assert parsed("chat", **fields).affinity_key == "mine"


def test_affinity_key_knows_system_prompts_of_every_api():
    first = {"input": "hello", "instructions": "Rules. " * 100}
    second = {**first, "input": "good evening"}
    assert parsed("responses", **first).affinity_key != parsed("responses", **second).affinity_key
    anthropic = [
        parsed(
            "messages",
            max_tokens=5,
            system="Rules. " * 100,
            messages=[{"role": "user", "content": text}],
        )
        for text in ("hello", "good evening")
    ]
    assert anthropic[0].affinity_key != anthropic[1].affinity_key


@pytest.mark.parametrize("in_flight, least", [(4, 0.7), (16, 0.5), (48, 0.7)])
def test_conversations_with_one_system_prompt_stay_on_their_replica(in_flight, least):
    """64 conversations of 8 turns on 4 replicas, with the real functions; by chance a quarter would stay."""
    rng, names = random.Random(3), ["a", "b", "c", "d"]
    ring, outstanding = balance.make_ring(names), dict.fromkeys(names, 0)
    running, home, stayed = [], {}, 0
    turns = [number for _ in range(8) for number in rng.sample(range(64), 64)]
    for number in turns:
        if len(running) == in_flight:
            outstanding[running.pop(rng.randrange(in_flight))] -= 1
        place = balance.point(parsed("chat", messages=chat(number)).affinity_key)
        chosen = balance.bounded_hash(ring, outstanding, place, 1.25)
        outstanding[chosen] += 1
        running.append(chosen)
        stayed += home.get(number) == chosen
        home[number] = chosen
    assert stayed / (len(turns) - 64) >= least


def test_session_header_keeps_requests_on_one_replica():
    async def work():
        async with case(FakeServer(), FakeServer(), FakeServer(), policy="prefix_affinity") as c:
            body = {"model": MODEL, "messages": MESSAGES}
            used = set()
            for text in "abcdefgh":
                body["messages"] = [{"role": "user", "content": text}]
                headers = {"x-session-id": "one"}
                answer = await c.http.post("/v1/chat/completions", json=body, headers=headers)
                used.add(answer.headers["x-gateway-backend"])
            assert len(used) == 1

    run(work())


# Paths and methods


def test_head_is_answered_on_health_paths():
    async def work():
        async with case() as c:
            for path in ("/health/live", "/health/ready"):
                answer = await c.http.head(path)
                assert answer.status_code == 200, path
                assert answer.content == b""

    run(work())


def test_path_without_v1_gets_hint():
    async def work():
        async with case() as c:
            for path in ("/chat/completions", "/embeddings", "/responses"):
                answer = await c.http.post(path, json={})
                assert answer.status_code == 404
                message = answer.json()["error"]["message"]
                assert message.endswith(f"Did you mean /v1{path}?")
            assert "mean" not in (await c.http.get("/none")).text

    run(work())


# Browsers


HOSTS = [
    ("evil.example:8080", 403),
    ("localhost.evil.example", 403),
    ("127.0.0.1.evil.example", 403),
    ("", 403),
    ("localhost:8080", 200),
    ("LOCALHOST.", 200),
    ("127.0.0.1:1", 200),
    ("[::1]:8080", 200),
    ("192.168.1.7:8080", 200),
    ("gateway", 200),
]


def test_rebound_name_is_refused_without_keys():
    async def work():
        async with case(hosts=["gateway"]) as c:
            for host, status in HOSTS:
                body = {"model": MODEL, "messages": MESSAGES}
                headers = {"host": host, "origin": f"http://{host}"}
                answers = [await c.http.post("/v1/chat/completions", json=body, headers=headers)]
                answers += [await c.http.get(path, headers=headers) for path in ("/v1/models", "/")]
                assert [answer.status_code for answer in answers] == [status] * 3, host
            assert (await c.http.get("/health/live", headers={"host": "probe"})).status_code == 200

    run(work())


def test_any_name_is_served_with_keys():
    async def work():
        async with case(keys=[{"name": "k", "sha256": digest("gw-k")}]) as c:
            headers = {"host": "llm.example", "authorization": "Bearer gw-k"}
            assert (await c.http.get("/v1/models", headers=headers)).status_code == 200

    run(work())


def test_openais_browser_package_passes_preflight_of_named_origin():
    async def work():
        async with case(cors_origins=["https://page.example"]) as c:
            asked = "authorization,content-type,x-stainless-lang,x-stainless-retry-count"
            headers = {
                "origin": "https://page.example",
                "access-control-request-method": "POST",
                "access-control-request-headers": asked,
            }
            answer = await c.http.options("/v1/chat/completions", headers=headers)
            assert answer.status_code == 200, answer.text
            allowed = answer.headers["access-control-allow-headers"].replace(" ", "").split(",")
            assert set(asked.split(",")) <= set(allowed)
            other = await c.http.options(
                "/v1/chat/completions", headers={**headers, "origin": "https://evil.example"}
            )
            assert "access-control-allow-origin" not in other.headers

    run(work())


# Engines with keys


def test_engine_gets_its_own_key_and_not_the_clients(tmp_path):
    (tmp_path / "key").write_text("engine-key\n")

    async def work():
        backend = {"api_key_file": str(tmp_path / "key")}
        async with case(keys=[{"name": "k", "sha256": digest("gw-k")}], backend=backend) as c:
            body = {"model": MODEL, "messages": MESSAGES}
            headers = {"authorization": "Bearer gw-k"}
            answer = await c.http.post("/v1/chat/completions", json=body, headers=headers)
            assert answer.status_code == 200
            assert c.fakes[0].headers[-1]["authorization"] == "bearer engine-key"

    run(work())


@pytest.mark.parametrize("text", [None, "", "\n", "two\nlines", "kéy"])
def test_file_without_engines_key_is_refused(tmp_path, text):
    path = tmp_path / "key"
    if text is not None:
        path.write_text(text)
    backend = {"name": "a", "engine": "vllm", "url": "http://h:1", "api_key_file": str(path)}
    with pytest.raises(SettingsError, match="api_key_file"):
        load_settings(models=[{"name": "m", "backends": [backend]}], allow_anonymous=True)


# APIs that some engines lack


def typed(kind, **fields):
    """An event of the Responses or Messages API."""
    return f"event: {kind}\ndata: {json.dumps({'type': kind, **fields})}\n\n".encode()


RESPONSES = [
    typed("response.created", response={"id": "r", "error": None, "usage": None}),
    typed("response.output_text.delta", delta="one "),
    typed("response.output_text.delta", delta="two"),
    typed("response.completed", response={"usage": {"input_tokens": 7, "output_tokens": 2}}),
]
ANTHROPIC = [
    typed("message_start", message={"usage": {"input_tokens": 7, "output_tokens": 1}}),
    typed("ping"),
    typed("content_block_delta", delta={"type": "text_delta", "text": "one two"}),
    typed("message_delta", delta={"stop_reason": "end_turn"}, usage={"output_tokens": 2}),
    typed("message_stop"),
]
STREAMS = [
    ("/v1/responses", {"input": "hello"}, RESPONSES),
    ("/v1/messages", {"messages": MESSAGES, "max_tokens": 9}, ANTHROPIC),
]


@pytest.mark.parametrize("path, fields, events", STREAMS, ids=["responses", "messages"])
def test_stream_of_other_api_passes_whole_and_is_counted(path, fields, events):
    async def work():
        async with case(Engine(parts=events), keys=[{"name": "k", "sha256": digest("gw-k")}]) as c:
            body = {"model": MODEL, "stream": True, **fields}
            answer = await c.http.post(path, json=body, headers={"x-api-key": "gw-k"})
            assert answer.status_code == 200, answer.text
            assert answer.content == b"".join(events)
            labels = {"key": "k", "model": MODEL}
            assert c.metric("gateway_key_tokens_total", kind="prompt", **labels) == 7
            assert c.metric("gateway_key_tokens_total", kind="completion", **labels) == 2
            sent = {"route": path, "model": MODEL, "backend": "b0", "outcome": "ok"}
            assert c.metric("gateway_requests_total", **sent) == 1

    run(work())


@pytest.mark.parametrize("path, fields, events", STREAMS, ids=["responses", "messages"])
def test_stream_of_other_api_that_breaks_off_says_so(path, fields, events):
    async def work():
        async with case(Engine(parts=events[:-1])) as c:
            body = {"model": MODEL, "stream": True, **fields}
            answer = await c.http.post(path, json=body)
            assert b'"error"' in answer.content.rpartition(b"data: ")[2]

    run(work())


@pytest.mark.parametrize("status", [404, 405, 501])
@pytest.mark.parametrize(
    "path, fields", [(p, f) for p, f, _ in STREAMS] + [("/v1/embeddings", {"input": "a"})]
)
def test_engine_without_an_api_gets_no_blame_and_client_a_hint(path, fields, status):
    async def work():
        refusal = (status, {"error": {"message": "not found"}})
        async with case(Engine(answer=refusal), health=LONG) as c:
            for _ in range(4):
                answer = await c.http.post(path, json={"model": MODEL, **fields})
                assert answer.status_code == 404
                assert f"The engine b0 doesn't offer {path}." in answer.json()["error"]["message"]
            assert c.gateway.pools[MODEL].backends[0].circuit.failures == 0

    run(work())


def test_request_goes_to_engine_that_has_the_api():
    async def work():
        vectors = (200, {"data": [{"embedding": [0.5]}], "usage": {"prompt_tokens": 3}})
        lacks = Engine(answer=(404, {"error": {"message": "not found"}}))
        async with case(lacks, Engine(answer=vectors), policy="round_robin", health=LONG) as c:
            for _ in range(4):
                answer = await c.http.post("/v1/embeddings", json={"model": MODEL, "input": "a"})
                assert answer.status_code == 200
                assert answer.json()["data"][0]["embedding"] == [0.5]

    run(work())


# Operators


def test_metrics_and_openapi_are_only_on_private_port():
    async def work():
        async with case(private={"port": 0}) as c:
            port = c.server.private.servers[0].sockets[0].getsockname()[1]
            for path in ("/metrics", "/openapi.json"):
                assert (await c.http.get(path)).status_code == 404
                private = await c.http.get(f"http://127.0.0.1:{port}{path}")
                assert private.status_code == 200
            rebound = {"host": "evil.example"}
            refused = await c.http.post(f"http://127.0.0.1:{port}/reload", headers=rebound)
            assert refused.status_code == 403
            document = (await c.http.get(f"http://127.0.0.1:{port}/openapi.json")).json()
            assert "/v1/chat/completions" in document["paths"]

    run(work())


def test_metrics_need_key_without_private_port():
    async def work():
        async with case(keys=[{"name": "k", "sha256": digest("gw-k")}]) as c:
            for path in ("/metrics", "/openapi.json"):
                assert (await c.http.get(path)).status_code == 401
                answer = await c.http.get(path, headers={"authorization": "Bearer gw-k"})
                assert answer.status_code == 200

    run(work())
