"""The gateway as a process of this machine, for the lab, tests and measurements.

with serve(models_of({"tiny": engines})) as gateway:
    print(gateway.base_url)
"""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import httpx
import psutil
import yaml

from utils import loopback
from utils.engines.launch import RunningEngine
from utils.engines.process import ProcessHandle
from utils.engines.runtime import free_port, new_log, wait_until_serves
from utils.gateway.settings import load_settings

START_TIMEOUT_S = 60.0
POLL_S = 0.05


class LocalGateway:
    """A gateway that runs.

    Attributes:
        base_url: `http://127.0.0.1:PORT`.
        log_path: Its log, one JSON object a line.
        command: Command that was run.
        name, version, model_path, quantisation: For records of runs against it.
    """

    name = "gateway"

    def __init__(self, base_url: str, handle: ProcessHandle, config: Path) -> None:
        self.base_url = base_url
        self._config = config
        self.log_path = handle.log_path
        self.command = list(handle.command)
        self.version = f"fastapi {version('fastapi')}, uvicorn {version('uvicorn')}"
        self.model_path = ""
        self.quantisation = ""
        self._handle = handle

    @property
    def process(self) -> psutil.Process:
        """The gateway's own process.

        Raises:
            psutil.NoSuchProcess: It has ended.
        """
        found = psutil.Process(int(self._handle.identity)).children()
        if not found:
            raise psutil.NoSuchProcess(int(self._handle.identity))
        return found[0]

    def terminate(self) -> None:
        """Send SIGTERM, as the deployment of a new version does: it drains, then ends."""
        self.process.send_signal(signal.SIGTERM)

    def reload(self, **settings: Any) -> None:
        """Change settings in the file, and send SIGHUP. The gateway applies them within a moment."""
        chosen = yaml.safe_load(self._config.read_text(encoding="utf-8")) | settings
        load_settings(**chosen)
        self._config.write_text(yaml.safe_dump(chosen), encoding="utf-8")
        self.process.send_signal(signal.SIGHUP)

    def running(self) -> bool:
        """Return whether it is there."""
        return self._handle.exit_code() is None

    def get(self, path: str) -> Any:
        """JSON of a path."""
        return loopback.get(self.base_url + path, timeout=10.0).json()

    def metrics(self) -> str:
        """Text of `/metrics`."""
        return loopback.get(f"{self.base_url}/metrics", timeout=10.0).text

    def stop(self) -> None:
        """End it. Twice does no harm."""
        self._handle.stop()
        self._config.unlink(missing_ok=True)


def models_of(
    engines: Mapping[str, Sequence[RunningEngine]],
    policy: str = "least_outstanding",
    **options: Any,
) -> list[dict[str, Any]]:
    """Return the setting `models` for running engines.

    Args:
        engines: Engines that serve the same model, by the name under which clients ask for it.
        policy: Rule that chooses one of them.
        **options: Further settings of each backend, such as `max_outstanding`.
    """
    return [
        {
            "name": name,
            "policy": policy,
            "backends": [
                {
                    "name": f"{engine.name}-{number}",
                    "engine": engine.name,
                    "url": engine.base_url,
                    "model": engine.model,
                    **options,
                }
                for number, engine in enumerate(replicas)
            ],
        }
        for name, replicas in engines.items()
    ]


@contextmanager
def serve(models: Sequence[Mapping[str, Any]], **settings: Any) -> Iterator[LocalGateway]:
    """Start a gateway on a free port, yield it when it answers, and stop it at the end.

    Args:
        models: The setting `models`.
        **settings: Other settings, over the defaults. Without `keys` anybody on this machine may ask.

    Raises:
        SettingsError: A setting is wrong.
        EngineStartError: It did not start; holds the end of its log.
    """
    gateway = start(models, **settings)
    try:
        yield gateway
    finally:
        gateway.stop()


def start(models: Sequence[Mapping[str, Any]], **settings: Any) -> LocalGateway:
    """Start it as `serve` does, for callers that stop it themselves."""
    port = settings.pop("port", 0) or free_port()
    chosen: dict[str, Any] = {
        "models": [dict(model) for model in models],
        "port": port,
        "drain": {"notice_s": 0},
        "allow_anonymous": not settings.get("keys"),
        **settings,
    }
    load_settings(**chosen)  # what is wrong is said here, not in a log
    log = new_log("gateway")
    config = log.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(chosen), encoding="utf-8")
    command = [sys.executable, "-m", "utils.gateway", "--config", str(config)]
    handle = ProcessHandle(command, {}, log)
    gateway = LocalGateway(f"http://127.0.0.1:{port}", handle, config)
    try:
        _wait(gateway, handle)
    except BaseException:
        gateway.stop()
        raise
    return gateway


def _wait(gateway: LocalGateway, handle: ProcessHandle) -> None:
    def serves() -> bool:
        with contextlib.suppress(httpx.HTTPError):
            return bool(gateway.get("/health/live")["status"] == "alive")
        return False

    hint = "is the port free? The log says more."
    limits = {"timeout_s": START_TIMEOUT_S, "poll_s": POLL_S}
    wait_until_serves(handle, "The gateway", serves, hint, **limits)
