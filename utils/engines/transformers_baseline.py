"""Hugging Face `transformers`, one request at a time: serving without an inference engine.

It runs in the course's own environment, on the profile's device. The server is `hf_server.py`.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from utils.engines.gpu_proof import transformers_fault
from utils.engines.spec import Capabilities, EngineSpec, Local, MetricNames, ServeOptions
from utils.profiles import ROOT


def arguments(options: ServeOptions) -> list[str]:
    """Arguments of `python -m utils.engines.hf_server`."""
    return [
        *("--model", options.model),
        *("--served-model-name", options.served_name),
        *("--host", options.host),
        *("--port", str(options.port)),
        *("--dtype", options.dtype),
        *("--device", options.device),
        *("--max-model-len", str(options.context_length)),
        *options.extra_arguments,
    ]


def local_environment(options: ServeOptions) -> Mapping[str, str]:
    """No look-ups at the model hub for a model that lies here."""
    return {"HF_HUB_OFFLINE": "1"} if Path(options.model).exists() else {}


def installed() -> str:
    """Version of the package; the gateway's container goes without (docker/gateway.Dockerfile)."""
    try:
        return version("transformers")
    except PackageNotFoundError:
        return "not installed"


LOCAL = Local(
    command=(sys.executable, "-m", "utils.engines.hf_server"),
    needs=ROOT / "utils" / "engines" / "hf_server.py",
    setup="course",
    version=installed(),
    environment=local_environment,
)

SPEC = EngineSpec(
    name="transformers",
    title="transformers (one request at a time)",
    container=None,
    local=LOCAL,
    local_cuda=LOCAL,
    not_local="",
    arguments=arguments,
    options=frozenset(),
    device_fault=transformers_fault,
    health_path="/health",
    metrics_path=None,
    version_path="/version",
    version_key="version",
    metrics=MetricNames(),
    capabilities=Capabilities(
        prefix_cache=False, structured_output=(), speculation=(), kv_dtypes=()
    ),
)
