"""The machine of a measurement, and the exact model file."""

from __future__ import annotations

import hashlib
import json
import os
import platform
import re
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import psutil

from utils.hub_cache import hub_cache

_BLOCK = 1 << 20
_WEIGHTS = ("*.safetensors", "*.gguf", "*.bin")


@lru_cache(maxsize=1)
def _host() -> str:
    return json.dumps(
        {
            "cpu": _cpu_model(),
            "cores": os.cpu_count(),
            "cores_usable": _usable_cores(),
            "memory_bytes": psutil.virtual_memory().total,
            "gpu": _gpus(),
            "os": platform.platform(),
            "machine": platform.machine(),
            "python": platform.python_version(),
        }
    )


def describe_host() -> dict[str, Any]:
    """CPU, cores, memory (bytes), GPUs (empty list if none), operating system and Python."""
    values: dict[str, Any] = json.loads(_host())
    return values


def model_hash(model: str | Path) -> str | None:
    """SHA-256 of a model's weights, remembered between calls for unchanged files.

    Args:
        model: A weights file, a folder of them, or a hub id that is in the local cache.

    Returns:
        The file's hash; for several files, the hash of the lines "name hash"; None if there are
        no weights here (a hub id that only a container has).
    """
    files = _weight_files(model)
    if not files:
        return None
    hashes = {file.name: _file_hash(file) for file in files}
    if len(hashes) == 1:
        return next(iter(hashes.values()))
    lines = "".join(f"{name} {value}\n" for name, value in sorted(hashes.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def _weight_files(model: str | Path) -> list[Path]:
    path = Path(model)
    if path.is_file():
        return [path]
    if not path.is_dir():
        if (snapshot := _hub_snapshot(str(model))) is None:
            return []
        path = snapshot
    for pattern in _WEIGHTS:
        if files := sorted(path.glob(pattern)):
            return files
    return []


def _hub_snapshot(model: str) -> Path | None:
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model):
        return None
    folder = hub_cache(os.environ) / f"models--{model.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text().strip()
    except OSError:
        return None
    snapshot = folder / "snapshots" / commit
    return snapshot if snapshot.is_dir() else None


def _file_hash(file: Path) -> str:
    # The hub's cache names large files by their SHA-256.
    real = file.resolve()
    if re.fullmatch(r"[0-9a-f]{64}", real.name):
        return real.name
    status = real.stat()
    return _hash_contents(str(real), status.st_size, status.st_mtime_ns)


@lru_cache(maxsize=256)
def _hash_contents(path: str, size: int, modified_ns: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _usable_cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _cpu_model() -> str:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return platform.processor() or platform.machine()
    if match := re.search(r"^model name\s*:\s*(.+)$", text, re.MULTILINE):
        return match[1].strip()
    # aarch64 kernels give only part numbers; lscpu knows their names.
    listing = _output(["lscpu"])
    names = re.findall(r"^\s*Model name:\s*(.+)$", listing, re.MULTILINE)
    return ", ".join(names) or platform.machine()


def _gpus() -> list[str]:
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    return [line.strip() for line in _output(query).splitlines() if line.strip()]


def _output(command: list[str]) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout
