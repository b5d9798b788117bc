"""Main memory as Linux reports it. Standard library only, because `make doctor` reads it too.

On a machine with unified memory, such as a DGX Spark, the GPU allocates from the same memory. If it is
over-committed there, the machine freezes until it is switched off and on, with no OOM kill and no message
(NVIDIA/open-gpu-kernel-modules#1358). So the course keeps a reserve, and stops its own engines early.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

MEMINFO = Path("/proc/meminfo")
# Memory that no plan hands out on a machine with unified memory: system, JupyterLab, and a margin, because
# CUDA was seen to get 20 of 122 GiB less than Linux has available
# (MiaAI-Lab/GLM-5.3-Flash-EXL3-2x-DGX-Sparks#47).
RESERVE_BYTES = 10e9
# Available memory below which the course stops its engines on a machine with unified memory.
DANGER_BYTES = 4e9


@dataclass(frozen=True)
class HostMemory:
    """Bytes in `/proc/meminfo`, all 0 on a system without this file."""

    total: float = 0.0
    available: float = 0.0
    free: float = 0.0
    cached: float = 0.0


def parse_meminfo(text: str) -> HostMemory:
    """Read `/proc/meminfo`, which counts in KiB."""
    found = {k: float(v) * 1024 for k, v in re.findall(r"^(\w+):\s*(\d+) kB", text, re.M)}
    names = ("MemTotal", "MemAvailable", "MemFree", "Cached")
    return HostMemory(*(found.get(name, 0.0) for name in names))


def host_memory(meminfo: Path | None = None) -> HostMemory:
    """Return this machine's memory."""
    try:
        return parse_meminfo((meminfo or MEMINFO).read_text(encoding="utf-8"))
    except OSError:
        return HostMemory()
