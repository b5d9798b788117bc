"""What there is to know about a machine, gathered in one go.

Formats: nvidia-smi's `--query-gpu` and header, `docker info` as JSON, `/proc/{meminfo,cpuinfo}`, `ss -ltnpH`,
`/proc/bus/pci/devices` (second column: vendor and device in hexadecimal).
"""

from __future__ import annotations

import json
import platform
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tools.doctor.machine_probe import CommandResult, Probe
from tools.doctor.needs import DOWNLOADS, PARAMETERS, PYTHONS
from tools.setup.setup_steps import COURSE_ENV, Step, steps_for
from utils.gpu import QUERY, Gpu, parse_gpus
from utils.profiles import ENVIRONMENT_VARIABLE, PROFILES, ROOT, detect, dtype_for

NVIDIA_VENDOR = "10de"
Version = tuple[int, ...]


@dataclass(frozen=True)
class Docker:
    """The container engine.

    Attributes:
        state: `ready`, `missing`, `down` (no daemon answers), `denied` (no permission), or `shim` (Docker
            Desktop's stand-in in a WSL distribution that is not integrated).
        said: What it said where it is not ready.
        version: Of the daemon.
        gpus: Whether containers can be given NVIDIA GPUs: a runtime, a CDI device or the toolkit is there.
        toolkit: Version of NVIDIA's container toolkit; "" where it is not installed in this system.
        folder: Where images go.
        images: Images that are here already, `name:tag`.
    """

    state: str
    said: str = ""
    version: str = ""
    gpus: bool = False
    toolkit: str = ""
    folder: str = ""
    images: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Listener:
    """Something that listens on a TCP port.

    Attributes:
        port: The port.
        program: Its name; "" where it belongs to another user.
        pid: Its process; 0 where it belongs to another user.
    """

    port: int
    program: str
    pid: int


@dataclass(frozen=True)
class MachineMemory:
    """Of `/proc/meminfo`, bytes; all 0 where the system has no such file."""

    total: float = 0.0
    available: float = 0.0
    free: float = 0.0
    cached: float = 0.0


@dataclass(frozen=True)
class StepState:
    """A set-up step of this profile.

    Attributes:
        name: Its name, for `make setup STEP=`.
        title: What a person reads.
        done: Whether it is complete.
        bytes: Disk that it takes.
    """

    name: str
    title: str
    done: bool
    bytes: float


@dataclass(frozen=True)
class Facts:
    """A machine.

    Attributes:
        asked: What COURSE_PROFILE names; "" where it is not set.
        profile: The profile that labs get; where `asked` is none, the one that the machine decides.
        machine: `x86_64` or `aarch64`.
        system: Kernel and its version.
        wsl: Whether this is Linux inside Windows.
        cores: Processor cores.
        dtype: `bfloat16` where the CPU has instructions for it, else `float32`.
        memory: Main memory.
        python: Version of the Python that set-up would use.
        other_pythons: Versions among those that the course runs on, as commands, `python3.12`.
        venv: Whether this Python can make virtual environments.
        glibc: Version of the C library; () for another one.
        compiler: First line of the C++ compiler's version; "" without one.
        gpus: GPUs that the driver shows.
        cuda: Highest CUDA version that the driver supports; "" without a driver.
        nvidia_smi: What nvidia-smi said where it failed; None: it is not installed; "": it answered.
        nvidia_device: Whether an NVIDIA device sits on the PCI bus, driver or not.
        docker: The container engine.
        ptxas: Program to CUDA version, of those that exist.
        ptxas_chosen: What TRITON_PTXAS_PATH names; "": Triton takes its own.
        root: The course's folder.
        free: Free disk in it, bytes.
        free_images: Free disk where images go, bytes.
        free_models: Free disk in the home folder, where containers keep models, bytes.
        downloads: Models of the profile that are not here yet, and their bytes.
        token: Where a Hugging Face token was found; "" for nowhere.
        listeners: What listens; None: `ss` is not installed.
        steps: Set-up's steps for this profile.
        ollama: Whether Ollama's program is installed.
        kernel: `ready`; `none`; or `broken`: the course's environment or its Jupyter kernel does not run.
        libgomp: Whether the OpenMP library that compilers bring can be loaded.
    """

    asked: str
    profile: str
    machine: str
    system: str
    wsl: bool
    cores: int
    dtype: str
    memory: MachineMemory
    python: Version
    other_pythons: tuple[str, ...]
    venv: bool
    glibc: Version
    compiler: str
    gpus: tuple[Gpu, ...]
    cuda: str
    nvidia_smi: str | None
    nvidia_device: bool
    docker: Docker
    ptxas: Mapping[str, Version]
    ptxas_chosen: str
    root: str
    free: float | None
    free_images: float | None
    free_models: float | None
    downloads: Mapping[str, float]
    token: str
    listeners: tuple[Listener, ...] | None
    steps: tuple[StepState, ...]
    ollama: bool
    kernel: str
    libgomp: bool


