"""The docker runtime against a stand-in for the docker client: what it asks docker for."""

import contextlib
import os
import subprocess
import sys
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
    hand_back,
    make_folders,
    remote_host,
    run_arguments,
)
from utils.engines.engine_errors import EngineError, StartCancelled
from utils.engines.spec import CACHE_FOLDER, CACHE_VARIABLES, HUB_FOLDER
from utils.hub_cache import hub_cache, hub_home


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
    assert request["environment"] == {"HF_TOKEN": "t", **CACHE_VARIABLES}
    assert LABEL in request["labels"]


def test_a_local_model_is_mounted_read_only(tmp_path):
    request = run_arguments(get_spec("llama_cpp").container, ["-m", "x"], 1, tmp_path, {})
    assert request["volumes"][str(tmp_path)] == {"bind": "/course-models", "mode": "ro"}


def volumes_of(engine, environment):
    request = run_arguments(get_spec(engine).container, [], 1, None, environment)
    return {source: volume["bind"] for source, volume in request["volumes"].items()}


def test_containers_share_the_users_model_cache(monkeypatch):
    monkeypatch.setenv("HOME", "/home/ann")
    assert volumes_of("llama_cpp", {}) == {"/home/ann/.cache/huggingface": HUB_FOLDER}
    assert volumes_of("llama_cpp", {"HF_HOME": "/big/hf"}) == {"/big/hf": HUB_FOLDER}
    assert volumes_of("llama_cpp", {"XDG_CACHE_HOME": "/big"}) == {"/big/huggingface": HUB_FOLDER}
    elsewhere = volumes_of("llama_cpp", {"HF_HOME": "/big/hf", "HF_HUB_CACHE": "/class/models"})
    assert elsewhere == {"/big/hf": HUB_FOLDER, "/class/models": f"{HUB_FOLDER}/hub"}


def test_mounted_cache_is_where_the_hubs_client_looks(monkeypatch):
    code = "from huggingface_hub import constants as c; print(c.HF_HOME, c.HF_HUB_CACHE)"
    for own in ({}, {"HF_HOME": "/a/hf"}, {"XDG_CACHE_HOME": "/b"}, {"HF_HUB_CACHE": "/c/models"}):
        environment = {"HOME": "/home/ann", "PATH": os.environ["PATH"], **own}
        monkeypatch.setenv("HOME", "/home/ann")
        said = subprocess.run(
            [sys.executable, "-c", code],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
        )
        assert said.stdout.split() == [str(hub_home(environment)), str(hub_cache(environment))]


@pytest.mark.parametrize("engine", ["vllm", "sglang", "tensorrt_llm"])
def test_compiled_kernels_are_kept_for_the_next_start(engine):
    request = run_arguments(get_spec(engine).container, [], 1, None, {})
    assert CACHE_FOLDER in volumes_of(engine, {}).values()
    assert all(path.startswith(CACHE_FOLDER) for path in request["environment"].values())


def test_container_gets_the_users_hub_and_proxy():
    mine = {"HF_ENDPOINT": "https://mirror", "HTTPS_PROXY": "http://p:3128", "HF_HUB_OFFLINE": "1"}
    made = run_arguments(get_spec("llama_cpp").container, [], 1, None, mine | {"SECRET": "x"})
    assert made["environment"] == {
        **mine,
        "no_proxy": "127.0.0.1,localhost,::1",
        "NO_PROXY": "127.0.0.1,localhost,::1",
    }
    ollama = run_arguments(get_spec("ollama").container, [], 1, None, mine | {"HF_TOKEN": "t"})
    assert "HF_TOKEN" not in ollama["environment"]
    assert ollama["environment"]["HTTPS_PROXY"] == "http://p:3128"


def test_container_gets_the_one_gpu_that_is_chosen():
    def gpus(environment):
        request = run_arguments(get_spec("vllm").container, [], 1, None, environment)
        return [(r["DeviceIDs"], r["Count"]) for r in request["device_requests"]]

    assert gpus({}) == [([], -1)]
    assert gpus({"CUDA_VISIBLE_DEVICES": "GPU-7f,GPU-8a"}) == [(["GPU-7f"], 0)]
    assert gpus({"CUDA_VISIBLE_DEVICES": "MIG-1"}) == [(["MIG-1"], 0)]


