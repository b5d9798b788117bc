"""Ollama: its API as its document has it (`fake_ollama.py`), and the real program where one is installed."""

import asyncio
import dataclasses
import json
import re
import sys

import pytest
from fake_ollama import FakeOllama
from gateway_case import case

from utils.benchmark import ClosedLoop, Request, make_record, run
from utils.benchmark.client import Client
from utils.benchmark.ollama_client import OllamaClient
from utils.benchmark.records import read_record, write_record
from utils.benchmark.timings import median_timings, read_timings
from utils.engines import ENGINES, UnsupportedOption, launch, ollama
from utils.engines.ollama_api import TINY, Modelfile, Ollama, OllamaError, with_tag
from utils.engines.ollama_chat import Answer, NotTranslatable, native_body
from utils.engines.spec import Local, ServeOptions
from utils.profiles import PROFILES, ROOT
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
def said():
    return []


def ask(text="one two three", **fields):
    return {"model": "tiny", "messages": [{"role": "user", "content": text}], **fields}


def test_settings_are_variables_and_the_kv_type_brings_flash_attention():
    settings = ENGINES["ollama"].environment(OPTIONS)
    assert settings["OLLAMA_NUM_PARALLEL"] == "8"  # each slot reserves a whole context
    assert (settings["OLLAMA_CONTEXT_LENGTH"], settings["OLLAMA_KEEP_ALIVE"]) == ("8192", "-1")
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
def test_what_it_would_ignore_or_cannot_take_is_refused(model, choices, words):
    with pytest.raises(UnsupportedOption, match=words):
        ollama.refuse(model, choices, ())
    ollama.refuse("qwen3:8b-fp16", {"kv_cache_dtype": "q4_0"}, ())


def test_a_model_is_made_from_a_gguf_which_is_sent_once(fake, said):
    with Ollama(fake.url) as server:
        assert server.version() == "0.24.0"
        assert not server.has("tiny")
        server.create("tiny", GGUF, TINY, said.append)
        server.create("twin", GGUF, TINY, said.append)
        assert server.has("tiny")
        assert server.models() == ["tiny:latest", "twin:latest"]
    assert list(fake.blobs.values()) == [GGUF.stat().st_size]
    assert [line for line in said if line.startswith("sending")] == [said[0]]
    made = fake.models["tiny:latest"]
    assert made["files"].keys() == {"tiny-Q8_0.gguf"}
    assert made["parameters"]["stop"] == ["<|im_end|>"]
    assert "creating tiny: success" in said


def test_the_modelfile_says_the_same_as_the_fields():
    text = TINY.text("./tiny-BF16.gguf")
    assert text.startswith(
        'FROM ./tiny-BF16.gguf\nPARAMETER temperature 0\nPARAMETER stop "<|im_end|>"\n'
    )
    assert re.search(r'TEMPLATE """(.*)"""\n\Z', text, re.S)[1] == TINY.fields()["template"]
    assert 'SYSTEM """Be brief."""' in Modelfile(system="Be brief.").text("llama3.2")
    assert Modelfile().fields() == {}


def test_a_pull_tells_how_far_it_is_and_breaks_off_in_words(fake, said):
    with Ollama(fake.url) as server:
        server.pull("qwen3:8b-fp16", said.append)
        assert "pulling qwen3:8b-fp16: 1.0 of 4.0 GB so far" in said
        assert said[-1] == "pulling qwen3:8b-fp16: success"
        with pytest.raises(OllamaError, match="file does not exist"):
            server.pull("nobody:1b", said.append)
        fake.breaks_off = True
        with pytest.raises(OllamaError, match=r"it ended at 'pulling abc'. Ask again"):
            server.pull("qwen3:8b-fp16", said.append)


def test_models_are_loaded_listed_and_unloaded(fake, said):
    with Ollama(fake.url) as server:
        server.create("tiny", GGUF, TINY, said.append)
        server.load("tiny", keep_alive="10m", num_ctx=1024)
        (loaded,) = server.loaded()
        assert (loaded.name, loaded.context_length, loaded.gpu_bytes) == ("tiny:latest", 1024, 0)
        assert fake.bodies[-1][1]["keep_alive"] == "10m"
        server.unload("tiny")
        assert server.loaded() == []
        server.copy("tiny", "again")
        server.delete("tiny")
        assert server.models() == ["again:latest"]
        assert "im_start" in server.show("again")["template"]
        with pytest.raises(OllamaError, match=r"404: model 'tiny:latest' not found"):
            server.delete("tiny")
        with pytest.raises(OllamaError, match=r"model 'tiny' not found"):
            server.load("tiny")


