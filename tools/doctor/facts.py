"""The facts about a machine: `Machine` asks its probe once, and reads the answers.

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
from typing import Any, NamedTuple

from tools.doctor.machine_probe import CommandResult, Probe
from tools.doctor.needs import PYTHONS, download_bytes, hub_folder
from tools.lab.labs import KERNEL
from tools.setup.setup_steps import COURSE_ENV, steps_for
from utils.gpu import QUERY, Gpu, parse_gpus
from utils.host_memory import MEMINFO, parse_meminfo
from utils.profiles import (
    ENVIRONMENT_VARIABLE,
    LOAD_VARIABLE,
    PROFILES,
    ROOT,
    Profile,
    detect,
    dtype_for,
    fit,
)

NVIDIA_VENDOR = "10de"
CUDA_PTXAS = "/usr/local/cuda/bin/ptxas"
COMPILERS = ("c++", "g++", "clang++")
PYTHON_NAMES = tuple(f"python{major}.{minor}" for major, minor in PYTHONS)
Version = tuple[int, ...]


@dataclass(frozen=True)
class Docker:
    """The container engine.

    Attributes:
        state: `ready`, `missing`, `down` (no daemon answers), `denied` (no permission), or `shim` (Docker
            Desktop's shim in a WSL distribution that is not integrated).
        message: Its message if it isn't ready.
        version: Version of the daemon.
        gpus: True if containers can be given NVIDIA GPUs: a runtime, a CDI device or the toolkit is there.
        toolkit: Version of NVIDIA's container toolkit, or "" if it isn't installed in this system.
        folder: Folder that images are stored in.
        images: Images that are here already, as `name:tag`.
    """

    state: str
    message: str = ""
    version: str = ""
    gpus: bool = False
    toolkit: str = ""
    folder: str = ""
    images: frozenset[str] = frozenset()


class Listener(NamedTuple):
    """Program that listens on a TCP port. It has no name, and process 0, if it is another user's."""

    port: int
    program: str
    pid: int


def commands(probe: Probe) -> dict[str, Sequence[str]]:
    """Return the commands to run, by the name of their answer."""
    versions = (*PYTHON_NAMES, *COMPILERS, *_ptxas(probe), "nvidia-ctk", "ollama")
    return {
        **{name: (name, "--version") for name in versions},
        "uname": ("uname", "-srm"),
        "cores": ("getconf", "_NPROCESSORS_ONLN"),
        "libc": ("getconf", "GNU_LIBC_VERSION"),
        "libgomp": (sys.executable, "-c", "import ctypes; ctypes.CDLL('libgomp.so.1')"),
        "gpus": QUERY,
        "smi": ("nvidia-smi",),
        "docker": ("docker", "info", "--format", "{{json .}}"),
        "images": ("docker", "image", "ls", "--format", "{{.Repository}}:{{.Tag}}"),
        "ports": ("ss", "-ltnpH"),
        "kernel": (
            str(COURSE_ENV / "bin/python"),
            "-c",
            "import ipykernel, sys; print(sys.prefix)",
        ),
    }


class Machine:
    """A machine, asked once. The checks read it, and don't ask again.

    Attributes:
        probe: The machine's commands and files.
        answers: Results of `commands`.
        root: The course's folder.
        system: Kernel and its version.
        machine: Architecture, `x86_64` or `aarch64`.
        cores: Number of processor cores.
        dtype: Data type for the CPU: `bfloat16` if it has instructions for it, else `float32`.
        memory: Main memory.
        gpus: GPUs that the driver shows.
        cuda: Highest CUDA version that the driver supports, or "" without a driver.
        nvidia_smi: Message of an nvidia-smi that failed, or "" if it answered or isn't installed.
        nvidia_device: True if an NVIDIA device is on the PCI bus, with or without a driver.
        docker: The container engine.
        asked: Profile that COURSE_PROFILE names, or "" if it isn't set.
        load: Load that COURSE_LOAD names, or "full".
        profile: Name of the profile that labs get.
        python: Version of the Python that set-up would use.
        other_pythons: Installed Pythons that the course runs on, such as `python3.12`.
        venv: True if this Python can make virtual environments.
        glibc: Version of glibc, or () if the C library is another one.
        compiler: First line of the C++ compiler's version, or "" if there is none.
        libgomp: True if the OpenMP library that compilers bring can be loaded.
        ptxas: CUDA versions of the ptxas programs that exist, by path.
        chosen_ptxas: Program that TRITON_PTXAS_PATH names, or "" if Triton takes its own.
        free: Free disk in the course's folder, in bytes.
        free_models: Free disk in the home folder, where containers keep models, in bytes.
        downloads: Models that labs of this profile would download, and their bytes.
        token: File in which the model hub's clients would find a token, or "".
        listeners: Programs that listen on a port, or None if `ss` isn't installed.
        steps: Set-up's steps for this profile.
        due: Set-up's steps that are not complete.
        kernel: `ready`, `none`, or `broken` if the course's environment or its kernel doesn't run.
    """

    def __init__(self, probe: Probe) -> None:
        self.probe = probe
        self.answers = answers = probe.run_all(commands(probe))
        self.root = str(ROOT)
        name = answers["uname"].text.strip() or platform.machine()
        self.system, _, self.machine = name.rpartition(" ")
        cores = answers["cores"].text.strip()
        self.cores = int(cores) if cores.isdecimal() else 0
        self.dtype = dtype_for(probe.read("/proc/cpuinfo") or "")
        self.memory = parse_meminfo(probe.read(str(MEMINFO)) or "")
        gpus = answers["gpus"]
        self.gpus = parse_gpus(gpus.text, self.memory) if gpus.fine else ()
        self.cuda = _first(r"CUDA Version:\s*([\d.]+)", answers["smi"].text)
        self.nvidia_smi = "" if gpus.fine or gpus.missing else gpus.words
        self.nvidia_device = has_nvidia(probe.read("/proc/bus/pci/devices") or "")
        self.docker = read_docker(answers["docker"], answers["images"], answers["nvidia-ctk"])
        self.asked = probe.environment.get(ENVIRONMENT_VARIABLE, "")
        self.load = probe.environment.get(LOAD_VARIABLE) or "full"
        self.profile = self.asked if self.asked in PROFILES else self.own_profile
        self.python = probe.python
        self.other_pythons = tuple(name for name in PYTHON_NAMES if answers[name].fine)
        self.venv = probe.has_module("ensurepip")
        self.glibc = _version(answers["libc"].text)
        compilers = (answers[name].text.partition("\n")[0] for name in COMPILERS)
        self.compiler = next(filter(None, compilers), "")
        self.libgomp = answers["libgomp"].code in (0, None)
        releases = {path: _first(r"release ([\d.]+)", answers[path].text) for path in _ptxas(probe)}
        self.ptxas = {path: _version(text) for path, text in releases.items() if text}
        self.chosen_ptxas = probe.environment.get("TRITON_PTXAS_PATH", "")
        self.free = probe.free_bytes(self.root)
        self.free_models = probe.free_bytes(f"{probe.home}/.cache")
        self.downloads = missing_models(probe, self.sizes)
        self.token = find_token(probe)
        ports = answers["ports"]
        self.listeners = None if ports.missing else read_listeners(ports.text)
        self.steps = steps_for(self.profile, self.machine)
        self.due = tuple(step for step in self.steps if not probe.done(step))
        self.kernel = find_kernel(probe, answers["kernel"])

    @property
    def own_profile(self) -> str:
        """Profile that labs get if COURSE_PROFILE isn't set."""
        return detect(self.gpu.name or None, self.machine, self.docker.state != "missing")

    @property
    def sizes(self) -> Profile:
        """Profile that labs get, with the models that fit this machine's GPU."""
        profile = PROFILES[self.profile]
        return fit(profile, self.gpu) if self.on_gpu and self.gpus else profile

    @property
    def on_gpu(self) -> bool:
        """True if this profile runs engines on a GPU, in containers or as local processes."""
        return PROFILES[self.profile].device == "cuda"

    @property
    def in_containers(self) -> bool:
        """True if this profile runs engines in containers, on a GPU."""
        return PROFILES[self.profile].runtime == "docker"

    @property
    def wsl(self) -> bool:
        """True if this is Linux inside Windows."""
        return "microsoft" in self.system.lower()

    @property
    def gpu(self) -> Gpu:
        """First GPU, or one without name and memory if there is none."""
        return self.gpus[0] if self.gpus else Gpu("", 0.0, 0.0)

    def has_step(self, name: str) -> bool:
        """Return whether a step of this profile is complete."""
        return name in {step.name for step in self.steps} - {step.name for step in self.due}


def has_nvidia(devices: str) -> bool:
    """Return whether `/proc/bus/pci/devices` lists a device of NVIDIA's."""
    rows = [line.split() for line in devices.splitlines()]
    return any(len(row) > 1 and row[1].lower().startswith(NVIDIA_VENDOR) for row in rows)


def missing_models(probe: Probe, profile: Profile) -> dict[str, float]:
    """Return the models of a profile that labs would download, and their bytes."""
    if profile.device == "cpu":
        return {}
    return {
        model: download_bytes(model)
        for model in dict.fromkeys(m for m in profile.models.values() if not m.startswith("/"))
        if not (folder := hub_folder(model)) or not probe.exists(f"{probe.home}/{folder}")
    }


def find_token(probe: Probe) -> str:
    """Return where the model hub's clients would find a token, or "". It is not read."""
    if probe.environment.get("HF_TOKEN"):
        return "HF_TOKEN"
    home = probe.environment.get("HF_HOME") or f"{probe.home}/.cache/huggingface"
    return f"{home}/token" if probe.exists(f"{home}/token") else ""


def find_kernel(probe: Probe, answer: CommandResult) -> str:
    """Return the state of the notebooks' kernel."""
    if not probe.exists(str(COURSE_ENV)):
        return "none"
    spec = probe.read(str(COURSE_ENV / f"share/jupyter/kernels/{KERNEL}/kernel.json"))
    program = str((_json(spec or "").get("argv") or [""])[0])
    here = program.startswith(str(COURSE_ENV)) and probe.exists(program)
    return "ready" if answer.fine and (here or program == "python") else "broken"


def read_docker(info: CommandResult, images: CommandResult, toolkit: CommandResult) -> Docker:
    """Read `docker info`, `docker image ls` and `nvidia-ctk --version`."""
    version = _first(r"version ([\d.]+)", toolkit.text) if toolkit.fine else ""
    if info.missing:
        return Docker("missing", toolkit=version)
    if "could not be found in this WSL" in info.words:
        return Docker("shim", info.words, toolkit=version)
    values = _json(info.text)
    errors = " ".join(map(str, values.get("ServerErrors") or ()))
    text = " ".join(f"{errors} {info.error}".split())
    if not values.get("ServerVersion"):
        state = "denied" if "permission denied" in text.lower() else "down"
        return Docker(state, text, toolkit=version)
    devices = [str(device.get("ID", "")) for device in values.get("DiscoveredDevices") or ()]
    cdi = any(device.startswith("nvidia.com/") for device in devices)
    desktop = values.get("OperatingSystem") == "Docker Desktop"
    return Docker(
        "ready",
        version=str(values["ServerVersion"]),
        gpus=bool(version) or "nvidia" in (values.get("Runtimes") or {}) or cdi,
        toolkit=version,
        # Docker Desktop's is inside a virtual machine.
        folder="" if desktop else str(values.get("DockerRootDir") or ""),
        images=frozenset(images.text.split()) if images.fine else frozenset(),
    )


def read_listeners(answer: str) -> tuple[Listener, ...]:
    """Read `ss -ltnpH`, whose fourth column is the local address and port. Each port comes once."""
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


def _ptxas(probe: Probe) -> tuple[str, str]:
    return probe.environment.get("TRITON_PTXAS_PATH") or "ptxas", CUDA_PTXAS


def _version(text: str) -> Version:
    found = re.search(r"\d+(\.\d+)+", text)
    return tuple(map(int, found[0].split("."))) if found else ()


def _first(pattern: str, text: str) -> str:
    found = re.search(pattern, text)
    return found[1] if found else ""


def _json(text: str) -> Mapping[str, Any]:
    try:
        values = json.loads(text)
    except ValueError:
        return {}
    return values if isinstance(values, dict) else {}