@pytest.mark.parametrize(
    ("host", "other"),
    [
        ("", ""),
        ("unix:///run/user/1000/docker.sock", ""),
        ("tcp://127.0.0.1:2375", ""),
        ("ssh://ann@spark.local", "spark.local"),
        ("ssh://127.0.0.1", "127.0.0.1"),
        ("tcp://10.0.0.7:2376", "10.0.0.7"),
    ],
)
def test_docker_of_another_machine_is_refused(monkeypatch, host, other):
    assert remote_host(host) == other
    if other:
        monkeypatch.setenv("DOCKER_HOST", host)
        with pytest.raises(DockerUnavailable, match=f"another machine \\({other}\\)"):
            connect()


def test_podman_is_named(monkeypatch):
    version = {"Components": [{"Name": "Podman Engine"}]}
    client = SimpleNamespace(ping=lambda: True, version=lambda: version)
    monkeypatch.setattr("docker.from_env", lambda: client)
    with pytest.raises(DockerUnavailable, match="This is podman"):
        connect()
    version["Components"] = [{"Name": "Engine"}]
    assert connect() is client


def test_docker_without_right_to_raise_limits_is_told(tmp_path):
    client = FakeDocker(refuse="error setting rlimit type 8: operation not permitted")
    with pytest.raises(EngineStartError, match="may not raise limits"):
        ContainerHandle(client, "vLLM", {"image": "a:1", "command": None}, tmp_path / "log")


class FakeRuns:
    """Has `containers.run` and `.get`, as the docker SDK has."""

    def __init__(self, error=None):
        self.ran, self.removed, self.error = [], [], error
        self.containers = self

    def run(self, *arguments, **options):
        self.ran.append((arguments, options))
        if self.error:
            raise self.error

    def get(self, name):
        return SimpleNamespace(remove=lambda force, v: self.removed.append(name))


@pytest.mark.parametrize("error", [None, docker.errors.APIError("no chown"), KeyboardInterrupt()])
def test_handing_back_leaves_no_container(tmp_path, error):
    client = FakeRuns(error)
    request = {"image": "a:1", "volumes": {str(tmp_path): {"bind": HUB_FOLDER, "mode": "rw"}}}
    interrupted = pytest.raises(KeyboardInterrupt) if isinstance(error, KeyboardInterrupt) else None
    with interrupted or contextlib.nullcontext():
        hand_back(client, request, os.getuid() + 1)
    assert client.removed == [client.ran[0][1]["name"]]


def test_folders_are_handed_back_only_if_others_own_something(tmp_path):
    client = FakeRuns()
    ran = client.ran
    (tmp_path / "hub").mkdir()
    request = {
        "image": "a:1",
        "volumes": {
            str(tmp_path): {"bind": HUB_FOLDER, "mode": "rw"},
            "a-volume": {"bind": "/x", "mode": "rw"},
            "/models": {"bind": "/m", "mode": "ro"},
        },
    }
    hand_back(client, request, os.getuid())
    assert ran == [], "everything is the user's already"
    hand_back(client, request, os.getuid() + 1)
    ((image, arguments), options) = ran[0]
    assert image == "a:1"
    assert arguments[-2:] == [f"{os.getuid() + 1}:{os.getgid()}", "/hand-back/0"]
    assert options["volumes"] == {str(tmp_path): {"bind": "/hand-back/0", "mode": "rw"}}
    assert options["entrypoint"] == "chown"


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


def test_refused_pull_whose_answer_was_read_names_the_command():
    def released():
        raise RuntimeError("Cannot shutdown as connection has already been released to the pool")

    class Refusing(FakeDocker):
        def pull(self, repository, tag, stream, decode):
            for hook in self.hooks["response"]:
                hook(SimpleNamespace(raw=SimpleNamespace(shutdown=released)))
            raise docker.errors.APIError("no such host")

    with pytest.raises(EngineError, match="docker pull registry/a:1"):
        ensure_image(Refusing(), "registry/a:1", print)


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
