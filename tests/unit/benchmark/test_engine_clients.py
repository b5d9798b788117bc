"""Requests that ask an engine to answer without thinking, and the API that it is measured with."""

from types import SimpleNamespace

import pytest

from utils.benchmark import Request
from utils.benchmark.engine_clients import benchmark_client, chat_client
from utils.engines import ENGINES

PLAIN = {"chat_template_kwargs": {"enable_thinking": False}}


def running(name):
    return SimpleNamespace(base_url="http://127.0.0.1:1", model="m", spec=ENGINES[name])


def body_of(client, **fields):
    return client.extra_body | Request("hi", **fields).body(client.model, client.api)


@pytest.mark.parametrize("name", [*ENGINES])
def test_chat_asks_for_no_thinking(name):
    fields = {"reasoning_effort": "none"} if name == "ollama" else PLAIN
    body = body_of(chat_client(running(name)))
    assert fields.items() <= body.items()
    assert body["messages"]


def test_request_may_ask_for_thoughts_itself():
    thinking = {"chat_template_kwargs": {"enable_thinking": True}}
    body = body_of(chat_client(running("vllm")), extra_body=thinking)
    assert body["chat_template_kwargs"] == {"enable_thinking": True}


@pytest.mark.parametrize("name", [*ENGINES])
def test_benchmark_measures_text_and_no_thoughts(name):
    """Ollama uses its chat template for completions too, and drops the thoughts."""
    body = body_of(benchmark_client(running(name)))
    if name == "ollama":
        assert body["reasoning_effort"] == "none"
        assert "messages" in body
    else:
        assert body["prompt"] == "hi"
        assert not PLAIN.items() <= body.items()
