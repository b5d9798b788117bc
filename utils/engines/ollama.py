"""Ollama: llama.cpp-type inference with model management.

Sources: ollama docs/docker.mdx, docs/gpu.mdx, docs/api.md. Its OpenAI-compatible API is under /v1.
"""

from __future__ import annotations

from utils.engines.spec import Capabilities, Container, EngineSpec, MetricNames, ServeOptions


def arguments(options: ServeOptions) -> list[str]:
    """`ollama serve` takes its settings from the environment, the model with each request."""
    return list(options.extra_arguments)


SPEC = EngineSpec(
    name="ollama",
    title="Ollama",
    container=Container(
        image="ollama/ollama:0.24.0",
        port=11434,
        ipc=None,
        mounts={"ollama": "/root/.ollama"},
        pass_environment=(),
        # The default is one request at a time, which would measure nothing but its queue.
        environment={"OLLAMA_NUM_PARALLEL": "8"},
        probe=("ollama", "list"),  # the image has neither curl nor Python
    ),
    local=None,
    not_local="its program is not on the package index; with docker and an NVIDIA GPU it runs in "
    "its container",
    arguments=arguments,
    options=frozenset(),
    health_path="/api/version",
    metrics_path=None,
    version_path="/api/version",
    version_key="version",
    metrics=MetricNames(),
    capabilities=Capabilities(
        prefix_cache=True,
        structured_output=("json_schema",),
        speculation=(),
        kv_dtypes=("q8_0", "q4_0"),
    ),
)
