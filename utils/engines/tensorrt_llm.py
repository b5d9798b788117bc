"""TensorRT-LLM: NVIDIA's engine, which loads Hugging Face checkpoints directly.

Its settings are a YAML file, see `tensorrt_llm_settings`. `tensorrt_llm_checks` compares them with the GPU
before a container starts.

`VERSION` is the newest version whose image is known to run on ARM64. SajuukPrime/paper_tree serves
Qwen3.8-27B with it on a DGX Spark (docs/deployment.md, GB10, aarch64, driver 580.173.02). It has no
`trtllm-build`, because the package of 1.3.0rc15 still requires `tensorrt` and that of 1.3.0rc22 doesn't.

Sources: NVIDIA/TensorRT-LLM (trtllm-serve; tensorrt_llm/usage/schemas/README.md for the usage statistics),
NVIDIA/dgx-spark-playbooks nvidia/trt-llm/README.md.
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
    usage_stats_off,
)

VERSION = "1.3.0rc28"
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
        # Of two values for one setting the explicit argument wins, with a warning in the log
        # (llm_args.update_llm_args_with_extra_dict, explicit_cli_keys).
        command += ["--config", options.config]
    return [*command, *options.extra_arguments]


def settle(options: ServeOptions) -> ServeOptions:
    """Write the planned share of memory into the file of settings, in a copy of it.

    The engine makes a new `kv_cache_config` from the file. If the file names no share, that has the default
    of 0.9. Whether file or argument counts depends on the version
    (`llm_args.update_llm_args_with_extra_dict`), so both get the same share, the smaller one.
    """
    if not options.config or options.gpu_memory_utilization is None:
        return options
    file = Path(options.config)
    settings = yaml.safe_load(file.read_text(encoding="utf-8")) or {}
    cache = dict(settings.get("kv_cache_config") or {})
    share = min(cache.get(SHARE) or 1.0, options.gpu_memory_utilization)
    settled = new_log("tensorrt_llm").with_suffix(".yml")
    whole = {**settings, "kv_cache_config": {**cache, SHARE: share}}
    settled.write_text(yaml.safe_dump(whole, sort_keys=False), encoding="utf-8")
    return dataclasses.replace(options, config=str(settled), gpu_memory_utilization=share)


SPEC = EngineSpec(
    name="tensorrt_llm",
    title="TensorRT-LLM",
    container=Container(
        image=f"nvcr.io/nvidia/tensorrt-llm/release:{VERSION}",
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
    environment=usage_stats_off("TRTLLM_NO_USAGE_STATS"),
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
