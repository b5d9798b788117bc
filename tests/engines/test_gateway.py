"""The gateway in front of a real engine: llama.cpp, which starts in a second."""

import asyncio
import json
import time

import httpx
import openai
import pytest
from prometheus import PANELS, load_on, needs_prometheus, watching

from utils.gateway.backend import PROBES, Backend
from utils.gateway.local_gateway import models_of, serve
from utils.gateway.metrics import Metrics
from utils.gateway.settings import BackendSettings, Health
from utils.http.sse import DONE, SSEParser
from utils.telemetry.snapshot import scrape

pytestmark = pytest.mark.engine
MESSAGES = [{"role": "user", "content": "Write a Python class Stack with push and pop."}]


@pytest.fixture(scope="module")
def gateway(llama_cpp):
    with serve(models_of({"tiny": [llama_cpp]})) as running:
        yield running


@pytest.fixture
def client(gateway):
    http = httpx.Client(trust_env=False)
    return openai.OpenAI(base_url=f"{gateway.base_url}/v1", api_key="none", http_client=http)


def test_the_answer_is_the_engines_own(llama_cpp, client):
    ask = {"model": "tiny", "messages": MESSAGES, "max_tokens": 48, "temperature": 0}
    whole = client.chat.completions.create(**ask)
    options = {"include_usage": True}
    parts = list(client.chat.completions.create(**ask, stream=True, stream_options=options))
    text = "".join(part.choices[0].delta.content or "" for part in parts if part.choices)
    direct = httpx.post(
        f"{llama_cpp.base_url}/v1/chat/completions",
        json={**ask, "model": llama_cpp.model},
        timeout=60,
        trust_env=False,
    ).json()
    assert text == whole.choices[0].message.content == direct["choices"][0]["message"]["content"]
    assert parts[-1].usage.completion_tokens == whole.usage.completion_tokens > 0


def test_wrong_requests_are_refused_before_an_engine_fails_on_them(client):
    for wrong in (
        {"messages": [{"role": "user", "content": [{"type": "text"}]}]},
        {"messages": MESSAGES, "tools": [{}]},
        {"messages": MESSAGES, "n": 99},
    ):
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(model="tiny", **wrong)


def test_a_client_that_leaves_stops_the_engine(llama_cpp, client):
    stream = client.completions.create(
        model="tiny",
        prompt="Once",
        max_tokens=1500,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    next(iter(stream))
    assert scrape(llama_cpp).running == 1
    stream.close()
    deadline = time.monotonic() + 5
    while scrape(llama_cpp).running:
        assert time.monotonic() < deadline, "the engine still works for nobody"
        time.sleep(0.05)


@needs_prometheus
def test_every_panel_has_data_while_all_is_well(llama_cpp, gateway, tmp_path):
    targets = {"gateway": [gateway.base_url], "engines": [llama_cpp.base_url]}
    with load_on(gateway.base_url, "tiny"), watching(tmp_path, **targets) as prometheus:
        # llama.cpp tells neither its cache's use nor preemptions, so two panels are for other engines only.
        panels = [panel for panel in PANELS if "vllm:" not in panel or "llamacpp:" in panel]
        assert len(panels) == len(PANELS) - 2
        prometheus.all_have_data([*panels, "rate(llamacpp:tokens_predicted_total[1m]) > 0"])
        assert [value for _, value in prometheus.query("up")] == [1.0, 1.0]
        firing = {alert["labels"]["alertname"] for alert in prometheus.get("/alerts")["alerts"]}
        assert firing <= {"Watchdog"}, "only the one that always fires"


def test_timings_of_engine_reach_client_that_asks_no_usage(gateway):
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 8, "stream": True}
    url = f"{gateway.base_url}/v1/chat/completions"
    chunks = chunks_of(httpx.post(url, json=body, timeout=60, trust_env=False))
    assert not any(chunk.get("usage") for chunk in chunks)
    assert all(chunk["choices"] for chunk in chunks)
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    assert chunks[-1]["timings"]["predicted_n"] == 8


def test_pings_of_engine_are_no_first_token(gateway):
    long = [{"role": "user", "content": "word " * 800}]
    body = {"model": "tiny", "messages": long, "max_tokens": 4, "stream": True}
    url = f"{gateway.base_url}/v1/chat/completions"
    found = []
    for more in ({}, {"sse_ping_interval": 1, "cache_prompt": False}):
        before = ttft_sum(gateway)
        answer = httpx.post(url, json=body | more, timeout=60, trust_env=False)
        assert len(chunks_of(answer)) >= 4
        found.append(ttft_sum(gateway) - before)
    # The second prompt isn't in the cache, so its first token can't come within a ping's millisecond.
    assert found[1] > 0.01


def test_probe_of_gateway_is_answered(llama_cpp):
    backend = models_of({"tiny": [llama_cpp]})[0]["backends"][0]
    settings = BackendSettings(**backend)
    health = Health(probe_s=30)

    async def ask():
        one = Backend("tiny", settings, health, Metrics())
        try:
            for api in PROBES:
                one._failed_api = api
                assert await one._one_token() is True
            heads = one._heads
            heads["completions"] = heads["completions"].replace(b"/v1/completions", b"/v1/none")
            one._failed_api = "completions"
            assert await one._one_token() is False
        finally:
            await one.close()

    asyncio.run(ask())


def chunks_of(answer):
    assert answer.status_code == 200, answer.text
    found = [event.data for event in SSEParser().feed(answer.content)]
    assert found[-1] == DONE
    return [json.loads(data) for data in found[:-1]]


def ttft_sum(gateway):
    text = gateway.metrics()
    lines = [line for line in text.splitlines() if line.startswith("gateway_ttft_seconds_sum{")]
    return sum(float(line.rpartition(" ")[2]) for line in lines)
