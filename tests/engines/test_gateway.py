"""The gateway in front of a real engine: llama.cpp, which starts in a second."""

import time

import httpx
import openai
import pytest
from prometheus import PANELS, load_on, needs_prometheus, watching

from utils.gateway.local_gateway import models_of, serve
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
        prometheus.all_have_data([*PANELS, "rate(llamacpp:tokens_predicted_total[1m]) > 0"])
        assert [value for _, value in prometheus.query("up")] == [1.0, 1.0]
        assert not prometheus.get("/alerts")["alerts"]
