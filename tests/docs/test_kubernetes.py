"""The manifests of docs/kubernetes.md: valid for Kubernetes' own schemas, and their numbers fit together."""

import subprocess

import pytest
import yaml
from documents import PARSER

from benchmarks.peers import CLIENTS
from utils.gateway.settings import load_settings
from utils.profiles import ROOT

TEXT = (ROOT / "docs" / "kubernetes.md").read_text()
BLOCKS = [token.content for token in PARSER.parse(TEXT) if token.info == "yaml"]
MANIFESTS = [each for block in BLOCKS for each in yaml.safe_load_all(block)]
VALIDATE = """
import sys, yaml, kubernetes_validate
for each in yaml.safe_load_all(sys.stdin):
    kubernetes_validate.validate(each, "1.34", strict=True)
"""
CHECKER = CLIENTS.target / "bin" / "python"
needs_checker = pytest.mark.skipif(
    not CLIENTS.done(), reason="not run here: needs .peers/clients (make peers)"
)


def found(kind, name):
    return next(m for m in MANIFESTS if m["kind"] == kind and m["metadata"]["name"] == name)


def pod(name):
    return found("Deployment", name)["spec"]["template"]["spec"]


def settings(tmp_path):
    text = found("ConfigMap", "gateway")["data"]["gateway.yaml"]
    (tmp_path / "engine-key").write_text("x")
    path = tmp_path / "gateway.yaml"
    path.write_text(text.replace("/etc/gateway-secrets", str(tmp_path)))
    return load_settings(path)


def validate(python, manifests):
    text = yaml.safe_dump_all(manifests)
    command = [str(python), "-c", VALIDATE]
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


@needs_checker
def test_manifests_are_valid_for_kubernetes_schemas():
    answer = validate(CHECKER, MANIFESTS)
    assert answer.returncode == 0, answer.stderr


@needs_checker
@pytest.mark.parametrize("place", ["replcias", "terminationGracePeriod"])
def test_schema_checker_notices_wrong_field(place):
    wrong = yaml.safe_load(yaml.safe_dump(found("Deployment", "gateway")))
    (wrong["spec"] if place == "replcias" else wrong["spec"]["template"]["spec"])[place] = 2
    assert place in validate(CHECKER, [wrong]).stderr


def test_settings_in_config_map_are_the_gateways(tmp_path):
    loaded = settings(tmp_path)
    ports = {
        port["name"]: port["containerPort"] for port in pod("gateway")["containers"][0]["ports"]
    }
    assert ports == {"api": loaded.port, "private": loaded.private.port}
    assert loaded.models[0].backends[0].discover


def test_grace_period_covers_hook_and_drain(tmp_path):
    drain = settings(tmp_path).drain
    gateway = pod("gateway")
    hook = gateway["containers"][0]["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert hook + drain.limit_s < gateway["terminationGracePeriodSeconds"]
    probe = gateway["containers"][0]["readinessProbe"]
    assert probe["periodSeconds"] * probe["failureThreshold"] < drain.notice_s


def test_probes_ask_different_paths_and_engines_may_load_long():
    gateway, engine = (pod(name)["containers"][0] for name in ("gateway", "vllm"))
    paths = {
        probe: gateway[probe]["httpGet"]["path"] for probe in ("livenessProbe", "readinessProbe")
    }
    assert paths == {"livenessProbe": "/health/live", "readinessProbe": "/health/ready"}
    startup = engine["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] >= 1800


def test_private_port_is_in_no_service():
    ports = [port["targetPort"] for port in found("Service", "gateway")["spec"]["ports"]]
    assert ports == ["api"]


def test_engines_slots_are_the_gateways_places(tmp_path):
    command = pod("vllm")["containers"][0]["command"]
    slots = int(command[command.index("--max-num-seqs") + 1])
    backend = settings(tmp_path).models[0].backends[0]
    assert backend.max_outstanding == slots
    assert command[command.index("--served-model-name") + 1] == settings(tmp_path).models[0].name
    assert found("Service", "vllm")["spec"]["clusterIP"] == "None", "headless, for the addresses"
