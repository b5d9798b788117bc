"""Ollama: its API as its documents have it (`fake_ollama.py`), and the real program where it is installed."""

import asyncio
import dataclasses
import re
import sys
from pathlib import Path

import pytest
from fake_ollama import FakeOllama
from gateway_case import case

from utils.benchmark import ClosedLoop, Request, run
from utils.benchmark.client import Client
from utils.engines import ENGINES, UnsupportedOption, launch, ollama, ollama_api, structured
from utils.engines.ollama_api import TINY, OllamaError, connect
from utils.engines.spec import Local, ServeOptions
from utils.loopback import get
from utils.profiles import ROOT
from utils.tinymodel.hub import TINY as TINY_MODEL

GGUF = TINY_MODEL / "tiny-Q8_0.gguf"
FAKE = ROOT / "tests" / "support" / "fake_ollama.py"
OPTIONS = ServeOptions(
    model="qwen3:8b-fp16",
    served_name="qwen3:8b-fp16",
    host="127.0.0.1",
    port=11434,
    device="cuda",
    dtype="bfloat16",
    context_length=8192,
    max_sequences=128,
    kv_cache_gib=1.0,
)


@pytest.fixture
def fake():
    with FakeOllama() as server:
        yield server


@pytest.fixture
def tiny(fake):
    """The fake with the tiny model."""
    fake.models["tiny:latest"] = {}
    return fake


def sent(url, request):
    """The trace of one request to the model `tiny`."""

    async def one():
        async with Client(url, "tiny") as client:
            return await client.send(request)

    return asyncio.run(one())


def loaded(url):
    return [model["name"] for model in get(f"{url}/api/ps").json()["models"]]


def test_settings_are_variables_and_the_kv_type_brings_flash_attention():
    settings = ENGINES["ollama"].environment(OPTIONS)
    assert settings["OLLAMA_NUM_PARALLEL"] == "8", "each slot reserves a whole context"
    assert settings["OLLAMA_CONTEXT_LENGTH"] == "8192"
    assert settings["OLLAMA_KEEP_ALIVE"] == "-1"
    assert "OLLAMA_FLASH_ATTENTION" not in settings
    quantised = ollama.environment(
        dataclasses.replace(OPTIONS, kv_cache_dtype="q8_0", max_sequences=2)
    )
    assert quantised["OLLAMA_KV_CACHE_TYPE"] == "q8_0"
    assert quantised["OLLAMA_FLASH_ATTENTION"] == "1"
    assert quantised["OLLAMA_NUM_PARALLEL"] == "2"
    local = ollama.local_environment(dataclasses.replace(OPTIONS, model=str(GGUF), port=4711))
    assert local["OLLAMA_HOST"] == "127.0.0.1:4711"
    assert local["OLLAMA_MODELS"].endswith(".run/ollama")
    assert "OLLAMA_MODELS" not in ollama.local_environment(OPTIONS)


@pytest.mark.parametrize(
    ("model", "choices", "words"),
    [
        ("m", {"kv_cache_dtype": "fp8"}, r"'fp8': write q8_0 or q4_0"),
        (str(TINY_MODEL), {}, "takes a GGUF file"),
    ],
)
def test_ignored_choices_and_folders_are_refused(model, choices, words):
    with pytest.raises(UnsupportedOption, match=words):
        ollama.refuse(model, choices, ())
    ollama.refuse("qwen3:8b-fp16", {"kv_cache_dtype": "q4_0"}, ())


def test_a_regex_which_ollama_would_ignore_is_refused():
    with pytest.raises(UnsupportedOption, match="Ollama has no 'regex' constraint"):
        structured.request_fields(ollama.SPEC, {"regex": "a+"})
    assert "response_format" in structured.request_fields(ollama.SPEC, {"json_schema": {}})


def test_a_model_is_created_from_a_gguf_which_is_sent_once(fake):
    text = []
    with connect(fake.url) as server:
        assert not ollama_api.has(server, "tiny")
        ollama_api.create(server, "tiny", GGUF, TINY, text.append)
        ollama_api.create(server, "twin", GGUF, {}, text.append)
        assert ollama_api.has(server, "tiny")
        ollama_api.load(server, "tiny")
        with pytest.raises(OllamaError, match=r"HTTP 404: model 'nobody' not found"):
            ollama_api.load(server, "nobody")
    assert list(fake.blobs.values()) == [GGUF.stat().st_size]
    assert [line for line in text if line.startswith("sending")] == [text[0]]
    assert fake.models["tiny:latest"]["files"].keys() == {"tiny-Q8_0.gguf"}
    assert fake.models["tiny:latest"]["parameters"]["stop"] == ["<|im_end|>"]
    assert "template" not in fake.models["twin:latest"]
    assert "creating tiny: success" in text
    assert loaded(fake.url) == ["tiny:latest"]


def test_a_pull_reports_progress_and_why_it_failed(fake):
    text = []
    with connect(fake.url) as server:
        ollama_api.pull(server, "qwen3:8b-fp16", text.append)
        assert "pulling qwen3:8b-fp16: 1.0 of 4.0 GB so far" in text
        assert text[-1] == "pulling qwen3:8b-fp16: success"
        with pytest.raises(OllamaError, match="file does not exist"):
            ollama_api.pull(server, "nobody:1b", text.append)
        fake.breaks_off = True
        with pytest.raises(OllamaError, match=r"ended at 'pulling abc'. Try again"):
            ollama_api.pull(server, "qwen3:8b-fp16", text.append)


