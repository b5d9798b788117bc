"""Proof that a healthy engine computes on the GPU, because some serve on the CPU if CUDA doesn't start.

Every proof that applies to an engine is asked for: its own statement (log, API), and its processes in the
list of `nvidia-smi`. That list works on GB10 too, but it is empty in WSL and inside containers.
"""

from __future__ import annotations

import platform
import re
import subprocess
from collections.abc import Collection
from pathlib import Path
from typing import Any

import httpx

from utils import loopback

APPS = ("nvidia-smi", "--query-compute-apps=pid", "--format=csv,noheader,nounits")
CONTAINER_MARKS = (Path("/.dockerenv"), Path("/run/.containerenv"))
TIMEOUT_S = 20.0
CURE = (
    "CUDA did not start in the engine. The images need driver 580 or newer (`nvidia-smi` names yours), and a "
    "machine whose driver was updated needs a restart. `make doctor` checks both. To use the CPU on purpose, "
    "set COURSE_PROFILE=cpu."
)


def llama_cpp_fault(base_url: str, log: str) -> str:
    """Return the reason why llama.cpp's log is no proof, or "". It names the layers from verbosity 4 on."""
    if failed := re.search(r"ggml_cuda_init: failed.*|found 0 CUDA devices.*", log):
        return f"its log says: {failed[0].strip()}"
    if not re.search(r"found [1-9]\d* CUDA devices|using device CUDA\d|CUDA\d model buffer", log):
        return "its log names no CUDA device"
    placed = re.findall(r"offloaded (\d+)/(\d+) layers to GPU", log)
    if not placed:
        return "its log doesn't say that layers are on the GPU"
    done, layers = placed[-1]
    return "" if done == layers else f"only {done} of {layers} layers are on the GPU"


def vllm_fault(base_url: str, log: str) -> str:
    """Return the reason why vLLM's log contradicts a GPU, or ""."""
    device = re.search(r"device_config=(\w+)", log)
    return f"its log says device_config={device[1]}" if device and device[1] != "cuda" else ""


def ollama_fault(base_url: str, log: str) -> str:
    """Return the reason why `/api/ps` is no proof, or "". It tells how much of a model is in GPU memory."""
    models = _json(base_url, "/api/ps").get("models") or []
    if not models:
        return "/api/ps lists no loaded model"
    size, on_gpu = (int(models[0].get(key) or 0) for key in ("size", "size_vram"))
    if on_gpu >= size > 0:
        return ""
    return (
        f"only {on_gpu / 1e9:.1f} of {size / 1e9:.1f} GB of its model are in GPU memory (/api/ps)"
    )


def sglang_fault(base_url: str, log: str) -> str:
    """Return the reason why SGLang's `/server_info` contradicts a GPU, or ""."""
    device = str(_json(base_url, "/server_info").get("device") or "cuda")
    return "" if device.startswith("cuda") else f"/server_info says device {device}"


def transformers_fault(base_url: str, log: str) -> str:
    """Return the reason why the baseline's server isn't on the GPU, or ""."""
    device = _json(base_url, "/version").get("device")
    return "" if device == "cuda" else f"PyTorch computes on {device}, because it finds no GPU"


def process_fault(own: Collection[int]) -> str:
    """Return the reason why `nvidia-smi` is no proof, or "" if it is one or can't be asked.

    Args:
        own: Process ids of the engine.
    """
    listed = gpu_processes()
    if listed is None or listed & set(own):
        return ""
    return "none of its processes is in the list of nvidia-smi --query-compute-apps"


def gpu_processes() -> set[int] | None:
    """Return the processes that use a GPU, or None where the driver doesn't list them."""
    if "microsoft" in platform.release().lower() or any(m.exists() for m in CONTAINER_MARKS):
        return None
    try:
        done = subprocess.run(APPS, capture_output=True, text=True, timeout=TIMEOUT_S, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
    return {int(line) for line in lines} if all(map(str.isdecimal, lines)) else None


def _json(base_url: str, path: str) -> dict[str, Any]:
    try:
        answer = loopback.get(base_url + path, timeout=10.0).json()
    except (httpx.HTTPError, ValueError):
        return {}
    return answer if isinstance(answer, dict) else {}
