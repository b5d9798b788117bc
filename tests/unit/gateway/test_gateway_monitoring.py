"""What `docker/` brings for the gateway: queries ask for metrics that it has, settings fit the services."""

import re

import yaml
from fake_openai import FakeServer
from gateway_case import case
from prometheus import PANELS
from prometheus_client.parser import text_string_to_metric_families
from test_gateway_relay import run

from utils.engines import ENGINES
from utils.gateway.settings import load_settings
from utils.profiles import ROOT

DOCKER = ROOT / "docker"
ALERTS = yaml.safe_load((DOCKER / "prometheus" / "alerts.yml").read_text())
RULES = [rule for group in ALERTS["groups"] for rule in group["rules"]]
QUERIES = [rule["expr"] for rule in RULES]
QUERIES += PANELS
GROUPED = re.compile(r" by \(([^)]*)\) \(rate\((gateway_[a-z_0-9]+)")
NAME = re.compile(r"\b(gateway_[a-z_0-9]+)(\{[^}]*\})?")


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
        assert asked or "up{" in query, query
        for name, _ in asked:
            assert name in names, f"{name} in {query}"
        grouped = GROUPED.findall(query)
        assert len(grouped) == query.count(" by "), query
        for labels, name in grouped:
            for label in labels.split(", "):
                assert label in names[name], (label, query)


def test_outcomes_in_queries_are_outcomes_of_the_code():
    code = "".join(path.read_text() for path in (ROOT / "utils" / "gateway").glob("*.py"))
    for query in QUERIES:
        for outcomes in re.findall(r'outcome=~"([^"]*)"', query):
            for outcome in outcomes.split("|"):
                assert f'"{outcome}"' in code, outcome


def test_alerts_cover_what_they_should_and_say_it():
    assert {rule["alert"] for rule in RULES} >= {
        "ErrorRate",
        "SlowFirstToken",
        "Queue",
        "EngineDown",
    }
    assert all(rule["annotations"]["summary"] and rule["labels"]["severity"] for rule in RULES)
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
    ]
    assert {target.split(":")[0] for target in targets} <= set(services)
    command = services["llama-a"]["command"]
    slots = int(command[command.index("-np") + 1])
    assert all(b.max_outstanding == slots for m in settings.models for b in m.backends)