def commands(probe: Probe) -> dict[str, Sequence[str]]:
    """What is asked, by a name of ours."""
    python = str(COURSE_ENV / "bin" / "python")
    return {
        "uname": ("uname", "-srm"),
        "cores": ("getconf", "_NPROCESSORS_ONLN"),
        "libc": ("getconf", "GNU_LIBC_VERSION"),
        "libgomp": (sys.executable, "-c", "import ctypes; ctypes.CDLL('libgomp.so.1')"),
        "gpus": QUERY,
        "smi": ("nvidia-smi",),
        "docker": ("docker", "info", "--format", "{{json .}}"),
        "images": ("docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"),
        "toolkit": ("nvidia-ctk", "--version"),
        "ports": ("ss", "-ltnpH"),
        "ollama": ("ollama", "--version"),
        **{f"python {name}": (name, "--version") for name in _python_names()},
        **{f"compiler {name}": (name, "--version") for name in ("c++", "g++", "clang++")},
        **{f"ptxas {path}": (path, "--version") for path in _ptxas_paths(probe.environment)},
        "kernel": (python, "-c", "import ipykernel, sys; print(sys.prefix)"),
    }


def gather(probe: Probe) -> Facts:
    """Asks the machine. Takes as long as its slowest command, at most `TIMEOUT_S`."""
    answers = probe.run_all(commands(probe))
    memory = read_memory(probe.read("/proc/meminfo") or "")
    gpus = parse_gpus(answers["gpus"].text, memory.available) if answers["gpus"].fine else ()
    docker = read_docker(answers["docker"], answers["images"], answers["toolkit"])
    system, _, machine = (answers["uname"].text.strip() or platform.machine()).rpartition(" ")
    asked = probe.environment.get(ENVIRONMENT_VARIABLE, "")
    name = gpus[0].name if gpus else None
    profile = asked if asked in PROFILES else detect(name, machine, docker.state != "missing")
    return Facts(
        asked=asked,
        profile=profile,
        machine=machine,
        system=system,
        wsl="microsoft" in system.lower(),
        cores=_number(answers["cores"].text),
        dtype=dtype_for(probe.read("/proc/cpuinfo") or ""),
        memory=memory,
        python=probe.python,
        other_pythons=tuple(n for n in _python_names() if answers[f"python {n}"].fine),
        venv=probe.has_module("ensurepip"),
        glibc=_version(answers["libc"].text),
        compiler=_compiler(answers),
        gpus=gpus,
        cuda=_first(r"CUDA Version:\s*([\d.]+)", answers["smi"].text),
        nvidia_smi=_smi_fault(answers["gpus"]),
        nvidia_device=has_nvidia(probe.read("/proc/bus/pci/devices") or ""),
        docker=docker,
        ptxas=read_ptxas(answers),
        ptxas_chosen=probe.environment.get("TRITON_PTXAS_PATH", ""),
        root=str(ROOT),
        free=probe.free_bytes(str(ROOT)),
        free_images=probe.free_bytes(docker.folder) if docker.folder else None,
        free_models=probe.free_bytes(f"{probe.home}/.cache"),
        downloads=missing_models(probe, profile),
        token=find_token(probe),
        listeners=None if answers["ports"].missing else read_listeners(answers["ports"].text),
        steps=tuple(_state(probe, step) for step in steps_for(profile, machine)),
        ollama=not answers["ollama"].missing,
        kernel=_kernel(probe, answers["kernel"]),
        libgomp=answers["libgomp"].code in (0, None),
    )


def read_memory(meminfo: str) -> MachineMemory:
    """Reads `/proc/meminfo`, whose figures are KiB."""
    found = {k: float(v) * 1024 for k, v in re.findall(r"^(\w+):\s*(\d+) kB", meminfo, re.M)}
    names = ("MemTotal", "MemAvailable", "MemFree", "Cached")
    return MachineMemory(*(found.get(name, 0.0) for name in names))


