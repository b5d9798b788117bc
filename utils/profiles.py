"""The kind of this machine, and each lab's sizes on it. Standard library only, because set-up reads it too.

A notebook asks for `load_profile()` and never names a size: model, lengths and request counts come from here.
"""

from __future__ import annotations

import math
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType

from utils import fleet_plan
from utils.gpu import CAPABILITY, Gpu, this_gpu
from utils.gpu_choice import GpuChoiceError, pin_gpu
from utils.model_sizes import QWEN3

ROOT = Path(__file__).resolve().parents[1]
MODELS = ROOT / "models"
ENGINES = ROOT / ".engines"  # environments of the engines, one folder each
ENVIRONMENT_VARIABLE = "COURSE_PROFILE"
LOAD_VARIABLE = "COURSE_LOAD"
LOADS = ("full", "quick")
CPUINFO = Path("/proc/cpuinfo")
# As Linux names the instructions: two families on x86-64, one on aarch64.
BFLOAT16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})
# Data types that engines run in: short name, and bytes of one number.
DTYPES: Mapping[str, tuple[str, int]] = MappingProxyType(
    {"bfloat16": ("BF16", 2), "float16": ("FP16", 2), "float32": ("FP32", 4)}
)


class ProfileError(ValueError):
    """A profile or a load was asked for that does not exist."""


@dataclass(frozen=True)
class Speculation:
    """Sizes of the labs on speculative decoding.

    Attributes:
        prompts: Prompts of each kind of text that methods are compared on.
        repeats: Times that a comparison is repeated, the methods in turn.
        same: Prompts on which outputs are compared with plain decoding's, token for token.
        answer_tokens: Longest answer.
        training_prompts: Prompts whose answers a learner's own heads are trained on.
        training_steps: Optimizer steps of that training.
    """

    prompts: int = 6
    repeats: int = 5
    same: int = 100
    answer_tokens: int = 96
    training_prompts: int = 160
    training_steps: int = 60

    def quick(self) -> Speculation:
        """As few as the labs still run with."""
        return Speculation(
            prompts=2, repeats=2, same=12, answer_tokens=48, training_prompts=48, training_steps=12
        )


@dataclass(frozen=True)
class PrefillDecodeSizes:
    """Sizes of lab 3.3.6, which looks inside prefill, decode and quantisation.

    Attributes:
        batches: Requests that decode together, where it is measured on the whole model.
        layers: First layers of the model that are built into an engine file: building takes time per layer.
        prompts: Prompt lengths of the comparisons, tokens.
        slots: Tokens that the built engine's KV cache holds; a longest prompt fits.
        repeats: Repeats of every timing, in turn with its rivals.
        wide_layers: First layers of the untrained model on which the roofline is measured.
        wide_tokens: Tokens that go through them together; from 128 on, the roofline is compared.
        wide_repeats: Number of repeats of those timings, which take seconds.
        prose_texts: Pieces of prose on which number formats are compared.
        chunks: `max_num_batched_tokens` of the engines that prefill in chunks, tokens.
        long_prompt: The prompt that others wait for, tokens.
        others_tokens: Answers of these others, tokens: they are still decoding when the prompt comes.
        quality_texts: Texts on which quantised models are compared.
        quality_tokens: Tokens of each text that they have to predict.
    """

    batches: tuple[int, ...] = (1, 4, 16)
    layers: int = 3
    prompts: tuple[int, ...] = (32, 128, 512)
    slots: int = 512
    repeats: int = 9
    wide_layers: int = 8
    wide_tokens: tuple[int, ...] = (1, 4, 16, 64, 128, 256, 512, 1024)
    wide_repeats: int = 3
    prose_texts: int = 16
    chunks: tuple[int, ...] = (128, 512, 2048)
    long_prompt: int = 1600
    others_tokens: int = 160
    quality_texts: int = 4
    quality_tokens: int = 24

    def quick(self) -> PrefillDecodeSizes:
        """As little as the lab still runs with."""
        return PrefillDecodeSizes(
            batches=(1, 4),
            layers=2,
            prompts=(32, 256),
            slots=256,
            repeats=4,
            wide_layers=2,
            wide_tokens=(1, 16, 128, 512),
            wide_repeats=2,
            prose_texts=3,
            chunks=(128, 2048),
            long_prompt=1000,
            others_tokens=160,
            quality_texts=2,
            quality_tokens=10,
        )


