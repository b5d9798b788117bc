"""Real engines, each started once for its tests; the profile is that of the machine."""

import subprocess
import sys

import psutil
import pytest

from tools.authoring.compose import health_command
from utils.engines import NotRunHere, launch
from utils.engines.structured import COMPACT_JSON
from utils.profiles import load_profile


@pytest.fixture(scope="session")
def profile():
    return load_profile()


@pytest.fixture(scope="package", autouse=True)
def before_any_engine():
    """Process ids from before the first engine: those of others on this machine."""
    return {process.pid for process in psutil.process_iter()}


@pytest.fixture
def stops_without_a_trace():
    """A function that stops an engine and finds nothing of it: neither its family nor who has its name."""

    def stops(engine, title, before):
        family = psutil.Process(int(engine.identity)).children(recursive=True)
        assert family
        engine.stop()
        named = [p for p in psutil.process_iter(["name"]) if title in (p.info["name"] or "")]
        actual = {*family, *(p for p in named if p.pid not in before)}
        # One that ended and that init has not collected yet is gone.
        assert [p for p in actual if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []

    return stops


@pytest.fixture
def probed():
    """A function that runs the health check of an engine's container against a running engine."""

    def probe(engine, port=None):
        command = health_command(engine.spec, port or int(engine.base_url.rpartition(":")[2]))
        if command[0] == "python3":
            command[0] = sys.executable
        return subprocess.run(command, capture_output=True, timeout=30).returncode

    return probe


def running(name, profile, **options):
    try:
        engine = launch(name, profile, quiet=True, **options)
    except NotRunHere as reason:
        pytest.skip(str(reason))
    with engine:
        yield engine


@pytest.fixture(scope="package")
def vllm(profile):
    yield from running("vllm", profile, extra_arguments=COMPACT_JSON["vllm"])


@pytest.fixture(scope="package")
def sglang(profile):
    yield from running("sglang", profile, extra_arguments=COMPACT_JSON["sglang"])


@pytest.fixture(scope="module")
def llama_cpp(profile):
    yield from running("llama_cpp", profile)


@pytest.fixture(scope="module")
def llama_cpp_quantised(profile):
    yield from running("llama_cpp", profile, model=profile.models["llama_cpp_quantised"])


@pytest.fixture(scope="module")
def baseline(profile):
    yield from running("transformers", profile)
