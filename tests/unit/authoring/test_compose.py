"""docker/compose.yaml: the engines in it are those of utils/engines, and what all of it may do."""

import contextlib
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import yaml

from tools.authoring import compose
from utils.engines import ENGINES
from utils.engines.runtime import free_port
from utils.profiles import ROOT

SERVICES = yaml.safe_load(compose.COMPOSE.read_text())["services"]
ON_GPU = [name for name, spec in ENGINES.items() if spec.container]


def test_the_engines_services_are_what_their_specs_say(capsys):
    assert compose.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("vllm:26.10-py3", "vllm:25.11-py3"),
        ("--max-num-seqs", "--max-seqs"),
        ("127.0.0.1:30000:30000", "30000:30000"),
        ("8355/health", "8000/health"),
    ],
)
def test_a_stale_tag_flag_or_port_is_found_and_put_right(tmp_path, capsys, old, new):
    text = compose.COMPOSE.read_text()
    assert old in text
    stale = tmp_path / "compose.yaml"
    stale.write_text(text.replace(old, new))
    assert compose.main(["--check"], stale) == 1
    assert "python -m tools.authoring.compose" in capsys.readouterr().out
    assert compose.main([], stale) == 0
    assert stale.read_text() == text


def test_a_file_without_the_marks_is_left_alone(tmp_path):
    other = tmp_path / "compose.yaml"
    other.write_text("services: {}\n")
    with pytest.raises(ValueError, match="lacks the lines"):
        compose.main([], other)
    assert other.read_text() == "services: {}\n"


