"""The docker runtime: an engine in a container, published on 127.0.0.1 only, removed at the end."""

from __future__ import annotations

import contextlib
import os
import queue
import secrets
import subprocess
import sys
import threading
import time
import urllib.parse
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors
import requests
import urllib3
from docker.types import DeviceRequest, Ulimit
from docker.utils import parse_repository_tag

from utils import loopback
from utils.engines import watchdog
from utils.engines.engine_errors import EngineError, EngineStartError, PortTaken
from utils.engines.spec import HUB_FOLDER, PROXY_VARIABLES, Container
from utils.gpu_choice import VISIBLE
from utils.hub_cache import foreign_owner, hub_cache, hub_home
from utils.profiles import ROOT

LABEL = "inference-engines-course"
MODEL_FOLDER = "/course-models"
CONFIG_FOLDER = "/course-config"
STOP_S = 20  # from SIGTERM to SIGKILL
POLL_S = 0.25
# What docker says when it does not start a container, and the next step; the first that is found decides.
REFUSALS: tuple[tuple[str, str], ...] = (
    (
        "could not select device driver",
        "install the NVIDIA container toolkit, then: sudo nvidia-ctk runtime configure "
        "--runtime=docker && sudo systemctl restart docker",
    ),
    (
        "nvidia-container-cli",
        "the container toolkit does not reach the GPU: nvidia-smi must answer on this machine "
        "first; after an update of the driver, restart the machine",
    ),
    ("no space left", "the disk is full: docker system df shows what images take"),
    (
        "setting rlimit",
        "this docker may not raise limits, because it is rootless or runs in a container itself: use the "
        "machine's own docker, or COURSE_PROFILE=cuda-local, which needs none",
    ),
    ("", "read docker's message above; `docker ps -a` shows what else is there"),
)
# What it says of an image that it cannot have.
PULL_FAILURES: tuple[tuple[str, str], ...] = (
    ("no space left", "the disk is full: docker system df shows what images take"),
    (
        "no matching manifest",
        "this tag was not built for the processor of this machine",
    ),
    (
        "unauthorized|denied|authentication required",
        "the registry wants to know who you are, or has no such image; for nvcr.io: "
        "docker login nvcr.io",
    ),
    ("manifest unknown|not found", "the registry has no such tag"),
    ("", "check the network"),
)


class DockerUnavailable(EngineError):
    """The docker daemon did not answer."""


def connect() -> Any:
    """Return a client of this machine's docker daemon.

    Raises:
        DockerUnavailable: No daemon, no permission to talk to it, another machine's daemon, or podman; tells
            what to do.
    """
    if host := remote_host(os.environ.get("DOCKER_HOST", "")):
        raise DockerUnavailable(
            f"DOCKER_HOST names the docker of another machine ({host}). Engines there could not be reached "
            "from here. Unset DOCKER_HOST, or start the engines there and attach: see LAB_PREP.md."
        )
    try:
        client = docker.from_env()
        client.ping()
        parts = client.version().get("Components") or ()
    except (docker.errors.DockerException, requests.RequestException) as error:
        raise DockerUnavailable(
            f"Docker did not answer ({error}). Most likely {_why_silent(str(error))}."
        ) from error
    if any("podman" in str(part.get("Name", "")).lower() for part in parts):
        raise DockerUnavailable(
            "This is podman under docker's name, and the course's containers need Docker Engine. Install it, "
            "or use COURSE_PROFILE=cuda-local, which needs no containers."
        )
    return client


def remote_host(docker_host: str) -> str:
    """Return the host in `DOCKER_HOST` if that is another machine, else ""."""
    address = urllib.parse.urlsplit(docker_host)
    if address.scheme in ("", "unix", "fd", "npipe"):
        return ""
    local = address.hostname in ("127.0.0.1", "::1", "localhost") and address.scheme != "ssh"
    return "" if local else address.hostname or docker_host


def _why_silent(message: str) -> str:
    if "ermission denied" in message:
        return "you may not use it: sudo usermod -aG docker $USER, then log in again"
    return "it is not running: sudo systemctl start docker"


@contextlib.contextmanager
def answering() -> Iterator[None]:
    """Turn what is raised when the daemon goes away in the middle into `DockerUnavailable`."""
    try:
        yield
    except docker.errors.APIError:  # a kind of RequestException, but it is an answer
        raise
    except (requests.RequestException, urllib3.exceptions.HTTPError) as error:
        raise DockerUnavailable(
            f"Docker no longer answers ({error}). Start it again: sudo systemctl start docker; "
            f"then see what is left: docker ps -a --filter label={LABEL}"
        ) from error


