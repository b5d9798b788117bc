"""Our clients reach loopback addresses although the environment names a dead proxy."""

from __future__ import annotations

import ast
import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import fake_spec
import pytest

from utils import loopback
from utils.benchmark import Client, ClosedLoop, fixed, run
from utils.engines import launch
from utils.engines.vllm import SPEC as VLLM
from utils.profiles import PROFILES, ROOT
from utils.telemetry import scrape

FAKE = ROOT / "tests" / "support" / "fake_openai.py"
METRICS = ROOT / "tests" / "support" / "telemetry_texts" / "vllm-0.32.0-later.txt"

# Calls that may make a client in another way, and why.
ELSEWHERE = {
    "utils/gateway/backend.py": "an httpx transport by itself never reads the environment",
    "utils/loopback.py": "is the factory",
}
_METHODS = {"request", "stream", "get", "post", "put", "patch", "delete", "head", "options"}
_MAKERS = {
    "httpx": {"Client", "AsyncClient", "HTTPTransport", "AsyncHTTPTransport"} | _METHODS,
    "requests": {"Session"} | _METHODS,
}
_MODULES = {"urllib.request", "aiohttp", "http.client"}


def clients(source: str) -> Iterator[str]:
    """Yield each call or import in a file that makes an HTTP client."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            if name.split(".")[-1] in _MAKERS.get(name.split(".")[0], ()):
                yield name
        elif isinstance(node, ast.ImportFrom) and node.module:
            dotted = {f"{node.module}.{alias.name}" for alias in node.names}
            names = {alias.name for alias in node.names} & _MAKERS.get(node.module, set())
            yield from sorted(names | (dotted | {node.module}) & _MODULES)
        elif isinstance(node, ast.Import):
            yield from sorted({alias.name for alias in node.names} & _MODULES)


def strange_clients(root: Path) -> list[str]:
    """Return the places below `root` that make a client without `utils.loopback`."""
    files = [*root.glob("solutions/lab-*.py")]
    for folder in ("utils", "tools", "benchmarks"):
        files += (root / folder).rglob("*.py")
    return [
        f"{path.relative_to(root)}: {name}"
        for path in sorted(files)
        if str(path.relative_to(root)) not in ELSEWHERE
        for name in clients(path.read_text())
    ]


@pytest.fixture
def dead_proxy(monkeypatch):
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
        monkeypatch.setenv(name.lower(), "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fake(monkeypatch):
    fake_spec.register(
        monkeypatch,
        local=dataclasses.replace(
            fake_spec.PROGRAM,
            command=(sys.executable, str(FAKE), "--metrics", str(METRICS)),
            needs=FAKE,
        ),
        arguments=lambda options: ["--port", str(options.port)],
        metrics_path="/metrics",
        version_path=None,
        metrics=VLLM.metrics,
    )
    models = {"fake": "owner/some-model"}
    return dataclasses.replace(PROFILES["cpu"], models=models, start_timeout_s=20.0)


def test_launch_run_and_scrape_ignore_dead_proxy(dead_proxy, fake):
    with launch("fake", fake) as engine:  # waits for its health
        requests = fixed(["hi"], count=2, max_tokens=5)
        client = Client(engine.base_url, engine.model)
        result = run(client, requests, ClosedLoop(1), progress=False)
        assert [trace.error for trace in result.traces] == [None, None]
        assert scrape(engine).running is not None


def test_engine_is_told_to_ask_itself_directly(monkeypatch):
    before = {"NO_PROXY": "internal.example,localhost"}
    both = loopback.no_proxy(before)
    assert both["NO_PROXY"] == "internal.example,localhost,127.0.0.1,::1"
    assert both["no_proxy"] == both["NO_PROXY"]
    assert loopback.no_proxy({})["no_proxy"] == "127.0.0.1,localhost,::1"


def test_every_client_is_made_by_loopback():
    assert strange_clients(ROOT) == []


@pytest.mark.parametrize(
    "line",
    [
        "import httpx\nhttpx.get('http://127.0.0.1')\n",
        "import httpx\nclient: httpx.Client = httpx.Client()\n",
        "from httpx import AsyncClient\n",
        "from urllib import request\n",
        "from urllib.request import urlopen\n",
        "import urllib.request\n",
        "import requests\nrequests.get('http://127.0.0.1')\n",
    ],
)
def test_other_client_is_found_when_planted(tmp_path, line):
    (tmp_path / "utils").mkdir()
    (tmp_path / "utils" / "planted.py").write_text(line)
    assert len(strange_clients(tmp_path)) == 1
