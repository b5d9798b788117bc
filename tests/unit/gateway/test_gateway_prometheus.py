"""What `docker/` says to Prometheus, tried with Debian's: rules fire as they should, every panel has data."""

import contextlib
import shutil
import subprocess
import sys

import pytest
import yaml
from prometheus import FOLDER, PANELS, load_on, needs_prometheus, watching
from test_gateway_monitoring import RULES

from benchmarks.gateway_chaos import FAKE
from benchmarks.peers import started
from utils.engines.runtime import free_port
from utils.gateway.local_gateway import serve
from utils.profiles import ROOT

pytestmark = needs_prometheus
TEXTS = ROOT / "tests" / "support" / "telemetry_texts"
UNIT_TESTS = FOLDER / "alerts.test.yml"


def promtool(*command, folder=FOLDER):
    options = {"cwd": folder, "capture_output": True, "text": True, "timeout": 60}
    return subprocess.run(["promtool", *command], check=False, **options)


@pytest.mark.parametrize(
    "command",
    ["check rules alerts.yml", "check config prometheus.yml", f"test rules {UNIT_TESTS.name}"],
)
def test_promtool_agrees(command):
    answer = promtool(*command.split())
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_each_alert_has_a_case_in_which_it_fires_and_one_in_which_it_does_not():
    expected = {}
    for group in yaml.safe_load(UNIT_TESTS.read_text())["tests"]:
        for case in group["alert_rule_test"]:
            expected.setdefault(case["alertname"], set()).add(bool(case.get("exp_alerts")))
    assert expected == {rule["alert"]: {True, False} for rule in RULES}


CHANGES = [
    ("> 0.02", "> 0.2"),
    ("outcome=~", "outcome!~"),
    ("[5m]))) > 2", "[5m]))) > 9"),
    ("> 32", "> 50"),
    ("max_over_time(gateway_queued[1m])", "gateway_queued"),
    ("== 0 or gateway_circuit_state >= 1", "== 0 or gateway_circuit_state > 1"),
    ('up{job="gateway"}', "up"),
    ("for: 2m", "for: 0s"),
    ("for: 5m", "for: 0s"),
    ("for: 30s", "for: 0s"),
    ("for: 30s", "for: 5m"),
]


@pytest.mark.parametrize("right, wrong", CHANGES)
def test_a_changed_rule_is_noticed(right, wrong, tmp_path):
    rules = (FOLDER / "alerts.yml").read_text()
    assert right in rules
    (tmp_path / "alerts.yml").write_text(rules.replace(right, wrong))
    shutil.copy(UNIT_TESTS, tmp_path)
    assert promtool("test", "rules", UNIT_TESTS.name, folder=tmp_path).returncode == 1


@contextlib.contextmanager
def fake(*options):
    port = free_port()
    command = [sys.executable, FAKE, "--port", port, *options]
    with started([str(word) for word in command], f"http://127.0.0.1:{port}", "/health") as served:
        yield served.url


def backend(name, url):
    return {"name": name, "engine": "llama_cpp", "url": url}


def test_prometheus_reads_all_of_it_and_every_panel_has_data(tmp_path):
    text = TEXTS / "llama_cpp-0.3.36-under-load.txt"
    with contextlib.ExitStack() as stack:
        good = stack.enter_context(fake("--metrics", text, "--gap", 0.002))
        bad = stack.enter_context(fake("--metrics", text, "--mode", "http_500"))
        models = [
            {"name": "fine", "backends": [backend("good", good)]},
            {"name": "half", "backends": [backend("a", bad), backend("b", good)]},
            {"name": "none", "backends": [backend("bad", bad)]},
        ]
        gateway = stack.enter_context(serve(models, log_level="error"))
        stack.enter_context(load_on(gateway.base_url, "fine", "half", "none"))
        targets = {"gateway": [gateway.base_url], "engines": [good, bad]}
        prometheus = stack.enter_context(watching(tmp_path, **targets))
        prometheus.all_have_data(PANELS)
        up = {labels["instance"]: value for labels, value in prometheus.query("up")}
        assert list(up.values()) == [1.0] * 3, up
        assert prometheus.has_data("llamacpp:tokens_predicted_total")
        assert {rule["name"]: rule["health"] for rule in prometheus.rules()} == {
            rule["alert"]: "ok" for rule in RULES
        }
        waiting = {alert["labels"]["backend"] for alert in prometheus.alerts("EngineDown")}
        assert waiting == {"a"}, "its circuit opens, but the circuit of a last engine never does"
        gateway.stop()
        prometheus.until(lambda: prometheus.alerts("GatewayDown"))
