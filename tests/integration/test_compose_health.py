"""The health checks of docker/compose.yaml, run against the real services on this machine."""

import contextlib
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
from utils.engines.runtime import free_port
from utils.profiles import ROOT

SERVICES = yaml.safe_load(compose.COMPOSE.read_text())["services"]


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
        while (text := probe(service, inside, port)).returncode:
            assert time.monotonic() < deadline, text.stdout + text.stderr
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
    file.write_text(
        yaml.safe_dump(settings | {"host": "127.0.0.1", "port": port, "private": {"port": 0}})
    )
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
