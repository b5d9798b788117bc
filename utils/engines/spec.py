"""Description of an engine: its image, arguments, ports, endpoints, metric names and abilities.

A spec is data. It knows neither processes nor docker; the two runtimes know no engine.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal


@dataclass(frozen=True)
class MetricNames:
    """Prometheus sample names of one engine, counters with their `_total`; None: it has no such metric.

    Attributes:
        running: Requests in the running batch (gauge).
        waiting: Requests in the queue (gauge).
        kv_usage: Share of the KV cache in use, 0 to 1 (gauge).
        prefix_hits: Prompt tokens found in the prefix cache (counter).
        prefix_queries: Prompt tokens looked up there (counter).
        prefix_hit_rate: Hits over queries, where an engine gives only that (gauge, 0 to 1).
        ttft: Time to first token, seconds (histogram).
        itl: Inter-token latency, seconds (histogram).
        tpot: Time per output token of a request, seconds (histogram).
        e2e: End-to-end latency of a request, seconds (histogram).
        prompt_tokens: Prompt tokens processed (counter).
        generated_tokens: Tokens generated (counter).
        preemptions: Requests put back into the queue for want of KV blocks (counter).
        drafts: Drafts verified (counter).
        drafted_tokens: Tokens drafted (counter).
        accepted_tokens: Drafted tokens accepted (counter).
    """

    running: str | None = None
    waiting: str | None = None
    kv_usage: str | None = None
    prefix_hits: str | None = None
    prefix_queries: str | None = None
    prefix_hit_rate: str | None = None
    ttft: str | None = None
    itl: str | None = None
    tpot: str | None = None
    e2e: str | None = None
    prompt_tokens: str | None = None
    generated_tokens: str | None = None
    preemptions: str | None = None
    drafts: str | None = None
    drafted_tokens: str | None = None
    accepted_tokens: str | None = None


@dataclass(frozen=True)
class Capabilities:
    """Abilities of an engine, from its own documentation or parser.

    Attributes:
        prefix_cache: True if it reuses the KV cache of shared prefixes.
        structured_output: Kinds of constraint: `json_schema`, `regex`, `choice`, `grammar`.
        speculation: Speculative-decoding methods it offers.
        kv_dtypes: Data types of the KV cache besides the model's own.
    """

    prefix_cache: bool
    structured_output: tuple[str, ...]
    speculation: tuple[str, ...]
    kv_dtypes: tuple[str, ...]


@dataclass(frozen=True)
class ServeOptions:
    """One request to serve a model, in no engine's words.

    Attributes:
        model: Folder, file or hub id, as the engine will see it.
        served_name: Name that clients use.
        host: Address to listen on.
        port: Port to listen on.
        device: `cpu` or `cuda`.
        dtype: Data type of weights and activations.
        context_length: Longest prompt plus output, tokens.
        max_sequences: Most requests in one batch.
        kv_cache_gib: KV-cache budget, GiB.
        gpu_memory_utilization: Share of GPU memory the engine may take, as this engine counts it.
        kv_cache_bytes: Exact size of the KV cache on a GPU, or None if it isn't planned.
        kv_cache_dtype: Data type of the KV cache; None for the model's own.
        kv_blocks: Exact number of KV blocks, for a deliberately small cache.
        prefix_caching: True if to reuse shared prefixes.
        eager: Run without compiled graphs; None leaves it to the engine's default on this device.
        config: File of settings in the engine's own words, as the engine will see it.
        extra_arguments: Appended to the command as they are.
    """

    model: str
    served_name: str
    host: str
    port: int
    device: str
    dtype: str
    context_length: int
    max_sequences: int
    kv_cache_gib: float
    gpu_memory_utilization: float | None = None
    kv_cache_bytes: int | None = None
    kv_cache_dtype: str | None = None
    kv_blocks: int | None = None
    prefix_caching: bool = True
    eager: bool | None = None
    config: str | None = None
    extra_arguments: tuple[str, ...] = ()


PYTHON_PROBE = (
    "python3",
    "-c",
    # Past a proxy that docker's own settings put into every container.
    "import urllib.request as u; u.build_opener(u.ProxyHandler({})).open('{url}', timeout=4)",
)


# Variables of the user's environment that a container gets too, where they are set.
HUB_VARIABLES = ("HF_TOKEN", "HF_ENDPOINT", "HF_HUB_OFFLINE", "HF_HUB_DISABLE_XET")
PROXY_VARIABLES = tuple(
    spelling
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")
    for spelling in (name, name.lower())
)
HUB_FOLDER = "/root/.cache/huggingface"  # in every image of ours that reads the hub
# Kernels that an engine compiles, so that its next start finds them.
CACHE_FOLDER = "/course-cache"
CACHE_VARIABLES = {
    "VLLM_CACHE_ROOT": f"{CACHE_FOLDER}/vllm",
    "TRITON_CACHE_DIR": f"{CACHE_FOLDER}/triton",
    "TORCHINDUCTOR_CACHE_DIR": f"{CACHE_FOLDER}/inductor",
    "FLASHINFER_WORKSPACE_BASE": CACHE_FOLDER,
    "CUDA_CACHE_PATH": f"{CACHE_FOLDER}/cuda",
}


@dataclass(frozen=True)
class Container:
    """Settings of an engine's container.

    Attributes:
        image: Image with a pinned tag.
        port: Port inside the container.
        command: Words before the serving arguments (after the image's entrypoint).
        gpus: True if the GPU is handed in (`--gpus`).
        ipc: Value of `--ipc`; None for docker's default.
        ulimits: Limit name to value, -1 for none.
        mounts: Folder of the host (`~` allowed) or volume name to folder in the container.
        pass_environment: Variables handed on from the user's environment where they are set.
        environment: Variables set always.
        probe: Command that asks for health with a program of the image; `{url}` stands for the endpoint.
    """

    image: str
    port: int
    command: tuple[str, ...] = ()
    gpus: bool = True
    ipc: str | None = "host"
    ulimits: Mapping[str, int] = field(default_factory=dict)
    mounts: Mapping[str, str] = field(default_factory=dict)
    pass_environment: tuple[str, ...] = (*HUB_VARIABLES, *PROXY_VARIABLES)
    environment: Mapping[str, str] = field(default_factory=dict)
    probe: tuple[str, ...] = PYTHON_PROBE


@dataclass(frozen=True)
class Local:
    """Settings of an engine as a process of this machine.

    Attributes:
        command: Program and first arguments, put before the serving arguments.
        needs: File that exists when the engine is set up.
        setup: Set-up step that makes it.
        version: Version that is installed by that step.
        environment: Variables for a given set of options.
        warm_up: Prompt to send once before any other, or None if the engine doesn't need it.
        tells_version: True if the running program tells its version. If not, `version` counts.
        handicap: Reason why its speed here says nothing about the engine elsewhere, or "" if there is none.
            Records carry it, and such an engine is never ranked.
    """

    command: tuple[str, ...]
    needs: Path
    setup: str
    version: str
    environment: Callable[[ServeOptions], Mapping[str, str]]
    warm_up: str | None = None
    tells_version: bool = True
    handicap: str = ""


def refuse_nothing(
    model: str | None, choices: Mapping[str, Any], extra_arguments: Sequence[str]
) -> None:
    """Refuse nothing, because the engine reports unsupported options itself at its start."""


def no_environment(options: ServeOptions) -> Mapping[str, str]:
    """Return no variables, because the engine's container needs none for its options."""
    return {}


def usage_stats_off(variable: str) -> Callable[[ServeOptions], Mapping[str, str]]:
    """Return the environment that keeps an engine from reporting its usage to its makers.

    Args:
        variable: Variable that switches the reports off with `1`. If you set it yourself before the engine
            starts, for example to `0`, your value is used.
    """
    return lambda options: {variable: os.environ.get(variable, "1")}


def nothing_to_prepare(base_url: str, options: ServeOptions, say: Callable[[str], None]) -> None:
    """Do nothing, because the engine has its model when it is healthy."""


def keep_options(options: ServeOptions) -> ServeOptions:
    """Keep the options of an engine whose file of settings doesn't contradict its arguments."""
    return options


def no_statement(base_url: str, log: str) -> str:
    """Accept an engine that doesn't say which device it computes on."""
    return ""


@dataclass(frozen=True)
class EngineSpec:
    """One inference engine.

    Attributes:
        name: Name in code, `vllm`.
        title: Name for people, `vLLM`.
        container: Settings of its container; None if it has none in this course.
        local: How it runs without one; None: it does not, see `not_local`.
        local_cuda: How it runs without a container on a GPU; None: there it runs as `local` does, on the CPU.
        no_thinking: Fields of a chat request whose answer is to begin without thinking.
        benchmark_api: API that it is measured with.
        not_local: Why it cannot run as a local process.
        arguments: Serving arguments for a set of options.
        options: Optional fields of ServeOptions that it honours.
        health_path: Answers 200 when the engine can serve.
        metrics_path: Prometheus text; None: it has none.
        version_path: JSON with the engine's version; None: not offered.
        version_key: Key in that JSON.
        metrics: Its metric names.
        capabilities: Its abilities.
        refuse: Raises UnsupportedOption for options that this engine can't start with, before any start:
            called with the model, the profile's fields with the choices over them, and the extra arguments.
        environment: Variables of its container for a set of options, over the container's own.
        prepare: Called once it is healthy, before anybody else's request, with its address, its
            options, and the progress display.
        settle: Makes the arguments and the engine's own file of settings agree, before its container starts.
        device_fault: Returns why a healthy engine isn't on the GPU by its own statement, or "". It is called
            with its address and its log.
    """

    name: str
    title: str
    container: Container | None
    local: Local | None
    not_local: str
    arguments: Callable[[ServeOptions], list[str]]
    options: frozenset[str]
    health_path: str
    metrics_path: str | None
    version_path: str | None
    version_key: str
    metrics: MetricNames
    capabilities: Capabilities
    refuse: Callable[[str | None, Mapping[str, Any], Sequence[str]], None] = refuse_nothing
    environment: Callable[[ServeOptions], Mapping[str, str]] = no_environment
    prepare: Callable[[str, ServeOptions, Callable[[str], None]], None] = nothing_to_prepare
    settle: Callable[[ServeOptions], ServeOptions] = keep_options
    local_cuda: Local | None = None
    no_thinking: Mapping[str, Any] = field(
        default_factory=lambda: {"chat_template_kwargs": {"enable_thinking": False}}
    )
    benchmark_api: Literal["chat", "completions"] = "completions"
    device_fault: Callable[[str, str], str] = no_statement

    def local_on(self, device: str) -> tuple[Local | None, str]:
        """Return how it runs as a process on a device, and the device that it then really uses."""
        if device == "cuda" and self.local_cuda is not None:
            return self.local_cuda, "cuda"
        return self.local, "cpu"
