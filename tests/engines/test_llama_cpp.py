"""llama.cpp's server alone: the wheel, and the compiled one if it is set up."""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import psutil
import pytest

from utils import loopback
from utils.engines import EngineStartError, launch, llama_cpp, registry
from utils.engines.runtime import free_port
from utils.telemetry.cache import llama_cpp_cache_bytes


@pytest.fixture(params=["wheel", "native"])
def build(request, monkeypatch):
    wheel = llama_cpp.ENGINES / "llama_cpp" / "bin" / "python"
    local = llama_cpp.SPEC.local
    if request.param == "wheel":
        command = (str(wheel), "-P", llama_cpp.llama_cpp_server.__file__)
        local = dataclasses.replace(local, command=command, needs=wheel, version=llama_cpp.WHEEL)
    elif local.version != llama_cpp.NATIVE:
        pytest.skip("not run here: make setup STEP=llama_cpp NATIVE=1")
    if not local.needs.exists():
        pytest.skip("not run here: make setup STEP=llama_cpp")
    spec = dataclasses.replace(llama_cpp.SPEC, local=local)
    monkeypatch.setitem(registry.ENGINES, "llama_cpp", spec)
    return request.param


def chat(engine, **fields):
    body = {
        "model": engine.model,
        "messages": [{"role": "user", "content": "Write a JSON object with name Ada and age 36."}],
        "temperature": 0,
        "max_tokens": 64,
        **fields,
    }
    answer = httpx.post(f"{engine.base_url}/v1/chat/completions", json=body, timeout=60)
    return answer.raise_for_status().json()


@pytest.mark.parametrize("kv_type", ["f16", "q8_0", "q4_0"])
def test_llama_cpp_keeps_cache_in_type_over_16_slots(build, profile, kv_type):
    options = {"kv_cache_dtype": kv_type, "max_sequences": 16, "context_length": 256}
    with launch(
        "llama_cpp", profile, quiet=True, extra_arguments=("-lv", "4"), **options
    ) as engine:
        slots = httpx.get(f"{engine.base_url}/slots", timeout=10).json()
        assert len(slots) == 16
        assert {slot["n_ctx"] for slot in slots} == {256}
        bytes_per_value = {"f16": 2, "q8_0": 34 / 32, "q4_0": 18 / 32}[kv_type]
        values = 2 * 24 * 64 * 16 * 256  # K and V, layers, KV heads x head size, slots, context
        assert llama_cpp_cache_bytes(engine) == pytest.approx(
            values * bytes_per_value * cache_heads(engine), rel=0.02
        )
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: chat(engine, max_tokens=8), range(16)))
        assert all(answer["usage"]["completion_tokens"] for answer in answers)


def cache_heads(engine):
    """Return the number of KV heads of the tiny model."""
    from utils.profiles import MODELS

    return json.loads((MODELS / "tiny" / "config.json").read_text())["num_key_value_heads"]