@dataclass(frozen=True)
class Serving:
    """Sizes of the lab on the production API.

    Attributes:
        groups: Shared beginnings of prompts; an odd number, so that two replicas in turn split each.
        per_group: Prompts with each of them.
        requests: Requests of a load during which something is broken.
        users: Requests in flight of that load.
        answer_tokens: Length of its answers.
    """

    groups: int = 11
    per_group: int = 6
    requests: int = 240
    users: int = 8
    answer_tokens: int = 32

    def quick(self) -> Serving:
        """As few as the lab still runs with."""
        return Serving(groups=5, per_group=4, requests=36, users=6, answer_tokens=16)


@dataclass(frozen=True)
class Load:
    """Load of a benchmark.

    Attributes:
        levels: Concurrency levels of a sweep, requests in flight.
        requests_per_level: Requests at each level. A level gets at least twice its concurrency, and the
            highest level five times, because the first wave of requests meets an empty engine.
        prompt_tokens: Prompt length of generated prompts, tokens.
        output_tokens: Tokens generated for each request.
        round_tokens: Mean length of the answers where many engines are measured in rounds, tokens.
        prefill_tokens: Prompt length at which prefill is measured, tokens.
        repeats: Times that a comparison is repeated, alternating what is compared.
        speculation: Sizes of the labs on speculative decoding.
        inside: Sizes of lab 3.3.6.
        serving: Sizes of the lab on the production API.
    """

    levels: tuple[int, ...]
    requests_per_level: int
    prompt_tokens: int
    output_tokens: int
    prefill_tokens: int
    repeats: int
    round_tokens: int
    speculation: Speculation = Speculation()
    inside: PrefillDecodeSizes = PrefillDecodeSizes()
    serving: Serving = Serving()

    def requests_at(self, level: int) -> int:
        """Requests to send at concurrency `level`."""
        waves = 5 if level >= max(self.levels) else 2
        return max(self.requests_per_level, waves * level)

    def quick(self) -> Load:
        """Return a small one of the same prompts: enough to see a lab run, too little to conclude from.

        Still three levels, for a line through two and a prediction of the third, and two repeats, since a
        confidence interval needs them.
        """
        return replace(
            self,
            levels=(1, 4, 8),
            requests_per_level=4,
            output_tokens=min(self.output_tokens, 16),
            round_tokens=min(self.round_tokens, 8),
            repeats=2,
            speculation=self.speculation.quick(),
            inside=self.inside.quick(),
            serving=self.serving.quick(),
        )


@dataclass(frozen=True)
class Profile:
    """Sizes that a machine can carry.

    Attributes:
        name: `cpu`, `cuda`, `cuda-local` or `spark`.
        description: One line for people.
        runtime: Way in which engines run: `process` (environments in `.engines`) or `docker`.
        device: Device that engines compute on, `cpu` or `cuda`.
        shares_gpu: True if engines that run together share one GPU's memory, so each comes alone if it can.
        dtype: Data type of weights, activations and KV cache, a key of `DTYPES`; GGUF files keep their own.
        models: Engine name to local folder or file, or model hub id.
        context_length: Longest prompt plus output that engines are started for, tokens.
        kv_cache_gib: KV-cache budget of engines whose requests share it, in GiB.
        gpu_memory_utilization: Share of a GPU's memory for an engine that has it to itself for days, in
            docker/compose.yaml and on two Sparks; None without a GPU. `launch` computes its own.
        max_sequences: Most requests an engine runs at once.
        load: Sizes of the labs' benchmarks.
        time_budget_s: Longest time of one notebook from top to bottom, seconds.
        start_timeout_s: Longest time until an engine is healthy, seconds.
    """

    name: str
    description: str
    runtime: str
    device: str
    shares_gpu: bool
    dtype: str
    models: Mapping[str, str]
    context_length: int
    kv_cache_gib: float
    gpu_memory_utilization: float | None
    max_sequences: int
    load: Load
    time_budget_s: float
    start_timeout_s: float

    @property
    def dtype_name(self) -> str:
        """Short name of `dtype`, `BF16` or `FP32`."""
        return DTYPES[self.dtype][0]

    @property
    def value_bytes(self) -> int:
        """Bytes of one number of `dtype`: of a weight, and of a key or value in the KV cache."""
        return DTYPES[self.dtype][1]