def run_arguments(
    container: Container,
    arguments: list[str],
    port: int,
    model: Path | None,
    environment: Mapping[str, str],
    config: Path | None = None,
) -> dict[str, Any]:
    """Arguments of the docker SDK's `containers.create` for an engine.

    Args:
        container: The engine's container.
        arguments: Serving arguments.
        port: Port of 127.0.0.1 that clients use.
        model: Local model folder to mount read-only at /course-models; None for a hub model.
        environment: The user's environment, from which `pass_environment` is taken.
        config: File of the engine's own settings, mounted read-only in /course-config.
    """
    volumes = {
        source: {"bind": target, "mode": "rw"}
        for source, target in mounted(container.mounts, environment).items()
    }
    if model is not None:
        volumes[str(model)] = {"bind": MODEL_FOLDER, "mode": "ro"}
    if config is not None:
        volumes[str(config)] = {"bind": f"{CONFIG_FOLDER}/{config.name}", "mode": "ro"}
    passed = {k: environment[k] for k in container.pass_environment if k in environment}
    if any(k in passed and "PROXY" in k.upper() for k in PROXY_VARIABLES):
        passed |= loopback.no_proxy(environment)
    request: dict[str, Any] = {
        "image": container.image,
        "command": [*container.command, *arguments] or None,
        "init": True,  # passes signals on, also to an engine that is still loading
        "ports": {f"{container.port}/tcp": ("127.0.0.1", port)},
        "volumes": volumes,
        "environment": {**container.environment, **passed},
        "labels": {LABEL: str(os.getpid())},
        "ulimits": [Ulimit(name=n, soft=v, hard=v) for n, v in container.ulimits.items()],
    }
    if container.gpus:
        chosen = environment.get(VISIBLE, "").split(",")[0].strip()
        only = {"device_ids": [chosen]} if chosen else {"count": -1}
        request["device_requests"] = [DeviceRequest(**only, capabilities=[["gpu"]])]
    if container.ipc:
        request["ipc_mode"] = container.ipc
    return request


def mounted(mounts: Mapping[str, str], environment: Mapping[str, str]) -> dict[str, str]:
    """Return folder or volume to folder in the container, with the user's own model cache.

    The model cache is where `HF_HOME` and `HF_HUB_CACHE` say. So a model that is on this machine isn't
    downloaded again.
    """
    found = {}
    for source, target in mounts.items():
        if target != HUB_FOLDER:
            found[os.path.expanduser(source)] = target
            continue
        home, cache = hub_home(environment), hub_cache(environment)
        found[str(home)] = target
        if cache != home / "hub":
            found[str(cache)] = f"{target}/hub"
    return found


def ensure_image(
    client: Any,
    image: str,
    say: Callable[[str], None],
    check: Callable[[], None] = lambda: None,
) -> None:
    """Pull `image` if it is not here, telling `say` how far it is.

    Args:
        client: Client of the docker daemon.
        image: Name and tag.
        say: Gets each new text.
        check: Called several times a second, also while the registry is silent. The pull ends in the daemon
            too if it raises.

    Raises:
        EngineError: The registry has no such image, or did not answer.
        DockerUnavailable: The daemon went away.
    """
    try:
        with answering():
            client.images.get(image)
        return
    except docker.errors.ImageNotFound:
        pass
    repository, tag = parse_repository_tag(image)
    layers: dict[str, tuple[int, int]] = {}
    text = ""
    try:
        with answering(), contextlib.closing(pull_events(client, repository, tag)) as events:
            for event in events:
                check()
                if "error" in event:
                    raise docker.errors.APIError(event["error"])
                line = pull_line(image, event, layers)
                if line != text:
                    text = line
                    say(text)
    except docker.errors.APIError as error:
        raise EngineError(
            f"The image {image} could not be pulled: {error}. Most likely "
            f"{next_step(str(error), PULL_FAILURES)}; then try by hand: docker pull {image}"
        ) from error


