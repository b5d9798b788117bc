"""Debian's Prometheus, with the course's own settings and rules, watching what a test runs."""

import contextlib
import itertools
import json
import math
import shutil
import subprocess
import threading
import time

import httpx
import pytest
import yaml

from utils.engines.runtime import free_port
from utils.profiles import ROOT

FOLDER = ROOT / "docker" / "prometheus"
DASHBOARD = json.loads((ROOT / "docker/grafana/dashboards/gateway.json").read_text())
PANELS = [
    target["expr"].replace("$model", ".*").replace("$backend", ".*")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]
EVERY = "250ms"
needs_prometheus = pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("promtool")),
    reason="not run here: no prometheus (Debian, Ubuntu: apt install prometheus)",
)


class Prometheus:
    """One that runs."""

    def __init__(self, url):
        self._http = httpx.Client(base_url=f"{url}/api/v1", timeout=10.0, trust_env=False)

    def get(self, path, **parameters):
        answer = self._http.get(path, params=parameters).json()
        assert answer["status"] == "success", answer
        return answer["data"]

    def query(self, expression):
        """Labels and value of each series that there is now."""
        found = self.get("/query", query=expression)["result"]
        return [(series["metric"], float(series["value"][1])) for series in found]

    def has_data(self, expression):
        return any(not math.isnan(value) for _, value in self.query(expression))

    def all_have_data(self, expressions, patience_s=20.0):
        """Waits until each has; tells which have not."""
        deadline = time.monotonic() + patience_s
        while missing := [each for each in expressions if not self.has_data(each)]:
            assert time.monotonic() < deadline, f"no data: {missing}"
            time.sleep(0.1)

    def rules(self):
        """All rules, with their health."""
        return [rule for group in self.get("/rules")["groups"] for rule in group["rules"]]

    def alerts(self, name):
        """Alerts of this name that fire, or will if it goes on."""
        return [a for a in self.get("/alerts")["alerts"] if a["labels"]["alertname"] == name]

    def until(self, condition, patience_s=20.0):
        """Waits for something that has to come true."""
        deadline = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline, "it did not come true"
            time.sleep(0.1)


def settings(targets):
    """`docker/prometheus/prometheus.yml`, with these targets by job, and in a hurry."""
    found = yaml.safe_load((FOLDER / "prometheus.yml").read_text())
    assert {job["job_name"] for job in found["scrape_configs"]} == set(targets)
    found["global"] = {"scrape_interval": EVERY, "evaluation_interval": EVERY}
    found["rule_files"] = [str(FOLDER / name) for name in found["rule_files"]]
    for job in found["scrape_configs"]:
        addresses = [url.removeprefix("http://") for url in targets[job["job_name"]]]
        job["static_configs"] = [{"targets": addresses}]
        job.pop("dns_sd_configs", None)
    return found


@contextlib.contextmanager
def watching(folder, **targets):
    """Prometheus that scrapes these addresses, by job; its data is in `folder`."""
    config = folder / "prometheus.yml"
    config.write_text(yaml.safe_dump(settings(targets)))
    address = f"127.0.0.1:{free_port()}"
    command = ["prometheus", f"--config.file={config}", f"--web.listen-address={address}"]
    command += [f"--storage.tsdb.path={folder / 'data'}", "--log.level=warn"]
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, cwd=folder)
        try:
            prometheus = Prometheus(f"http://{address}")
            prometheus.until(lambda: process.poll() is not None or _ready(address))
            assert process.poll() is None, (folder / "log").read_text()
            yield prometheus
        finally:
            process.terminate()
            process.wait()


def _ready(address):
    with contextlib.suppress(httpx.HTTPError):
        return httpx.get(f"http://{address}/-/ready", trust_env=False).is_success
    return False


@contextlib.contextmanager
def load_on(url, *models):
    """Requests to each model in turn, one after another, streamed and not, until the end."""
    over = threading.Event()

    def ask():
        with httpx.Client(base_url=url, timeout=10.0, trust_env=False) as http:
            for number in itertools.count():
                for model in models:
                    body = {
                        "model": model,
                        "prompt": "a b",
                        "max_tokens": 8,
                        "stream": number % 3 > 0,
                    }
                    with contextlib.suppress(httpx.HTTPError):
                        http.post("/v1/completions", json=body)
                if over.wait(0.02):
                    return

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
