"""Other people's software that ours is compared with: proxies and a benchmark to measure, clients to try.

Packages go into environments of their own below `.peers`. The gateway's tests find their clients there, too.

    python -m benchmarks.peers                 # make peers: installs what is missing
    python -m benchmarks.peers clients openai-js         # the tests' part alone
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import yaml

from tools.setup.__main__ import locked, set_up
from tools.setup.packages import install, install_cpu_torch, make_venv
from tools.setup.setup_steps import REQUIREMENTS, Step
from tools.setup.shell import SetupError, Shell
from utils import loopback
from utils.engines.runtime import free_port
from utils.gateway.local_gateway import serve
from utils.profiles import ROOT

FOLDER = ROOT / ".peers"
STOP_S = 10.0  # patience after SIGTERM
NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream engine {{ server {target}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
                 proxy_buffering off; }}
  }}
}}
"""


class NotHere(Exception):
    """A peer that cannot be measured; says why, and the command that installs it."""


@dataclass(frozen=True)
class Engine:
    """What stands behind everybody: its address, its model, its name in `utils.engines`."""

    url: str
    model: str
    name: str


@dataclass(frozen=True)
class Served:
    """A program that serves: its address, and its process (None: none of ours, so no CPU time)."""

    url: str
    process: psutil.Process | None = None

    def cpu_s(self) -> float:
        """CPU seconds so far, of it and the processes that it started."""
        if self.process is None:
            return 0.0
        family = [self.process, *self.process.children(recursive=True)]
        return float(sum(sum(one.cpu_times()[:2]) for one in family))


def environment(name: str, title: str, gigabytes: float, *, torch: bool = False) -> Step:
    """Return the step for an environment of the packages that `requirements/NAME.txt` pins.

    Args:
        name: Name of the environment.
        title: Text for people.
        gigabytes: Disk that it takes.
        torch: Whether it needs PyTorch, of which the CPU build is enough.
    """

    def build(shell: Shell, target: Path) -> None:
        python = make_venv(shell, target)
        if torch:
            install_cpu_torch(shell, python)
        install(shell, python, "--no-deps", "-r", str(REQUIREMENTS / f"{name}.txt"))

    return Step(name, title, FOLDER / name, 1.0, gigabytes, (f"{name}.txt",), build)


def npm_package(name: str, title: str, gigabytes: float) -> Step:
    """The files of the npm package that `requirements/NAME.txt` pins. Nothing of it is run to install it."""
    file = f"{name}.txt"

    def build(shell: Shell, target: Path) -> None:
        target.mkdir(parents=True, exist_ok=True)
        pinned = (REQUIREMENTS / file).read_text(encoding="utf-8").strip()
        pack = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", str(target)]
        shell.run([*pack, pinned])
        (archive,) = target.glob("*.tgz")
        shell.run(["tar", "-xzf", str(archive), "-C", str(target), "--strip-components=1"])
        archive.unlink()

    return Step(name, title, FOLDER / name, 0.5, gigabytes, (file,), build)


CLIENTS = environment(
    "clients", "langchain-openai, schemathesis and kubernetes-validate in .peers/clients", 0.2
)
OPENAI_JS = npm_package("openai-js", "OpenAI's package for JavaScript in .peers/openai-js", 0.05)
LITELLM = environment("litellm", "LiteLLM's proxy in .peers/litellm", 0.7)
EVALUATORS = environment(
    "evaluators", "guidellm and lm-evaluation-harness in .peers/evaluators", 1.5, torch=True
)


def free_environment(**more: str) -> dict[str, str]:
    """An environment in which nothing is sent through a proxy."""
    kept = {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}
    return kept | more


@contextmanager
def started(
    command: list[str], url: str, path: str, wait_s: float = 60.0, **variables: str
) -> Iterator[Served]:
    """A program that serves at `url`, from when `path` answers there.

    Raises:
        NotHere: It does not; with the last line that it wrote.
    """
    with tempfile.TemporaryFile() as log:
        environment = free_environment(**variables)
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment)
        try:
            deadline = time.monotonic() + wait_s
            while not _answers(url + path):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    words = log.read().decode("utf-8", "replace").strip().rpartition("\n")[2]
                    raise NotHere(f"it did not start: {words or command}")
                time.sleep(0.2)
            yield Served(url, psutil.Process(process.pid))
        finally:
            process.terminate()
            try:
                process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(url: str) -> bool:
    with suppress(httpx.HTTPError):
        return loopback.get(url, timeout=2.0).status_code < 500
    return False


@contextmanager
def ours(engine: Engine) -> Iterator[Served]:
    backend = {"name": "a", "engine": engine.name, "url": engine.url}
    with serve([{"name": engine.model, "backends": [backend]}], log_level="warning") as gateway:
        yield Served(gateway.base_url, gateway.process)


@contextmanager
def nginx(engine: Engine) -> Iterator[Served]:
    """As plain as nginx gets: one worker, kept connections, nothing buffered."""
    program = shutil.which("nginx", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
    if program is None:
        raise NotHere("not installed; apt-get install nginx-light (Debian, Ubuntu)")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "nginx.conf"
        address = engine.url.removeprefix("http://")
        config.write_text(NGINX.format(folder=folder, target=address, port=port))
        command = [program, "-c", str(config), "-e", f"{folder}/start.log"]
        with started(command, f"http://127.0.0.1:{port}", "/health") as served:
            yield served


@contextmanager
def litellm(engine: Engine) -> Iterator[Served]:
    """LiteLLM's proxy: one worker, no data base, log of errors only."""
    if not LITELLM.done():
        raise NotHere("not installed; make peers")
    port = free_port()
    target = {"model": f"hosted_vllm/{engine.model}", "api_base": f"{engine.url}/v1"}
    models = [{"model_name": engine.model, "litellm_params": {**target, "api_key": "none"}}]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(yaml.safe_dump({"model_list": models}))
        command = [str(LITELLM.target / "bin" / "litellm"), "--config", str(config)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--num_workers", "1"]
        variables = {"LITELLM_LOG": "ERROR", "LITELLM_MODE": "PRODUCTION"}
        variables["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"  # nothing is fetched at its start
        variables["LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY"] = (
            "true"  # as ours: no keys
        )
        url = f"http://127.0.0.1:{port}"
        with started(command, url, "/health/liveliness", 180, **variables) as served:
            yield served


@contextmanager
def sglang_router(engine: Engine) -> Iterator[Served]:
    port = free_port()
    command = [sys.executable, "-m", "sglang_router.launch_router", "--worker-urls", engine.url]
    command += ["--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    command += ["--prometheus-port", str(free_port())]
    with started(command, f"http://127.0.0.1:{port}", "/health") as served:
        yield served


Peer = Callable[[Engine], AbstractContextManager[Served]]
PEERS: dict[str, Peer] = {
    "our gateway": ours,
    "nginx": nginx,
    "sglang-router": sglang_router,
    "LiteLLM proxy": litellm,
}


def main() -> int:
    steps = {step.name: step for step in (CLIENTS, OPENAI_JS, LITELLM, EVALUATORS)}
    names = sys.argv[1:] or list(steps)
    if wrong := [name for name in names if name not in steps]:
        print(f"There is no {wrong[0]!r}; there are: {', '.join(steps)}.", file=sys.stderr)
        return 2
    try:
        with locked() as lock:
            set_up([steps[name] for name in names], lock)
    except SetupError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
