"""The spec of an engine whose program is the fake engine."""

import dataclasses
import sys

from utils.engines import registry
from utils.engines.spec import Capabilities, EngineSpec, Local, MetricNames
from utils.profiles import ROOT

FAKE = ROOT / "tests" / "support" / "fake_engine.py"
PROGRAM = Local((sys.executable, str(FAKE)), FAKE, "fake", "0", lambda options: {})


def _arguments(options):
    return ["--port", str(options.port), *options.extra_arguments]


FAKE_SPEC = EngineSpec(
    name="fake",
    title="Fake",
    container=None,
    local=PROGRAM,
    not_local="",
    arguments=_arguments,
    options=frozenset(),
    health_path="/health",
    metrics_path=None,
    version_path="/version",
    version_key="version",
    metrics=MetricNames(),
    capabilities=Capabilities(False, (), (), ()),
)


def register(monkeypatch, **changes):
    """Register the fake engine with these changes of its spec for one test, and return the spec."""
    spec = dataclasses.replace(FAKE_SPEC, **changes)
    monkeypatch.setitem(registry.ENGINES, spec.name, spec)
    return spec
