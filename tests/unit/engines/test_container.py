"""The docker runtime against a stand-in for the docker client: what it asks docker for."""

import threading
from types import SimpleNamespace

import docker.errors
import pytest

from utils.engines import EngineStartError, get_spec
from utils.engines.container import (
    LABEL,
    ContainerHandle,
    DockerUnavailable,
    connect,
    ensure_image,
    make_folders,
    run_arguments,
)
from utils.engines.engine_errors import EngineError, StartCancelled


class FakeContainer:
    def __init__(self):
        self.id = "abc123"
        self.attrs = {"State": {"Running": True, "ExitCode": 0}}
        self.calls = []

    def logs(self, stream, follow):
        return iter([b"line 1\n", b"line 2\n"])

    def reload(self):
        self.calls.append("reload")

    def top(self):
        return {
            "Titles": ["UID", "PID", "CMD"],
            "Processes": [["root", "41", "vllm"], ["root", "57", "x"]],
        }

    def start(self):
        self.calls.append("start")

    def stop(self, timeout):
        self.calls.append("stop")

    def remove(self, force, v):
        self.calls.append("remove")


class FakeDocker:
    """Has `images.get`, `api.pull` and `containers.create` and `.get`, as the docker SDK has."""

    def __init__(self, here=(), events=(), refuse=None):
        self.here, self.events, self.refuse = set(here), events, refuse
        self.container = FakeContainer()
        self.requests = []
        self.images = self.api = self.containers = self
        self.hooks = {"response": []}

    def get(self, name):
        if self.requests and name == self.requests[0]["name"]:
            return self.container
        if name not in self.here:
            raise docker.errors.ImageNotFound(name)

    def pull(self, repository, tag, stream, decode):
        self.asked = (repository, tag)
        yield from self.events

    def create(self, **request):
        if self.refuse:
            raise docker.errors.APIError(self.refuse)
        self.requests.append(request)
        return self.container


def test_vllm_gets_the_gpu_shared_memory_and_a_loopback_port():
    container = get_spec("vllm").container
    request = run_arguments(container, ["M"], 43210, None, {"HF_TOKEN": "t", "OTHER": "x"})
    assert request["image"] == container.image
    assert request["command"] == ["vllm", "serve", "M"]
    assert request["ports"] == {"8000/tcp": ("127.0.0.1", 43210)}
    assert request["device_requests"][0]["Count"] == -1
    assert request["ipc_mode"] == "host"
    assert {u["Name"]: u["Soft"] for u in request["ulimits"]} == {"memlock": -1, "stack": 67108864}
    assert request["environment"] == {"HF_TOKEN": "t"}
    assert LABEL in request["labels"]


def test_a_local_model_is_mounted_read_only(tmp_path):
    request = run_arguments(get_spec("llama_cpp").container, ["-m", "x"], 1, tmp_path, {})
    assert request["volumes"][str(tmp_path)] == {"bind": "/course-models", "mode": "ro"}


def test_folders_that_are_mounted_are_made_and_files_are_left(tmp_path):
    (tmp_path / "settings.yml").write_text("x")
    sources = [tmp_path / "a" / "cache", tmp_path / "settings.yml"]
    make_folders({"volumes": {**{str(source): {} for source in sources}, "ollama": {}}})
    assert sources[0].is_dir()
    assert sources[1].read_text() == "x"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "settings.yml"]


def test_an_image_that_is_here_is_not_pulled():
    client = FakeDocker(here=["a:1"], events=[{"error": "must not be asked"}])
    ensure_image(client, "a:1", print)


def test_a_pull_tells_how_far_it_is():
    events = [
        {"status": "Pulling from a"},
        {"id": "l1", "status": "Downloading", "progressDetail": {"current": 1e9, "total": 2e9}},
        {"id": "l2", "status": "Downloading", "progressDetail": {"current": 1e9, "total": 4e9}},
        {"id": "l1", "status": "Download complete", "progressDetail": {}},
        {"id": "l1", "status": "Extracting", "progressDetail": {"current": 1e6, "total": 2e9}},
        {"id": "l2", "status": "Pull complete"},
    ]
    text = []
    ensure_image(FakeDocker(events=events), "registry/a:1", text.append)
    assert text == [
        "pulling registry/a:1",
        "pulling registry/a:1: 1.0 GB of 2.0 GB so far",
        "pulling registry/a:1: 2.0 GB of 6.0 GB so far",
        "pulling registry/a:1: 3.0 GB of 6.0 GB so far",
        "unpacking registry/a:1, 6.0 GB so far",
    ]


def test_an_image_may_be_pinned_by_digest():
    client = FakeDocker()
    ensure_image(client, "registry:5000/a:1@sha256:00ff", print)
    assert client.asked == ("registry:5000/a:1", "sha256:00ff")


def test_a_failed_pull_names_the_command_to_try():
    with pytest.raises(EngineError, match="docker pull registry/a:1"):
        ensure_image(FakeDocker(events=[{"error": "manifest unknown"}]), "registry/a:1", print)


def test_silent_registry_does_not_hold_up_a_cancelled_pull():
    silent, shut = threading.Event(), []

    class Silent(FakeDocker):
        def pull(self, repository, tag, stream, decode):
            for hook in self.hooks["response"]:
                hook(SimpleNamespace(raw=SimpleNamespace(shutdown=lambda: shut.append(tag))))
            yield {"status": "Pulling from a"}
            silent.wait(20)

    text, client = [], Silent()

    def check():
        if text:
            raise StartCancelled("vLLM")

    with pytest.raises(StartCancelled):
        ensure_image(client, "registry/a:1", text.append, check)
    assert not silent.is_set()
    assert shut == ["1"], "the connection is shut down, so that the daemon ends the pull too"
    silent.set()


def test_a_container_is_watched_stopped_and_removed(tmp_path):
    client = FakeDocker()
    handle = ContainerHandle(client, "vLLM", {"image": "a:1", "command": None}, tmp_path / "log")
    assert handle.exit_code() is None
    assert handle.process_ids() == {41, 57}
    client.container.attrs = {"State": {"Running": False, "ExitCode": 3}}
    assert handle.exit_code() == 3
    assert (tmp_path / "log").read_text() == "line 1\nline 2\n"
    handle.stop()
    assert client.container.calls[-2:] == ["stop", "remove"]
    assert handle._watchdog.poll() is not None


def test_a_machine_without_the_container_toolkit_is_told_so(tmp_path):
    client = FakeDocker(refuse="could not select device driver with capabilities: [[gpu]]")
    with pytest.raises(EngineStartError, match="container toolkit"):
        ContainerHandle(client, "vLLM", {"image": "a:1", "command": None}, tmp_path / "log")


def test_no_daemon_is_a_clear_error(monkeypatch, tmp_path):
    monkeypatch.setenv("DOCKER_HOST", f"unix://{tmp_path}/none.sock")
    with pytest.raises(DockerUnavailable, match="systemctl start docker"):
        connect()
