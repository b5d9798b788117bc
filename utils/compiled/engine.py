"""Builds an engine file: torch.export writes the graph down, AOTInductor compiles it to machine code.

The file (`.pt2`) holds code and weights; loading it needs neither the model's Python code nor a compiler.
Building needs a C++ compiler. Source: PyTorch 2.13, documentation of AOTInductor.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from utils.compiled.prefill_decode import Cache, DecodeModule, PrefillModule
from utils.cpp_compiler import NoCompilerError, find_compiler
from utils.speculative.target import Target

# Of the code that calls the kernels, not of the kernels: a third of the build time, and as fast.
OPTIONS = {"aot_inductor.compile_wrapper_opt_level": "O0"}
Step = Callable[..., Tensor]


class CompileError(RuntimeError):
    """Failed build of an engine; the message names the package or setting to change."""


@dataclass(frozen=True)
class Built:
    """An engine file, loaded.

    Attributes:
        path: The file.
        export_s: Time that torch.export took, seconds.
        compile_s: Time that compiling took, seconds.
        load_s: Time that loading the file took, seconds.
        run: Calls it: the arguments of the module that it was built from.
    """

    path: Path
    export_s: float
    compile_s: float
    load_s: float
    run: Step

    @property
    def bytes(self) -> int:
        """Size of the file."""
        return self.path.stat().st_size


@dataclass(frozen=True)
class Steps:
    """Prefill and decode in one way of running them.

    Attributes:
        prefill: Called with ids [1, n], keys, values.
        decode: Called with ids [1, 1], position [1], keys, values.
    """

    prefill: Step
    decode: Step


def require_compiler() -> str:
    """Return the C++ compiler that PyTorch will call.

    Raises:
        CompileError: There is none; the message names the package to install.
    """
    try:
        return find_compiler()
    except NoCompilerError as error:
        raise CompileError(f"PyTorch writes C++ and has it compiled. {error}") from None


def eager(target: Target) -> Steps:
    """Return the steps as PyTorch runs them operation by operation."""
    return Steps(PrefillModule(target).eval(), DecodeModule(target).eval())


def just_in_time(target: Target) -> Steps:
    """Return the steps under torch.compile: compiled when they are first called, in this process only."""
    require_compiler()
    steps = eager(target)
    return Steps(
        torch.compile(steps.prefill, dynamic=True), torch.compile(steps.decode, dynamic=False)
    )


def build_prefill(target: Target, folder: Path, slots: int) -> Built:
    """Build prefill, for prompts of 2 to `slots` tokens.

    Args:
        target: The model; float32 on a CPU.
        folder: Folder for the file.
        slots: Tokens that the KV cache holds.

    Raises:
        CompileError: No compiler, or PyTorch could not compile it.
    """
    cache = Cache.empty(target.shape, slots, target.dtype)
    ids = torch.zeros(1, min(64, slots), dtype=torch.int64)
    layers = [None] * target.shape.layers
    length = torch.export.Dim("length", min=2, max=slots)
    dynamic = ({1: length}, layers, layers)
    arguments = (ids, cache.keys, cache.values)
    return build(PrefillModule(target), arguments, folder / "prefill.pt2", dynamic)


def build_decode(target: Target, folder: Path, slots: int) -> Built:
    """Build decode: one token, at any place of a cache of `slots`. See `build_prefill`."""
    cache = Cache.empty(target.shape, slots, target.dtype)
    one, place = torch.zeros(1, 1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64)
    arguments = (one, place, cache.keys, cache.values)
    return build(DecodeModule(target), arguments, folder / "decode.pt2", None)


@torch.no_grad()
def build(
    module: nn.Module, arguments: tuple[Any, ...], path: Path, dynamic: tuple[Any, ...] | None
) -> Built:
    """Export a module, compile it to a file, and load the file.

    Args:
        module: Module to build; its tensors that are arguments may be written in place.
        arguments: Examples of its arguments; sizes that are not dynamic become fixed.
        path: The file, `.pt2`.
        dynamic: As torch.export's `dynamic_shapes`; None: all sizes fixed.

    Raises:
        CompileError: No compiler, or PyTorch could not export or compile it.
    """
    require_compiler()
    began = time.perf_counter()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PyTorch about itself
            program = torch.export.export(
                module.eval(), arguments, dynamic_shapes=dynamic, strict=False
            )
            exported = time.perf_counter()
            file = torch._inductor.aoti_compile_and_package(
                program, package_path=str(path), inductor_configs=OPTIONS
            )
    except Exception as error:
        first = str(error).strip().splitlines()
        raise CompileError(
            f"PyTorch {torch.__version__} could not build {path.name} ({type(error).__name__}: "
            f"{first[0] if first else 'no message'}). See that `{require_compiler()} --version` "
            "works and that "
            "the disk of the temporary folder has room."
        ) from error
    compiled = time.perf_counter()
    return _load(Path(file), exported - began, compiled - exported)


def _load(path: Path, export_s: float, compile_s: float) -> Built:
    began = time.perf_counter()
    run = torch._inductor.aoti_load_package(str(path))
    return Built(path, export_s, compile_s, time.perf_counter() - began, run)
