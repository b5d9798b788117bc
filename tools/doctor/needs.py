"""Needs of the labs: engines, images, models, ports, versions. Facts of the course, and of documents.

Images and models are in `utils.engines` and `utils.profiles`; the engines' modules need more than the
standard library, so that images are repeated here, and tests hold both against each other.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from utils.memory_plan import DRAFT_BYTES, weights_of

GB = 1e9


@dataclass(frozen=True)
class LabNeeds:
    """One lab.

    Attributes:
        title: Its title.
        engines: Engines that it cannot do without.
        optional: Engines that it uses where they run, and counts as not run elsewhere.
        compiler: True if it can't do without a C++ compiler.
        compiled_step: True if it builds a decoder step in C++, and has a slower one in PyTorch.
    """

    title: str
    engines: tuple[str, ...]
    optional: tuple[str, ...] = ()
    compiler: bool = False
    compiled_step: bool = False


LABS: Mapping[int, LabNeeds] = {
    1: LabNeeds(
        "Engine benchmark",
        ("vllm", "llama_cpp", "transformers"),
        ("sglang", "tensorrt_llm", "ollama"),
    ),
    2: LabNeeds("SGLang", ("sglang",), ("vllm",)),
    3: LabNeeds("vLLM: continuous batching", ("vllm", "llama_cpp")),
    4: LabNeeds("Speculative decoding: Medusa", ("vllm",), compiled_step=True),
    5: LabNeeds("EAGLE-3", ("vllm",), compiled_step=True),
    6: LabNeeds("TensorRT-LLM", ("vllm", "llama_cpp"), ("tensorrt_llm",), compiler=True),
    7: LabNeeds("Production API", ("vllm", "llama_cpp")),
}
TITLES: Mapping[str, str] = {
    "vllm": "vLLM",
    "sglang": "SGLang",
    "tensorrt_llm": "TensorRT-LLM",
    "llama_cpp": "llama.cpp",
    "ollama": "Ollama",
    "transformers": "transformers",
}
IMAGES: Mapping[str, str] = {
    "vllm": "nvcr.io/nvidia/vllm:26.10-py3",
    "sglang": "lmsysorg/sglang:v0.5.23-cu130",
    "tensorrt_llm": "nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc28",
    "llama_cpp": "ghcr.io/ggml-org/llama.cpp:server-cuda13-b11277",
    "ollama": "ollama/ollama:0.24.0",
}
# Images whose tag no public text names, and the newest tag that one does (searched on 2026-11-30). The
# course's flags were tried with the parser of the version in IMAGES.
UNCONFIRMED: Mapping[str, str] = {"sglang": "lmsysorg/sglang:v0.5.20-cu130"}
HUB = ".cache/huggingface/hub"


def download_bytes(model: str) -> float:
    """Return the size of a hub model's download, in bytes. Heads have no size in their name."""
    if "eagle3" in model:
        return DRAFT_BYTES
    return weights_of(model, "bfloat16") or 0.0


def hub_folder(model: str) -> str:
    """Return the folder below the home folder that containers keep a model in, or "" for a docker volume."""
    if "/" not in model:
        return ""
    return f"{HUB}/models--{model.partition(':')[0].replace('/', '--')}"


# Published by docker/compose.yaml and by JupyterLab; and where engines listen that somebody starts by hand.
PORTS: Mapping[int, str] = {
    8080: "the gateway in docker/compose.yaml",
    9090: "Prometheus in docker/compose.yaml",
    3000: "Grafana in docker/compose.yaml",
    3001: "Open WebUI in docker/compose.yaml",
    8081: "llama.cpp in docker/compose.yaml",
    8888: "JupyterLab, which takes the next free one",
    8000: "vLLM, started by hand",
    30000: "SGLang, started by hand",
    8355: "TensorRT-LLM, started by hand",
    11434: "Ollama",
}
OLLAMA_PORT = 11434
PYTHONS = ((3, 11), (3, 12), (3, 13))
GLIBC = (2, 34)  # README.md, Requirements
# The images are of CUDA 13: https://docs.nvidia.com/deploy/cuda-compatibility/minor-version-compatibility.html
DRIVER = 580
CAPABILITY = 7.5  # Turing: CUDA 13 has no older GPUs (its release notes)
# Older ones do not know sm_121 (triton-lang/triton#8539).
PTXAS = (12, 9)
# Engines with the tiny model on a CPU: seconds until it is ready, and memory after one answer. Measured
# 2026-11-26 on 2 x86-64 cores with bfloat16 instructions and nothing else running (LAB_PREP.md says how).
CPU_ENGINES: Mapping[str, tuple[float, float]] = {
    "llama.cpp, 32 slots": (0.7, 0.45 * GB),
    "llama.cpp, one slot": (0.3, 0.05 * GB),
    "transformers": (6.9, 0.52 * GB),
    "SGLang": (19.0, 2.36 * GB),
    "vLLM": (24.9, 2.54 * GB),
}
CPU_ENGINES_AT_ONCE = 3  # of the large ones
CPU_ENGINE_BYTES = max(memory for _, memory in CPU_ENGINES.values())
