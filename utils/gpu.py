"""NVIDIA GPUs as `nvidia-smi` describes them. Standard library only: `make doctor` reads it too.

GB10 answers `[N/A]` for its memory, since it has none of its own: it shares Linux's
(https://docs.nvidia.com/dgx/dgx-spark/known-issues.html).
"""

from __future__ import annotations

from dataclasses import dataclass

QUERY = (
    "nvidia-smi",
    "--query-gpu=name,compute_cap,memory.total,memory.free,driver_version",
    "--format=csv,noheader,nounits",
)
MIB = 1024**2
# What runs beside weights and KV cache: CUDA context, activations, graphs. A bound from below, to refuse only
# what cannot fit.
OVERHEAD_BYTES = 2e9
# Lowest compute capability that has a data type in its tensor cores (NVIDIA's CUDA documentation).
CAPABILITY = {"bfloat16": 8.0, "fp8": 8.9, "nvfp4": 10.0}


@dataclass(frozen=True)
class Gpu:
    """A GPU.

    Attributes:
        name: As its driver names it.
        capability: Compute capability, 12.1 for GB10.
        memory_bytes: What it has; of unified memory, what is available now.
        unified: Whether CPU and GPU share the memory.
        free_bytes: What of it is free; of unified memory, what is available now.
        driver: Version of the driver; "" where it was not asked for.
    """

    name: str
    capability: float
    memory_bytes: float
    unified: bool = False
    free_bytes: float = 0.0
    driver: str = ""


def parse_gpus(answer: str, available: float) -> tuple[Gpu, ...]:
    """Reads the answer to `QUERY`, or to its first three fields; a line that is no GPU's is left out.

    Args:
        answer: One line a GPU: name, compute capability, MiB of memory, MiB free, driver.
        available: Memory that Linux has available, bytes.
    """
    found = []
    for line in answer.splitlines():
        fields = [field.strip() for field in line.split(",")]
        if len(fields) not in (3, 5):
            continue
        name, capability, memory, free, driver = [*fields, "", ""][:5]
        try:
            level = float(capability)
        except ValueError:
            continue
        if memory.isdecimal():
            room = float(free) * MIB if free.isdecimal() else 0.0
            found.append(Gpu(name, level, float(memory) * MIB, False, room, driver))
        else:
            found.append(Gpu(name, level, available, True, available, driver))
    return tuple(found)
