"""Engines on a real GPU: in containers where there is docker, else those that run as processes."""

import shutil

import pytest

from utils.benchmark.engine_run import make_requests, measure
from utils.engines import NotRunHere, launch
from utils.profiles import load_profile

pytestmark = [pytest.mark.engine, pytest.mark.timeout(3600)]


@pytest.fixture(scope="module")
def profile():
    return load_profile("cuda" if shutil.which("docker") else None)


@pytest.mark.parametrize("name", ["transformers", "llama_cpp", "vllm", "sglang", "ollama"])
def test_engine_answers_on_gpu(profile, name):
    try:
        with launch(name, profile, context_length=1024, max_sequences=4) as engine:
            assert engine.options.device == "cuda"
            if engine.spec.metrics_path is None:
                return
            run = measure(engine, profile, make_requests(profile, 4), 2, f"{name}, GPU test")
    except NotRunHere as reason:
        pytest.skip(str(reason))
    assert all(trace.ok for trace in run.result.traces)
    assert all(trace.text for trace in run.result.traces)