def test_what_is_no_ollama_and_what_is_nothing_are_told_apart(fake):
    with Ollama("http://127.0.0.1:9") as nobody, pytest.raises(OllamaError, match="ollama serve"):
        nobody.version()
    with Ollama(fake.url) as server, pytest.raises(OllamaError, match="Is it one"):
        server._ask("GET", "/")
    assert with_tag("hf.co/a/b") == "hf.co/a/b:latest"
    assert with_tag("a:1b") == "a:1b"


def test_openai_fields_become_options():
    native = native_body(
        ask(
            max_tokens=7,
            temperature=0,
            seed=3,
            stop="\n",
            stream=True,
            keep_alive=-1,
            options={"num_ctx": 512, "seed": 4},
            response_format={"type": "json_schema", "json_schema": {"schema": {"type": "object"}}},
            reasoning_effort="none",
            stream_options={"include_usage": True},
        )
    )
    assert native == {
        "model": "tiny",
        "messages": [{"role": "user", "content": "one two three"}],
        "options": {
            "temperature": 0,
            "top_p": 1.0,
            "num_predict": 7,
            "seed": 4,
            "stop": ["\n"],
            "num_ctx": 512,
        },
        "format": {"type": "object"},
        "keep_alive": -1,
        "think": False,
        "stream": True,
    }
    assert native_body(ask(response_format={"type": "json_object"}))["format"] == "json"
    assert native_body(ask())["options"]["temperature"] == 1.0, "as on its OpenAI API, not 0.8"


def test_messages_with_images_and_calls_are_translated():
    call = {"id": "c", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}
    image = {"type": "image_url", "image_url": {"url": "data:image/png;base64,QUJD"}}
    messages = [
        {"role": "user", "content": [{"type": "text", "text": "see"}, image]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "name": "f", "content": "2"},
    ]
    assert native_body({"model": "m", "messages": messages})["messages"] == [
        {"role": "user", "content": "see", "images": ["QUJD"]},
        {
            "role": "assistant",
            "content": "",
            "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}],
        },
        {"role": "tool", "content": "2", "tool_name": "f"},
    ]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"n": 2}, "n: "),
        ({"response_format": {"type": "grammar"}}, "response_format"),
        ({"options": [1]}, "options: write an object"),
        (
            {
                "messages": [
                    {
                        "role": "user",
                        "content": [{"type": "image_url", "image_url": {"url": "http://x"}}],
                    }
                ]
            },
            "data: URLs",
        ),
    ],
)
def test_what_ollama_cannot_express_is_named(fields, words):
    with pytest.raises(NotTranslatable, match=words):
        native_body(ask(**fields))


def test_the_documents_last_line_becomes_usage_and_timings():
    line = {
        "model": "llama3.2",
        "message": {"role": "assistant", "content": ""},
        "done": True,
        "total_duration": 4883583458,
        "load_duration": 1334875,
        "prompt_eval_count": 26,
        "prompt_eval_duration": 342546000,
        "eval_count": 282,
        "eval_duration": 4535599000,
    }
    last, counted = Answer("llama3.2").chunks(line)
    assert last["choices"][0]["finish_reason"] == "stop"
    assert counted["choices"] == []
    assert counted["usage"] == {"prompt_tokens": 26, "completion_tokens": 282, "total_tokens": 308}
    times = read_timings(last["timings"])
    assert times["decode_tokens"] / times["decode_s"] == pytest.approx(62.17, abs=0.01)
    assert times["waited_s"] == pytest.approx(4.883583458 - 0.001334875 - 0.342546 - 4.535599)
    del line["prompt_eval_count"]  # Go leaves out what is zero
    assert Answer("m").whole(line)["usage"]["prompt_tokens"] == 0


