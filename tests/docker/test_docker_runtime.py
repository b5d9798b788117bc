"""llama.cpp in a container of a real Docker Engine, through the same `launch` that a DGX Spark uses."""

import dataclasses
import os
import socket
import time

import docker
import httpx
import pytest
from minimal_image import PLAIN

from utils.engines import ENGINES, EngineStartError, PortTaken, launch
from utils.engines.container import (
    DockerUnavailable,
    connect,
    run_arguments,
)
from utils.engines.runtime import free_port
from utils.tinymodel.hub import TINY

pytestmark = pytest.mark.engine
ASK = {"messages": [{"role": "user", "content": "What is a KV cache?"}], "max_tokens": 16}


def ask(engine):
    body = {"model": engine.model, **ASK}
    with httpx.Client(timeout=60) as http:
        return http.post(f"{engine.base_url}/v1/chat/completions", json=body)


@pytest.fixture
def engine(changed, profile, left):
    with launch("llama_cpp", profile, quiet=True) as running:
        yield running


def test_a_real_engine_in_a_real_container_answers_a_chat_request(engine, client, tmp_path):
    answer = ask(engine).json()
    assert answer["choices"][0]["message"]["content"].strip()
    assert answer["usage"]["completion_tokens"] > 1
    assert engine.version not in ("", "unknown")
    assert "listening" in engine.log_path.read_text()
    container = client.containers.get(engine.identity)
    (bound,) = container.attrs["NetworkSettings"]["Ports"]["8080/tcp"]
    assert (bound["HostIp"], bound["HostPort"]) == ("127.0.0.1", engine.base_url.rpartition(":")[2])
    assert (tmp_path / "cache").is_dir()
    assert container.attrs["HostConfig"]["Init"]


def test_its_memory_is_what_docker_counts_and_none_when_it_is_gone(engine):
    assert 10e6 < engine.memory_bytes() < 4e9
    began = time.monotonic()
    engine.memory_bytes()
    assert time.monotonic() - began < 1.8, "it must not wait for a second sample"
    engine.stop()
    assert engine.memory_bytes() == 0


def test_container_stops_and_frees_its_port(engine, left):
    began = time.monotonic()
    engine.stop()
    assert time.monotonic() - began < 10, "it was killed instead"
    assert left() == []
    with socket.socket() as probe:
        assert probe.connect_ex(("127.0.0.1", int(engine.base_url.rpartition(":")[2])))


@pytest.mark.parametrize("how", ["kill", "remove"])
def test_one_that_is_killed_from_outside_is_noticed(engine, client, how):
    container = client.containers.get(engine.identity)
    container.kill() if how == "kill" else container.remove(force=True)
    assert not engine.running()
    assert engine.exit_code() == 137
    with pytest.raises(httpx.HTTPError):
        ask(engine)
    engine.stop()


def test_one_that_is_paused_still_runs(engine, client):
    container = client.containers.get(engine.identity)
    container.pause()
    assert engine.running()
    container.unpause()


def test_a_failed_start_shows_the_engines_last_words(changed, profile, left):
    with pytest.raises(EngineStartError) as caught:
        launch("llama_cpp", profile, quiet=True, extra_arguments=("--no-such-flag",))
    assert "--no-such-flag" in caught.value.tail
    assert "does not know one of the arguments" in caught.value.hint
    assert "--no-such-flag" in caught.value.log_path.read_text()


def test_one_that_never_becomes_healthy_is_removed(changed, profile, left):
    changed(image=PLAIN, command=("/usr/bin/sh", "-c", "echo hello; sleep 60"))
    profile = dataclasses.replace(profile, start_timeout_s=2)
    began = time.monotonic()
    with pytest.raises(EngineStartError, match="was not healthy") as caught:
        launch("llama_cpp", profile, quiet=True)
    assert "hello" in caught.value.tail
    assert time.monotonic() - began < 15, "a container that does not listen to SIGTERM needs init"


