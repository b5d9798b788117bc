"""Which GPU the course uses, where there are several, or one that is divided. Standard library only.

CUDA_VISIBLE_DEVICES decides, then COURSE_GPU, and else the GPU with the most free memory. The choice is
written to CUDA_VISIBLE_DEVICES, as a UUID, so that the notebook's PyTorch, local engines and containers use
the same GPU. (A number would not do: CUDA counts the fastest GPU first, and nvidia-smi by slot.)
"""

from __future__ import annotations

import re
import subprocess
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass

VISIBLE, WANTED = "CUDA_VISIBLE_DEVICES", "COURSE_GPU"
TIMEOUT_S = 20.0
_GPU = re.compile(r"GPU (\d+): (.+) \(UUID: (GPU-[\w-]+)\)")
_PART = re.compile(r"\s+MIG ([\w.+]+)\s+Device\s+\d+: \(UUID: (MIG-[\w/-]+)\)")


class GpuChoiceError(ValueError):
    """A GPU was asked for that this machine doesn't have."""


@dataclass(frozen=True)
class Device:
    """A GPU as `nvidia-smi -L` lists it.

    Attributes:
        index: Its number.
        name: As its driver names it.
        uuid: Its UUID.
        parts: UUID to profile (`1g.10gb`) of its MIG instances.
    """

    index: int
    name: str
    uuid: str
    parts: Mapping[str, str]


@dataclass(frozen=True)
class Choice:
    """The GPU that the course uses.

    Attributes:
        id: UUID of the GPU or of a part of it.
        reason: Sentence about the choice, or "" if there was none to make.
    """

    id: str
    reason: str


def parse_devices(listed: str) -> tuple[Device, ...]:
    """Read the answer to `nvidia-smi -L`."""
    found: list[Device] = []
    for line in listed.splitlines():
        if gpu := _GPU.match(line):
            found.append(Device(int(gpu[1]), gpu[2], gpu[3], {}))
        elif found and (part := _PART.match(line)):
            last = found[-1]
            parts = {**last.parts, part[2]: part[1]}
            found[-1] = Device(last.index, last.name, last.uuid, parts)
    return tuple(found)


def choose(
    devices: tuple[Device, ...], environment: Mapping[str, str], free: Mapping[str, float]
) -> Choice:
    """Choose a GPU, or the first part of one that is divided.

    Args:
        devices: GPUs of this machine, at least one.
        environment: Variables, of which CUDA_VISIBLE_DEVICES and COURSE_GPU count.
        free: Free memory by UUID, in any unit.

    Raises:
        GpuChoiceError: One of the variables names a GPU that isn't there, or hides all.
    """
    variable = VISIBLE if VISIBLE in environment else WANTED
    wanted = environment.get(variable, "").split(",")[0].strip()
    if variable == VISIBLE and wanted in ("", "-1"):
        raise GpuChoiceError(
            f"{VISIBLE}={environment[VISIBLE]!r} hides every GPU. Unset it, or set COURSE_PROFILE=cpu."
        )
    if wanted:
        device, part = _find(devices, wanted, variable)
        why = f"as {variable} says"
    else:
        device, part = max(devices, key=lambda gpu: free.get(gpu.uuid, 0.0)), ""
        why = f"which has the most free memory; {WANTED}=NUMBER chooses another"
    if device.parts and not part:
        part = next(iter(device.parts))
    if part:
        kind = device.parts[part]
        return Choice(
            part, f"GPU {device.index} is divided (MIG), and the course uses {kind}, {part}"
        )
    text = f"of {len(devices)} GPUs the course uses number {device.index}, {why}"
    return Choice(device.uuid, text if len(devices) > 1 else "")


def _find(devices: tuple[Device, ...], wanted: str, variable: str) -> tuple[Device, str]:
    for device in devices:
        if wanted == str(device.index) or (
            wanted.startswith("GPU-") and device.uuid.startswith(wanted)
        ):
            return device, ""
        if wanted in device.parts:
            return device, wanted
    known = ", ".join(f"{device.index} ({device.name})" for device in devices)
    raise GpuChoiceError(
        f"There is no GPU {wanted!r} ({variable}). This machine has: {known}; parts are named by their UUID, "
        "see nvidia-smi -L."
    )


def pin_gpu(environment: MutableMapping[str, str]) -> str:
    """Make this process, and all that it starts, use one GPU.

    Returns:
        A sentence about the choice, or "" if there is one whole GPU, or none that `nvidia-smi` lists.

    Raises:
        GpuChoiceError: See `choose`.
    """
    devices = parse_devices(_ask("-L"))
    if not devices:
        return ""
    several = len(devices) > 1
    choice = choose(devices, environment, _free() if several else {})
    if several or devices[0].parts:
        environment[VISIBLE] = choice.id
    return choice.reason


def part_bytes(environment: Mapping[str, str]) -> float | None:
    """Return the memory of the MIG instance that is chosen, by the name of its profile; None if none is."""
    chosen = environment.get(VISIBLE, "")
    if not chosen.startswith("MIG-"):
        return None
    for device in parse_devices(_ask("-L")):
        if size := re.search(r"(\d+)gb", device.parts.get(chosen, "")):
            return float(size[1]) * 1e9
    return None


def _free() -> dict[str, float]:
    found = {}
    for line in _ask("--query-gpu=uuid,memory.free", "--format=csv,noheader,nounits").splitlines():
        uuid, _, free = line.partition(",")
        found[uuid.strip()] = float(free) if free.strip().isdecimal() else 0.0
    return found


def _ask(*arguments: str) -> str:
    try:
        answer = subprocess.run(
            ["nvidia-smi", *arguments], capture_output=True, text=True, timeout=TIMEOUT_S
        )
    except (OSError, subprocess.SubprocessError):
        return ""
    return answer.stdout if answer.returncode == 0 else ""
