"""Decisions about engines that depend on the device: what is started, warmed up and left out on a GPU."""

import importlib
from types import SimpleNamespace
from unittest import mock

import httpx
import pytest

from utils.engines import ENGINES, EngineError
from utils.labs.lab_3_3_5 import experiments as lab5
from utils.labs.lab_3_3_6 import quantisation
from utils.profiles import PROFILES

start = importlib.import_module("utils.engines.launch")  # the package has a function of this name


class Stopped(Exception):
    """Raised in place of a start."""


@pytest.fixture
def started(monkeypatch):
    """Options of the engines that would have been started, by runtime."""
    found = []

    def note(runtime):
        def begin(spec, options, *rest):
            found.append((runtime, options))
            raise Stopped

        return begin

    monkeypatch.setattr(start, "start_container", note("container"))
    monkeypatch.setattr(start, "start_process", note("process"))
    return found


@pytest.mark.parametrize("name", ["spark", "cuda"])
def test_engine_starts_in_container_on_gpu(started, name):
    with pytest.raises(Stopped):
        start.launch("vllm", name, quiet=True)
    ((runtime, options),) = started
    assert (runtime, options.device, options.dtype) == ("container", "cuda", "bfloat16")


@pytest.mark.parametrize(("name", "device"), [("spark", "cuda"), ("cpu", "cpu")])
def test_baseline_starts_as_process_on_every_profile(started, name, device):
    with pytest.raises(Stopped):
        start.launch("transformers", name, quiet=True)
    ((runtime, options),) = started
    assert (runtime, options.device) == ("process", device)


@pytest.mark.parametrize(("device", "requests"), [("cpu", 1), ("cuda", 0)])
def test_only_engines_on_cpu_get_warm_up_request(device, requests):
    client = mock.Mock(spec=httpx.Client)
    engine = SimpleNamespace(
        spec=ENGINES["vllm"],
        options=SimpleNamespace(device=device),
        model="tiny",
        base_url="http://127.0.0.1:1",
    )
    start.warm_up(client, engine)
    assert client.post.call_count == requests


def test_sglang_is_tried_in_its_container_on_gpu(monkeypatch):
    tried = []

    def refuse(name, profile, **options):
        tried.append((name, options))
        raise EngineError("the image is missing")

    monkeypatch.setattr(lab5, "launch", refuse)
    assert lab5.try_sglang(PROFILES["spark"]) == "the image is missing"
    ((name, options),) = tried
    assert name == "sglang"
    assert "EAGLE3" in options["extra_arguments"]


def test_sglang_is_not_started_as_process(monkeypatch):
    monkeypatch.setattr(lab5, "launch", lambda *_, **__: pytest.fail("started"))
    assert "not run here" in lab5.try_sglang(PROFILES["cpu"])


def test_fp8_cache_depends_on_instructions_on_cpu_only(monkeypatch):
    monkeypatch.setattr(quantisation, "read_cpuinfo", lambda: "flags : fpu avx2")
    assert "AVX-512" in quantisation.fp8_reason(PROFILES["cpu"])
    assert quantisation.fp8_reason(PROFILES["spark"]) == ""