def test_a_program_that_is_not_in_the_image_is_said_to_be(changed, profile, left):
    changed(image=PLAIN, command=("vllm", "serve"))
    with pytest.raises(EngineStartError, match="does not have the program"):
        launch("llama_cpp", profile, quiet=True)


def test_a_file_of_settings_is_seen_inside(changed, profile, left, tmp_path):
    """As TensorRT-LLM gets one; here the shell shows it instead of reading it as settings."""
    settings = tmp_path / "settings.yml"
    settings.write_text("echo seen: kv_cache_config; exit 3")
    spec = ENGINES["llama_cpp"]
    shell = dataclasses.replace(
        spec,
        container=dataclasses.replace(spec.container, image=PLAIN, command=("/usr/bin/sh",)),
        arguments=lambda options: [options.config],
        options=frozenset({"config"}),
    )
    ENGINES["llama_cpp"] = shell  # `changed` puts it back
    with pytest.raises(EngineStartError, match="ended with code 3") as caught:
        launch("llama_cpp", profile, quiet=True, config=settings)
    assert caught.value.tail == "seen: kv_cache_config"


def test_a_port_in_use_is_named_and_nothing_is_left(changed, profile, left, monkeypatch):
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        with pytest.raises(PortTaken, match=str(port)):
            launch("llama_cpp", profile, quiet=True, port=port)
        # Somebody was faster: docker itself finds it taken.
        monkeypatch.setitem(launch.__globals__, "check_port", lambda port: None)
        with pytest.raises(PortTaken, match=str(port)):
            launch("llama_cpp", profile, quiet=True, port=port)


def test_a_machine_without_the_container_toolkit_is_told_what_to_install(
    changed, profile, left, client
):
    if "nvidia" in client.info()["Runtimes"]:
        pytest.skip("not run here: this machine has the container toolkit")
    changed(gpus=True)
    with pytest.raises(EngineStartError, match="NVIDIA container toolkit"):
        launch("llama_cpp", profile, quiet=True)


@pytest.mark.parametrize("name", [n for n, spec in ENGINES.items() if spec.container])
def test_docker_takes_what_each_engine_asks_for(name, image, client, monkeypatch, tmp_path):
    """All of it but the image. That there is a GPU is looked at only when it starts."""
    monkeypatch.setenv("HOME", str(tmp_path))
    container = ENGINES[name].container
    request = run_arguments(container, ["M"], free_port(), TINY, {"HF_TOKEN": "secret"})
    built = client.containers.create(**request | {"image": image})
    try:
        host = built.attrs["HostConfig"]
    finally:
        built.remove(v=True)
        for volume in client.volumes.list():  # Ollama's
            volume.remove()
    assert host["DeviceRequests"][0]["Capabilities"] == [["gpu"]]
    assert host["IpcMode"] == (container.ipc or "private")
    assert {u["Name"]: u["Hard"] for u in host["Ulimits"] or []} == dict(container.ulimits)
    assert f"{TINY}:/course-models:ro" in host["Binds"]
    assert [b["HostIp"] for b in host["PortBindings"][f"{container.port}/tcp"]] == ["127.0.0.1"]
    message = "HF_TOKEN=secret" in (built.attrs["Config"]["Env"] or ())
    assert message == ("HF_TOKEN" in container.pass_environment)


def test_docker_permission_is_reported(daemon):
    groups = os.getgroups()
    os.setgroups([])
    os.setegid(65534)
    os.seteuid(65534)
    try:
        with pytest.raises(DockerUnavailable, match="usermod -aG docker"):
            connect()
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups(groups)


def test_a_daemon_that_goes_away_and_comes_back(engine, daemon, client, left):
    daemon.stop()
    try:
        with pytest.raises(DockerUnavailable, match="systemctl start docker"):
            engine.running()
        with pytest.raises(DockerUnavailable, match="docker ps -a"):
            engine.stop()
        with pytest.raises(DockerUnavailable, match="it is not running"):
            connect()
    finally:
        daemon.start()
    assert not engine.running()
    engine.stop()
    with pytest.raises(docker.errors.NotFound):
        client.containers.get(engine.identity)