def read_docker(info: CommandResult, images: CommandResult, toolkit: CommandResult) -> Docker:
    """Reads `docker info`, `docker image ls` and `nvidia-ctk --version`."""
    version = _first(r"version ([\d.]+)", toolkit.text) if toolkit.fine else ""
    if info.missing:
        return Docker("missing", toolkit=version)
    if "could not be found in this WSL" in info.words:
        return Docker("shim", info.words, toolkit=version)
    values = _json(info.text)
    errors = " ".join(map(str, values.get("ServerErrors") or ()))
    said = " ".join(f"{errors} {info.error}".split())
    if not values.get("ServerVersion"):
        state = "denied" if "permission denied" in said.lower() else "down"
        return Docker(state, said, toolkit=version)
    devices = [str(device.get("ID", "")) for device in values.get("DiscoveredDevices") or ()]
    runtimes = values.get("Runtimes") or {}
    desktop = values.get("OperatingSystem") == "Docker Desktop"
    gpus = (
        bool(version) or "nvidia" in runtimes or any(d.startswith("nvidia.com/") for d in devices)
    )
    return Docker(
        "ready",
        version=str(values["ServerVersion"]),
        gpus=gpus,
        toolkit=version,
        # Docker Desktop's is inside a virtual machine.
        folder="" if desktop else str(values.get("DockerRootDir") or ""),
        images=frozenset(images.text.split()) if images.fine else frozenset(),
    )


def read_listeners(answer: str) -> tuple[Listener, ...]:
    """Reads `ss -ltnpH`: local address and port are the fourth column; each port once."""
    found: dict[int, Listener] = {}
    for line in answer.splitlines():
        fields = line.split()
        if len(fields) < 5 or not (port := fields[3].rpartition(":")[2]).isdecimal():
            continue
        owner = re.search(r'\(\("([^"]*)",pid=(\d+)', line)
        name, pid = (owner[1], int(owner[2])) if owner else ("", 0)
        if int(port) not in found or name:
            found[int(port)] = Listener(int(port), name, pid)
    return tuple(found[port] for port in sorted(found))


def has_nvidia(devices: str) -> bool:
    """Whether `/proc/bus/pci/devices` lists a device of NVIDIA's."""
    rows = [line.split() for line in devices.splitlines()]
    return any(len(row) > 1 and row[1].lower().startswith(NVIDIA_VENDOR) for row in rows)


def read_ptxas(answers: Mapping[str, CommandResult]) -> dict[str, Version]:
    """CUDA versions of the ptxas that exist, by path."""
    found = {
        name[len("ptxas ") :]: _version(_first(r"release ([\d.]+)", answer.text))
        for name, answer in answers.items()
        if name.startswith("ptxas ") and answer.fine
    }
    return {path: version for path, version in found.items() if version}


def missing_models(probe: Probe, profile: str) -> dict[str, float]:
    """Models of a profile that labs would download, and their bytes."""
    wanted = set(PROFILES[profile].models.values())
    return {
        model: PARAMETERS * each
        for model, (folder, each) in DOWNLOADS.items()
        if model in wanted and not (folder and probe.exists(f"{probe.home}/{folder}"))
    }


def find_token(probe: Probe) -> str:
    """Where the model hub's clients would find a token; "" for nowhere. The token itself is not read."""
    if probe.environment.get("HF_TOKEN"):
        return "HF_TOKEN"
    home = probe.environment.get("HF_HOME") or f"{probe.home}/.cache/huggingface"
    return f"{home}/token" if probe.exists(f"{home}/token") else ""


def _state(probe: Probe, step: Step) -> StepState:
    return StepState(step.name, step.title, probe.done(step), step.gigabytes * 1e9)


def _kernel(probe: Probe, answer: CommandResult) -> str:
    if not probe.exists(str(COURSE_ENV)):
        return "none"
    spec = COURSE_ENV / "share/jupyter/kernels/python3/kernel.json"
    argv = _json(probe.read(str(spec)) or "").get("argv") or [""]
    program = str(argv[0])
    here = program == "python" or (program.startswith(str(COURSE_ENV)) and probe.exists(program))
    return "ready" if answer.fine and here else "broken"


def _smi_fault(answer: CommandResult) -> str | None:
    if answer.missing:
        return None
    return "" if answer.fine else answer.words


def _compiler(answers: Mapping[str, CommandResult]) -> str:
    found = [answers[name].text for name in answers if name.startswith("compiler ")]
    return next((text.partition("\n")[0] for text in found if text), "")


def _python_names() -> list[str]:
    return [f"python{major}.{minor}" for major, minor in PYTHONS]


def _ptxas_paths(environment: Mapping[str, str]) -> list[str]:
    chosen = environment.get("TRITON_PTXAS_PATH")
    return [*([chosen] if chosen else ["ptxas"]), "/usr/local/cuda/bin/ptxas"]


def _version(text: str) -> Version:
    found = re.search(r"\d+(\.\d+)+", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def _number(text: str) -> int:
    return int(text) if text.strip().isdecimal() else 0


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


def _json(text: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
