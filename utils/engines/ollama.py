"""Ollama: llama.cpp-type inference with model management.

Its settings are environment variables. Before it can serve a GGUF file it must create a model from it, and
it downloads a model that is named in its library (`ollama_api`). All requests use its OpenAI-compatible API
under /v1. That API ignores fields that it doesn't know, for example `ignore_eos`, `options` (`num_ctx`) and
`keep_alive`, so the context length and how long a model stays loaded are set when it starts.

Sources: ollama docs/docker.mdx, docs/gpu.mdx, docs/faq.mdx, docs/api.md, envconfig/config.go and
openai/openai.go at v0.24.0.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.engines import ollama_api
from utils.engines.engine_errors import UnsupportedOption
from utils.engines.gpu_proof import ollama_fault
from utils.engines.spec import (
    PROXY_VARIABLES,
    Capabilities,
    Container,
    EngineSpec,
    Local,
    MetricNames,
    ServeOptions,
)
from utils.profiles import ROOT
from utils.tinymodel.hub import TINY as TINY_MODEL

VERSION = "0.24.0"
KV_DTYPES = ("q8_0", "q4_0")
# Each slot reserves a whole context (docs/faq.mdx): as many as an 8B model in 16 bits leaves room for.
MOST_SLOTS = 8
PROGRAM = shutil.which("ollama")
LIBRARY = ROOT / ".run" / "ollama"


def arguments(options: ServeOptions) -> list[str]:
    """`ollama serve` takes its settings from the environment, the model with each request."""
    return list(options.extra_arguments)


def environment(options: ServeOptions) -> Mapping[str, str]:
    """Its settings. The defaults would serve one request at a time, and unload the model after 5 minutes."""
    settings = {
        "OLLAMA_NUM_PARALLEL": str(min(options.max_sequences, MOST_SLOTS)),
        "OLLAMA_CONTEXT_LENGTH": str(options.context_length),
        "OLLAMA_KEEP_ALIVE": "-1",
        "OLLAMA_MAX_LOADED_MODELS": "1",
        "OLLAMA_NO_CLOUD": "1",
    }
    if options.kv_cache_dtype:
        settings["OLLAMA_KV_CACHE_TYPE"] = options.kv_cache_dtype
        settings["OLLAMA_FLASH_ATTENTION"] = "1"  # without it the type is ignored
    return settings


def local_environment(options: ServeOptions) -> Mapping[str, str]:
    """Settings of a local process. A model made from a file goes into a library of the course's own."""
    settings = {**environment(options), "OLLAMA_HOST": f"{options.host}:{options.port}"}
    if Path(options.model).exists():
        settings["OLLAMA_MODELS"] = str(LIBRARY)
    return settings


def prepare(base_url: str, options: ServeOptions, say: Callable[[str], None]) -> None:
    """Create or pull the model and load it, so that the first request finds it in memory.

    Raises:
        OllamaError: The model can't be created, pulled or loaded.
    """
    gguf = Path(options.model)
    name = options.served_name
    with ollama_api.connect(base_url) as ollama:
        if gguf.is_file():
            settings = ollama_api.TINY if gguf.parent == TINY_MODEL else {}
            ollama_api.create(ollama, name, gguf, settings, say)
        elif not ollama_api.has(ollama, name):
            ollama_api.pull(ollama, options.model, say)
            if options.model != name:  # owner/name:tag
                ollama_api.copy(ollama, options.model, name)
        say(f"loading {name}")
        ollama_api.load(ollama, name)


def refuse(model: str | None, choices: Mapping[str, Any], extra_arguments: Sequence[str]) -> None:
    """Refuse a data type that Ollama would ignore without a word, and a model that it cannot take.

    Raises:
        UnsupportedOption: Such a data type, or a folder.
    """
    dtype = choices.get("kv_cache_dtype")
    if dtype not in (None, *KV_DTYPES):
        raise UnsupportedOption(
            f"Ollama keeps no KV cache in {dtype!r}: write {' or '.join(KV_DTYPES)}, or leave it out (f16)."
        )
    if model and Path(model).expanduser().is_dir():
        raise UnsupportedOption(
            f"Ollama takes a GGUF file or a name of its library; {model} is a folder."
        )


LOCAL = (
    Local(
        command=(PROGRAM, "serve"),
        needs=Path(PROGRAM),
        setup="",
        version="",
        environment=local_environment,
    )
    if PROGRAM
    else None
)

SPEC = EngineSpec(
    name="ollama",
    title="Ollama",
    container=Container(
        image=f"ollama/ollama:{VERSION}",
        port=11434,
        ipc=None,
        mounts={"ollama": "/root/.ollama"},
        pass_environment=PROXY_VARIABLES,
        probe=("ollama", "list"),  # the image has neither curl nor Python
    ),
    local=LOCAL,
    local_cuda=LOCAL,
    no_thinking={"reasoning_effort": "none"},
    benchmark_api="chat",
    not_local="its program is not on the package index; install it (https://ollama.com/download), or use "
    "docker and an NVIDIA GPU, where it runs in its container",
    arguments=arguments,
    options=frozenset({"kv_cache_dtype"}),
    environment=environment,
    prepare=prepare,
    refuse=refuse,
    device_fault=ollama_fault,
    health_path="/api/version",
    metrics_path=None,
    version_path="/api/version",
    version_key="version",
    metrics=MetricNames(),
    capabilities=Capabilities(
        prefix_cache=True,
        structured_output=("json_schema",),
        speculation=(),
        kv_dtypes=KV_DTYPES,
    ),
)
