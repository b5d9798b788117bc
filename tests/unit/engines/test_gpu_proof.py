"""An engine that fell back to the CPU is refused: logs, answers of APIs, and the list of nvidia-smi."""

import dataclasses
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest
from fake_spec import FAKE

from utils import gpu as gpus
from utils.engines import EngineStartError, get_spec, gpu_proof, launch, registry
from utils.engines.hf_server import Baseline
from utils.engines.spec import Local
from utils.gpu import Gpu
from utils.profiles import PROFILES
from utils.tinymodel.hub import TINY

FOUND = "ggml_cuda_init: found 1 CUDA devices (Total VRAM: 24564 MiB):"
PLACED = "load_tensors: offloaded 37/37 layers to GPU"
# What server-cuda13 wrote on a machine whose driver was too old, while /health said 200
# (ggml-org/llama.cpp#22561).
FELL_BACK = (
    "ggml_cuda_init: failed to initialize CUDA: forward compatibility was attempted on non supported HW\n"
    "CPU: using device CPU"
)


@pytest.mark.parametrize(
    ("log", "words"),
    [
        (f"{FOUND}\n{PLACED}", ""),
        (f"using device CUDA0 (NVIDIA GB10) - 100000 MiB free\n{PLACED}", ""),
        (f"{FELL_BACK}\n{PLACED}", "forward compatibility was attempted"),
        ("ggml_cuda_init: found 0 CUDA devices:", "found 0 CUDA devices"),
        ("CPU: using device CPU", "names no CUDA device"),
        (FOUND, "doesn't say that layers"),
        (f"{FOUND}\nload_tensors: offloaded 12/37 layers to GPU", "only 12 of 37 layers"),
        ("", "names no CUDA device"),
    ],
)
def test_llama_cpp_proves_by_its_log(log, words):
    fault = gpu_proof.llama_cpp_fault("", log)
    assert (words in fault) if words else fault == ""


def test_vllm_log_that_names_the_cpu_is_no_proof():
    assert gpu_proof.vllm_fault("", "config: ..., device_config=cuda, ...") == ""
    assert gpu_proof.vllm_fault("", "a log without the line") == ""
    assert "device_config=cpu" in gpu_proof.vllm_fault("", "x, device_config=cpu, y")


@pytest.mark.parametrize(
    ("fault", "answer", "words"),
    [
        (gpu_proof.ollama_fault, {"models": [{"size": 17e9, "size_vram": 17e9}]}, ""),
        (gpu_proof.ollama_fault, {"models": [{"size": 17e9, "size_vram": 0}]}, "0.0 of 17.0 GB"),
        (gpu_proof.ollama_fault, {"models": [{"size": 17e9, "size_vram": 9e9}]}, "9.0 of 17.0 GB"),
        (gpu_proof.ollama_fault, {"models": []}, "no loaded model"),
        (gpu_proof.ollama_fault, "not an object", "no loaded model"),
        (gpu_proof.sglang_fault, {"device": "cuda"}, ""),
        (gpu_proof.sglang_fault, {}, ""),
        (gpu_proof.sglang_fault, {"device": "cpu"}, "device cpu"),
        (gpu_proof.transformers_fault, {"device": "cuda"}, ""),
        (gpu_proof.transformers_fault, {"device": "cpu"}, "computes on cpu"),
    ],
)
def test_engine_proves_by_its_api(fault, answer, words, monkeypatch):
    made = SimpleNamespace(json=lambda: json.loads(json.dumps(answer)))
    monkeypatch.setattr(gpu_proof.loopback, "get", lambda url, **options: made)
    found = fault("http://engine", "")
    assert (words in found) if words else found == ""