def cpu_flags(cpuinfo: str) -> set[str]:
    """Return the instruction sets in `/proc/cpuinfo`'s lines "flags" (x86-64) or "Features" (aarch64)."""
    found: set[str] = set()
    for line in cpuinfo.splitlines():
        key, _, words = line.partition(":")
        if key.strip() in ("flags", "Features"):
            found.update(words.split())
    return found


def read_cpuinfo() -> str:
    """`/proc/cpuinfo`; "" where the system does not describe its CPU."""
    try:
        return CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def dtype_for(cpuinfo: str) -> str:
    """Return the data type for a model on a CPU.

    Without bfloat16 instructions every product is emulated: on two cores with AVX2 only, vLLM 0.32 gave the
    tiny model's 32 users 113 tok/s in bfloat16 and 365 in float32.

    Args:
        cpuinfo: As `/proc/cpuinfo`; "" where it is not known.

    Returns:
        `bfloat16` where the CPU has instructions for it, else `float32`.
    """
    return "bfloat16" if BFLOAT16_FLAGS & cpu_flags(cpuinfo) else "float32"


def cpu_dtype() -> str:
    """`dtype_for` this machine's CPU; `float32` where the system does not describe it."""
    return dtype_for(read_cpuinfo())


# A CPU without bfloat16 instructions is also an older, slower one: less is asked of it.
CPU_LOADS: Mapping[str, Load] = MappingProxyType(
    {
        "bfloat16": Load(
            levels=(1, 8, 32),
            requests_per_level=8,
            prompt_tokens=64,
            output_tokens=64,
            prefill_tokens=512,
            repeats=3,
            round_tokens=24,
        ),
        "float32": Load(
            levels=(1, 4, 16),
            requests_per_level=6,
            prompt_tokens=64,
            output_tokens=48,
            prefill_tokens=512,
            repeats=3,
            round_tokens=24,
            inside=PrefillDecodeSizes(chunks=(128, 2048)),
        ),
    }
)


def _cpu_model(kind: str) -> str:
    return str(MODELS / "tiny" / ("tiny-BF16.gguf" if kind == "llama_cpp" else "tiny-Q8_0.gguf"))


def _cpu(dtype: str) -> Profile:
    tiny = str(MODELS / "tiny")
    has = "has" if dtype == "bfloat16" else "has no"
    return Profile(
        name="cpu",
        description="no NVIDIA GPU: real engines as local processes, with the tiny model that ships here; "
        f"in {dtype}, since this CPU {has} bfloat16 instructions",
        runtime="process",
        device="cpu",
        shares_gpu=False,
        dtype=dtype,
        models=MappingProxyType(
            {
                "vllm": tiny,
                "sglang": tiny,
                "transformers": tiny,
                "llama_cpp": _cpu_model("llama_cpp"),
                "llama_cpp_quantised": _cpu_model("llama_cpp_quantised"),
                "ollama": str(MODELS / "tiny" / "tiny-BF16.gguf"),
                "medusa_heads": str(MODELS / "heads" / "medusa"),
                "eagle1_heads": str(MODELS / "heads" / "eagle1"),
                "eagle3_heads": str(MODELS / "heads" / "eagle3"),
            }
        ),
        context_length=2048,
        kv_cache_gib=1.0,
        gpu_memory_utilization=None,
        max_sequences=64,
        load=CPU_LOADS[dtype],
        time_budget_s=300.0,
        start_timeout_s=300.0,
    )


