"""Engines that already run: four learners share one, and nobody can stop or kill it."""

import dataclasses
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from utils.benchmark import Client, ClosedLoop, Request, make_record, run
from utils.engines import EngineError, NotRunHere, launch, skip_on_failure
from utils.engines.attached import variable_of
from utils.engines.fleet import Fleet
from utils.engines.registry import ENGINES
from utils.engines.structured import COMPACT_JSON
from utils.profiles import PROFILES, ROOT
from utils.telemetry import ScrapeError
from utils.telemetry.cache import kv_budget_bytes

FAKE = ROOT / "tests" / "support" / "fake_openai.py"
SPARK = PROFILES["spark"]


@pytest.fixture(scope="module")
def server():
    """A paced fake of vLLM, on a port of its own."""
    command = [sys.executable, str(FAKE), "--tokens", "4", "--gap", "0.002"]
    fake = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    yield f"http://127.0.0.1:{fake.stdout.readline().strip()}"
    assert fake.poll() is None, "the shared engine was stopped"
    fake.kill()
    fake.wait()


@pytest.fixture
def vllm(server, monkeypatch):
    monkeypatch.setenv("COURSE_VLLM_URL", server + "/")
    monkeypatch.setenv("DOCKER_HOST", "unix:///nowhere.sock")
    return server


def test_every_engine_has_its_variable():
    assert {variable_of(name) for name in ENGINES} == {
        "COURSE_VLLM_URL",
        "COURSE_SGLANG_URL",
        "COURSE_TENSORRT_LLM_URL",
        "COURSE_LLAMA_CPP_URL",
        "COURSE_OLLAMA_URL",
        "COURSE_TRANSFORMERS_URL",
    }


def test_launch_returns_the_engine_that_runs(vllm, capsys):
    with launch("vllm", SPARK) as engine:
        assert engine.attached
        assert engine.base_url == vllm
        assert engine.model == "shared-model"
        assert engine.model_path == "Owner/shared-model"
        assert engine.options.context_length == 4096
        assert engine.version == "9.9"
        assert engine.running()
        assert engine.quantisation == "unknown"
        with pytest.raises(ScrapeError, match="is attached"):
            kv_budget_bytes(engine)
    assert httpx.get(f"{vllm}/health", trust_env=False).status_code == 200
    assert f"attached at {vllm}" in capsys.readouterr().out


@pytest.mark.parametrize("action", ["kill", "freeze", "thaw"])
def test_attached_engine_is_never_harmed(vllm, action):
    engine = launch("vllm", SPARK, quiet=True)
    with pytest.raises(EngineError, match="others may use it"):
        getattr(engine, action)()
    engine.stop()
    engine.abandon()
    assert httpx.get(f"{vllm}/health", trust_env=False).status_code == 200


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"kv_blocks": 40}, "kv_blocks=40"),
        ({"eager": True}, "eager=True"),
        ({"extra_arguments": ("--block-size", "32")}, "--block-size 32"),
    ],
)
def test_cell_that_needs_its_own_engine_is_told(vllm, options, named):
    with pytest.raises(NotRunHere, match=f"{named}.*Unset COURSE_VLLM_URL"):
        launch("vllm", SPARK, quiet=True, **options)


def test_sizes_and_compact_json_are_taken(vllm):
    options = {"max_sequences": 4, "extra_arguments": COMPACT_JSON["vllm"]}
    assert launch("vllm", SPARK, quiet=True, **options).attached


def test_one_engine_is_not_two_replicas(vllm):
    for profile in (SPARK, dataclasses.replace(SPARK, shares_gpu=False)):
        fleet = Fleet(profile, {"left": {}, "right": {}}, together=True)
        assert [engine.base_url for engine in fleet.running] == [vllm]
        assert "one engine can't be two" in fleet.reasons["right"]
        assert fleet.has("left")
        assert not fleet.has("right")
        fleet.stop()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("http://127.0.0.1:9", "does not answer"),
        ("spark:8000", "is not an address such as"),
    ],
)
def test_address_without_engine_is_named(monkeypatch, url, says):
    monkeypatch.setenv("COURSE_VLLM_URL", url)
    with pytest.raises(EngineError, match=f"{says}.*Check COURSE_VLLM_URL"):
        launch("vllm", SPARK, quiet=True)


def test_four_learners_share_one_engine(vllm):
    together = threading.Barrier(4, timeout=20)

    def learner(number):
        reasons = {}
        with launch("vllm", SPARK, quiet=True) as engine:
            client = Client(engine.base_url, engine.model, "completions")
            requests = [Request(f"learner{number}", max_tokens=4) for _ in range(8)]
            together.wait()
            result = run(client, requests, ClosedLoop(4), progress=False, alive=engine.running)
            with skip_on_failure("the kill", reasons):
                engine.kill()
        return number, result, make_record(result, engine, SPARK), reasons

    with ThreadPoolExecutor(4) as pool:
        for number, result, record, reasons in pool.map(learner, range(4)):
            assert [trace.ok for trace in result.traces] == [True] * 8
            assert {trace.text.split()[0] for trace in result.traces} == {f"learner{number}"}
            assert record.command == ("attached", vllm)
            assert record.engine_version == "9.9"
            assert "is attached" in reasons["the kill"]
