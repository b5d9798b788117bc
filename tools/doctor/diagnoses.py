"""The doctor's checks: each has a subject, reads the machine, and yields its verdict with a fix to paste.

To add one, write a function with `@check`. Sources of the fixes: NVIDIA's container toolkit and DGX Spark
documents (known issues: memory, page cache), Docker's post-installation steps,
https://docs.docker.com/go/wsl2/, triton-lang/triton#8539.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from tools.doctor import needs
from tools.doctor.facts import CUDA_PTXAS, Machine
from tools.doctor.needs import GB, IMAGES, LABS, PORTS, PYTHONS
from tools.setup.setup_steps import SPARE_GIGABYTES
from utils.fleet_plan import lab_plan
from utils.profiles import ENVIRONMENT_VARIABLE, LOAD_VARIABLE, LOADS, PROFILES, on_x86

GIB = 1024**3
BLOCKER, FIXABLE, INFO, OK = "blocker", "fixable", "info", "ok"
ALL = frozenset(LABS)
ON_CPU = f"{ENVIRONMENT_VARIABLE}=cpu make lab"
UNSET = f"unset {ENVIRONMENT_VARIABLE}"
JOIN_DOCKER = "sudo usermod -aG docker $USER   # then log in again"
GPU_USERS = "nvidia-smi --query-compute-apps=pid,process_name,used_memory --format=csv"
LARGE_MODELS = "docker system df; du -sh ~/.cache/*   # what is large"
WSL_GUIDE = "https://docs.nvidia.com/cuda/wsl-user-guide"


@dataclass(frozen=True)
class Diagnosis:
    """A result of a check.

    Attributes:
        level: `BLOCKER` (labs can't run), `FIXABLE` (`make lab` fixes it), `INFO` or `OK`.
        topic: The subject.
        text: Finding, and its meaning.
        fix: Lines to paste, or () if there is nothing to do.
        labs: Numbers of the labs that it stops.
    """

    level: str
    topic: str
    text: str
    fix: tuple[str, ...] = ()
    labs: frozenset[int] = frozenset()


Check = Callable[[Machine], Iterator[Diagnosis]]
CHECKS: list[Check] = []


def check(function: Check) -> Check:
    """Register a check. Within a level, the page follows the order of the checks."""
    CHECKS.append(function)
    return function


def examine(machine: Machine) -> tuple[Diagnosis, ...]:
    """Return all diagnoses, the worst first."""
    found = [diagnosis for each in CHECKS for diagnosis in each(machine)]
    order = (BLOCKER, FIXABLE, INFO, OK)
    return tuple(sorted(found, key=lambda diagnosis: order.index(diagnosis.level)))


def stopped(diagnoses: tuple[Diagnosis, ...]) -> frozenset[int]:
    """Return the labs that cannot run."""
    return frozenset(lab for diagnosis in diagnoses for lab in diagnosis.labs)


def stop(topic: str, text: str, *fix: str, labs: frozenset[int] = ALL) -> Diagnosis:
    """Report a problem that stops labs."""
    return Diagnosis(BLOCKER, topic, text, fix, labs)


def info(topic: str, text: str, *fix: str) -> Diagnosis:
    """Report something worth knowing."""
    return Diagnosis(INFO, topic, text, fix)


def ok(topic: str, text: str) -> Diagnosis:
    """Report something in order."""
    return Diagnosis(OK, topic, text)


@check
def load(m: Machine) -> Iterator[Diagnosis]:
    """Report a load that doesn't exist."""
    if m.load not in LOADS:
        text = f"There is no load {m.load!r}; there are: {', '.join(LOADS)}."
        yield stop("load", text, f"unset {LOAD_VARIABLE}")


@check
def profile(m: Machine) -> Iterator[Diagnosis]:
    """Report the profile, and whether the machine could have a better one."""
    text = f"{m.profile}, asked for with {ENVIRONMENT_VARIABLE}."
    if m.asked and m.asked not in PROFILES:
        text = f"There is no profile {m.asked!r}; there are: {', '.join(PROFILES)}."
        yield stop("profile", text, UNSET)
    elif m.asked == m.own_profile:
        yield ok("profile", text)
    elif m.asked:
        yield info("profile", f"{text} The machine itself would have {m.own_profile}.", UNSET)
    elif m.gpus and m.docker.state == "missing":
        text = (
            f"{m.gpu.name} is here, but docker is not installed. vLLM and SGLang run as local processes "
            "then, which nobody has tested on a GPU yet. llama.cpp runs on the CPU, and TensorRT-LLM "
            "needs docker."
        )
        yield info("docker", text, *install_docker(m))


@check
def packages(m: Machine) -> Iterator[Diagnosis]:
    """Report whether the pinned packages have wheels for this architecture and C library."""
    arm = m.machine == "aarch64"
    if not m.system.startswith("Linux") or not (on_x86(m.machine) or arm):
        text = f"{m.system} on {m.machine}: there are wheels for Linux on x86-64 and aarch64."
        yield stop("packages", text, "# use a Linux machine, or WSL 2 in Windows")
    elif not m.glibc:
        text = "The C library is not glibc, which most wheels are built for."
        yield stop("packages", text, "# use Debian 12, Ubuntu 22.04, or newer")
    elif m.glibc < needs.GLIBC:
        need = dotted(needs.GLIBC)
        text = f"glibc {dotted(m.glibc)} is older than the {need} that wheels are built for."
        yield stop("packages", text, "# use Debian 12, Ubuntu 22.04, DGX OS 7, or newer")
    elif m.profile == "cpu" and arm:
        text = "aarch64: all pinned packages have wheels. SGLang on a CPU is for x86-64, and is left out."
        yield ok("packages", text)
    else:
        text = f"{m.machine}, glibc {dotted(m.glibc)}: the pinned packages have wheels."
        yield ok("packages", text)
    if m.wsl and m.root.startswith("/mnt/"):
        text = f"{m.root} is on Windows' disk, which is slow from Linux and has no hard links."
        yield info("WSL", text, "mkdir -p ~/course && cp -r . ~/course && cd ~/course")


@check
def python(m: Machine) -> Iterator[Diagnosis]:
    """Report on the Python that set-up would use."""
    version, install = dotted(m.python), "sudo apt-get install -y"
    if m.python[:2] not in PYTHONS:
        # Ubuntu 22.04, with 3.10, has 3.11 too.
        name = "python" + dotted(PYTHONS[0] if m.python < PYTHONS[0] else PYTHONS[-1])
        fix = f"{install} {name} {name}-venv && make doctor PYTHON={name}"
        if m.other_pythons:
            fix = f"make lab PYTHON={m.other_pythons[-1]}"
        wanted = ", ".join(map(dotted, PYTHONS))
        yield stop("Python", f"Python {version}; the course runs on {wanted}.", fix)
    elif not m.venv:
        text = f"Python {version} cannot make virtual environments."
        yield stop("Python", text, f"{install} python{dotted(m.python[:2])}-venv")
    else:
        yield ok("Python", f"{version}, with venv.")


@check
def compiler(m: Machine) -> Iterator[Diagnosis]:
    """Report the C++ compiler. Lab 3.3.6 needs one, and labs 3.3.4 and 3.3.5 are faster with one."""
    faster = " and ".join(f"3.3.{number}" for number, lab in LABS.items() if lab.compiled_step)
    if m.compiler:
        yield ok("C++ compiler", f"{m.compiler}. Labs {faster} build their decoder step with it.")
    else:
        labs = frozenset(number for number, lab in LABS.items() if lab.compiler)
        text = (
            "No C++ compiler was found, and lab 3.3.6 builds engine files with one. "
            f"Labs {faster} run without one, but only with the slower PyTorch loop."
        )
        yield stop("C++ compiler", text, "sudo apt-get install -y g++", labs=labs)


@check
def libgomp(m: Machine) -> Iterator[Diagnosis]:
    """Report a missing libgomp. The wheel of llama.cpp needs it, and a compiler would have brought it."""
    if not m.libgomp and not m.in_containers:
        labs = frozenset(number for number, lab in LABS.items() if "llama_cpp" in lab.engines)
        text = "The library libgomp.so.1 is missing, and llama.cpp needs it."
        # Without the step, set-up stops, and so does all that comes after it.
        labs = labs if m.has_step("llama_cpp") else ALL
        yield stop("libgomp", text, "sudo apt-get install -y libgomp1", labs=labs)


@check
def driver(m: Machine) -> Iterator[Diagnosis]:
    """Report on NVIDIA's driver."""
    number, output = m.gpu.driver.partition(".")[0], m.nvidia_smi
    cuda = m.cuda or "unknown"
    if m.gpus and m.on_gpu and number.isdecimal() and int(number) < needs.DRIVER:
        text = (
            f"Driver {m.gpu.driver} (CUDA {cuda}); the engines are of CUDA 13, which "
            f"needs {needs.DRIVER} or newer."
        )
        yield stop("driver", text, *install_driver(m))
    elif m.gpus:
        yield ok("driver", f"{m.gpu.driver}, up to CUDA {cuda}.")
    elif output or m.nvidia_device:
        text, *fix = broken_driver(m) if output else (NO_DRIVER, *install_driver(m))
        text += f" nvidia-smi said: {short(output)}" if output else ""
        if m.on_gpu:
            yield stop("driver", text, *fix)
        else:
            yield info("driver", f"{text} Labs run on the CPU meanwhile.", *fix)
    elif m.on_gpu:
        yield stop(
            "GPU", f"Profile {m.profile} needs an NVIDIA GPU, but this machine has none.", ON_CPU
        )
    else:
        yield ok("GPU", "none from NVIDIA: labs run on the CPU, with the tiny model.")


NO_DRIVER = "This machine has an NVIDIA device, but its driver is not installed."


def broken_driver(m: Machine) -> tuple[str, ...]:
    """Explain an nvidia-smi that failed, and return the lines of the fix after it."""
    if m.wsl:
        return (
            "nvidia-smi does not see the GPU from WSL.",
            "wsl.exe --update && wsl.exe --shutdown   # then open this terminal again",
            f"# and NVIDIA's driver in Windows; none in WSL: {WSL_GUIDE}",
        )
    if "version mismatch" in m.nvidia_smi:
        return "The driver was updated, and the old one is still loaded.", "sudo reboot"
    if "did not answer" in m.nvidia_smi:
        return "The driver hangs.", "sudo dmesg | grep -i nvrm | tail", "sudo reboot"
    return (
        "NVIDIA's driver is installed, but it is not loaded.",
        "sudo apt-get install -y linux-headers-$(uname -r) && sudo dkms autoinstall && sudo reboot",
        "# if it is the same afterwards: sudo dmesg | grep -iE 'nvrm|nvidia' | tail; mokutil --sb-state",
    )


@check
def gpu(m: Machine) -> Iterator[Diagnosis]:
    """Report on the GPU's compute capability, and whether the largest fleet of each lab fits its memory."""
    if not m.gpus:
        return
    more = f" ({len(m.gpus)} of them)" if len(m.gpus) > 1 else ""
    name = f"{m.gpu.name}, sm_{m.gpu.capability:.1f}".replace(".", "") + more
    if not m.on_gpu:
        yield ok("GPU", f"{name}; profile {m.profile} does not use it.")
    elif m.gpu.capability < needs.CAPABILITY:
        text = f"{name}: the engines are of CUDA 13, which needs compute capability {needs.CAPABILITY}."
        yield stop("GPU", text, ON_CPU)
    elif m.gpu.unified:
        figures = f"{m.memory.available / GIB:.0f} of {m.memory.total / GIB:.0f} GiB available"
        yield from gpu_memory(m, f"{name}: memory is shared with the CPU, {figures}")
    else:
        figures = f"{m.gpu.free_bytes / GIB:.0f} of {m.gpu.memory_bytes / GIB:.0f} GiB free"
        yield from gpu_memory(m, f"{name}: {figures}")


def gpu_memory(m: Machine, state: str) -> Iterator[Diagnosis]:
    """Compare the plans of all labs with the GPU's memory."""
    plans = {number: lab_plan(number, m.sizes) for number in LABS}
    never = frozenset(n for n, plan in plans.items() if not plan.fits(m.gpu.whole_room))
    now = frozenset(n for n, plan in plans.items() if not plan.fits(m.gpu.room)) - never
    model = m.sizes.models["vllm"].rpartition("/")[2]
    if never:
        least = min(plans[number].total for number in never)
        text = (
            f"{state}. Even with the course's smallest model, {model}, these labs need "
            f"{least / GB:.0f} GB or more."
        )
        yield stop("GPU memory", text, ON_CPU, labs=never)
    if now:
        most = max(plans[number].total for number in now)
        kept = m.gpu.free_bytes - m.gpu.room
        text = (
            f"{state}, of which the course leaves {kept / GB:.1f} GB alone. The engines of a lab need up "
            f"to {most / GB:.0f} GB at once. Something else uses the memory: another engine, a notebook, "
            "a desktop."
        )
        fix = (f"docker ps; {GPU_USERS}", "# stop what you do not need")
        yield stop("unified memory" if m.gpu.unified else "GPU memory", text, *fix, labs=now)
    if not never and not now:
        text = f"{state}. The labs serve {model} in {m.sizes.dtype}, and every lab's largest fleet fits."
        yield ok("GPU", text)
        if m.gpu.unified and m.memory.free < max(plan.total for plan in plans.values()):
            text = (
                f"{m.memory.cached / GIB:.0f} GiB of the available memory are page cache. vLLM and SGLang "
                "count it as free. Other engines may not, so drop it before you start one of them."
            )
            yield info("page cache", text, "sync; echo 3 | sudo tee /proc/sys/vm/drop_caches")


@check
def docker(m: Machine) -> Iterator[Diagnosis]:
    """Report on the container engine, and whether it can give GPUs to containers."""
    found = m.docker
    faults = {
        "missing": ("docker is not installed.", *install_docker(m)),
        "shim": (
            "Docker Desktop does not serve this WSL distribution.",
            "# Docker Desktop: Settings, Resources, WSL integration; then open this terminal again",
            f"# or without it: {ON_CPU}",
        ),
        "denied": ("Your user is not allowed to use docker.", JOIN_DOCKER),
        "down": (
            f"The docker daemon does not answer: {short(found.message)}",
            "sudo systemctl enable --now docker",
        ),
    }
    if not m.in_containers:
        if found.state == "ready":
            yield ok("docker", f"{found.version}; profile {m.profile} needs none.")
    elif found.state in faults:
        yield stop("docker", *faults[found.state])
    elif not found.gpus:
        yield stop(
            "container toolkit",
            f"{found.version}, but it cannot give GPUs to containers: NVIDIA's toolkit is missing.",
            "sudo apt-get install -y nvidia-container-toolkit",
            "sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker",
            "# no such package: https://docs.nvidia.com/datacenter/cloud-native/container-toolkit",
        )
    else:
        toolkit = f", NVIDIA's toolkit {found.toolkit}" if found.toolkit else ""
        yield ok("docker", f"{found.version}{toolkit}.")


@check
def disk(m: Machine) -> Iterator[Diagnosis]:
    """Report on the disk for set-up, and for models."""
    due = (sum(step.gigabytes for step in m.due) + SPARE_GIGABYTES) * GB
    if m.free is not None and m.due and m.free < due:
        text = f"{m.root} has {m.free / GB:.1f} GB free; set-up needs {due / GB:.1f}."
        yield stop("disk", text, "du -xhd1 ~ | sort -h | tail   # what is large")
    elif m.free is not None:
        yield ok("disk", f"{m.free / GB:.0f} GB free in {m.root}.")
    if m.free_models is None or not m.downloads:
        return
    sizes = m.downloads.values()
    text = (
        f"{sum(sizes) / GB:.0f} GB of models are to come ({', '.join(m.downloads)}), images besides; "
        f"{m.free_models / GB:.0f} GB are free"
    )
    if m.free_models < max(sizes):
        yield stop("disk", f"{text} in ~/.cache, too little for one.", LARGE_MODELS)
    elif m.free_models < sum(sizes):
        yield info("disk", f"{text} in ~/.cache: not all will fit.", LARGE_MODELS)
    else:
        yield ok("models", f"{text}.")


@check
def environments(m: Machine) -> Iterator[Diagnosis]:
    """Report what set-up has made, and whether Jupyter would find its kernel."""
    for step in m.steps:
        if step in m.due:
            text = f"{step.title}: missing, or of another version. `make lab` makes it."
            yield Diagnosis(FIXABLE, step.name, text, (f"make setup STEP={step.name}",))
        else:
            yield ok(step.name, f"{step.title}: ready.")
    if m.kernel == "broken" and m.has_step("course"):  # else it is made again
        text = (
            "The environment is there, but the notebooks' kernel does not start from it: the folder was "
            "moved, or a Python was removed."
        )
        yield stop("Jupyter", text, "rm -rf .venv && make setup STEP=course")
    elif m.kernel == "ready":
        yield ok("Jupyter", "the notebooks' kernel starts from the course's environment.")


@check
def cpu(m: Machine) -> Iterator[Diagnosis]:
    """Report the CPU's instructions and the main memory, if engines run on the CPU."""
    if m.on_gpu:
        return
    has = "has" if m.dtype == "bfloat16" else "has no"
    text = f"it {has} bfloat16 instructions: the tiny model runs in {m.dtype}."
    yield ok("CPU", f"{m.cores} cores; {text}")
    if not m.memory.total:
        return
    engines, each = needs.CPU_ENGINES_AT_ONCE, needs.CPU_ENGINE_BYTES
    text = (
        f"{m.memory.available / GIB:.1f} of {m.memory.total / GIB:.1f} GiB available; labs run up to "
        f"{engines} engines at once, of {each / GIB:.1f} GiB each."
    )
    if m.memory.available >= engines * each:
        yield ok("memory", text)
        return
    fix = ["ps -eo rss,pid,comm --sort=-rss | head   # what uses it"]
    if m.wsl:
        fix += [
            "# WSL gets half of Windows' memory: [wsl2] memory=12GB in %UserProfile%\\.wslconfig"
        ]
    yield info("memory", f"{text} Close what you do not need.", *fix)


@check
def images(m: Machine) -> Iterator[Diagnosis]:
    """Report which images are here. The labs pull the others."""
    if not m.in_containers or m.docker.state != "ready":
        return
    missing = [name for name, image in IMAGES.items() if image not in m.docker.images]
    if missing:
        names = ", ".join(needs.TITLES[name] for name in missing)
        room = m.probe.free_bytes(m.docker.folder) if m.docker.folder else None
        where = "" if room is None else f" ({room / GB:.0f} GB are free in {m.docker.folder})"
        text = f"To be pulled when a lab first starts them{where}: {names}. Before a lesson:"
        yield info("images", text, *(f"docker pull {IMAGES[name]}" for name in missing))
        yield from unconfirmed(missing)
    else:
        yield ok("images", "all five engines' are here.")


def unconfirmed(missing: list[str]) -> Iterator[Diagnosis]:
    """Report images that may not exist, because no public text names their tag."""
    for name in missing:
        if known := needs.UNCONFIRMED.get(name):
            text = (
                f"{IMAGES[name]} could not be confirmed: no public text names this tag. If docker can't pull "
                f"it, {known} is known. Give it this tag, and tell the course's authors."
            )
            fix = f"docker pull {known} && docker tag {known} {IMAGES[name]}"
            yield info(f"{needs.TITLES[name]}'s image", text, fix)


@check
def ports(m: Machine) -> Iterator[Diagnosis]:
    """Report ports that something else holds. Engines of the labs take free ones in any case."""
    used = [listener for listener in m.listeners or () if listener.port in PORTS]
    for port, program, pid in used:
        owner = f"{program} (process {pid})" if pid else "another user's program"
        text = f"{port} is held by {owner}: {PORTS[port]}. Labs take free ports."
        fix = f"sudo ss -ltnp 'sport = :{port}'   # who; then: kill PID"
        if port == needs.OLLAMA_PORT:
            text += " Models that an Ollama has loaded take memory."
            fix = "ollama ps; sudo systemctl stop ollama"
        yield info("ports", text, fix)
    if m.listeners is None:
        text = "`ss` is not installed, so the doctor cannot tell which ports are in use."
        yield info("ports", text, "sudo apt-get install -y iproute2")
    elif not used:
        yield ok("ports", f"{', '.join(map(str, sorted(PORTS)))} are free.")


@check
def token(m: Machine) -> Iterator[Diagnosis]:
    """Report on the model hub's token."""
    if m.on_gpu and m.token:
        yield ok("HF_TOKEN", f"found ({m.token}).")
    elif m.on_gpu:
        text = (
            "No token is set. The course's models (Qwen3) need none; gated ones (Llama) need one, "
            "after you have accepted their licence on their page."
        )
        fix = "export HF_TOKEN=hf_...   # before make lab; from https://huggingface.co/settings/tokens"
        yield info("HF_TOKEN", text, fix)


@check
def ptxas(m: Machine) -> Iterator[Diagnosis]:
    """Report on the assembler that Triton uses on GB10."""
    if m.gpu.capability != 12.1 or not m.on_gpu:
        return
    good = [path for path, version in m.ptxas.items() if version >= needs.PTXAS]
    text = (
        "Triton's own assembler may not know sm_121a, where a notebook compiles for the GPU itself."
    )
    fix = f"export TRITON_PTXAS_PATH={good[-1] if good else CUDA_PTXAS}"
    if m.chosen_ptxas in good:
        yield ok("ptxas", f"TRITON_PTXAS_PATH={m.chosen_ptxas} knows sm_121.")
    elif good:
        yield info("ptxas", text, fix)
    else:
        text += f" No ptxas of CUDA {dotted(needs.PTXAS)} or newer was found."
        yield info("ptxas", text, "sudo apt-get install -y cuda-toolkit-13-0", fix)


def install_docker(m: Machine) -> tuple[str, ...]:
    """Return the fix for a missing docker."""
    if m.wsl:
        return ("# Docker Desktop with WSL integration: https://docs.docker.com/go/wsl2/",)
    return "sudo apt-get update && sudo apt-get install -y docker.io", JOIN_DOCKER


def install_driver(m: Machine) -> tuple[str, ...]:
    """Return the fix for a missing or old driver."""
    if m.wsl:
        return (f"# update NVIDIA's driver in Windows: {WSL_GUIDE}",)
    packages = "sudo apt-get update && sudo apt-get install -y ubuntu-drivers-common"
    return packages, "sudo ubuntu-drivers install && sudo reboot"


def dotted(version: tuple[int, ...]) -> str:
    """Write a version."""
    return ".".join(map(str, version))


def short(text: str, most: int = 160) -> str:
    """Cut another program's message."""
    return text if len(text) <= most else text[: most - 3] + "..."
