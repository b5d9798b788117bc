"""A real Docker Engine with an image of a real engine, once for all tests."""

import dataclasses
import os

import docker
import pytest
from docker_daemon import CannotStart, Daemon
from minimal_image import IMAGE, PLAIN, root_file_system

from utils.engines import ENGINES
from utils.engines.container import LABEL
from utils.profiles import PROFILES


@pytest.fixture(scope="session")
def daemon():
    try:
        engine = Daemon()
    except CannotStart as reason:
        pytest.skip(f"not run here: no Docker Engine: {reason}")
    before = os.environ.get("DOCKER_HOST")
    os.environ["DOCKER_HOST"] = engine.host
    yield engine
    os.environ.pop("DOCKER_HOST")
    if before:
        os.environ["DOCKER_HOST"] = before
    engine.close()


@pytest.fixture(scope="session")
def client(daemon):
    return docker.DockerClient(daemon.host)


@pytest.fixture(scope="session")
def image(client):
    if not ENGINES["llama_cpp"].local.needs.exists():
        pytest.skip("not run here: llama.cpp is not set up: make setup STEP=llama_cpp")
    tar = root_file_system()
    for name, changes in ((IMAGE, ['ENTRYPOINT ["/app/llama-server"]']), (PLAIN, [])):
        client.api.import_image_from_data(tar, *name.split(":"), changes=changes)
    return IMAGE


@pytest.fixture
def profile():
    """The machine's own profile, but with its engines in containers, as on a DGX Spark."""
    return dataclasses.replace(
        PROFILES["cpu"], runtime="docker", context_length=512, max_sequences=2, start_timeout_s=60
    )


@pytest.fixture
def changed(monkeypatch, image, tmp_path):
    """Puts llama.cpp's container on the image made here, with `changes`; without a GPU."""

    def change(**changes):
        spec = ENGINES["llama_cpp"]
        monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
        mounts = {"~/.cache/huggingface": "/root/.cache/huggingface"}
        wanted = {"image": image, "gpus": False, "mounts": mounts} | changes
        container = dataclasses.replace(spec.container, **wanted)
        monkeypatch.setitem(ENGINES, "llama_cpp", dataclasses.replace(spec, container=container))

    change()
    return change


@pytest.fixture
def left(client):
    """What there still is of the course: its containers, volumes without a name, watchdogs."""

    def find():
        containers = client.containers.list(all=True, filters={"label": LABEL}, ignore_removed=True)
        return [c.name for c in containers] + [v.name for v in client.volumes.list()]

    yield find
    assert find() == []