def test_llama_cpp_obeys_json_schema(build, profile):
    schema = {
        "type": "object",
        "properties": {"name": {"type": "string", "maxLength": 20}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    with launch("llama_cpp", profile, quiet=True, max_sequences=1) as engine:
        form = {"type": "json_schema", "json_schema": {"name": "person", "schema": schema}}
        answer = chat(engine, response_format=form)
    person = json.loads(answer["choices"][0]["message"]["content"])
    assert set(person) == {"name", "age"}


def test_llama_cpp_asks_for_api_key(build, profile):
    extra = ("--api-key", "secret")
    with launch("llama_cpp", profile, quiet=True, max_sequences=1, extra_arguments=extra) as engine:
        url = f"{engine.base_url}/v1/completions"
        body = {"prompt": "a", "max_tokens": 1}
        assert httpx.post(url, json=body, timeout=10).status_code == 401
        key = {"Authorization": "Bearer secret"}
        assert httpx.post(url, json=body, headers=key, timeout=10).status_code == 200


def test_llama_cpp_drafts_from_prompt(build, profile):
    extra = ("--spec-type", "ngram-simple")
    with launch("llama_cpp", profile, quiet=True, max_sequences=1, extra_arguments=extra) as engine:
        body = {"prompt": "a b c " * 20, "max_tokens": 100, "ignore_eos": True, "temperature": 0}
        httpx.post(f"{engine.base_url}/v1/completions", json=body, timeout=60).raise_for_status()
        text = httpx.get(f"{engine.base_url}/metrics", timeout=10).text
    drafts = next(line for line in text.splitlines() if line.startswith(engine.spec.metrics.drafts))
    assert float(drafts.split()[-1]) > 0


@pytest.mark.parametrize("build", ["wheel"], indirect=True)
def test_llama_cpp_stops_at_once_while_it_streams(build, profile):
    engine = launch("llama_cpp", profile, quiet=True, max_sequences=2)
    started = threading.Event()

    def stream():
        body = {"prompt": "a", "max_tokens": 1500, "ignore_eos": True, "stream": True}
        url = f"{engine.base_url}/v1/completions"
        events = 0
        with (
            contextlib.suppress(httpx.TransportError),  # some streams end whole
            loopback.client(timeout=60) as client,
            client.stream("POST", url, json=body) as answer,
        ):
            for line in answer.iter_lines():
                events += line.startswith("data:")
                started.set()
        return events

    with ThreadPoolExecutor(1) as pool:
        streaming = pool.submit(stream)
        assert started.wait(30)
        began = time.monotonic()
        engine.stop()
        took = time.monotonic() - began
        assert 0 < streaming.result() < 1500
    assert took < 3
    assert engine.exit_code() == 0


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("build", ["wheel"], indirect=True)
def test_wheel_server_ends_with_code_0_on_signal(build, profile, number):
    spec, port = registry.ENGINES["llama_cpp"], free_port()
    command = [*spec.local.command, "-m", profile.models["llama_cpp"], "--port", str(port)]
    server = subprocess.Popen([*command, "-np", "1", "-c", "256"], stderr=subprocess.DEVNULL)
    try:
        until_healthy(port)
        server.send_signal(number)
        assert server.wait(5) == 0
    finally:
        server.kill()


def until_healthy(port):
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("not healthy after 60 s")


def test_llama_cpp_ends_with_killed_parent(build, tmp_path):
    code = (
        "import sys, time\n"
        "from utils.engines import launch\n"
        "engine = launch('llama_cpp', quiet=True, max_sequences=1)\n"
        "print(engine.identity, flush=True)\n"
        "time.sleep(600)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    family = []
    try:
        guard = psutil.Process(int(parent.stdout.readline()))
        family = [guard, *guard.children(recursive=True)]
        assert len(family) > 1
        os.kill(parent.pid, signal.SIGKILL)
        parent.wait()
        _, left = psutil.wait_procs(family, timeout=15)
        assert left == []
    finally:
        parent.kill()
        for process in family:
            if process.is_running():
                process.kill()


@pytest.mark.parametrize(
    ("extra", "message", "hint"),
    [
        (("--no-such-flag",), "invalid argument: --no-such-flag", "know one of the arguments"),
        (("-ctk", "q9"), "-ctk", "know one of the arguments"),
        (("-m", "README.md"), "failed to load model", "not whole"),
    ],
)
@pytest.mark.parametrize("build", ["wheel"], indirect=True)
def test_wheel_server_tells_why_it_did_not_start(build, profile, extra, message, hint):
    with pytest.raises(EngineStartError) as caught:
        launch("llama_cpp", profile, extra_arguments=extra, quiet=True)
    assert message in caught.value.tail
    assert hint in caught.value.hint


@pytest.mark.parametrize("build", ["wheel"], indirect=True)
def test_wheel_server_says_that_port_is_taken(build, profile):
    with launch("llama_cpp", profile, quiet=True, max_sequences=1) as engine:
        port = engine.base_url.rpartition(":")[2]
        with pytest.raises(EngineStartError) as caught:
            launch("llama_cpp", profile, quiet=True, extra_arguments=("--port", port))
    assert "the port is taken" in caught.value.hint