@pytest.fixture
def nvidia_smi(monkeypatch):
    """Let nvidia-smi print a list of processes, on a machine where it can be asked."""

    def prints(text):
        monkeypatch.setattr(gpu_proof, "CONTAINER_MARKS", ())
        monkeypatch.setattr(gpu_proof.platform, "release", lambda: "6.8.0-generic")
        done = subprocess.CompletedProcess((), 0, text, "")
        monkeypatch.setattr(gpu_proof.subprocess, "run", lambda *a, **k: done)

    return prints


@pytest.mark.parametrize(
    ("text", "own", "fault"),
    [
        ("17\n23\n", {23, 24}, False),
        ("17\n", {23, 24}, True),
        ("", {23}, True),
        ("[Insufficient Permissions]\n", {23}, False),
    ],
)
def test_processes_prove_if_the_list_can_be_read(nvidia_smi, text, own, fault):
    nvidia_smi(text)
    assert bool(gpu_proof.process_fault(own)) is fault


def test_processes_are_not_asked_in_wsl_and_containers(nvidia_smi, monkeypatch, tmp_path):
    nvidia_smi("")
    monkeypatch.setattr(gpu_proof.platform, "release", lambda: "6.6.87-microsoft-standard-WSL2")
    assert gpu_proof.process_fault({1}) == ""
    nvidia_smi("")
    monkeypatch.setattr(gpu_proof, "CONTAINER_MARKS", (tmp_path,))
    assert gpu_proof.process_fault({1}) == ""


@pytest.fixture
def started(monkeypatch):
    """Start llama.cpp's spec with the fake engine as its program, on a GPU profile or the CPU's."""

    def start(profile, log):
        program = Local((sys.executable, str(FAKE)), FAKE, "fake", "0", lambda options: {})
        spec = dataclasses.replace(
            get_spec("llama_cpp"),
            container=None,
            local=program,
            local_cuda=program,
            arguments=lambda options: ["--port", str(options.port), "--log", log],
        )
        monkeypatch.setitem(registry.ENGINES, "llama_cpp", spec)
        card = Gpu("a GPU", 8.9, 80e9, False, 80e9)
        monkeypatch.setattr(gpus, "this_gpu", lambda: card)
        monkeypatch.setenv("COURSE_STOP_GRACE_S", "1")
        return launch("llama_cpp", PROFILES[profile], quiet=True)

    return start


def test_engine_on_the_cpu_is_refused_with_reason_and_cure(started, nvidia_smi, monkeypatch):
    monkeypatch.setattr(gpu_proof, "gpu_processes", lambda: None)
    with pytest.raises(EngineStartError, match="doesn't use the GPU: its log says") as refused:
        started("cuda", FELL_BACK)
    assert "driver 580" in refused.value.hint
    assert "COURSE_PROFILE=cpu" in refused.value.hint
    started("cpu", FELL_BACK).stop()  # the same program is right where no GPU was asked for


def test_engine_needs_its_processes_in_the_list_too(started, monkeypatch):
    monkeypatch.setattr(gpu_proof, "gpu_processes", lambda: {1})
    with pytest.raises(EngineStartError, match="none of its processes"):
        started("cuda", f"{FOUND}\n{PLACED}")

    class Everybody(set):
        def __and__(self, own):
            return own

    monkeypatch.setattr(gpu_proof, "gpu_processes", Everybody)
    engine = started("cuda", f"{FOUND}\n{PLACED}")
    assert engine.process_ids()
    engine.stop()
    assert engine.process_ids() == set()


def test_baseline_server_says_which_device_it_has():
    on_cpu = Baseline(str(TINY), "float32", 64, "cpu")
    fell_back = Baseline(str(TINY), "float32", 64, "cuda")  # PyTorch finds no GPU here
    assert (on_cpu.device, fell_back.device) == ("cpu", "cpu")
    spec = get_spec("transformers")
    assert spec.device_fault is gpu_proof.transformers_fault


def test_every_engine_with_a_statement_is_asked_for_it():
    silent = {name for name, spec in registry.ENGINES.items() if spec.device_fault("", "x") == ""}
    assert silent == {"vllm", "sglang", "tensorrt_llm"}