def test_llama_cpps_timings_have_the_same_names():
    said = {"prompt_n": 5, "prompt_ms": 20.0, "predicted_n": 9, "predicted_ms": 90.0, "cache_n": 2}
    assert read_timings(said) == {
        "prefill_s": 0.02,
        "decode_s": 0.09,
        "prefill_tokens": 5,
        "decode_tokens": 9,
    }
    assert read_timings(None) is None
    assert read_timings({"a": 1}) is None


def test_a_record_holds_ollamas_own_times(fake, said, tmp_path):
    with Ollama(fake.url) as server:
        server.create("tiny", GGUF, TINY, said.append)
    requests = [
        Request("one two three four", max_tokens=3, extra_body={"options": {"num_ctx": 256}})
    ] * 4
    result = run(OllamaClient(fake.url, "tiny"), requests, ClosedLoop(2), progress=False)
    assert [t.text for t in result.traces] == ["one two three "] * 4
    assert not any(t.error for t in result.traces)
    assert {(t.prompt_tokens, t.completion_tokens, t.finish_reason) for t in result.traces} == {
        (26, 3, "length")
    }
    assert fake.bodies[-1][1]["options"]["num_ctx"] == 256
    medians = median_timings(result.traces)
    assert medians["decode_rate"] == pytest.approx(200)
    assert medians["prefill_rate"] == pytest.approx(1300)
    assert medians["waited_s"] == pytest.approx(0.003)

    class Engine:
        name, version, model_path, quantisation, command = (
            "ollama",
            "0.24.0",
            str(GGUF),
            "Q8_0",
            ["ollama", "serve"],
        )

    record = make_record(result, Engine(), PROFILES["cpu"])
    again = read_record(write_record(record, tmp_path))
    assert again.traces[-1].engine_timings == result.traces[-1].engine_timings
    assert again.traces[-1].engine_timings["decode_s"] == pytest.approx(0.015)


@pytest.mark.parametrize("stream", [True, False])
def test_failures_of_the_native_api_stand_in_traces(fake, said, stream):
    request = Request("a b", max_tokens=2, stream=stream)

    async def send():
        async with OllamaClient(fake.url, "tiny") as client:
            return await client.send(request)

    assert asyncio.run(send()).error == "ResponseError: HTTP 404: model 'tiny' not found"
    with Ollama(fake.url) as server:
        server.create("tiny", GGUF, TINY, said.append)
    whole = asyncio.run(send())
    assert whole.ok
    assert whole.streamed is stream
    assert whole.engine_timings["decode_tokens"] == 2
    fake.fails_midway = True
    assert "while running the model" in asyncio.run(send()).error


def ollama_case(fake, **backend):
    return case(fake, backend={"engine": "ollama", "model": "tiny", **backend})


class Behind:
    """The fake as `gateway_case` wants its servers."""

    def __init__(self, fake):
        self.url = fake.url

    async def __aenter__(self):
        return self

    async def __aexit__(self, *_):
        return None


def events(stream):
    return [
        json.loads(part[6:]) for part in stream.decode().split("\n\n") if part.startswith("data: {")
    ]


def test_the_gateway_takes_the_native_way_only_where_it_has_to(fake, said):
    with Ollama(fake.url) as server:
        server.create("tiny", GGUF, TINY, said.append)

    async def main():
        async with ollama_case(Behind(fake)) as gateway:
            plain = (await gateway.ask("x")).json()
            assert plain["choices"][0]["message"]["content"] == "over /v1"
            fields = {"keep_alive": "1h", "options": {"num_ctx": 128}}
            whole = (await gateway.ask("one two", **fields)).json()
            assert whole["choices"][0]["message"]["content"] == "one two "
            assert whole["timings"]["eval_duration"] == 10_000_000
            assert fake.bodies[-1][0] == "/api/chat"
            assert fake.bodies[-1][1]["keep_alive"] == "1h"
            stream = await gateway.stream("one two", **fields)
            assert stream.endswith(b"data: [DONE]\n\n")
            assert b'"usage"' not in stream
            chunks = events(stream)
            assert (
                "".join(c["choices"][0]["delta"].get("content", "") for c in chunks) == "one two "
            )
            assert chunks[-1]["timings"]["prompt_eval_count"] == 26
            counted = events(
                await gateway.stream("a", stream_options={"include_usage": True}, **fields)
            )
            assert counted[-1]["usage"]["completion_tokens"] == 1
            labels = {"model": "toy", "backend": "b0", "kind": "completion"}
            assert gateway.metric("gateway_tokens_total", **labels) == 2 + 2 + 2 + 1

    asyncio.run(main())


