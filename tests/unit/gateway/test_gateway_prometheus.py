"""What `docker/` says to Prometheus, tried with Debian's: rules fire as they should, every panel has data."""

import contextlib
import shutil
import subprocess
import sys

import pytest
import yaml
from prometheus import FOLDER, PANELS, load_on, needs_prometheus, watching
from test_gateway_monitoring import RECORDED, RULES

from benchmarks.gateway_chaos import FAKE
from benchmarks.peers import started
from utils.engines.runtime import free_port
from utils.gateway.local_gateway import serve
from utils.profiles import ROOT

pytestmark = needs_prometheus
TEXTS = ROOT / "tests" / "support" / "telemetry_texts"
SHORT, LONG = FOLDER / "alerts.test.yml", FOLDER / "objectives.test.yml"


def promtool(*command, folder=FOLDER):
    options = {"cwd": folder, "capture_output": True, "text": True, "timeout": 60}
    return subprocess.run(["promtool", *command], check=False, **options)


@pytest.mark.parametrize(
    "command",
    [
        "check rules alerts.yml",
        "check config prometheus.yml",
        f"test rules {SHORT.name}",
        f"test rules {LONG.name}",
    ],
)
def test_promtool_agrees(command):
    answer = promtool(*command.split())
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_each_alert_has_a_firing_and_a_quiet_case():
    expected = {"Watchdog": {False}}  # it always fires
    for path in (SHORT, LONG):
        for group in yaml.safe_load(path.read_text())["tests"]:
            for case in group["alert_rule_test"]:
                expected.setdefault(case["alertname"], set()).add(bool(case.get("exp_alerts")))
    assert expected == {rule["alert"]: {True, False} for rule in RULES}


OURS = ("upstream_error", "timeout", "broken_stream", "idle", "deadline", "no_backend", "busy")
OURS += ("queue_full", "draining", "internal_error", "an_outcome_of_next_year")
THEIRS = ("client_error", "unauthorized", "rate_limited", "slow_client")


def outage(outcome, model, per_step):
    series = (
        f'gateway_requests_total{{route="r", model="{model}", backend="a", outcome="{outcome}"}}'
    )
    return {"series": series, "values": f"0+{per_step}x240"}


def alert(name, severity, **labels):
    """What promtool should see of an alert, its annotations as in `alerts.yml`."""
    rule = next(rule for rule in RULES if rule["alert"] == name)
    texts = dict(rule["annotations"])
    texts["summary"] = texts["summary"].replace("{{ $labels.model }}", labels.get("model", ""))
    return {"exp_labels": {"severity": severity, **labels}, "exp_annotations": texts}