# The largest KV cache of an engine on a GPU, GiB. Labs need less, and memory of a Spark is the system's too.
MOST_KV_GIB = 16.0
# EAGLE-3 heads on the public hub, by the size of Qwen3. There are none for 0.6B.
EAGLE3_HEADS: Mapping[str, str] = MappingProxyType(
    {
        "1.7B": "AngelSlim/Qwen3-1.7B_eagle3",
        "4B": "AngelSlim/Qwen3-4B_eagle3",
        "8B": "Tengyunw/qwen3_8b_eagle3",
    }
)


# NVIDIA's checkpoints with 8-bit and 4-bit weights, `nvidia/Qwen3-{size}-{format}`: the formats of a size.
QUANTISED: Mapping[str, tuple[str, ...]] = MappingProxyType({"8B": ("FP8", "NVFP4")})


def gpu_models(
    size: str, runtime: str = "docker", capability: float = math.inf
) -> Mapping[str, str]:
    """Return the models of a GPU profile: Qwen3 of one size.

    Without docker, llama.cpp is a wheel without CUDA. It computes on the CPU, so it gets the tiny model.

    Args:
        size: Size in the models' names, such as `8B`.
        runtime: Way in which engines run, `docker` or `process`.
        capability: The GPU's compute capability. Checkpoints in a format that it doesn't have are left out.
    """
    hub, gguf = f"Qwen/Qwen3-{size}", f"bartowski/Qwen_Qwen3-{size}-GGUF"
    models = {
        "vllm": hub,
        "sglang": hub,
        "tensorrt_llm": hub,
        "transformers": hub,
        "llama_cpp": f"{gguf}:bf16",
        "llama_cpp_quantised": f"{gguf}:Q8_0",
        "ollama": f"qwen3:{size.lower()}-fp16",
    }
    if runtime == "process":
        models |= {kind: _cpu_model(kind) for kind in ("llama_cpp", "llama_cpp_quantised")}
    if size in EAGLE3_HEADS:
        models["eagle3_heads"] = EAGLE3_HEADS[size]
    for name in QUANTISED.get(size, ()):
        if capability >= CAPABILITY[name.lower()]:
            models[f"tensorrt_llm_{name.lower()}"] = f"nvidia/Qwen3-{size}-{name}"
    return MappingProxyType(models)


def _gpu(
    name: str, description: str, utilization: float, sequences: int, runtime: str = "docker"
) -> Profile:
    return Profile(
        name=name,
        description=description,
        runtime=runtime,
        device="cuda",
        shares_gpu=True,
        dtype="bfloat16",
        models=gpu_models("8B", runtime),
        context_length=8192,
        kv_cache_gib=MOST_KV_GIB,
        gpu_memory_utilization=utilization,
        max_sequences=sequences,
        load=Load(
            levels=(1, 8, 32),
            requests_per_level=16,
            prompt_tokens=512,
            output_tokens=128,
            prefill_tokens=1024,
            repeats=3,
            round_tokens=128,
        ),
        time_budget_s=3 * 3600.0,
        start_timeout_s=1800.0,
    )


PROFILES: Mapping[str, Profile] = MappingProxyType(
    {
        "cpu": _cpu(cpu_dtype()),
        "cuda": _gpu("cuda", "an NVIDIA GPU: engines in containers, in bfloat16", 0.85, 256),
        "cuda-local": _gpu(
            "cuda-local",
            "an NVIDIA GPU without docker: engines as local processes, in bfloat16",
            0.85,
            256,
            runtime="process",
        ),
        # 0.7: vLLM's default is too much for unified memory (NVIDIA/dgx-spark-playbooks, nvidia/vllm).
        "spark": _gpu(
            "spark",
            "NVIDIA DGX Spark (aarch64, GB10): engines in containers, in bfloat16",
            0.7,
            128,
        ),
    }
)


