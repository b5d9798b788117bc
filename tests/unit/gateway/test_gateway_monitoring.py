"""What `docker/` brings for the gateway: queries ask for metrics that it has, settings fit the services."""

import re

import yaml
from documents import anchors
from fake_openai import FakeServer
from gateway_case import case
from prometheus import DASHBOARD, PANELS
from prometheus_client.parser import text_string_to_metric_families
from test_gateway_relay import run

from utils.engines import ENGINES
from utils.gateway import metrics
from utils.gateway.settings import load_settings
from utils.profiles import ROOT

DOCKER = ROOT / "docker"
ALERTS = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())
RECORDED = {
    rule["record"]: rule["expr"]
    for group in ALERTS["groups"]
    for rule in group["rules"]
    if "record" in rule
}
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"] if "alert" in rule]
QUERIES = [rule["expr"] for rule in RULES] + list(RECORDED.values()) + PANELS
GROUPED = re.compile(r" by \(([^)]*)\) \((?:\w+\()?(gateway_[a-z_0-9]+)")
NAME = re.compile(r"(?<![:\w])(gateway_[a-z_0-9]+)(\{[^}]*\})?")
ENGINES_METRIC = re.compile(r"vllm:|sglang:|llamacpp:|trtllm_")
RUNBOOK = ROOT / "docs" / "runbook.md"


def exported():
    """Sample names with their labels, from a gateway that has served, failed and repeated."""
    found = {}

    async def work():
        async with case(FakeServer("http_500"), FakeServer()) as c:
            for stream in (True, False):
                await c.ask(stream=stream)
                await c.ask(stream=stream)
            text = (await c.http.get("/metrics")).text
        for family in text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, set()).update(sample.labels)

    run(work())
    return found


def test_every_query_asks_for_what_the_gateway_exports():
    names = exported()
    for query in QUERIES:
        asked = NAME.findall(query)
        recorded = [name for name in RECORDED if name in query]
        others = "up{" in query or query == "vector(1)" or ENGINES_METRIC.search(query)
        assert asked or recorded or others, query
        for name, _ in asked:
            assert name in names, f"{name} in {query}"
        grouped = GROUPED.findall(query)
        assert len(grouped) == query.count(" by "), query
        for labels, name in grouped:
            for label in labels.split(", "):
                assert label in names[name], (label, query)


def test_engine_panels_ask_for_what_engines_export():
    known = {name for engine in ENGINES.values() for name in vars(engine.metrics).values()}
    pattern = r"(?:vllm|sglang|llamacpp):\w+|trtllm_\w+"
    asked = {name for query in PANELS for name in re.findall(pattern, query)}
    assert asked
    assert asked <= known


def test_outcomes_in_queries_are_outcomes_of_the_code():
    for query in QUERIES:
        for outcomes in re.findall(r'outcome!?=~?"([^"]*)"', query):
            for outcome in outcomes.split("|"):
                assert outcome in outcomes_of_code(), outcome


def outcomes_of_code():
    """Everything that the gateway's code may write as an outcome, and more strings."""
    code = "".join(path.read_text() for path in (ROOT / "utils" / "gateway").glob("*.py"))
    return set(re.findall(r'"([a-z_]+)"', code))


def test_dashboard_and_alerts_leave_out_the_same_outcomes():
    left_out = {found for query in QUERIES for found in re.findall(r'outcome!~"([^"]*)"', query)}
    assert left_out == {"client_error|unauthorized|rate_limited|client_gone|slow_client"}


def test_bound_of_first_tokens_is_bucket_edge():
    bounds = {float(found) for query in QUERIES for found in re.findall(r'le="([^"]*)"', query)}
    assert bounds <= set(metrics._FIRST)
    assert bounds


def test_dashboard_has_thresholds_variables_and_engine_panels():
    panels = {panel["title"]: panel for panel in DASHBOARD["panels"]}
    assert {variable["name"] for variable in DASHBOARD["templating"]["list"]} == {
        "model",
        "backend",
    }
    with_lines = [p for p in panels.values() if "thresholds" in p["fieldConfig"]["defaults"]]
    assert len(with_lines) >= 5
    assert sum(title.startswith("Engines: ") for title in panels) == 4


def test_each_alert_has_summary_severity_and_section_of_runbook():
    sections = anchors(RUNBOOK.read_text())
    for rule in RULES:
        assert rule["annotations"]["summary"], rule
        assert rule["labels"]["severity"] in ("page", "ticket", "none"), rule
        page, _, section = rule["annotations"]["runbook_url"].partition("#")
        assert ROOT / page == RUNBOOK, rule
        assert section in sections, rule


def test_alert_on_engine_survives_probe():
    down = next(rule["expr"] for rule in RULES if rule["alert"] == "EngineDown")
    assert "circuit_state >= 1" in down, "a probe (half open) must not start its `for` again"


def test_the_gateways_settings_agree_with_the_services():
    compose = yaml.safe_load((DOCKER / "compose.yaml").read_text())
    services = compose["services"]
    engine = ENGINES["llama_cpp"].container.image
    assert services["llama-a"]["image"] == services["llama-b"]["image"] == engine
    settings = load_settings(DOCKER / "gateway.yaml")
    hosts = {b.url.split("//")[1].split(":")[0] for m in settings.models for b in m.backends}
    assert hosts <= set(services)
    grace = int(services["gateway"]["stop_grace_period"].removesuffix("s"))
    assert grace > settings.drain.limit_s
    scraped = yaml.safe_load((DOCKER / "prometheus" / "prometheus.yml").read_text())
    targets = [
        t for s in scraped["scrape_configs"] for c in s["static_configs"] for t in c["targets"]
    ] + [
        name
        for s in scraped["scrape_configs"]
        for c in s.get("dns_sd_configs", ())
        for name in c["names"]
    ]
    assert {target.split(":")[0] for target in targets} <= set(services)
    command = services["llama-a"]["command"]
    slots = int(command[command.index("-np") + 1])
    assert all(b.max_outstanding == slots for m in settings.models for b in m.backends)


def test_services_of_ours_are_hardened():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    for name in ("gateway", "prometheus", "grafana", "llama-a", "llama-b"):
        assert services[name]["read_only"] is True, name
        assert services[name]["cap_drop"] == ["ALL"], name
    for name, service in services.items():
        if name != "jupyter":  # it starts containers, so it has root's powers anyway
            assert "no-new-privileges:true" in service["security_opt"], name
        for port in service.get("ports", ()):
            assert port.startswith("127.0.0.1:"), f"{name} is published to others: {port}"


def test_private_port_is_not_published():
    services = yaml.safe_load((DOCKER / "compose.yaml").read_text())["services"]
    private = load_settings(DOCKER / "gateway.yaml").private.port
    assert private
    assert not any(port.endswith(f":{private}") for port in services["gateway"]["ports"])
