"""TensorRT-LLM: NVIDIA's engine; loads Hugging Face checkpoints directly since its build step was removed.

Its settings are a YAML file: `tensorrt_llm_settings`. What cannot start is found by `tensorrt_llm_checks`.

Sources: NVIDIA/TensorRT-LLM (trtllm-serve), NVIDIA/dgx-spark-playbooks nvidia/trt-llm/README.md.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import yaml

from utils.engines import tensorrt_llm_checks
from utils.engines.runtime import new_log
from utils.engines.spec import (
    CACHE_FOLDER,
    CACHE_VARIABLES,
    HUB_FOLDER,
    Capabilities,
    Container,
    EngineSpec,
    MetricNames,
    ServeOptions,
)

SHARE = (
    "free_gpu_memory_fraction"  # of the memory that is free after the weights, in `kv_cache_config`
)
ITERATIONS_PATH = "/metrics"  # statistics of every step, in JSON; Prometheus has a path of its own


def arguments(options: ServeOptions) -> list[str]:
    """Arguments of `trtllm-serve`. The model comes first; dtype is the checkpoint's (bfloat16)."""
    command = [
        options.model,
        *("--host", options.host),
        *("--port", str(options.port)),
        *("--max_seq_len", str(options.context_length)),
        *("--max_batch_size", str(options.max_sequences)),
    ]
    if options.gpu_memory_utilization is not None:
        command += ["--kv_cache_free_gpu_memory_fraction", str(options.gpu_memory_utilization)]
    if options.config:
        # Over the arguments before it, where both name a value.
        command += ["--config", options.config]
    return [*command, *options.extra_arguments]


def settle(options: ServeOptions) -> ServeOptions:
    """Write the planned share of memory into the file of settings, in a copy of it.

    The engine makes a new `kv_cache_config` from the file. If the file names no share, it would become the
    default of 0.9 (`llm_args.update_llm_args_with_extra_dict`). If it names one, the smaller share counts,
    for the argument too.
    """
    if not options.config or options.gpu_memory_utilization is None:
        return options
    file = Path(options.config)
    settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    cache = dict(settings.get("kv_cache_config") or {})
    share = min(cache.get(SHARE, 1.0), options.gpu_memory_utilization)
    settled = new_log("tensorrt_llm").with_suffix(".yml")
    whole = {**settings, "kv_cache_config": {**cache, SHARE: share}}
    settled.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    return dataclasses.replace(options, config=str(settled), gpu_memory_utilization=share)


SPEC = EngineSpec(
    name="tensorrt_llm",
    title="TensorRT-LLM",
    container=Container(
        image="nvcr.io/nvidia/tensorrt-llm/release:1.3.0rc13",
        port=8355,
        command=("trtllm-serve",),
        ulimits={"memlock": -1, "stack": 67108864},
        mounts={
            "~/.cache/huggingface": HUB_FOLDER,
            "inference-course-tensorrt-llm": CACHE_FOLDER,
        },
        environment=CACHE_VARIABLES,
    ),
    local=None,
    not_local="it needs its container: an NVIDIA GPU and docker",
    arguments=arguments,
    options=frozenset({"config"}),
    settle=settle,
    refuse=tensorrt_llm_checks.refuse,
    health_path="/health",
    metrics_path="/prometheus/metrics",
    version_path="/version",
    version_key="version",
    metrics=MetricNames(
        running="trtllm_num_requests_running",
        waiting="trtllm_num_requests_waiting",
        kv_usage="trtllm_kv_cache_utilization",
        prefix_hit_rate="trtllm_kv_cache_hit_rate",
        ttft="trtllm_time_to_first_token_seconds",
        tpot="trtllm_time_per_output_token_seconds",
        e2e="trtllm_e2e_request_latency_seconds",
        generated_tokens="trtllm_generation_tokens_total",
        drafted_tokens="trtllm_spec_decode_num_draft_tokens_total",
        accepted_tokens="trtllm_spec_decode_num_accepted_tokens_total",
    ),
    capabilities=Capabilities(
        prefix_cache=True,
        structured_output=("json_schema", "regex", "grammar"),
        speculation=("eagle3", "ngram", "mtp", "draft_target"),
        kv_dtypes=("fp8", "nvfp4"),
    ),
)
