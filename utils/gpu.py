"""NVIDIA GPUs as `nvidia-smi` describes them. Standard library only: `make doctor` reads it too.

GB10 answers `[N/A]` for its memory, since it has none of its own: it shares Linux's
(https://docs.nvidia.com/dgx/dgx-spark/known-issues.html).
"""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, replace

from utils.gpu_choice import VISIBLE, part_bytes
from utils.host_memory import RESERVE_BYTES, HostMemory, host_memory

QUERY = (
    "nvidia-smi",
    "--query-gpu=name,compute_cap,memory.total,memory.free,driver_version",
    "--format=csv,noheader,nounits",
)
MIB = 1024**2
# Memory of a GPU with its own memory that no plan hands out: desktop, driver, and the allocators' rounding.
MARGIN_BYTES = 0.5e9
TIMEOUT_S = 20.0
# Lowest compute capability that has a data type in its tensor cores (NVIDIA's CUDA documentation).
CAPABILITY = {"bfloat16": 8.0, "fp8": 8.9, "nvfp4": 10.0}


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: As its driver names it.
        capability: Compute capability, 12.1 for GB10.
        memory_bytes: Its whole memory, or the machine's if CPU and GPU share it.
        unified: True if CPU and GPU share the memory.
        free_bytes: Free memory, or the memory that Linux has available if it is shared.
        driver: Version of the driver, or "" if it was not asked for.
    """

    name: str
    capability: float
    memory_bytes: float
    unified: bool = False
    free_bytes: float = 0.0
    driver: str = ""

    @property
    def room(self) -> float:
        """Memory that engines can have now, in bytes."""
        return max(0.0, self.free_bytes - self._kept)

    @property
    def whole_room(self) -> float:
        """Memory that engines could have if nothing else ran, in bytes."""
        return max(0.0, self.memory_bytes - self._kept)

    @property
    def _kept(self) -> float:
        return RESERVE_BYTES if self.unified else MARGIN_BYTES


def parse_gpus(answer: str, memory: HostMemory) -> tuple[Gpu, ...]:
    """Read the answer to `QUERY`, or to its first three fields. Other lines are left out.

    Args:
        answer: One line per GPU: name, compute capability, MiB of memory, MiB free, driver.
        memory: The machine's memory, which a GPU without memory of its own shares.
    """
    found = []
    for line in answer.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) not in (3, 5):
            continue
        name, capability, own, free, driver = [*fields, "", ""][:5]
        try:
            level = float(capability)
        except ValueError:
            continue
        if own.isdecimal():
            room = float(free) * MIB if free.isdecimal() else 0.0
            found.append(Gpu(name, level, float(own) * MIB, False, room, driver))
        else:
            found.append(Gpu(name, level, memory.total, True, memory.available, driver))
    return tuple(found)


def this_gpu() -> Gpu | None:
    """Return the NVIDIA GPU that the course uses as it is now, or None without one or its driver."""
    chosen = os.environ.get(VISIBLE, "")
    only = ("-i", chosen) if chosen.startswith("GPU-") else ()
    try:
        answer = subprocess.run(
            (*QUERY, *only), capture_output=True, text=True, timeout=TIMEOUT_S, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    gpu = next(iter(parse_gpus(answer.stdout, host_memory())), None)
    part = part_bytes(os.environ)
    if gpu is None or part is None:
        return gpu
    return replace(gpu, memory_bytes=part, free_bytes=min(part, gpu.free_bytes))