def fit(profile: Profile, gpu: Gpu) -> Profile:
    """Return a GPU profile with the largest Qwen3 whose fleets all fit a GPU, in a type that the GPU has.

    The GPU's whole memory counts, so that a running engine doesn't change the model. If not even the smallest
    model fits, the profile has this one, and `launch` refuses engines that need more than there is.
    """
    dtype = "bfloat16" if gpu.capability >= CAPABILITY["bfloat16"] else "float16"
    for size in reversed(QWEN3):
        models = gpu_models(size, profile.runtime, gpu.capability)
        sized = replace(profile, dtype=dtype, models=models)
        least = replace(sized, kv_cache_gib=fleet_plan.least_kv_gib(sized))
        if fleet_plan.largest_plan(least).fits(gpu.whole_room):
            break
    gib = fleet_plan.largest_kv_gib(sized, gpu, MOST_KV_GIB)
    return replace(sized, kv_cache_gib=gib)


def detect(gpu_name: str | None, machine: str, has_docker: bool) -> str:
    """Name the profile for a machine.

    Args:
        gpu_name: Name of the first NVIDIA GPU, None where there is none.
        machine: As `platform.machine()`.
        has_docker: True if the docker client is installed.

    Returns:
        `spark` for a GB10 on aarch64 with docker, `cuda` for any other NVIDIA GPU with docker, `cuda-local`
        for one without docker (Colab, Kaggle, JupyterHub, Slurm, rented pods), and `cpu` without a GPU.
    """
    if gpu_name is None:
        return "cpu"
    if not has_docker:
        return "cuda-local"
    return "spark" if "GB10" in gpu_name and machine == "aarch64" else "cuda"


def gpu_name() -> str | None:
    """Name of the first NVIDIA GPU as `nvidia-smi` gives it; None without one or without its driver."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return next((line.strip() for line in answer.stdout.splitlines() if line.strip()), None)


def wants_quick_load() -> bool:
    """Return whether the environment variable COURSE_LOAD asks for the quick load.

    Raises:
        ProfileError: It holds something else than `full` or `quick`.
    """
    chosen = os.environ.get(LOAD_VARIABLE) or "full"
    if chosen not in LOADS:
        raise ProfileError(
            f"There is no load {chosen!r}. Set {LOAD_VARIABLE} to one of: {', '.join(LOADS)}; "
            "or unset it, for the full one."
        )
    return chosen == "quick"


def load_profile(name: str | None = None) -> Profile:
    """Return the profile of this machine, with the load that the environment variable COURSE_LOAD asks for.

    Args:
        name: Takes this one; None asks the environment variable COURSE_PROFILE, then the machine.

    Raises:
        ProfileError: No such profile, load or GPU; the message lists those there are.
    """
    chosen = name or os.environ.get(ENVIRONMENT_VARIABLE)
    if not chosen:
        chosen = detect(gpu_name(), platform.machine(), shutil.which("docker") is not None)
    if chosen not in PROFILES:
        known = ", ".join(PROFILES)
        raise ProfileError(
            f"There is no profile {chosen!r}. Set {ENVIRONMENT_VARIABLE} to one of: {known}; "
            "or unset it, and the machine decides."
        )
    profile = PROFILES[chosen]
    if profile.device == "cuda":
        try:
            pinned = pin_gpu(os.environ)
        except GpuChoiceError as error:
            raise ProfileError(str(error)) from error
        if (gpu := this_gpu()) is not None:
            profile = fit(profile, gpu)
        if pinned:
            profile = replace(profile, description=f"{profile.description}; {pinned}")
    if not wants_quick_load():
        return profile
    described = f"{profile.description}; with a quick load, too small to conclude from"
    return replace(profile, description=described, load=profile.load.quick())


def on_x86(machine: str | None = None) -> bool:
    """Tell whether this machine's processor, or the one that is named, is an x86-64 one."""
    return (machine or platform.machine()).lower() in ("x86_64", "amd64")
