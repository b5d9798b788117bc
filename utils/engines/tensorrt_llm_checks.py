"""Reasons for which TensorRT-LLM would not start on this machine, found before a container starts.

Sources: tensorrt_llm/llmapi/llm_args.py (bfloat16 needs compute capability 8.0), NVIDIA's CUDA documentation
(FP8 from 8.9, FP4 from 10.0 on; GB10 is 12.1), docs/source/legacy/tensorrt-backend-removal.md.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.engines.engine_errors import UnsupportedOption
from utils.engines.tensorrt_llm_settings import (
    REMOVED,
    read_settings,
    refusals,
    require_none,
)
from utils.gpu import CAPABILITY, Gpu, this_gpu

NEEDS: Mapping[str, tuple[float, str]] = {
    dtype: (CAPABILITY[dtype], instead)
    for dtype, instead in (("bfloat16", "float16"), ("fp8", "auto"), ("nvfp4", "fp8"))
}
_BUILDERS = ("trtllm-build", "--engine_dir", "--backend=tensorrt", "convert_checkpoint")


def device_faults(settings: Mapping[str, Any], gpu: Gpu | None) -> list[str]:
    """Return what this GPU can't do of these settings, each with a change that helps.

    Args:
        settings: Content of the settings' file.
        gpu: The GPU, or None if there is none.
    """
    if gpu is None:
        return [
            "There is no NVIDIA GPU here, and TensorRT-LLM runs on nothing else. Use vLLM or llama.cpp on "
            "this machine, or run this on one with a GPU and docker."
        ]
    found = []
    cache = settings.get("kv_cache_config")
    for where, wanted in (
        ("dtype", settings.get("dtype")),
        ("kv_cache_config.dtype", cache.get("dtype") if isinstance(cache, Mapping) else None),
    ):
        level, instead = NEEDS.get(str(wanted), (0.0, ""))
        if gpu.capability < level:
            found.append(
                f"{where}: {gpu.name} (compute capability {gpu.capability}) has no {wanted}, which needs "
                f"{level}. Write {instead}."
            )
    return found


def model_faults(settings: Mapping[str, Any], model: str, gpu: Gpu | None) -> list[str]:
    """Return what speaks against a local checkpoint with these settings on this GPU; a hub id isn't read."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return []
    found = []
    config = _json(folder / "config.json")
    method = settings.get("speculative_config")
    if (
        isinstance(method, Mapping)
        and method.get("decoding_type") == "MTP"
        and not (config.get("num_nextn_predict_layers") or method.get("speculative_model"))
    ):
        found.append(
            f"speculative_config: {folder.name} has no layers for multi-token prediction, because its "
            "config.json has no num_nextn_predict_layers. Take Eagle3 with a draft model, or NGram."
        )
    weights = str(
        _json(folder / "hf_quant_config.json").get("quantization", {}).get("quant_algo", "")
    )
    level, _ = NEEDS.get(weights.lower(), (0.0, ""))
    if gpu is not None and gpu.capability < level:
        found.append(
            f"The weights of {folder.name} are {weights}, which needs compute capability {level}, but "
            f"{gpu.name} has {gpu.capability}. Take the model's bfloat16 checkpoint."
        )
    return found


def refuse(model: str | None, choices: Mapping[str, Any], extra_arguments: Sequence[str]) -> None:
    """Refuse what the engine would not start with, before anything starts.

    Args:
        model: Folder or hub id that is asked for.
        choices: The profile's fields, and those of `launch` over them. `config` is the YAML file.
        extra_arguments: Extra arguments of `launch`.

    Raises:
        UnsupportedOption: An engine build, a file that the engine refuses, or one that this GPU can't run.
    """
    asked = " ".join(extra_arguments).replace("--backend tensorrt", "--backend=tensorrt")
    if any(word in asked for word in _BUILDERS) or (model and _is_engine(Path(model).expanduser())):
        raise UnsupportedOption(REMOVED)
    settings: dict[str, Any] = {}
    if config := choices.get("config"):
        path = Path(config).expanduser()
        if not path.is_file():
            raise UnsupportedOption(
                f"There is no configuration at {path}. Write one with write_settings."
            )
        settings = read_settings(path.read_text(encoding="utf-8"))
    gpu = this_gpu()
    faults = refusals(settings, int(choices.get("context_length") or 0))
    if model:
        faults += model_faults(settings, model, gpu)
    if gpu is not None:  # without one, `launch` says that it does not run here
        faults += device_faults(settings, gpu)
    require_none(faults)


def _is_engine(folder: Path) -> bool:
    built = folder.is_dir() and any(folder.glob("*.engine"))
    return built or "build_config" in _json(folder / "config.json")


def _json(file: Path) -> dict[str, Any]:
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
