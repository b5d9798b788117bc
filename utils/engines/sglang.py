"""SGLang: RadixAttention, structured generation, a language for prompts.

Sources: sglang 0.5.23 (srt/arg_groups, srt/entrypoints/openai/protocol.py, srt/observability),
NVIDIA/dgx-spark-playbooks nvidia/sglang/README.md. On a CPU it runs SGLang's own plain PyTorch path, for
practice; tools/setup/sglang_cpu lists the replaced parts.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from utils.engines.engine_errors import UnsupportedOption
from utils.engines.gpu_proof import sglang_fault
from utils.engines.spec import (
    CACHE_FOLDER,
    CACHE_VARIABLES,
    HUB_FOLDER,
    Capabilities,
    Container,
    EngineSpec,
    Local,
    MetricNames,
    ServeOptions,
)
from utils.model_sizes import GIB, bytes_per_token, read_config
from utils.profiles import ENGINES, on_x86

PYTHON = ENGINES / "sglang" / "bin" / "python"
CUDA = ENGINES / "sglang_cuda" / "bin" / "python"
# Of the container and of the package; requirements/sglang.hash.txt pins the same.
VERSION = "0.5.23"
CPU_HANDICAP = "SGLang without its CPU kernels: attention in plain PyTorch, on one thread"


def arguments(options: ServeOptions) -> list[str]:
    """Arguments of `python3 -m sglang.launch_server`.

    Raises:
        UnsupportedOption: A data type for the KV cache, on a CPU.
    """
    command = [
        *("--model-path", options.model),
        *("--served-model-name", options.served_name),
        *("--host", options.host),
        *("--port", str(options.port)),
        *("--dtype", options.dtype),
        *("--context-length", str(options.context_length)),
        *("--max-running-requests", str(options.max_sequences)),
        "--enable-metrics",
        "--enable-cache-report",
        *(_on_cpu(options) if options.device == "cpu" else _on_gpu(options)),
    ]
    if not options.prefix_caching:
        command.append("--disable-radix-cache")
    return [*command, *options.extra_arguments]


def _on_gpu(options: ServeOptions) -> list[str]:
    command = ["--attention-backend", "flashinfer"]
    if options.gpu_memory_utilization is not None:
        command += ["--mem-fraction-static", str(options.gpu_memory_utilization)]
    if options.kv_cache_dtype:
        command += ["--kv-cache-dtype", options.kv_cache_dtype]
    if options.kv_blocks is not None:
        command += ["--max-total-tokens", str(options.kv_blocks)]
    return command


def _on_cpu(options: ServeOptions) -> list[str]:
    if options.kv_cache_dtype:
        raise UnsupportedOption(
            "SGLang on a CPU without its kernels keeps the KV cache in the model's own data type: "
            "leave out kv_cache_dtype."
        )
    return [
        *("--device", "cpu"),
        *("--attention-backend", "torch_native"),
        *("--max-total-tokens", str(kv_tokens(options))),
        *("--log-level-http", "warning"),  # no line for every request
        "--sleep-on-idle",  # its scheduler otherwise keeps a core busy while nobody asks for anything
    ]


def kv_tokens(options: ServeOptions) -> int:
    """Tokens that the KV cache is to hold on a CPU.

    `kv_blocks` itself where it is given: SGLang's blocks are of one token (`--page-size 1`, its default).
    Otherwise what `kv_cache_gib` holds, since SGLang has no argument for bytes and, left to itself, takes a
    share of the whole machine.

    Raises:
        ConfigError: The model's config says nothing from which the size of a token follows.
    """
    if options.kv_blocks is not None:
        return options.kv_blocks
    per_token = bytes_per_token(read_config(options.model), options.dtype)
    return int(options.kv_cache_gib * GIB) // per_token


def local_environment(options: ServeOptions) -> Mapping[str, str]:
    """Environment of the CPU engine."""
    environment = {
        # Chooses the CPU platform (srt/platforms); `--device cpu` alone does not.
        "SGLANG_USE_CPU_ENGINE": "1",
        # With any value SGLang does not ask for one NUMA node a rank, which a container may not show
        # (srt/utils/numa_utils.py). It binds nothing: that would be its kernels' work.
        "SGLANG_CPU_OMP_THREADS_BIND": "0",
        # PyTorch's own thread count is all cores: one thread was faster than two with the tiny model.
        "OMP_NUM_THREADS": "1",
        # It looks only every 5 s whether it was asked to end (sigterm_watchdog in
        # srt/managers/tokenizer_manager.py), and has nothing to save: the watchdog waits less.
        "COURSE_STOP_GRACE_S": "1",
    }
    if Path(options.model).exists():
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def cuda_environment(options: ServeOptions) -> Mapping[str, str]:
    """Environment of the CUDA wheel as a local process."""
    return {"HF_HUB_OFFLINE": "1"} if Path(options.model).exists() else {}


SPEC = EngineSpec(
    name="sglang",
    title="SGLang",
    container=Container(
        image=f"lmsysorg/sglang:v{VERSION}-cu130",
        port=30000,
        command=("python3", "-m", "sglang.launch_server"),
        mounts={
            "~/.cache/huggingface": HUB_FOLDER,
            "inference-course-sglang": CACHE_FOLDER,
        },
        environment=CACHE_VARIABLES,
    ),
    local=Local(
        command=(str(PYTHON), "-m", "sglang.launch_server"),
        needs=PYTHON,
        setup="sglang",
        version=VERSION,
        environment=local_environment,
        handicap=CPU_HANDICAP,
    )
    if on_x86()
    else None,
    # The wheel for CUDA, with its kernels. Not run on a GPU yet.
    local_cuda=Local(
        command=(str(CUDA), "-m", "sglang.launch_server"),
        needs=CUDA,
        setup="sglang_cuda",
        version=VERSION,
        environment=cuda_environment,
    ),
    not_local="without its kernels, which are on no package index, it serves on x86-64 processors only; "
    "on an NVIDIA machine with docker it runs in its container",
    arguments=arguments,
    options=frozenset({"kv_cache_dtype", "kv_blocks", "prefix_caching"}),
    device_fault=sglang_fault,
    health_path="/health",
    metrics_path="/metrics",
    version_path="/server_info",
    version_key="version",
    metrics=MetricNames(
        running="sglang:num_running_reqs",
        waiting="sglang:num_queue_reqs",
        kv_usage="sglang:token_usage",
        prefix_hits="sglang:cached_tokens_total",
        prefix_queries="sglang:prompt_tokens_total",
        prefix_hit_rate="sglang:cache_hit_rate",
        ttft="sglang:time_to_first_token_seconds",
        itl="sglang:inter_token_latency_seconds",
        tpot="sglang:request_time_per_output_token_seconds",
        e2e="sglang:e2e_request_latency_seconds",
        prompt_tokens="sglang:prompt_tokens_total",
        generated_tokens="sglang:generation_tokens_total",
        preemptions="sglang:num_retracted_requests_total",  # not there before the first
    ),
    capabilities=Capabilities(
        prefix_cache=True,
        structured_output=("json_schema", "regex", "grammar"),
        speculation=("eagle3", "nextn", "standalone", "ngram"),
        kv_dtypes=("fp8_e4m3", "fp8_e5m2"),
    ),
)
