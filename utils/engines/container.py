"""The docker runtime: an engine in a container, published on 127.0.0.1 only, removed at the end."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import docker
import docker.errors
from docker.types import DeviceRequest, Ulimit

from utils.engines import guard
from utils.engines.errors import EngineError, EngineStartError
from utils.engines.spec import Container
from utils.setup.steps import ROOT

LABEL = "inference-engines-course"
MODEL_FOLDER = "/course-models"
CONFIG_FOLDER = "/course-config"


class DockerUnavailable(EngineError):
    """The docker daemon did not answer."""


def connect() -> Any:
    """A client of the docker daemon.

    Raises:
        DockerUnavailable: No daemon, or no permission to talk to it; says which command mends it.
    """
    try:
        client = docker.from_env()
        client.ping()
    except docker.errors.DockerException as error:
        hint = (
            "you may not use it: sudo usermod -aG docker $USER, then log in again"
            if "ermission denied" in str(error)
            else "it is not running: sudo systemctl start docker"
        )
        raise DockerUnavailable(f"Docker did not answer ({error}). Most likely {hint}.") from error
    return client


def run_arguments(
    container: Container,
    arguments: list[str],
    port: int,
    model: Path | None,
    environment: Mapping[str, str],
    config: Path | None = None,
) -> dict[str, Any]:
    """Arguments of the docker SDK's `containers.run` for an engine.

    Args:
        container: The engine's container.
        arguments: Serving arguments.
        port: Port of 127.0.0.1 that clients use.
        model: Local model folder to mount read-only at /course-models; None for a hub model.
        environment: The user's environment, from which `pass_environment` is taken.
        config: File of the engine's own settings, mounted read-only in /course-config.
    """
    volumes = {
        os.path.expanduser(source): {"bind": target, "mode": "rw"}
        for source, target in container.mounts.items()
    }
    if model is not None:
        volumes[str(model)] = {"bind": MODEL_FOLDER, "mode": "ro"}
    if config is not None:
        volumes[str(config)] = {"bind": f"{CONFIG_FOLDER}/{config.name}", "mode": "ro"}
    passed = {k: environment[k] for k in container.pass_environment if k in environment}
    request: dict[str, Any] = {
        "image": container.image,
        "command": [*container.command, *arguments] or None,
        "detach": True,
        "ports": {f"{container.port}/tcp": ("127.0.0.1", port)},
        "volumes": volumes,
        "environment": {**container.environment, **passed},
        "labels": {LABEL: str(os.getpid())},
        "ulimits": [Ulimit(name=n, soft=v, hard=v) for n, v in container.ulimits.items()],
    }
    if container.gpus:
        request["device_requests"] = [DeviceRequest(count=-1, capabilities=[["gpu"]])]
    if container.ipc:
        request["ipc_mode"] = container.ipc
    if container.shm_size:
        request["shm_size"] = container.shm_size
    return request


def ensure_image(client: Any, image: str, say: Callable[[str], None]) -> None:
    """Pulls `image` if it is not here, telling `say` how far it is.

    Raises:
        EngineError: The registry has no such image, or did not answer.
    """
    try:
        client.images.get(image)
        return
    except docker.errors.ImageNotFound:
        pass
    layers: dict[str, tuple[int, int]] = {}
    repository, _, tag = image.rpartition(":")
    try:
        for event in client.api.pull(repository, tag=tag, stream=True, decode=True):
            if "error" in event:
                raise docker.errors.APIError(event["error"])
            progress = event.get("progressDetail") or {}
            if event.get("id") and progress.get("total"):
                layers[event["id"]] = (progress.get("current", 0), progress["total"])
                done, total = (sum(column) for column in zip(*layers.values(), strict=True))
                say(f"pulling {image}: {done / 1e9:.1f} of {total / 1e9:.1f} GB so far")
    except docker.errors.APIError as error:
        raise EngineError(
            f"The image {image} could not be pulled: {error}. Check the network and, for nvcr.io, "
            f"`docker login nvcr.io`; then try by hand: docker pull {image}"
        ) from error


class ContainerHandle:
    """An engine running in a container. See `runtime.Handle`."""

    def __init__(self, client: Any, title: str, request: dict[str, Any], log: Path) -> None:
        self.log_path = log
        self.command: Sequence[str] = ("docker run", request["image"], *(request["command"] or ()))
        try:
            self._container = client.containers.run(**request)
        except docker.errors.APIError as error:
            log.write_text(str(error))
            hint = (
                "install the NVIDIA container toolkit, then: sudo systemctl restart docker"
                if "could not select device driver" in str(error)
                else "read docker's message above; `docker ps -a` shows what else is there"
            )
            raise EngineStartError(
                title, "was refused by docker.", str(error), hint, log
            ) from error
        self.identity = str(self._container.id)
        watch = [sys.executable, guard.__file__, "container", str(os.getpid())]
        self._guard = subprocess.Popen([*watch, self.identity], cwd=ROOT, start_new_session=True)
        self._copier = threading.Thread(target=self._copy_log, daemon=True)
        self._copier.start()

    def _copy_log(self) -> None:
        chunks: Iterable[bytes] = self._container.logs(stream=True, follow=True)
        with self.log_path.open("ab") as log:
            for chunk in chunks:
                log.write(chunk)
                log.flush()

    def exit_code(self) -> int | None:
        """The container's exit code; None while it runs."""
        try:
            self._container.reload()
        except docker.errors.NotFound:
            return 137
        if self._container.status in ("created", "running", "restarting"):
            return None
        return int(self._container.attrs["State"]["ExitCode"])

    def memory_bytes(self) -> int:
        """Memory of the container as docker counts it, bytes."""
        return int(self._container.stats(stream=False)["memory_stats"].get("usage", 0))

    def kill(self) -> None:
        """Kills the container; `stop` removes it."""
        with contextlib.suppress(docker.errors.APIError):
            self._container.kill()

    def stop(self) -> None:
        """Stops and removes the container."""
        try:
            self._container.stop(timeout=20)
            self._container.remove(force=True)
        except docker.errors.NotFound:
            pass
        finally:
            self._guard.terminate()
            self._guard.wait()
