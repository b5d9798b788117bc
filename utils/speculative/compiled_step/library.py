"""Builds `step.cpp` as a shared library for this CPU, keeps it for the next time, and loads it."""

from __future__ import annotations

import ctypes
import hashlib
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from utils.cpp_compiler import NoCompilerError, compiler_version, find_compiler
from utils.files import write_file
from utils.profiles import ROOT

SOURCE = Path(__file__).with_name("step.cpp")
FOLDER = ROOT / ".run" / "compiled-step"
FLAGS = ("-O3", "-std=c++17", "-fPIC", "-shared", "-ffp-contract=fast")
BUILD_S = 180  # longest time that the compiler may take
CAUSES = {  # #error of the source: the sentence for the user
    "COMPILER_TOO_OLD": "{compiler} is too old. Install g++ 9 or newer, or set CXX to another compiler.",
    "NO_VECTOR_INSTRUCTIONS": "This CPU has neither AVX2 nor AVX-512 nor NEON.",
}


class CompiledStepError(RuntimeError):
    """The compiled step can't run. The message tells why, and often how to fix it."""


@dataclass(frozen=True)
class StepLibrary:
    """The loaded library.

    Attributes:
        code: Its functions.
        instructions: Vector instructions that it uses.
        panel: Outputs of a panel of its matrices.
        lanes: Numbers of a vector.
        compiler: First line of the compiler's version.
    """

    code: ctypes.CDLL
    instructions: str
    panel: int
    lanes: int
    compiler: str


def cpu_flags() -> tuple[str, ...]:
    """Return the compiler's flags for the CPU of this machine."""
    arm = platform.machine().lower() in ("aarch64", "arm64")
    return ("-mcpu=native",) if arm else ("-march=native",)


@cache
def load_library(folder: Path = FOLDER, flags: tuple[str, ...] | None = None) -> StepLibrary:
    """Return the library, and build it first if this machine doesn't have it yet (about 3 seconds).

    Args:
        folder: Folder that keeps the library.
        flags: Compiler flags for the CPU; None for those of this CPU.

    Raises:
        CompiledStepError: There is no compiler, it is too old, or the CPU has no vector instructions.
    """
    flags = cpu_flags() if flags is None else flags
    try:
        compiler = find_compiler()
    except NoCompilerError as error:
        raise CompiledStepError(str(error)) from None
    version = compiler_version(compiler)
    if not version:
        raise CompiledStepError(f"{compiler} doesn't start. Set CXX to another C++ compiler.")
    path = folder / f"step-{_key(version, flags)}.so"
    try:
        if not path.exists():
            write_file(path, lambda part: _build(compiler, version, flags, part))
        code = ctypes.CDLL(str(path))
    except OSError as error:
        raise CompiledStepError(f"The library can't be written or loaded: {error}") from None
    code.instructions.restype = ctypes.c_char_p
    return StepLibrary(code, code.instructions().decode(), code.panel_size(), code.lanes(), version)


def _key(version: str, flags: tuple[str, ...]) -> str:
    """Return a name for the source, the compiler and the CPU, so that no other CPU loads this code."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else [platform.processor()]
    cpu = next(
        (line for line in lines if line.startswith(("flags", "Features"))), platform.machine()
    )
    parts = (SOURCE.read_text(), version, *FLAGS, *flags, cpu)
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _build(compiler: str, version: str, flags: tuple[str, ...], path: Path) -> None:
    command = [compiler, *FLAGS, *flags, str(SOURCE), "-o", str(path)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=BUILD_S)
    except subprocess.TimeoutExpired:
        raise CompiledStepError(
            f"{version} took more than {BUILD_S} s to build the step."
        ) from None
    if done.returncode == 0:
        return
    for cause, sentence in CAUSES.items():
        if cause in done.stderr:
            raise CompiledStepError(sentence.format(compiler=version))
    errors = [line for line in done.stderr.splitlines() if "error" in line] or ["no message"]
    raise CompiledStepError(f"{version} can't build the step: {errors[0].strip()}")