@pytest.mark.parametrize("name", ON_GPU)
def test_every_engine_has_a_profile_the_gpu_its_memory_and_its_cache(name):
    service, container = SERVICES[name], ENGINES[name].container
    assert name in service["profiles"]
    assert service["image"] == container.image
    (device,) = service["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia"
    assert device["capabilities"] == ["gpu"]
    assert service.get("ipc") == container.ipc
    assert service.get("ulimits", {}) == dict(container.ulimits)
    assert service["volumes"], "without a cache every start downloads the model"
    assert "restart" not in service


def test_nothing_is_published_beyond_this_machine_and_no_port_twice():
    ports = [port for service in SERVICES.values() for port in service.get("ports", [])]
    assert ports
    assert all(re.fullmatch(r"127\.0\.0\.1:\d+:\d+", port) for port in ports)
    published = [port.split(":")[1] for port in ports]
    assert len(set(published)) == len(published)
    on_the_host = [name for name, s in SERVICES.items() if s.get("network_mode") == "host"]
    assert on_the_host == ["jupyter"]
    dockerfile = (ROOT / "docker" / "jupyter.Dockerfile").read_text()
    assert '"--ServerApp.ip=127.0.0.1"' in dockerfile


def test_secrets_come_from_the_environment_and_none_is_written():
    named = {
        key: value
        for service in SERVICES.values()
        for key, value in service.get("environment", {}).items()
        if re.search("TOKEN|PASSWORD|SECRET|API_KEY", key)
    }
    assert set(named) == {"HF_TOKEN", "JUPYTER_TOKEN", "WEBUI_SECRET_KEY"}
    assert set(named.values()) == {None}


def test_images_are_of_a_named_version():
    images = [service["image"] for service in SERVICES.values() if "image" in service]
    for dockerfile in (ROOT / "docker").glob("*.Dockerfile"):
        images += re.findall(r"^FROM (\S+)", dockerfile.read_text(), re.M)
    assert len(images) == len(SERVICES)
    for image in images:
        assert re.search(r"\d", image.rpartition(":")[2].split("-b")[-1]), image
        assert not re.search("latest|main|nightly", image)


def test_every_service_says_whether_it_is_healthy():
    without = [name for name, service in SERVICES.items() if "healthcheck" not in service]
    assert without == ["open-webui"], "its image brings one"


def compose_config(*arguments):
    command = ["docker", "compose", "-f", str(compose.COMPOSE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def has_compose():
    if shutil.which("docker") is None:
        return False
    return subprocess.run(["docker", "compose", "version"], capture_output=True).returncode == 0


@pytest.mark.skipif(not has_compose(), reason="not run here: docker has no compose plugin")
def test_docker_compose_agrees(monkeypatch):
    monkeypatch.delenv("HF_TOKEN", raising=False)
    everything = yaml.safe_load(compose_config("--profile", "*", "config"))["services"]
    assert set(everything) == set(SERVICES)
    assert not everything["vllm"]["environment"].get("HF_TOKEN")
    monkeypatch.setenv("HF_TOKEN", "hf_x")
    given = yaml.safe_load(compose_config("--profile", "vllm", "config"))["services"]
    assert given["vllm"]["environment"]["HF_TOKEN"] == "hf_x"
    by_default = compose_config("config", "--services").split()
    assert set(by_default) == {"gateway", "llama-a", "llama-b", "prometheus", "grafana"}
    chat = compose_config("--profile", "chat", "config", "--services").split()
    assert {"ollama", "open-webui"} <= set(chat)


def probe(service, inside, port):
    """Runs a service's health check on this machine, against what listens on `port` instead of `inside`."""
    kind, *command = SERVICES[service]["healthcheck"]["test"]
    assert kind == "CMD"
    command = [word.replace(f":{inside}", f":{port}") for word in command]
    assert any(f":{port}" in word for word in command)
    if command[0].startswith("python"):
        command[0] = sys.executable
    return subprocess.run(command, capture_output=True, text=True, timeout=30)


@contextlib.contextmanager
def served(command, service, inside, port, **options):
    """Runs what the service runs until its health check is content; then what is in the `with`."""
    assert probe(service, inside, free_port()).returncode != 0, "nobody listens there"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, **options)
    try:
        deadline = time.monotonic() + 60
        while (answer := probe(service, inside, port)).returncode:
            assert time.monotonic() < deadline, answer.stdout + answer.stderr
            assert process.poll() is None
            time.sleep(0.2)
        yield
    finally:
        process.terminate()
        process.wait(20)


def test_the_gateways_health_check(tmp_path):
    port = free_port()
    settings = yaml.safe_load((ROOT / "docker" / "gateway.yaml").read_text())
    file = tmp_path / "gateway.yaml"
    file.write_text(yaml.safe_dump(settings | {"host": "127.0.0.1", "port": port}))
    command = [sys.executable, "-m", "utils.gateway", "--config", str(file)]
    with served(command, "gateway", 8080, port, cwd=ROOT):
        pass


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="not run here: no prometheus")
def test_prometheus_health_check(tmp_path):
    port = free_port()
    config = ROOT / "docker" / "prometheus" / "prometheus.yml"
    command = ["prometheus", f"--config.file={config}", f"--storage.tsdb.path={tmp_path}"]
    command.append(f"--web.listen-address=127.0.0.1:{port}")
    with served(command, "prometheus", 9090, port):
        pass


def jupyters_extensions():
    files = (Path(sys.prefix) / "etc" / "jupyter" / "jupyter_server_config.d").glob("*.json")
    configs = [json.loads(file.read_text())["ServerApp"] for file in files]
    return [name for config in configs for name in config["jpserver_extensions"]]


def test_jupyters_health_check_and_that_an_empty_token_does_not_open_it(tmp_path):
    port = free_port()
    dockerfile = (ROOT / "docker" / "jupyter.Dockerfile").read_text()
    entry = re.findall(r'"([^"]+)"', re.search(r"ENTRYPOINT \[(.*?)\]", dockerfile, re.S)[1])
    assert entry[:3] == ["python3", "-m", "jupyterlab"]
    # Its server without extensions starts in a fraction of the time, and is what these options are of.
    command = [sys.executable, "-m", "jupyter_server", *entry[3:], "--ServerApp.allow_root=True"]
    command.append(f"--ServerApp.jpserver_extensions={dict.fromkeys(jupyters_extensions(), False)}")
    command = [word.replace("port=8888", f"port={port}") for word in command]
    environment = os.environ | {"HOME": str(tmp_path), "JUPYTER_TOKEN": ""}
    with (
        served(command, "jupyter", 8888, port, env=environment, cwd=tmp_path),
        pytest.raises(urllib.error.HTTPError, match="403"),
    ):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/api/contents", timeout=10)


def test_a_change_of_a_spec_changes_the_file(monkeypatch, tmp_path):
    spec = ENGINES["vllm"]
    container = dataclasses.replace(spec.container, image="nvcr.io/nvidia/vllm:27.01-py3")
    monkeypatch.setitem(ENGINES, "vllm", dataclasses.replace(spec, container=container))
    assert compose.main(["--check"]) == 1
    assert "vllm:27.01-py3" in compose.generated_services()


REPOSITORIES = {
    repository: tag
    for spec in ENGINES.values()
    if spec.container
    for repository, _, tag in [spec.container.image.rpartition(":")]
}


def stale_images(text):
    """Engines' images with another tag than their spec's."""
    named = re.findall(r"([\w./-]+/[\w.-]+):([\w][\w.-]*)", text)
    return [f"{r}:{t}" for r, t in named if REPOSITORIES.get(r, t) != t]


def test_documents_and_labs_name_the_images_of_the_specs():
    files = [*ROOT.glob("*.md"), *(ROOT / "docker").glob("*.*"), *ROOT.glob("solutions/*.py")]
    assert len(files) > 10
    assert {file.name: stale for file in files if (stale := stale_images(file.read_text()))} == {}
    named = "".join(file.read_text() for file in files)
    assert all(f"{repository}:{tag}" in named for repository, tag in REPOSITORIES.items())
    assert stale_images("docker pull lmsysorg/sglang:spark") == ["lmsysorg/sglang:spark"]


def test_the_folders_page_names_the_ports_that_are_published():
    page = (ROOT / "docker" / "README.md").read_text()
    named = set(re.findall(r"(?:127\.0\.0\.1|, ):(\d+)", page))
    assert named == {
        port.split(":")[1] for service in SERVICES.values() for port in service.get("ports", [])
    } | {"8888"}
