"""What the facts mean: pure functions from `Facts` to diagnoses, each with a fix that can be pasted.

Sources of the fixes: NVIDIA's container toolkit and DGX Spark documents (known issues: memory, page cache),
Docker's post-installation steps, https://docs.docker.com/go/wsl2/, triton-lang/triton#8539.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tools.doctor.facts import Facts
from tools.doctor.needs import (
    CPU_ENGINE_BYTES,
    CPU_ENGINES_AT_ONCE,
    DRIVER,
    GB,
    GLIBC,
    IMAGES,
    LABS,
    OLLAMA_PORT,
    PORTS,
    PTXAS,
    PYTHONS,
    TITLES,
    WEIGHTS_BYTES,
)
from tools.setup.setup_steps import SPARE_GIGABYTES
from utils.gpu import CAPABILITY, OVERHEAD_BYTES, Gpu
from utils.profiles import ENVIRONMENT_VARIABLE, PROFILES, detect, on_x86

GIB = 1024**3
BLOCKER, FIXABLE, INFO, OK = "blocker", "fixable", "info", "ok"
ALL = frozenset(LABS)
SPARE_BYTES = SPARE_GIGABYTES * GB
ON_CPU = f"{ENVIRONMENT_VARIABLE}=cpu make lab"


@dataclass(frozen=True)
class Diagnosis:
    """One result of the doctor's checks.

    Attributes:
        level: `BLOCKER` (labs can't run), `FIXABLE` (`make lab` fixes it), `INFO` or `OK`.
        topic: What it is about.
        text: What was found, and what it means.
        fix: Lines to paste; () where nothing is to be done.
        labs: The labs that it stops.
    """

    level: str
    topic: str
    text: str
    fix: tuple[str, ...] = ()
    labs: frozenset[int] = frozenset()


def examine(facts: Facts) -> tuple[Diagnosis, ...]:
    """All diagnoses, the worst first."""
    found = [diagnosis for check in CHECKS for diagnosis in check(facts)]
    order = (BLOCKER, FIXABLE, INFO, OK)
    return tuple(sorted(found, key=lambda diagnosis: order.index(diagnosis.level)))


def stopped(diagnoses: tuple[Diagnosis, ...]) -> frozenset[int]:
    """The labs that cannot run."""
    return frozenset(lab for diagnosis in diagnoses for lab in diagnosis.labs)


def _stop(topic: str, text: str, *fix: str, labs: frozenset[int] = ALL) -> Diagnosis:
    return Diagnosis(BLOCKER, topic, text, fix, labs)


def _in_containers(facts: Facts) -> bool:
    return PROFILES[facts.profile].runtime == "docker"


def profile(facts: Facts) -> Iterator[Diagnosis]:
    """Which profile, and whether the machine could have a better one."""
    if facts.asked and facts.asked not in PROFILES:
        text = f"There is no profile {facts.asked!r}; there are: {', '.join(PROFILES)}."
        yield _stop("profile", text, f"unset {ENVIRONMENT_VARIABLE}")
    elif facts.asked:
        name = facts.gpus[0].name if facts.gpus else None
        own = detect(name, facts.machine, facts.docker.state != "missing")
        text = f"{facts.profile}, asked for with {ENVIRONMENT_VARIABLE}."
        if own == facts.profile:
            yield Diagnosis(OK, "profile", text)
        else:
            text += f" The machine itself would have {own}."
            yield Diagnosis(INFO, "profile", text, (f"unset {ENVIRONMENT_VARIABLE}",))
    elif facts.gpus and facts.docker.state == "missing":
        text = (
            f"{facts.gpus[0].name} is here, but docker is not, and engines need it to use the GPU: labs "
            "run on the CPU."
        )
        yield Diagnosis(INFO, "docker", text, _install_docker(facts))


def machine(facts: Facts) -> Iterator[Diagnosis]:
    """Architecture, C library: whether the pinned packages have wheels for it."""
    linux = facts.system.startswith("Linux")
    if not linux or not (on_x86(facts.machine) or facts.machine == "aarch64"):
        text = (
            f"{facts.system} on {facts.machine}: there are wheels for Linux on x86-64 and aarch64."
        )
        yield _stop("packages", text, "# use a Linux machine, or WSL 2 in Windows")
    elif facts.glibc and facts.glibc < GLIBC:
        need = _dotted(GLIBC)
        text = f"glibc {_dotted(facts.glibc)} is older than the {need} that wheels are built for."
        yield _stop("packages", text, "# use Debian 12, Ubuntu 22.04, DGX OS 7, or newer")
    elif not facts.glibc:
        text = "This is no glibc system: most wheels are for glibc."
        yield _stop("packages", text, "# use Debian 12, Ubuntu 22.04, or newer")
    elif facts.profile == "cpu" and not on_x86(facts.machine):
        text = "aarch64: all pinned packages have wheels. SGLang on a CPU is for x86-64, and is left out."
        yield Diagnosis(OK, "packages", text)
    else:
        text = f"{facts.machine}, glibc {_dotted(facts.glibc)}: the pinned packages have wheels."
        yield Diagnosis(OK, "packages", text)
    if facts.wsl and facts.root.startswith("/mnt/"):
        text = (
            f"{facts.root} is on Windows' disk, which is slow from Linux and knows no hard links."
        )
        yield Diagnosis(
            INFO, "WSL", text, ("mkdir -p ~/course && cp -r . ~/course && cd ~/course",)
        )


def python(facts: Facts) -> Iterator[Diagnosis]:
    """The Python that set-up would use."""
    version = _dotted(facts.python)
    if facts.python[:2] not in PYTHONS:
        wanted = ", ".join(_dotted(known) for known in PYTHONS)
        text = f"Python {version}; the course runs on {wanted}."
        if facts.other_pythons:
            yield _stop("Python", text, f"make lab PYTHON={facts.other_pythons[-1]}")
        else:
            # Ubuntu 22.04, with 3.10, has 3.11 too.
            name = "python" + _dotted(PYTHONS[0] if facts.python < PYTHONS[0] else PYTHONS[-1])
            yield _stop(
                "Python",
                text,
                f"sudo apt-get install -y {name} {name}-venv && make doctor PYTHON={name}",
            )
    elif not facts.venv:
        text = f"Python {version} cannot make virtual environments."
        name = "python" + _dotted(facts.python[:2])
        yield _stop("Python", text, f"sudo apt-get install -y {name}-venv")
    else:
        yield Diagnosis(OK, "Python", f"{version}, with venv.")


def compiler(facts: Facts) -> Iterator[Diagnosis]:
    """Report whether there is a C++ compiler, which lab 3.3.6 builds engine files with."""
    if facts.compiler:
        yield Diagnosis(OK, "C++ compiler", f"{facts.compiler}.")
        return
    labs = frozenset(number for number, lab in LABS.items() if lab.compiler)
    text = "There is none, and lab 3.3.6 builds engine files with it."
    yield _stop("C++ compiler", text, "sudo apt-get install -y g++", labs=labs)


def libgomp(facts: Facts) -> Iterator[Diagnosis]:
    """Report a missing libgomp. The wheel of llama.cpp needs it, and a compiler would have brought it."""
    if facts.libgomp or facts.profile != "cpu":
        return
    labs = frozenset(number for number, lab in LABS.items() if "llama_cpp" in lab.engines)
    labs = (
        labs if _done(facts, "llama_cpp") else ALL
    )  # set-up stops, and with it all that comes after
    text = "The library libgomp.so.1 is missing, and llama.cpp needs it."
    yield _stop("libgomp", text, "sudo apt-get install -y libgomp1", labs=labs)


def driver(facts: Facts) -> Iterator[Diagnosis]:
    """NVIDIA's driver."""
    if facts.gpus:
        yield from _working_driver(facts)
        return
    wanted = _in_containers(facts)
    level, labs = (BLOCKER, ALL) if wanted else (INFO, frozenset())
    tail = "" if wanted else " Labs run on the CPU meanwhile."
    if facts.nvidia_smi:
        what, fix = _broken_driver(facts)
        yield Diagnosis(
            level, "driver", f"{what} It said: {_short(facts.nvidia_smi)}{tail}", fix, labs
        )
    elif facts.nvidia_device:
        text = f"An NVIDIA device is here, its driver is not.{tail}"
        yield Diagnosis(level, "driver", text, _install_driver(facts), labs)
    elif wanted:
        text = f"Profile {facts.profile} needs an NVIDIA GPU, and there is none."
        yield _stop("GPU", text, ON_CPU)
    else:
        yield Diagnosis(OK, "GPU", "none from NVIDIA: labs run on the CPU, with the tiny model.")


def _working_driver(facts: Facts) -> Iterator[Diagnosis]:
    gpu = facts.gpus[0]
    number = gpu.driver.partition(".")[0]
    if number.isdecimal() and int(number) < DRIVER and _in_containers(facts):
        text = (
            f"Driver {gpu.driver} (CUDA {facts.cuda or 'unknown'}); the images are of CUDA 13, which needs "
            f"{DRIVER} or newer."
        )
        yield _stop("driver", text, *_install_driver(facts))
    else:
        yield Diagnosis(OK, "driver", f"{gpu.driver}, up to CUDA {facts.cuda or 'unknown'}.")


def _broken_driver(facts: Facts) -> tuple[str, tuple[str, ...]]:
    said = facts.nvidia_smi or ""
    if facts.wsl:
        return "nvidia-smi does not see the GPU from WSL.", (
            "wsl.exe --update && wsl.exe --shutdown   # then open this terminal again",
            "# and NVIDIA's driver in Windows; none in WSL: https://docs.nvidia.com/cuda/wsl-user-guide",
        )
    if "version mismatch" in said:
        return "The driver was updated, and the old one is still loaded.", ("sudo reboot",)
    if "did not answer" in said:
        return "The driver hangs.", ("sudo dmesg | grep -i nvrm | tail", "sudo reboot")
    return "NVIDIA's driver is installed and not loaded.", (
        "sudo apt-get install -y linux-headers-$(uname -r) && sudo dkms autoinstall && sudo reboot",
        "# if it is the same afterwards: sudo dmesg | grep -iE 'nvrm|nvidia' | tail; mokutil --sb-state",
    )


def gpu(facts: Facts) -> Iterator[Diagnosis]:
    """Compute capability and memory, where engines use the GPU."""
    if not facts.gpus:
        return
    first = facts.gpus[0]
    more = f" ({len(facts.gpus)} of them)" if len(facts.gpus) > 1 else ""
    name = f"{first.name}, sm_{first.capability:.1f}".replace(".", "") + more
    if not _in_containers(facts):
        yield Diagnosis(OK, "GPU", f"{name}; profile {facts.profile} does not use it.")
        return
    needed = CAPABILITY["bfloat16"]
    if first.capability < needed:
        text = f"{name}: bfloat16 needs compute capability {needed}."
        yield _stop("GPU", text, ON_CPU)
        return
    yield from _unified(facts, name) if first.unified else _own_memory(facts, first, name)


def _own_memory(facts: Facts, first: Gpu, name: str) -> Iterator[Diagnosis]:
    share = PROFILES[facts.profile].gpu_memory_utilization or 1.0
    may = share * first.memory_bytes
    least = WEIGHTS_BYTES + OVERHEAD_BYTES
    if may < least:
        text = (
            f"{name}: {first.memory_bytes / GIB:.0f} GiB, of which engines take {share:.0%}; an 8B model in "
            f"bfloat16 needs {least / GIB:.0f} before any KV cache."
        )
        yield _stop("GPU memory", text, ON_CPU)
    elif first.free_bytes < may:
        text = (
            f"{name}: {first.free_bytes / GIB:.0f} of {first.memory_bytes / GIB:.0f} GiB are free, and "
            f"engines ask for {share:.0%}: something else uses it."
        )
        yield _stop(
            "GPU memory",
            text,
            "nvidia-smi --query-compute-apps=pid,process_name,used_memory --format=csv   # then: kill PID",
        )
    else:
        text = f"{name}, {first.memory_bytes / GIB:.0f} GiB, {first.free_bytes / GIB:.0f} free."
        yield Diagnosis(OK, "GPU", text)


def _unified(facts: Facts, name: str) -> Iterator[Diagnosis]:
    memory = facts.memory
    share = PROFILES[facts.profile].gpu_memory_utilization or 1.0
    wanted = share * memory.total
    drop = "sync; echo 3 | sudo tee /proc/sys/vm/drop_caches"
    figures = f"{memory.available / GIB:.0f} of {memory.total / GIB:.0f} GiB available"
    if memory.available < wanted:
        text = (
            f"{name}: memory is shared with the CPU, {figures}; engines ask for {share:.0%} of all. "
            "Something else uses it: another engine, a notebook, a desktop."
        )
        yield _stop(
            "unified memory",
            text,
            "docker ps; nvidia-smi --query-compute-apps=pid,process_name,used_memory --format=csv",
            f"# stop what you do not need, then: {drop}",
        )
    elif memory.free < wanted:
        text = (
            f"{name}: {figures}, but {memory.cached / GIB:.0f} of them are page cache, which the GPU's "
            "allocator does not take back (nvidia-smi says nothing about memory on this machine). Drop it "
            "before you start an engine."
        )
        yield Diagnosis(INFO, "page cache", text, (drop,))
    else:
        text = f"{name}, memory shared with the CPU, {figures} (from /proc/meminfo)."
        yield Diagnosis(OK, "GPU", text)


def docker(facts: Facts) -> Iterator[Diagnosis]:
    """The container engine, and whether it can hand GPUs in."""
    found = facts.docker
    if not _in_containers(facts):
        if found.state == "ready":
            yield Diagnosis(OK, "docker", f"{found.version}; profile {facts.profile} needs none.")
        return
    if found.state == "missing":
        yield _stop("docker", "It is not installed.", *_install_docker(facts))
    elif found.state == "shim":
        text = "Docker Desktop does not serve this WSL distribution."
        yield _stop(
            "docker",
            text,
            "# Docker Desktop: Settings, Resources, WSL integration; then open this terminal again",
            f"# or without it: {ON_CPU}",
        )
    elif found.state == "denied":
        text = "You may not use it."
        yield _stop("docker", text, "sudo usermod -aG docker $USER   # then log in again")
    elif found.state == "down":
        text = f"Its daemon does not answer: {_short(found.said)}"
        yield _stop("docker", text, "sudo systemctl enable --now docker")
    elif not found.gpus:
        text = (
            f"{found.version}, but it cannot give GPUs to containers: NVIDIA's toolkit is missing."
        )
        yield _stop(
            "container toolkit",
            text,
            "sudo apt-get install -y nvidia-container-toolkit",
            "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker",
            "# no such package: https://docs.nvidia.com/datacenter/cloud-native/container-toolkit",
        )
    else:
        toolkit = f", NVIDIA's toolkit {found.toolkit}" if found.toolkit else ""
        yield Diagnosis(OK, "docker", f"{found.version}{toolkit}.")


def images(facts: Facts) -> Iterator[Diagnosis]:
    """Which images are here; the labs pull the others."""
    if not _in_containers(facts) or facts.docker.state != "ready":
        return
    missing = [name for name, image in IMAGES.items() if image not in facts.docker.images]
    if missing:
        names = ", ".join(TITLES[name] for name in missing)
        room = facts.free_images
        where = "" if room is None else f" ({room / GB:.0f} GB are free in {facts.docker.folder})"
        text = f"To be pulled when a lab first starts them{where}: {names}. Before a lesson:"
        fix = tuple(f"docker pull {IMAGES[name]}" for name in missing)
        yield Diagnosis(INFO, "images", text, fix)
    else:
        yield Diagnosis(OK, "images", "all five engines' are here.")


def disk(facts: Facts) -> Iterator[Diagnosis]:
    """Room for set-up, and for models."""
    due = sum(step.bytes for step in facts.steps if not step.done)
    if facts.free is not None and due and facts.free < due + SPARE_BYTES:
        text = f"{facts.root} has {facts.free / GB:.1f} GB free; set-up needs {(due + SPARE_BYTES) / GB:.1f}."
        yield _stop("disk", text, "du -xhd1 ~ | sort -h | tail   # what is large")
    elif facts.free is not None:
        yield Diagnosis(OK, "disk", f"{facts.free / GB:.0f} GB free in {facts.root}.")
    needed = sum(facts.downloads.values())
    if facts.free_models is None or not needed:
        return
    names = ", ".join(facts.downloads)
    what = f"{needed / GB:.0f} GB of models are to come ({names}), images besides"
    if facts.free_models < max(facts.downloads.values()):
        text = f"{what}; {facts.free_models / GB:.0f} GB are free in ~/.cache, too little for one."
        yield _stop("disk", text, "docker system df; du -sh ~/.cache/*   # what is large")
    elif facts.free_models < needed:
        text = f"{what}; {facts.free_models / GB:.0f} GB are free in ~/.cache: not all will fit."
        yield Diagnosis(
            INFO, "disk", text, ("docker system df; du -sh ~/.cache/*   # what is large",)
        )
    else:
        yield Diagnosis(OK, "models", f"{what}; {facts.free_models / GB:.0f} GB are free.")


def cpu_memory(facts: Facts) -> Iterator[Diagnosis]:
    """Main memory, where engines run on the CPU."""
    if _in_containers(facts) or not facts.memory.total:
        return
    needed = CPU_ENGINES_AT_ONCE * CPU_ENGINE_BYTES
    have = facts.memory.available
    text = (
        f"{have / GIB:.1f} of {facts.memory.total / GIB:.1f} GiB available; labs run up to "
        f"{CPU_ENGINES_AT_ONCE} engines at once, of {CPU_ENGINE_BYTES / GIB:.1f} GiB each."
    )
    if have >= needed:
        yield Diagnosis(OK, "memory", text)
        return
    fix = ["ps -eo rss,pid,comm --sort=-rss | head   # what uses it"]
    if facts.wsl:
        fix.append(
            "# WSL gets half of Windows' memory: [wsl2] memory=12GB in %UserProfile%\\.wslconfig"
        )
    yield Diagnosis(INFO, "memory", text + " Close what you do not need.", tuple(fix))


def cpu(facts: Facts) -> Iterator[Diagnosis]:
    """What the CPU's instructions mean for the data type."""
    if _in_containers(facts):
        return
    has = "has" if facts.dtype == "bfloat16" else "has no"
    text = f"{facts.cores} cores; it {has} bfloat16 instructions: the tiny model runs in {facts.dtype}."
    yield Diagnosis(OK, "CPU", text)


def ports(facts: Facts) -> Iterator[Diagnosis]:
    """Ports that something else holds. Engines of the labs take free ones, whatever is found here."""
    if facts.listeners is None:
        text = "`ss` is not installed: which ports are in use is not known."
        yield Diagnosis(INFO, "ports", text, ("sudo apt-get install -y iproute2",))
        return
    used = [listener for listener in facts.listeners if listener.port in PORTS]
    for listener in used:
        owner = (
            f"{listener.program} (process {listener.pid})"
            if listener.pid
            else "another user's program"
        )
        text = f"{listener.port} is held by {owner}: {PORTS[listener.port]}. Labs take free ports."
        fix = f"sudo ss -ltnp 'sport = :{listener.port}'   # who; then: kill PID"
        if listener.port == OLLAMA_PORT:
            text += " Models that an Ollama has loaded take memory."
            fix = "ollama ps; sudo systemctl stop ollama"
        yield Diagnosis(INFO, "ports", text, (fix,))
    if not used:
        yield Diagnosis(OK, "ports", f"{', '.join(map(str, sorted(PORTS)))} are free.")


def token(facts: Facts) -> Iterator[Diagnosis]:
    """The model hub's token."""
    if not _in_containers(facts):
        return
    if facts.token:
        yield Diagnosis(OK, "HF_TOKEN", f"found ({facts.token}).")
        return
    text = (
        "None is set. The course's models (Qwen3-8B) need none; gated ones (Llama) do, after you have "
        "accepted their licence on their page."
    )
    fix = (
        "export HF_TOKEN=hf_...   # before make lab; from https://huggingface.co/settings/tokens",
    )
    yield Diagnosis(INFO, "HF_TOKEN", text, fix)


def ptxas(facts: Facts) -> Iterator[Diagnosis]:
    """The assembler that Triton uses on GB10."""
    if not facts.gpus or facts.gpus[0].capability != 12.1 or not _in_containers(facts):
        return
    if facts.ptxas.get(facts.ptxas_chosen, ()) >= PTXAS:
        yield Diagnosis(OK, "ptxas", f"TRITON_PTXAS_PATH={facts.ptxas_chosen} knows sm_121.")
        return
    good = [path for path, version in facts.ptxas.items() if version >= PTXAS]
    path = good[-1] if good else "/usr/local/cuda/bin/ptxas"
    text = (
        "Triton's own assembler may not know sm_121a, where a notebook compiles for the GPU itself."
    )
    fix = [f"export TRITON_PTXAS_PATH={path}"]
    if not good:
        text += f" No ptxas of CUDA {_dotted(PTXAS)} or newer was found."
        fix.insert(0, "sudo apt-get install -y cuda-toolkit-13-0")
    yield Diagnosis(INFO, "ptxas", text, tuple(fix))


def environments(facts: Facts) -> Iterator[Diagnosis]:
    """What set-up has made, and whether Jupyter would find its kernel."""
    for step in facts.steps:
        if step.done:
            yield Diagnosis(OK, step.name, f"{step.title}: ready.")
        else:
            yield Diagnosis(
                FIXABLE,
                step.name,
                f"{step.title}: not there, or of another version; `make lab` makes it.",
                (f"make setup STEP={step.name}",),
            )
    if facts.kernel == "broken" and _done(facts, "course"):  # else it is made anew
        text = (
            "The environment is there, but the notebooks' kernel does not start from it: the folder was "
            "moved, or a Python was removed."
        )
        yield Diagnosis(BLOCKER, "Jupyter", text, ("rm -rf .venv && make setup STEP=course",), ALL)
    elif facts.kernel == "ready":
        yield Diagnosis(
            OK, "Jupyter", "the notebooks' kernel starts from the course's environment."
        )


CHECKS: tuple[Callable[[Facts], Iterator[Diagnosis]], ...] = (
    profile,
    machine,
    python,
    compiler,
    libgomp,
    driver,
    gpu,
    docker,
    disk,
    environments,
    cpu,
    cpu_memory,
    images,
    ports,
    token,
    ptxas,
)


def _install_docker(facts: Facts) -> tuple[str, ...]:
    if facts.wsl:
        return ("# Docker Desktop with WSL integration: https://docs.docker.com/go/wsl2/",)
    return (
        "sudo apt-get update && sudo apt-get install -y docker.io",
        "sudo usermod -aG docker $USER   # then log in again",
    )


def _install_driver(facts: Facts) -> tuple[str, ...]:
    if facts.wsl:
        return ("# update NVIDIA's driver in Windows: https://docs.nvidia.com/cuda/wsl-user-guide",)
    return (
        "sudo apt-get update && sudo apt-get install -y ubuntu-drivers-common",
        "sudo ubuntu-drivers install && sudo reboot",
    )


def _done(facts: Facts, name: str) -> bool:
    return any(step.done for step in facts.steps if step.name == name)


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def _short(text: str, most: int = 160) -> str:
    return text if len(text) <= most else text[: most - 3] + "..."
