"""The baseline server of lab 3.3.1 with its model on the pretended GPU, in float32 and bfloat16."""

import json

import pytest
from starlette.testclient import TestClient

from utils.engines.hf_server import Baseline, make_app
from utils.tinymodel.hub import TINY

CHAT = {"messages": [{"role": "user", "content": "What is a KV cache?"}], "max_tokens": 4}


def answer(device):
    baseline = Baseline(str(TINY), "float32", 128, device)
    client = TestClient(make_app(baseline, "tiny"))
    assert client.get("/version").json()["device"] == baseline.device
    whole = client.post("/v1/chat/completions", json=CHAT).json()
    stream = client.post("/v1/chat/completions", json={**CHAT, "stream": True}).text
    events = [json.loads(line[6:]) for line in stream.splitlines() if line.startswith("data: {")]
    streamed = "".join(event["choices"][0]["delta"].get("content", "") for event in events)
    return baseline, whole["choices"][0]["message"]["content"], streamed


@pytest.fixture(scope="module")
def expected():
    baseline, text, _ = answer("cpu")
    assert baseline.device == "cpu"
    return text


def test_baseline_answers_same_on_gpu(expected, pretended):
    baseline, text, streamed = answer("cuda")
    assert baseline.device == "cuda"
    assert baseline.model.device.type == "cuda"
    assert text == expected
    assert streamed == text


def test_baseline_samples_in_bfloat16_on_gpu(pretended):
    baseline = Baseline(str(TINY), "bfloat16", 128, "cuda")
    body = {"prompt": "A cache", "max_tokens": 3, "temperature": 0.8, "ignore_eos": True}
    reply = TestClient(make_app(baseline, "tiny")).post("/v1/completions", json=body).json()
    assert reply["usage"]["completion_tokens"] == 3
