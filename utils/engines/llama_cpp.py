"""llama.cpp: GGUF models on anything, with the widest choice of quantisations.

As a local process it is the wheel `xllamacpp`, or the compiled `llama-server` if
`make setup STEP=llama_cpp NATIVE=1` has made one.

Sources: llama.cpp tools/server/README.md and docs/docker.md, as carried by llama-cpp-python 0.3.36.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from utils.engines import llama_cpp_server
from utils.engines.gpu_proof import llama_cpp_fault
from utils.engines.spec import (
    HUB_FOLDER,
    Capabilities,
    Container,
    EngineSpec,
    Local,
    MetricNames,
    ServeOptions,
)
from utils.profiles import ENGINES

NATIVE_SERVER = ENGINES / "llama_cpp_native" / "bin" / "llama-server"
WHEEL = "xllamacpp 2026.10.11549"
NATIVE = "llama-cpp-python 0.3.36"


def arguments(options: ServeOptions) -> list[str]:
    """Arguments of `llama-server`; the context is shared by the slots (`-np`), so it is multiplied.

    A model that is no `.gguf` file is a hub repository with a quantisation, `owner/name:Q8_0`.
    """
    slots = min(options.max_sequences, 32)
    command = [
        *(("-m" if options.model.endswith(".gguf") else "-hf"), options.model),
        *("--alias", options.served_name),
        *("--host", options.host),
        *("--port", str(options.port)),
        *("-np", str(slots)),
        *("-c", str(options.context_length * slots)),
        "--metrics",
    ]
    if options.device == "cuda":
        # From verbosity 4 on, the log names the layers that are on the GPU, which is the proof that they are.
        command += ["-ngl", "all", "-lv", "4"]
    else:
        # Repacked quantised weights crash the AMX kernel of this version on small models (segmentation
        # fault in ggml_backend_amx_mul_mat, seen with the tiny model at Q8_0 on a Xeon with AMX).
        command.append("--no-repack")
    if options.kv_cache_dtype:
        command += ["-fa", "on", "-ctk", options.kv_cache_dtype, "-ctv", options.kv_cache_dtype]
    if not options.prefix_caching:
        command.append("--no-cache-prompt")
    return [*command, *options.extra_arguments]


def local_environment(options: ServeOptions) -> Mapping[str, str]:
    """Need nothing set."""
    return {}


def local(engines: Path = ENGINES) -> Local:
    """Return the way to run llama.cpp as a process.

    Neither program tells its version. The wheel was built without one, and the compiled server tells the
    commit of the repository that its sources lie in, which is this course's.

    Args:
        engines: Folder that set-up makes engines in.
    """
    native = engines / "llama_cpp_native"
    stamp = native / "version"
    if stamp.is_file() and stamp.read_text(encoding="utf-8") == NATIVE:
        command: tuple[str, ...] = (str(native / "bin" / "llama-server"),)
        needs, version = native / "bin" / "llama-server", NATIVE
    else:
        needs, version = engines / "llama_cpp" / "bin" / "python", WHEEL
        command = (str(needs), "-P", str(llama_cpp_server.__file__))
    return Local(command, needs, "llama_cpp", version, local_environment, tells_version=False)


SPEC = EngineSpec(
    name="llama_cpp",
    title="llama.cpp",
    container=Container(
        # Build 11277, for amd64 and arm64; the cpu profile's wheel is of 11549, its sources of 11312.
        image="ghcr.io/ggml-org/llama.cpp:server-cuda13-b11277",
        port=8080,
        ipc=None,
        # `-hf` keeps models where every Hugging Face program does (common/hf-cache.cpp).
        mounts={"~/.cache/huggingface": HUB_FOLDER},
        probe=("curl", "-fsS", "--noproxy", "*", "{url}"),
    ),
    local=local(),
    not_local="",
    arguments=arguments,
    options=frozenset({"kv_cache_dtype", "prefix_caching"}),
    device_fault=llama_cpp_fault,
    health_path="/health",
    metrics_path="/metrics",
    version_path="/props",
    version_key="build_info",
    metrics=MetricNames(
        running="llamacpp:requests_processing",
        waiting="llamacpp:requests_deferred",
        prefix_hits="llamacpp:prompt_tokens_cached_total",
        prompt_tokens="llamacpp:prompt_tokens_total",
        generated_tokens="llamacpp:tokens_predicted_total",
        drafts="llamacpp:spec_decode_num_drafts_total",
        drafted_tokens="llamacpp:spec_decode_num_draft_tokens_total",
        accepted_tokens="llamacpp:spec_decode_num_accepted_tokens_total",
    ),
    capabilities=Capabilities(
        prefix_cache=True,
        structured_output=("json_schema", "grammar"),
        speculation=("draft-simple", "draft-eagle3", "draft-mtp", "ngram-simple"),
        kv_dtypes=("bf16", "q8_0", "q4_0"),
    ),
)
