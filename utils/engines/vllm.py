"""vLLM: continuous batching over a paged KV cache.

Sources: the argument parser of vLLM 0.32.0 (vllm/engine/arg_utils.py), vllm/v1/metrics/loggers.py,
NVIDIA/dgx-spark-playbooks nvidia/vllm/README.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path

from utils.engines.gpu_proof import vllm_fault
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
    usage_stats_off,
)
from utils.profiles import ENGINES

PYTHON = ENGINES / "vllm" / "bin" / "python"
CUDA = ENGINES / "vllm_cuda" / "bin"

container_environment = usage_stats_off("VLLM_NO_USAGE_STATS")


def arguments(options: ServeOptions) -> list[str]:
    """Arguments of `vllm serve`; its module form, which the CPU engine needs, wants the model by name."""
    command = [
        *((options.model,) if options.device == "cuda" else ("--model", options.model)),
        *("--served-model-name", options.served_name),
        *("--host", options.host),
        *("--port", str(options.port)),
        *("--dtype", options.dtype),
        *("--max-model-len", str(options.context_length)),
        *("--max-num-seqs", str(options.max_sequences)),
        "--enable-prompt-tokens-details",
        "--disable-uvicorn-access-log",
    ]
    if options.gpu_memory_utilization is not None:
        command += ["--gpu-memory-utilization", str(options.gpu_memory_utilization)]
    if options.kv_cache_bytes is not None:
        # The share alone is no bound on unified memory while vLLM profiles (vllm-project/vllm#46307).
        command += ["--kv-cache-memory-bytes", str(options.kv_cache_bytes)]
    if options.kv_cache_dtype:
        command += ["--kv-cache-dtype", options.kv_cache_dtype]
    if options.kv_blocks is not None:
        command += ["--num-gpu-blocks-override", str(options.kv_blocks)]
    if not options.prefix_caching:
        command.append("--no-enable-prefix-caching")
    # On a CPU, compiling takes longer than a lab has; lab 3.3.3 measures what it would buy.
    if options.eager if options.eager is not None else options.device == "cpu":
        command.append("--enforce-eager")
    return [*command, *options.extra_arguments]


def local_environment(options: ServeOptions) -> Mapping[str, str]:
    """Environment of the CPU engine; VLLM_CPU_KVCACHE_SPACE is in whole GiB (vllm/envs.py)."""
    environment = {
        "VLLM_CPU_KVCACHE_SPACE": str(math.ceil(options.kv_cache_gib)),
        **container_environment(options),
    }
    if Path(options.model).exists():
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


def cuda_environment(options: ServeOptions) -> Mapping[str, str]:
    """Environment of the CUDA wheel as a local process."""
    environment = dict(container_environment(options))
    if Path(options.model).exists():
        environment["HF_HUB_OFFLINE"] = "1"
    return environment


SPEC = EngineSpec(
    name="vllm",
    title="vLLM",
    container=Container(
        image="nvcr.io/nvidia/vllm:26.10-py3",
        port=8000,
        command=("vllm", "serve"),
        ulimits={"memlock": -1, "stack": 67108864},
        mounts={
            "~/.cache/huggingface": HUB_FOLDER,
            "inference-course-vllm": CACHE_FOLDER,
        },
        environment=CACHE_VARIABLES,
    ),
    local=Local(
        # vllm-cpu's distribution is not named vllm, so the `vllm` command fails; the module form works.
        command=(str(PYTHON), "-m", "vllm.entrypoints.openai.api_server"),
        needs=PYTHON,
        setup="vllm",
        version="0.32.0",
        environment=local_environment,
        # On a CPU with AMX, a worker whose very first prompt has a single token dies of SIGILL: its attention
        # kernel uses the tile registers before anything has asked the kernel for them (vLLM 0.32.0).
        warm_up="Say something short, please, and wake up.",
    ),
    # The wheel for CUDA, whose own command works. Not run on a GPU yet.
    local_cuda=Local(
        command=(str(CUDA / "vllm"), "serve"),
        needs=CUDA / "vllm",
        setup="vllm_cuda",
        version="0.32.0",
        environment=cuda_environment,
    ),
    not_local="",
    arguments=arguments,
    environment=container_environment,
    options=frozenset({"kv_cache_dtype", "kv_blocks", "prefix_caching", "eager"}),
    device_fault=vllm_fault,
    health_path="/health",
    metrics_path="/metrics",
    version_path="/version",
    version_key="version",
    metrics=MetricNames(
        running="vllm:num_requests_running",
        waiting="vllm:num_requests_waiting",
        kv_usage="vllm:kv_cache_usage_perc",
        prefix_hits="vllm:prefix_cache_hits_total",
        prefix_queries="vllm:prefix_cache_queries_total",
        ttft="vllm:time_to_first_token_seconds",
        itl="vllm:inter_token_latency_seconds",
        tpot="vllm:request_time_per_output_token_seconds",
        e2e="vllm:e2e_request_latency_seconds",
        prompt_tokens="vllm:prompt_tokens_total",
        generated_tokens="vllm:generation_tokens_total",
        preemptions="vllm:num_preemptions_total",
        drafts="vllm:spec_decode_num_drafts_total",
        drafted_tokens="vllm:spec_decode_num_draft_tokens_total",
        accepted_tokens="vllm:spec_decode_num_accepted_tokens_total",
    ),
    capabilities=Capabilities(
        prefix_cache=True,
        structured_output=("json_schema", "regex", "choice", "grammar"),
        speculation=("medusa", "eagle3", "ngram", "mtp", "draft_model"),
        kv_dtypes=("fp8", "fp8_e4m3", "fp8_e5m2", "int8_per_token_head"),
    ),
)