def pull_events(
    client: Any, repository: str, tag: str | None
) -> Generator[Mapping[str, Any], None, None]:
    """Yield the events of a pull, and an empty one whenever the daemon has been silent for `POLL_S` seconds.

    A thread reads them, because a read from a slow registry can't be interrupted. If the generator is closed
    early, the connection is shut down, and the daemon then ends the pull.
    """
    found: queue.SimpleQueue[Mapping[str, Any] | BaseException | None] = queue.SimpleQueue()
    closed = threading.Event()
    answers: list[requests.Response] = []

    def shut_down(answer: requests.Response) -> None:
        # RuntimeError: the answer was read to its end, as that of a refused pull.
        with contextlib.suppress(OSError, ValueError, RuntimeError):
            answer.raw.shutdown()

    def keep(answer: requests.Response, **_: Any) -> None:
        if threading.current_thread() is reader:
            answers.append(answer)
            if closed.is_set():
                shut_down(answer)

    def read() -> None:
        client.api.hooks["response"].append(keep)
        try:
            for event in client.api.pull(repository, tag=tag, stream=True, decode=True):
                found.put(event)
            found.put(None)
        except BaseException as error:
            found.put(error)
        finally:
            client.api.hooks["response"].remove(keep)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        while True:
            try:
                event = found.get(timeout=POLL_S)
            except queue.Empty:
                yield {}
                continue
            if event is None:
                return
            if isinstance(event, BaseException):
                raise event
            yield event
    finally:
        closed.set()
        for answer in answers:
            shut_down(answer)


def pull_line(image: str, event: Mapping[str, Any], layers: dict[str, tuple[int, int]]) -> str:
    """Return the line to show after an event of a pull.

    Args:
        image: The image.
        event: As the daemon sends it.
        layers: Bytes that are here and bytes in all of each layer; brought up to date. Docker names the size
            of a layer when its turn comes, so the sum grows.
    """
    layer, status = event.get("id", ""), event.get("status", "")
    progress = event.get("progressDetail") or {}
    if status == "Downloading" and progress.get("total"):
        layers[layer] = (progress.get("current", 0), progress["total"])
    elif status in ("Download complete", "Extracting", "Pull complete") and layer in layers:
        layers[layer] = (layers[layer][1], layers[layer][1])
    done, total = (sum(layer[i] for layer in layers.values()) for i in (0, 1))
    if not total:
        return f"pulling {image}"
    if done == total:
        return f"unpacking {image}, {_size(total)} so far"
    return f"pulling {image}: {_size(done)} of {_size(total)} so far"


def _size(count: float) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"


def next_step(message: str, known: Sequence[tuple[str, str]]) -> str:
    """The advice for the first of `known` whose words (any of them, between bars) docker's message has."""
    text = message.lower()
    return next(advice for words, advice in known if any(w in text for w in words.split("|")))


