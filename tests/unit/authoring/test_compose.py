"""docker/compose.yaml: the engines in it are those of utils/engines, and what all of it may do."""

import dataclasses
import re
import shutil
import subprocess

import pytest
import yaml

from tools.authoring import compose
from tools.lab.labs import KERNEL, KERNEL_TITLE
from utils.engines import ENGINES
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
    assert (
        f'ipykernel install --sys-prefix --name {KERNEL} --display-name "{KERNEL_TITLE}"'
        in dockerfile
    )


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