def test_total_outage_of_every_kind_raises_alert(tmp_path):
    """Each outcome is all that one model's callers get; a second model is well, so nothing hides in a sum."""
    kinds = (*OURS, "client_gone")
    tests = [
        {
            "interval": "5s",
            "input_series": [outage(kind, kind, 2) for kind in kinds] + [outage("ok", "well", 2)],
            "alert_rule_test": [
                {
                    "eval_time": "4m",
                    "alertname": "Outage",
                    "exp_alerts": [alert("Outage", "page", model=kind) for kind in kinds],
                }
            ],
        },
        {
            "interval": "5s",
            "input_series": [outage(kind, kind, 1) for kind in THEIRS] + [outage("ok", "well", 1)],
            "alert_rule_test": [
                {
                    "eval_time": "19m",
                    "alertname": "AllRefused",
                    "exp_alerts": [alert("AllRefused", "ticket", model=kind) for kind in THEIRS],
                }
            ],
        },
        *[
            {
                "interval": "5s",
                "input_series": [outage(kind, "none", 1)],
                "alert_rule_test": [
                    {
                        "eval_time": "19m",
                        "alertname": "NobodyServed",
                        "exp_alerts": [alert("NobodyServed", "page")],
                    }
                ],
            }
            for kind in ("unauthorized", "client_error")
        ],
    ]
    shutil.copy(FOLDER / "alerts.yml", tmp_path)
    case = {"rule_files": ["alerts.yml"], "evaluation_interval": "5s", "tests": tests}
    (tmp_path / "outages.test.yml").write_text(yaml.safe_dump(case))
    answer = promtool("test", "rules", "outages.test.yml", folder=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr


def test_rare_requests_that_all_fail_raise_alert(tmp_path):
    """One request in four minutes is too rare for `Outage`, and burns the error budget all the same."""
    labels = 'route="r", model="rare", backend="a", outcome="timeout"'
    case = {
        "rule_files": ["alerts.yml"],
        "evaluation_interval": "1m",
        "tests": [
            {
                "interval": "1m",
                "input_series": [
                    {
                        "series": f"gateway_requests_total{{{labels}}}",
                        "values": "0 0 0 0 1 1 1 1 2 2 2 2 3 3 3 3 4",
                    }
                ],
                "alert_rule_test": [
                    {
                        "eval_time": "15m",
                        "alertname": "ErrorBudgetBurn",
                        "exp_alerts": [alert("ErrorBudgetBurn", "page", model="rare")],
                    }
                ],
            }
        ],
    }
    shutil.copy(FOLDER / "alerts.yml", tmp_path)
    (tmp_path / "rare.test.yml").write_text(yaml.safe_dump(case))
    answer = promtool("test", "rules", "rare.test.yml", folder=tmp_path)
    assert answer.returncode == 0, answer.stdout + answer.stderr


# The alert that has to notice it, the rule that is changed (a part of its name), its text before and after.
CHANGES = {
    SHORT: [
        ("Outage", "Outage", "> 10", "> 1000"),
        ("NobodyServed", "NobodyServed", "unless", "or"),
        ("NoEngine", "NoEngine", "< bool 1", "< bool 2"),
        ("Stuck", "Stuck", "count[3m])) > 0", "count[3m])) > 999"),
        ("Queue", "Queue", "> 32", "> 50"),
        ("EngineDown", "EngineDown", "state >= 1", "state > 1"),
        ("GatewayDown", "GatewayDown", 'up{job="gateway"} == 0', "up == 0"),
        ("FailedKeys", "FailedKeys", "> 100", "> 0"),
        ("Outage", "Outage", "> 3", "> 3000"),
        ("NoEngine", "NoEngine", "30s", "0s"),
        ("Queue", "Queue", "max_over_time(gateway_queued[1m])", "gateway_queued"),
        ("EngineDown", "EngineDown", "30s", "5m"),
        ("GatewayDown", "GatewayDown", ' or absent(up{job="gateway"})', ""),
        ("Queue", "Queue", "2m", "0s"),
        ("EngineDown", "EngineDown", "30s", "0s"),
    ],
    LONG: [
        ("ErrorBudgetBurn", "bad_requests", "client_error|unauthorized", "unauthorized"),
        ("SlowFirstToken", "SlowFirstToken", "6 * 0.05", "0.5 * 0.05"),
        ("ErrorBudgetLeak", "ErrorBudgetLeak", "0.005", "0.0005"),
        ("SlowFirstTokenLeak", "SlowFirstTokenLeak", "0.05", "0.01"),
        ("AllRefused", "AllRefused", "unless", "or"),
        ("ErrorBudgetBurn", "ErrorBudgetBurn", "> 6 * 0.005", "> 60 * 0.005"),
        ("ErrorBudgetLeak", "ErrorBudgetLeak", "1h", "0s"),
        ("SlowFirstTokenLeak", "late_first_tokens", 'le="2.5"', 'le="5.0"'),
    ],
}


def rounds(changes):
    """Split changes into rounds with each alert once, because a round needs one run of promtool."""
    found = []
    for change in changes:
        number = sum(change[0] == earlier[0] for each in found for earlier in each)
        if number == len(found):
            found.append([])
        found[number].append(change)
    return found


ROUNDS = [(tests, each) for tests, changes in CHANGES.items() for each in rounds(changes)]


@pytest.mark.parametrize("tests, changes", ROUNDS, ids=range(len(ROUNDS)))
def test_changed_rules_are_noticed(tests, changes, tmp_path):
    rules = yaml.safe_load((FOLDER / "alerts.yml").read_text())
    for _, name, right, wrong in changes:
        changed = 0
        for group in rules["groups"]:
            for rule in group["rules"]:
                same = rule.get("alert") == name or name in rule.get("record", "")
                for field in ("expr", "for"):
                    if same and right in rule.get(field, ""):
                        rule[field] = rule[field].replace(right, wrong)
                        changed += 1
        assert changed, f"{name} has no {right!r}"
    (tmp_path / "alerts.yml").write_text(yaml.safe_dump(rules))
    shutil.copy(tests, tmp_path)
    answer = promtool("test", "rules", tests.name, folder=tmp_path)
    missed = [
        name for name, *_ in changes if f"alertname: {name}," not in answer.stdout + answer.stderr
    ]
    assert missed == [], answer.stdout + answer.stderr


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
        vllm = stack.enter_context(fake("--metrics", TEXTS / "vllm-0.32.0-later.txt"))
        targets = {"gateway": [gateway.base_url], "engines": [good, bad, vllm]}
        prometheus = stack.enter_context(watching(tmp_path, **targets))
        prometheus.all_have_data(PANELS)
        up = {labels["instance"]: value for labels, value in prometheus.query("up")}
        assert list(up.values()) == [1.0] * 4, up
        assert prometheus.has_data("llamacpp:tokens_predicted_total")
        assert {rule["name"]: rule["health"] for rule in prometheus.rules()} == {
            rule["alert"]: "ok" for rule in RULES
        } | dict.fromkeys(RECORDED, "ok")
        waiting = {alert["labels"]["backend"] for alert in prometheus.alerts("EngineDown")}
        assert waiting == {"a"}, "its circuit opens, but the circuit of a last engine never does"
        gateway.stop()
        prometheus.until(lambda: prometheus.alerts("GatewayDown"))
