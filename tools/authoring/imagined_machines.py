"""Machines that the doctor is asked about for LAB_PREP.md: cards of every size, and a pod without docker.

The machines are imagined, and the verdicts are the doctor's own.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tools.doctor.diagnoses import examine, stopped
from tools.doctor.doctor_report import plan_words
from tools.doctor.facts import Machine, commands
from tools.doctor.machine_probe import CommandResult, Probe
from tools.doctor.needs import LABS
from tools.setup.setup_steps import Step
from utils.fleet_plan import lab_plan
from utils.host_memory import MEMINFO

DRIVER = "580.95.05"


@dataclass(frozen=True)
class Card:
    """A GPU as nvidia-smi describes it. Its memory is in MiB, or `[N/A]` if it shares the machine's."""

    name: str
    capability: float
    memory: str


@dataclass(frozen=True)
class Imagined:
    """A machine.

    Attributes:
        title: Words for the table.
        cards: Its GPUs.
        docker: True if docker is installed, with NVIDIA's toolkit.
        machine: Architecture.
        gigabytes: Main memory, GB.
    """

    title: str
    cards: tuple[Card, ...]
    docker: bool = True
    machine: str = "x86_64"
    gigabytes: float = 64.0


# Memory as nvidia-smi reports it for such cards; compute capability by https://developer.nvidia.com/cuda-gpus.
RTX_4090 = Card("NVIDIA GeForce RTX 4090", 8.9, "24564")
MACHINES = (
    Imagined("8 GB (RTX 4060)", (Card("NVIDIA GeForce RTX 4060", 8.9, "8188"),)),
    Imagined("12 GB (RTX 3060)", (Card("NVIDIA GeForce RTX 3060", 8.6, "12288"),)),
    Imagined("16 GB (T4)", (Card("Tesla T4", 7.5, "15360"),)),
    Imagined("24 GB (RTX 4090)", (RTX_4090,)),
    Imagined("two of 24 GB", (RTX_4090, RTX_4090)),
    Imagined("48 GB (L40S)", (Card("NVIDIA L40S", 8.9, "46068"),)),
    Imagined("80 GB (H100)", (Card("NVIDIA H100 80GB HBM3", 9.0, "81559"),)),
    Imagined(
        "DGX Spark", (Card("NVIDIA GB10", 12.1, "[N/A]"),), machine="aarch64", gigabytes=128.0
    ),
    Imagined("pod with 24 GB, no docker", (RTX_4090,), docker=False),
)


class ImaginedProbe(Probe):
    """Probe of a machine on which everything else is in order and nothing runs."""

    def __init__(self, imagined: Imagined) -> None:
        super().__init__()
        self.imagined = imagined
        self.environment: Mapping[str, str] = {}
        self.home = "/home/learner"
        self.python = (3, 12, 3)
        answers = {
            "uname": f"Linux 6.8.0-60-generic {imagined.machine}",
            "cores": "16",
            "libc": "glibc 2.39",
            "c++": "c++ (Ubuntu 13.2.0) 13.2.0",
            "gpus": "\n".join(self._row(card) for card in imagined.cards),
            "smi": "CUDA Version: 13.0",
            "ports": "",
            "libgomp": "",
        }
        if imagined.docker:
            runtimes = {"ServerVersion": "28.5.1", "Runtimes": {"nvidia": {}}}
            answers |= {"docker": json.dumps(runtimes), "images": ""}
        self.answers = {tuple(commands(self)[name]): text for name, text in answers.items()}

    def _row(self, card: Card) -> str:
        known = {
            "name": card.name,
            "compute_cap": str(card.capability),
            "memory.total": card.memory,
            "memory.free": card.memory,
            "driver_version": DRIVER,
        }
        option = next(word for word in commands(self)["gpus"] if word.startswith("--query-gpu="))
        fields = option.partition("=")[2].split(",")
        return ", ".join(known.get(field, "[N/A]") for field in fields)

    def run(self, command: Sequence[str]) -> CommandResult:
        """Answer a command, or tell that there is no such program."""
        text = self.answers.get(tuple(command))
        return CommandResult(None) if text is None else CommandResult(0, text)

    def read(self, path: str) -> str | None:
        """Return the memory; no other file is needed."""
        if path != str(MEMINFO):
            return None
        kib = int(self.imagined.gigabytes * 1e9 / 1024)
        kept = int(4e9 / 1024)  # the system's
        return f"MemTotal: {kib} kB\nMemFree: {kib - kept} kB\nMemAvailable: {kib - kept} kB\n"

    def exists(self, path: str) -> bool:
        """Tell that nothing was downloaded yet."""
        return False

    def free_bytes(self, path: str) -> float | None:
        """Return a disk that is large enough."""
        return 1e12

    def has_module(self, name: str) -> bool:
        """Tell that Python is whole."""
        return True

    def done(self, step: Step) -> bool:
        """Tell that set-up is complete."""
        return True


def machines_table() -> str:
    """Make a row per machine: profile, model, KV cache, the largest fleet, and the labs that can run."""
    rows = [
        "| machine | profile | model | KV cache of one vLLM | largest fleet | labs that can run |",
        "|---|---|---|---|---|---|",
    ]
    for imagined in MACHINES:
        found = Machine(ImaginedProbe(imagined))
        off = stopped(examine(found))
        labs = ", ".join(f"3.3.{number}" for number in LABS if number not in off) or "none"
        labs = "all" if not off else labs
        model, cache, fleet = "the tiny model", "1 GiB", "–"
        if found.on_gpu:
            sizes = found.sizes
            model = f"{sizes.models['vllm'].rpartition('/')[2]}, {sizes.dtype}"
            cache = f"{sizes.kv_cache_gib:g} GiB"
            number = max(LABS, key=lambda lab: lab_plan(lab, found.sizes).total)
            fleet = f"{plan_words(lab_plan(number, sizes))} (3.3.{number})"
        rows.append(
            f"| {imagined.title} | `{found.profile}` | {model} | {cache} | {fleet} | {labs} |"
        )
    return "\n".join(rows)