def test_the_gateway_passes_on_tool_calls_errors_and_refusals(fake, said):
    with Ollama(fake.url) as server:
        server.create("tiny", GGUF, TINY, said.append)

    async def main():
        async with ollama_case(Behind(fake)) as gateway:
            tools = [{"type": "function", "function": {"name": "look"}}]
            called = (await gateway.ask("there", tools=tools, keep_alive=5)).json()["choices"][0]
            assert called["finish_reason"] == "tool_calls"
            assert json.loads(called["message"]["tool_calls"][0]["function"]["arguments"]) == {
                "at": "there"
            }
            refused = await gateway.ask("x", n=2, keep_alive=5)
            assert refused.status_code == 400
            assert "one answer" in refused.json()["error"]["message"]
            odd = await gateway.ask(
                "x", keep_alive=5, response_format={"type": "json_schema", "json_schema": 3}
            )
            assert odd.status_code == 400
            assert "cannot express" in odd.json()["error"]["message"]
            fake.fails_midway = True
            broken = await gateway.stream("one two", keep_alive=5)
            assert b"while running the model" in broken
            assert broken.endswith(b"data: [DONE]\n\n")
            fake.models.clear()
            missing = await gateway.ask("x", keep_alive=5)
            assert missing.status_code == 404
            assert "not found" in missing.json()["error"]["message"]

    asyncio.run(main())


def fake_program(monkeypatch):
    local = Local(
        command=(sys.executable, str(FAKE), "serve"),
        needs=FAKE,
        setup="",
        version="",
        environment=ollama.local_environment,
    )
    monkeypatch.setitem(ENGINES, "ollama", dataclasses.replace(ollama.SPEC, local=local))


def test_launch_makes_the_model_and_loads_it(monkeypatch, capsys):
    fake_program(monkeypatch)
    with launch("ollama", "cpu", kv_cache_dtype="q8_0") as engine:
        assert engine.version == "0.24.0"
        assert engine.quantisation == "BF16"
        assert "OLLAMA_KV_CACHE_TYPE=q8_0" in engine.tail()
        with Ollama(engine.base_url) as server:
            assert [model.name for model in server.loaded()] == ["tiny-BF16:latest"]
        result = run(
            Client(engine.base_url, engine.model), [Request("x")], ClosedLoop(1), progress=False
        )
        assert result.traces[0].text == "over /v1"
    assert "loading tiny-BF16" in capsys.readouterr().out


def test_launch_pulls_a_library_model_under_the_name_that_clients_use(monkeypatch):
    fake_program(monkeypatch)
    engine = launch("ollama", "cpu", model="hf.co/owner/model-GGUF:Q8_0", quiet=True)
    with engine, Ollama(engine.base_url) as server:
        assert server.has(engine.model)
        assert server.loaded()[0].name == engine.model


def test_a_model_that_cannot_be_pulled_ends_the_start(monkeypatch):
    fake_program(monkeypatch)
    with pytest.raises(OllamaError, match="file does not exist"):
        launch("ollama", "cpu", model="nobody:1b", quiet=True)


@pytest.mark.skipif(
    ollama.PROGRAM is None, reason="Ollama is not installed: its real program was not tried"
)
def test_the_real_program_serves_the_tiny_model():
    with launch(
        "ollama", "cpu", model=GGUF, quiet=True, context_length=512, max_sequences=2
    ) as engine:
        requests = [
            Request("What is a KV cache?", max_tokens=8, extra_body={"options": {"num_ctx": 512}})
        ] * 3
        result = run(
            OllamaClient(engine.base_url, engine.model), requests, ClosedLoop(2), progress=False
        )
        assert all(
            t.ok and t.engine_timings["decode_tokens"] == t.completion_tokens for t in result.traces
        )
        over_openai = run(
            Client(engine.base_url, engine.model), [Request("Hi")], ClosedLoop(1), progress=False
        )
        assert over_openai.traces[0].ok
        assert over_openai.traces[0].completion_tokens
