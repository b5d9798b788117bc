"""The rehearsal's stand-in of an engine: its arguments, its answers, and what constrains them."""

import json
import re
import threading

import httpx
import jsonschema
import pytest
import stub_engine

FLAGS = {
    "--port": {"values": 1, "kind": "int"},
    "--dtype": {"values": 1, "choices": ["bfloat16", "float16"]},
    "--eager": {"values": 0},
    "--kv": {"values": "?"},
}


@pytest.mark.parametrize(
    ("line", "given", "places"),
    [
        ("model --port 1 --eager", {"--port": "1", "--eager": True}, ["model"]),
        ("--dtype=bfloat16 model", {"--dtype": "bfloat16"}, ["model"]),
        ("--eager model --kv", {"--eager": True, "--kv": True}, ["model"]),
    ],
)
def test_arguments_are_read(line, given, places):
    assert stub_engine.parse(line.split(), FLAGS) == (given, places)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("--unknown 1", "unrecognized arguments: --unknown"),
        ("--port", "expected one argument"),
        ("--port one", "invalid int value"),
        ("--dtype int4", "invalid choice"),
    ],
)
def test_wrong_argument_is_refused(line, reason):
    with pytest.raises(stub_engine.Refused, match=reason):
        stub_engine.parse(line.split(), FLAGS)


@pytest.mark.parametrize(
    "pattern", [r"(cat|dog)", r"[0-9]{3}-[a-f]+", r"\d+\.\d", r"a?b*c", r"[^a]x", r"yes|no"]
)
def test_text_matches_pattern(pattern):
    assert re.fullmatch(pattern, stub_engine.matching(pattern))


def test_value_obeys_schema():
    schema = {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 3},
            "kind": {"enum": ["a", "b"]},
            "sizes": {"type": "array", "items": {"type": "integer", "minimum": 4}, "minItems": 2},
        },
        "required": ["name", "kind", "sizes"],
    }
    jsonschema.validate(stub_engine.instance(schema), schema)


@pytest.fixture
def url():
    names = {"running": "x:running", "prefix_hits": "x:hits_total", "ttft": "x:ttft"}
    stub_engine.NAMES["vllm"] = names
    server = stub_engine.Server(("127.0.0.1", 0), stub_engine.Handler)
    server.engine = stub_engine.Engine("vllm", "tiny", 2, 64, 4, True, 0)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def test_second_request_finds_prefix_in_cache(url):
    body = {"model": "tiny", "prompt": "a b c d e f g h i", "max_tokens": 3}
    first, second = (httpx.post(f"{url}/v1/completions", json=body).json() for _ in "12")
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert second["usage"]["prompt_tokens_details"]["cached_tokens"] == 8
    assert second["choices"] == first["choices"]
    assert "x:hits_total 8" in httpx.get(f"{url}/metrics").text


def test_stream_has_a_chunk_for_each_token_and_the_usage(url):
    body = {
        "model": "tiny",
        "messages": [{"role": "user", "content": "Hello"}],
        "max_tokens": 5,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    text = httpx.post(f"{url}/v1/chat/completions", json=body).text
    events = [json.loads(line[6:]) for line in text.splitlines() if line.startswith("data: {")]
    chunks = [event for event in events if event["choices"] and event["choices"][0]["delta"]]
    assert len(chunks) == 5
    assert events[-1]["usage"]["completion_tokens"] == 5
    assert "data: [DONE]" in text


def test_prompt_beyond_context_is_refused(url):
    body = {"model": "tiny", "prompt": " ".join(map(str, range(70)))}
    assert httpx.post(f"{url}/v1/completions", json=body).status_code == 400
