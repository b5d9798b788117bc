"""SGLang: RadixAttention, structured generation, a language for prompts.

Sources: sglang 0.5.23 (srt/server_args.py, srt/observability), NVIDIA/dgx-spark-playbooks
nvidia/sglang/README.md.
"""

from __future__ import annotations

from utils.engines.spec import Capabilities, Container, EngineSpec, MetricNames, ServeOptions


def arguments(options: ServeOptions) -> list[str]:
    """Arguments of `python3 -m sglang.launch_server`."""
    command = [
        *("--model-path", options.model),
        *("--served-model-name", options.served_name),
        *("--host", options.host),
        *("--port", str(options.port)),
        *("--dtype", options.dtype),
        *("--context-length", str(options.context_length)),
        *("--max-running-requests", str(options.max_sequences)),
        *("--attention-backend", "flashinfer"),
        "--enable-metrics",
        "--enable-cache-report",
    ]
    if options.gpu_memory_utilization is not None:
        command += ["--mem-fraction-static", str(options.gpu_memory_utilization)]
    if options.kv_cache_dtype:
        command += ["--kv-cache-dtype", options.kv_cache_dtype]
    if not options.prefix_caching:
        command.append("--disable-radix-cache")
    return [*command, *options.extra_arguments]


SPEC = EngineSpec(
    name="sglang",
    title="SGLang",
    container=Container(
        image="lmsysorg/sglang:v0.5.23-cu130",
        port=30000,
        command=("python3", "-m", "sglang.launch_server"),
        shm_size="32g",
        mounts={"~/.cache/huggingface": "/root/.cache/huggingface"},
    ),
    local=None,
    not_local="this course has no CPU environment for SGLang yet (its CPU kernels are not on the "
    "package index); on an NVIDIA machine with docker it runs in its container",
    arguments=arguments,
    options=frozenset({"kv_cache_dtype", "prefix_caching"}),
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
        e2e="sglang:e2e_request_latency_seconds",
        prompt_tokens="sglang:prompt_tokens_total",
        generated_tokens="sglang:generation_tokens_total",
    ),
    capabilities=Capabilities(
        prefix_cache=True,
        structured_output=("json_schema", "regex", "grammar"),
        speculation=("eagle3", "nextn", "standalone", "ngram"),
        kv_dtypes=("fp8_e4m3", "fp8_e5m2"),
    ),
)