def test_an_ollama_that_does_not_run_is_named():
    with connect("http://127.0.0.1:9") as nobody:
        with pytest.raises(OllamaError, match=r"http://127.0.0.1:9.* ollama serve"):
            ollama_api.has(nobody, "tiny")
        with pytest.raises(OllamaError, match="ollama serve"):
            ollama_api.pull(nobody, "tiny", print)


@pytest.mark.parametrize("stream", [True, False])
def test_its_openai_api_is_measured_like_any_other(tiny, stream):
    trace = sent(tiny.url, Request("one two three four", max_tokens=3, stream=stream))
    assert trace.error is None
    assert trace.text == "one two three "
    assert trace.prompt_tokens == 26
    assert trace.completion_tokens == 3
    assert trace.finish_reason == "length"
    assert trace.engine_timings is None
    assert tiny.bodies[-1][0] == "/v1/chat/completions"


def test_its_thinking_counts_as_the_first_token_but_not_as_text(tiny):
    tiny.thinks = True
    trace = sent(tiny.url, Request("one two"))
    assert trace.reasoning == "so "
    assert trace.text == "one two "
    assert trace.first_token == trace.chunk_times[0]
    assert len(trace.chunk_times) == 3


def test_its_failures_are_in_traces(fake):
    assert "HTTP 404: model 'tiny' not found" in sent(fake.url, Request("a b")).error
    fake.models["tiny:latest"] = {}
    fake.fails_midway = True
    assert "ended without a finish_reason" in sent(fake.url, Request("a b")).error


def test_the_gateway_speaks_openai_to_it(tiny):
    async def main():
        async with case(tiny, backend={"engine": "ollama", "model": "tiny"}) as gateway:
            whole = (await gateway.ask("one two")).json()
            assert whole["choices"][0]["message"]["content"] == "one two "
            stream = await gateway.stream("one two")
            assert stream.endswith(b"data: [DONE]\n\n")
            assert b'"usage"' not in stream
            assert b'"content": "two "' in stream
            assert {path for path, _ in tiny.bodies} == {"/v1/chat/completions"}
            labels = {"model": "toy", "backend": "b0", "kind": "completion"}
            assert gateway.metric("gateway_tokens_total", **labels) == 2 + 2
            tiny.fails_midway = True
            assert b"broke off in the middle" in await gateway.stream("one two")
            tiny.models.clear()
            missing = await gateway.ask("x")
            assert missing.status_code == 502, (
                "the engine's configuration is at fault, not the client"
            )
            assert "not found" in missing.json()["error"]["message"]

    asyncio.run(main())


@pytest.fixture
def program(monkeypatch):
    """The fake as Ollama's program."""
    local = Local(
        command=(sys.executable, str(FAKE), "serve"),
        needs=FAKE,
        setup="",
        version="",
        environment=ollama.local_environment,
    )
    monkeypatch.setitem(ENGINES, "ollama", dataclasses.replace(ollama.SPEC, local=local))


def documented_request():
    """The code of QUICK_REFERENCE.md that asks Ollama for its own times."""
    text = Path(ROOT / "QUICK_REFERENCE.md").read_text()
    (code,) = [c for c in re.findall(r"```python\n(.*?)```", text, re.S) if "/api/generate" in c]
    return code


@pytest.mark.usefixtures("program")
def test_launch_creates_the_model_and_loads_it(capsys):
    with launch("ollama", "cpu", kv_cache_dtype="q8_0") as engine:
        assert engine.version == "0.24.0"
        assert engine.quantisation == "BF16"
        assert "OLLAMA_KV_CACHE_TYPE=q8_0" in engine.tail()
        assert loaded(engine.base_url) == ["tiny-BF16:latest"]
        exec(documented_request(), {"engine": engine})
        client = Client(engine.base_url, engine.model)
        result = run(client, [Request("x")], ClosedLoop(1), progress=False)
        assert result.traces[0].text == "x "
    text = capsys.readouterr().out
    assert "loading tiny-BF16" in text
    assert "200.0 tokens/s" in text


@pytest.mark.usefixtures("program")
def test_launch_pulls_a_library_model_under_the_name_that_clients_use():
    engine = launch("ollama", "cpu", model="hf.co/owner/model-GGUF:Q8_0", quiet=True)
    with engine:
        assert loaded(engine.base_url) == [engine.model]


@pytest.mark.usefixtures("program")
def test_a_model_that_cannot_be_pulled_ends_the_start():
    with pytest.raises(OllamaError, match="file does not exist"):
        launch("ollama", "cpu", model="nobody:1b", quiet=True)


@pytest.mark.skipif(ollama.PROGRAM is None, reason="Ollama's program is not installed")
def test_the_real_program_serves_the_tiny_model():
    options = {"context_length": 512, "max_sequences": 2}
    with launch("ollama", "cpu", model=GGUF, quiet=True, **options) as engine:
        requests = [Request("What is a KV cache?", max_tokens=8)] * 3
        client = Client(engine.base_url, engine.model)
        result = run(client, requests, ClosedLoop(2), progress=False)
        assert [trace.error for trace in result.traces] == [None] * 3
        assert all(trace.completion_tokens for trace in result.traces)