class ContainerHandle:
    """An engine running in a container. See `runtime.Handle`."""

    def __init__(self, client: Any, title: str, request: dict[str, Any], log: Path) -> None:
        self.log_path = log
        self.command: Sequence[str] = ("docker run", request["image"], *(request["command"] or ()))
        self._client = client
        self._name = f"course-{secrets.token_hex(6)}"
        make_folders(request)
        # Before the container: a kernel killed at any moment leaves none.
        self._watchdog = self._start_watchdog()
        self._request = request
        try:
            with answering():
                self._container = client.containers.create(name=self._name, **request)
                self._container.start()
        except docker.errors.APIError as error:
            self._remove()
            raise refusal(title, str(error), request, log) from error
        except BaseException:
            time.sleep(watchdog.POLL_S)  # the daemon may just be making it
            self._remove()
            raise
        self.identity = str(self._container.id)
        self._copier = threading.Thread(target=self._copy_log, daemon=True)
        self._copier.start()

    def _start_watchdog(self) -> subprocess.Popen[bytes]:
        watch = [sys.executable, watchdog.__file__, "container", str(os.getpid()), self._name]
        with self.log_path.open("ab") as log:
            return subprocess.Popen(
                watch,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                cwd=ROOT,
                start_new_session=True,
            )

    def _copy_log(self) -> None:
        gone = (requests.RequestException, urllib3.exceptions.HTTPError)  # container or daemon
        with contextlib.suppress(*gone), self.log_path.open("ab") as log:
            chunks: Iterable[bytes] = self._container.logs(stream=True, follow=True)
            for chunk in chunks:
                log.write(chunk)
                log.flush()

    def exit_code(self) -> int | None:
        """Return the container's exit code, 137 if it was removed by others; None while it runs.

        Raises:
            DockerUnavailable: The daemon does not say.
        """
        try:
            with answering():
                self._container.reload()
        except docker.errors.NotFound:
            return 137
        state = self._container.attrs["State"]
        if state["Running"]:
            return None
        self._copier.join(timeout=5)  # the last lines are in the log before anybody reads it
        return int(state["ExitCode"])

    def process_ids(self) -> set[int]:
        """Return the ids of the container's processes on the host, as `docker top` lists them."""
        try:
            with answering():
                listed = self._container.top()
        except docker.errors.APIError:
            return set()
        column = listed["Titles"].index("PID")
        return {int(row[column]) for row in listed["Processes"]}

    def memory_bytes(self) -> int:
        """Memory of the container as `docker stats` counts it, bytes: without file pages not in use."""
        try:
            with answering():
                stats = self._client.api.stats(self._container.id, stream=False, one_shot=True)
        except docker.errors.NotFound:
            return 0
        memory = stats["memory_stats"]
        kinds = memory.get("stats", {})
        idle = kinds.get("total_inactive_file", kinds.get("inactive_file", 0))  # cgroup 1, 2
        return max(0, int(memory.get("usage", 0)) - int(idle))

    def kill(self) -> None:
        """Kill the container; `stop` removes it."""
        with contextlib.suppress(docker.errors.APIError):
            self._container.kill()

    def freeze(self) -> None:
        """Suspend the container (`docker pause`)."""
        with answering():
            self._container.pause()

    def thaw(self) -> None:
        """Let the container go on."""
        with answering():
            self._container.unpause()

    def stop(self) -> None:
        """Stop and remove the container.

        Raises:
            DockerUnavailable: The daemon went away; the watchdog goes on trying when this process ends.
        """
        with answering(), contextlib.suppress(docker.errors.NotFound):
            self._container.stop(timeout=STOP_S)
        self._remove()

    def hand_back(self) -> None:
        """Give what the engine has written into the user's folders back to the user."""
        hand_back(self._client, self._request)

    def _remove(self) -> None:
        with answering():
            watchdog.remove_container(self._client, self._name)
        self._watchdog.terminate()
        self._watchdog.wait()
        self.hand_back()


def make_folders(request: Mapping[str, Any]) -> None:
    """Make the folders that are mounted: docker would, but as root, and nobody else could write there."""
    for source in map(Path, request.get("volumes", {})):
        if source.is_absolute() and not source.exists():
            source.mkdir(parents=True)


def hand_back(client: Any, request: Mapping[str, Any], user: int | None = None) -> None:
    """Give folders that containers write as root back to the user, who often has no sudo.

    A small container of the same image does it, and only if a file there belongs to somebody else. If it
    can't, the folders stay as they are, and a later `PermissionError` of the hub names them.

    Args:
        client: Client of the docker daemon.
        request: Arguments of the container that wrote.
        user: The user's id; None for this process's. Root needs nothing back.
    """
    user = os.getuid() if user is None else user
    written = [
        source
        for source, volume in request.get("volumes", {}).items()
        if volume.get("mode") == "rw" and Path(source).is_absolute()
    ]
    folders = [source for source in written if foreign_owner(Path(source), user)]
    if not folders or user == 0:
        return
    places = {source: f"/hand-back/{number}" for number, source in enumerate(folders)}
    name = f"course-{secrets.token_hex(6)}"
    with contextlib.suppress(docker.errors.DockerException, requests.RequestException):
        try:
            client.containers.run(
                request["image"],
                ["-R", "-h", f"{user}:{os.getgid()}", *places.values()],
                name=name,
                entrypoint="chown",
                user="0",
                network_mode="none",
                labels={LABEL: str(os.getpid())},
                volumes={source: {"bind": place, "mode": "rw"} for source, place in places.items()},
            )
        finally:  # docker's own `remove` keeps a container that didn't start, as in an image without chown
            watchdog.remove_container(client, name)


def refusal(title: str, message: str, request: Mapping[str, Any], log: Path) -> EngineError:
    """Return the error for a container that docker did not create or start."""
    with log.open("a") as file:
        file.write(message)
    taken = "port is already allocated" in message or "address already in use" in message
    if taken:
        return PortTaken(next(iter(request["ports"].values()))[1])
    hint = next_step(message, REFUSALS)
    return EngineStartError(title, "was refused by docker.", message, hint, log)
