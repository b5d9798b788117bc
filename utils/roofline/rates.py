"""Measures how fast this machine reads memory and multiplies, with PyTorch.

Apart from `machine`, because importing PyTorch takes seconds that most of the course can do without.
"""

from __future__ import annotations

import re
import time
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import psutil
import torch

from utils.benchmark.host import describe_host
from utils.roofline.machine import MIB, Bandwidth, Machine

Device = Literal["cpu", "cuda"]
# Shapes of a decoder's products: tokens x inner x outer.
MATMUL_SHAPES = ((512, 512, 1536), (1024, 1024, 1024), (2048, 2048, 2048))


def measure_machine(
    *,
    working_set: float | None = None,
    threads: int | None = None,
    seconds: float = 8.0,
    dtype: str = "bfloat16",
) -> Machine:
    """Measure this machine's read bandwidth by working set, and its matrix rate in one data type.

    On the GPU where torch can use one, else on the CPU, with a warning if there is a GPU. A busy
    machine measures low; run it when nothing else runs.

    Args:
        working_set: Measure the bandwidth over this many bytes, such as a model's weights, and over a
            half and a quarter of them; default, in steps of four from 1 MiB to twice the largest cache (at
            least 256 MiB, at most a quarter of the free memory).
        threads: Most threads to use; default, torch's own number.
        seconds: About how long it may take.
        dtype: Data type of the matrix products, in which engines compute.
    """
    device = _device()
    most = threads or torch.get_num_threads()
    caches = cache_sizes(device)
    largest = max(256 * MIB, 2 * max(caches.values(), default=0))
    largest = min(largest, _free_memory(device) // 4)
    if working_set is None:
        sizes = [size for size in (MIB * 4**i for i in range(10)) if size < largest] + [largest]
    else:
        # The smaller ones bound narrower versions of the same model.
        size = min(int(working_set), largest)
        sizes = [size // 4, size // 2, size]
    shapes = MATMUL_SHAPES if device == "cpu" else ((8192, 8192, 8192),)
    budget = seconds / (len(sizes) + len(shapes))
    bandwidths = tuple(measure_bandwidth(size, caches, budget, most, device) for size in sizes)
    flops = _best_matmul_rate(shapes, budget, most, device, getattr(torch, dtype))
    threads_text = f"1 and {most} threads" if device == "cpu" else "CUDA"
    return Machine(
        name=torch.cuda.get_device_name() if device == "cuda" else str(describe_host()["cpu"]),
        bandwidths=bandwidths,
        flops=flops,
        flops_dtype=dtype,
        origin="measured",
        source=f"torch {torch.__version__}, {threads_text}: best of dot, matrix-vector and sum "
        f"over float32; best {dtype} matrix product",
    )


def measure_bandwidth(
    working_set: int,
    caches: dict[str, int] | None = None,
    seconds: float = 0.5,
    threads: int | None = None,
    device: Device = "cpu",
) -> Bandwidth:
    """Best read bandwidth over one working set, from several kernels, with one and all threads.

    Args:
        working_set: Bytes.
        caches: `cache_sizes()`, to name the level.
        seconds: About how long it may take.
        threads: Most threads to use; default, torch's own number.
        device: "cpu" or "cuda".
    """
    width = 1024
    rows = max(1, working_set // (4 * width))
    matrix = torch.ones(rows, width, device=device)
    flat, vector = matrix.view(-1), torch.ones(width, device=device)
    kernels = (
        lambda: torch.dot(flat, flat),
        lambda: torch.mv(matrix, vector),
        lambda: flat.sum(),
    )
    fastest = _best_time(kernels, seconds, threads, device)
    size = rows * width * 4
    return Bandwidth(
        size, size / fastest, _level(size, cache_sizes() if caches is None else caches)
    )


def cache_sizes(device: Device = "cpu") -> dict[str, int]:
    """Data caches that one core reaches, as Linux (or CUDA) reports them: {"L2": bytes, ...}.

    A virtual machine may report the host's whole cache, of which it gets a part.
    """
    if device == "cuda":
        return {"L2": int(torch.cuda.get_device_properties().L2_cache_size)}
    found: dict[str, int] = {}
    for folder in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*"):
        try:
            kind = (folder / "type").read_text().strip()
            level = (folder / "level").read_text().strip()
            size = (folder / "size").read_text().strip()
        except OSError:
            continue
        if kind != "Instruction" and (match := re.fullmatch(r"(\d+)([KMG]?)", size)):
            unit = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}[match[2]]
            found[f"L{level}"] = int(match[1]) * unit
    return dict(sorted(found.items()))


def _level(size: int, caches: dict[str, int]) -> str:
    fitting = [name for name, capacity in caches.items() if size <= capacity]
    return fitting[0] if fitting else "memory"


def _device() -> Device:
    if torch.cuda.is_available():
        return "cuda"
    if gpus := describe_host()["gpu"]:
        warnings.warn(
            f"{gpus[0]} is here, but this torch cannot use it: the CPU is measured, whose ceilings "
            "say nothing about engines on the GPU. For a DGX Spark, use roofline.DGX_SPARK",
            stacklevel=3,
        )
    return "cpu"


def _free_memory(device: Device) -> int:
    if device == "cuda":
        return int(torch.cuda.mem_get_info()[0])
    return int(psutil.virtual_memory().available)


def _best_matmul_rate(
    shapes: Sequence[tuple[int, int, int]],
    seconds: float,
    threads: int,
    device: Device,
    dtype: torch.dtype,
) -> float:
    """Return the best rate of several products, FLOP/s, from small to large.

    A product that would take longer than its share of the time by itself is left out: a CPU
    without bfloat16 instructions emulates them, and a large product takes minutes.
    """
    best = 0.0
    for rows, inner, columns in shapes:
        if best and 2 * rows * inner * columns / best > seconds:
            break
        best = max(best, _matmul_rate((rows, inner, columns), seconds, threads, device, dtype))
    return best


def _matmul_rate(
    shape: tuple[int, int, int], seconds: float, threads: int, device: Device, dtype: torch.dtype
) -> float:
    rows, inner, columns = shape
    a = torch.ones(rows, inner, dtype=dtype, device=device)
    b = torch.ones(inner, columns, dtype=dtype, device=device)
    return 2 * rows * inner * columns / _best_time((lambda: a @ b,), seconds, threads, device)


def _best_time(
    kernels: Sequence[Callable[[], object]], seconds: float, threads: int | None, device: Device
) -> float:
    """Shortest time of any kernel with any number of threads, s.

    One thread is tried too: on a busy machine the others can make every product wait.
    """
    before = torch.get_num_threads()
    counts = sorted({1, threads or before}) if device == "cpu" else [before]
    share = seconds / (len(kernels) * len(counts))
    try:
        return min(_repeat(kernel, share, count, device) for kernel in kernels for count in counts)
    finally:
        torch.set_num_threads(before)


def _repeat(kernel: Callable[[], object], seconds: float, threads: int, device: Device) -> float:
    torch.set_num_threads(threads)
    wait = synchronizer(device)
    kernel()
    wait()
    best = float("inf")
    end = time.perf_counter() + seconds
    repeats = 0
    while repeats < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        kernel()
        wait()
        best = min(best, time.perf_counter() - start)
        repeats += 1
    return best


def synchronizer(device: str) -> Callable[[], None]:
    """Return a function that waits until the kernels of a device ("cpu", "cuda") are done."""
    return torch.cuda.synchronize if device == "cuda" else _nothing


def _nothing() -> None:
    """CPU kernels are done when they return."""
