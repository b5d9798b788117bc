"""Labs on a GPU profile whose engines do not start, all of them or one: no cell may raise."""

import json
import os
import shutil
import subprocess
import sys

import pytest

from utils.profiles import ROOT

QWEN3_8B = {
    "model_type": "qwen3",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "vocab_size": 151936,
    "tie_word_embeddings": False,
    "dtype": "bfloat16",
}


@pytest.fixture(scope="module")
def hub(tmp_path_factory):
    """A model cache with Qwen3-8B's config and a tokenizer, and no weights."""
    cache = tmp_path_factory.mktemp("hub")
    model = cache / "models--Qwen--Qwen3-8B"
    snapshot = model / "snapshots" / "0"
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("0")
    (snapshot / "config.json").write_text(json.dumps(QWEN3_8B))
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "models" / "tiny" / name, snapshot / name)
    return cache


@pytest.fixture
def execute(hub, tmp_path):
    def run(lab, *failing):
        environment = {
            **os.environ,
            "COURSE_PROFILE": "spark",
            "COURSE_LOAD": "quick",
            "COURSE_RECORDS": str(tmp_path),
            "DOCKER_HOST": f"unix://{tmp_path}/nowhere.sock",
            "HF_HUB_CACHE": str(hub),
            "HF_HUB_OFFLINE": "1",
            "MPLBACKEND": "agg",
            "PYTHONPATH": str(ROOT),
        }
        program = str(ROOT / "tests" / "support" / "lab_cells.py")
        command = [sys.executable, program, lab, *failing]
        ran = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)
        assert ran.returncode == 0, ran.stderr
        result = json.loads(ran.stdout.splitlines()[-1])
        assert result["errors"] == []
        return result["printed"]

    return run


@pytest.mark.parametrize("lab", ["3.3.1", "3.3.2", "3.3.3", "3.3.7"])
def test_lab_goes_on_when_docker_is_down(execute, lab):
    assert "Docker did not answer" in execute(lab, "all")


@pytest.mark.parametrize(
    ("lab", "failing", "says"),
    [
        ("3.3.1", "vllm", "vLLM: not run here: it ended with code 3"),
        ("3.3.2", "sglang", "SGLang"),
        ("3.3.3", "vllm", "the sweep: not run here"),
        ("3.3.7", "llama_cpp:3", "frozen"),  # it starts again when three are needed
    ],
)
def test_lab_goes_on_when_one_engine_fails(execute, lab, failing, says):
    printed = execute(lab, failing)
    assert "What to try: be lucky" in printed
    assert says in printed
