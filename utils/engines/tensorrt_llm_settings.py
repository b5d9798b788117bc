"""Settings of `trtllm-serve --config`, checked before a container starts.

A file is a plain dictionary with TensorRT-LLM's own keys. `tensorrt_llm_schema` knows the keys and the kinds
of their values. The rules here are those that a schema can't express. Each is worded as the engine's
behaviour and names its place in NVIDIA/TensorRT-LLM, where it was read on 2026-12-01. It wasn't run on a GPU,
so the engine that runs has the last word.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any

import yaml

from utils.engines.engine_errors import UnsupportedOption
from utils.engines.tensorrt_llm_schema import SCHEMA_VERSION, deprecated_keys, schema_faults

LLM_ARGS = "tensorrt_llm/llmapi/llm_args.py"
REMOVED = (
    "TensorRT-LLM builds no engines any more. Since 1.3.0rc22 at the latest (July 2026) it has no "
    "trtllm-build, no convert_checkpoint.py and no backend for their files. The PyTorch backend loads a "
    "Hugging Face checkpoint directly: launch('tensorrt_llm', model='owner/name'), or `trtllm-serve "
    "owner/name`."
)
REMOVAL_GUIDE = "docs/source/legacy/tensorrt-backend-removal.md"
REMOVED_KEYS = ("build_config", "enable_build_cache", "fast_build", "calib_config", "engine_dir")
# Types of the KV cache that the engine has a quantisation for, and the unquantised ones.
KV_DTYPES = ("auto", "float16", "bfloat16", "float32", "fp8", "fp8_ds_mla", "nvfp4")
# Without the overlap scheduler: SpeculativeDecodingMode.support_overlap_scheduler is false for them.
NO_OVERLAP = ("NGram", "SaveState", "User_Provided")
NEED_DRAFT_MODEL = ("Eagle", "Eagle3", "Draft_Target", "PARD", "DFlash")
DEFAULT_GRAPH_LIMIT = 128


class Effect(StrEnum):
    """The engine's reaction to a setting."""

    REFUSES = "refuses to start"
    REJECTS = "rejects such requests"
    SWITCHES_OFF = "switches something off"
    IGNORES = "ignores it"
    WARNS = "warns"


@dataclass(frozen=True)
class SettingNote:
    """Remark on a file of settings.

    Attributes:
        effect: The engine's reaction.
        text: The setting, the reason, and a proposal.
        source: Place in NVIDIA/TensorRT-LLM.
    """

    effect: Effect
    text: str
    source: str


def settings_notes(values: Mapping[str, Any], context_length: int = 0) -> list[SettingNote]:
    """Return the remarks on a file, the refusals first.

    Args:
        values: Content of the file.
        context_length: Longest prompt plus output that the engine is started for, in tokens. 0 leaves it out.
    """
    removed = [key for key in REMOVED_KEYS if key in values]
    if values.get("backend", "pytorch") != "pytorch":
        removed.insert(0, "backend")
    notes = [SettingNote(Effect.REFUSES, f"{key}: {REMOVED}", REMOVAL_GUIDE) for key in removed]
    rest = {key: value for key, value in values.items() if key not in removed}
    schema = f"JSON Schema of {SCHEMA_VERSION}"
    notes += [SettingNote(Effect.REFUSES, text, schema) for text in schema_faults(rest)]
    if notes:
        return notes  # the rules below rely on the right kinds of values
    found = [
        *_graph_notes(values),
        *_cache_notes(values),
        *_speculation_notes(values),
        *_prompt_notes(values, context_length),
        *_deprecation_notes(values),
    ]
    return sorted(found, key=lambda note: note.effect is not Effect.REFUSES)


def _graph_notes(values: Mapping[str, Any]) -> Iterator[SettingNote]:
    graphs = values.get("cuda_graph_config") or {}
    sizes, limit = graphs.get("batch_sizes") or [], graphs.get("max_batch_size") or 0
    if sizes and limit not in (0, max(sizes)):
        yield SettingNote(
            Effect.REFUSES,
            f"cuda_graph_config.max_batch_size is {limit}, but the largest of batch_sizes is {max(sizes)}. "
            "Leave out one of the two.",
            f"{LLM_ARGS}, validate_cuda_graph_config",
        )
    largest = largest_decode_batch(values)
    too_large = [size for size in sizes if largest and size > largest]
    if too_large:
        listed = ", ".join(map(str, too_large))
        yield SettingNote(
            Effect.IGNORES,
            f"cuda_graph_config.batch_sizes has {listed}, but at most {largest} requests decode together. "
            "Leave these sizes out, or raise max_batch_size and max_num_tokens.",
            "tensorrt_llm/_torch/pyexecutor/model_engine.py, _filter_cuda_graph_batch_sizes",
        )


def largest_decode_batch(values: Mapping[str, Any]) -> int:
    """Return the most requests that can decode in a step, or 0 if the file doesn't say.

    Each request takes a token of the step, and one more for each token of its draft.
    """
    limits = []
    if requests := values.get("max_batch_size"):
        limits.append(requests)
    if tokens := values.get("max_num_tokens"):
        speculation = values.get("speculative_config") or {}
        drafted = speculation.get("max_total_draft_tokens") or speculation.get("max_draft_len") or 0
        limits.append(tokens // (1 + drafted))
    return min(limits, default=0)


def _cache_notes(values: Mapping[str, Any]) -> Iterator[SettingNote]:
    cache = values.get("kv_cache_config", {})
    if (dtype := cache.get("dtype", "auto")) not in KV_DTYPES:
        yield SettingNote(
            Effect.WARNS,
            f"kv_cache_config.dtype is {dtype!r}, which the engine has no quantisation for. Write one of "
            f"{', '.join(KV_DTYPES)}.",
            f"{LLM_ARGS}, sync_quant_config_with_kv_cache_config_dtype",
        )
    block = cache.get("tokens_per_block", 32)
    if block < 2 or block & (block - 1):
        yield SettingNote(
            Effect.REFUSES,
            f"kv_cache_config.tokens_per_block is {block}. Write a power of two above 1, such as 32.",
            "docs/source/features/kvcache.md",
        )
    if values.get("enable_iter_req_stats") and not values.get("enable_iter_perf_stats"):
        yield SettingNote(
            Effect.IGNORES,
            "enable_iter_req_stats needs enable_iter_perf_stats: true.",
            f"JSON Schema of {SCHEMA_VERSION}, enable_iter_req_stats",
        )


def _speculation_notes(values: Mapping[str, Any]) -> Iterator[SettingNote]:
    method = values.get("speculative_config")
    if not method:
        return
    kind, where = method["decoding_type"], "speculative_config"
    if kind in NO_OVERLAP and not values.get("disable_overlap_scheduler"):
        yield SettingNote(
            Effect.SWITCHES_OFF,
            f"{kind} runs without the overlap scheduler, so the engine switches that off and goes on. Each "
            "step then waits for the one before. Write disable_overlap_scheduler: true to say it yourself.",
            "tensorrt_llm/_torch/pyexecutor/py_executor_creator.py, create_py_executor",
        )
    if kind in NEED_DRAFT_MODEL and not (
        method.get("speculative_model") or method.get("speculative_model_dir")
    ):
        yield SettingNote(
            Effect.REFUSES,
            f"{where} of {kind} has no draft model. Give speculative_model a folder or a hub id.",
            f"{LLM_ARGS}, validate_speculative_config",
        )
    if method.get("use_dynamic_tree") and not method.get("dynamic_tree_max_topK"):
        yield SettingNote(
            Effect.REFUSES,
            f"{where}.use_dynamic_tree needs dynamic_tree_max_topK, the candidates per node.",
            f"JSON Schema of {SCHEMA_VERSION}, dynamic_tree_max_topK",
        )
    if method.get("draft_len_schedule"):
        yield from _schedule_notes(method)


def _schedule_notes(method: Mapping[str, Any]) -> Iterator[SettingNote]:
    schedule, source = method["draft_len_schedule"], f"{LLM_ARGS}, DecodingBaseConfig"
    where = "speculative_config.draft_len_schedule"
    whole = all(type(n) is int for pair in schedule.items() for n in pair)
    if not whole or min(schedule) < 1 or min(schedule.values()) < 0:
        text = (
            f"{where} maps batch sizes from 1 on to draft lengths from 0 on, but it is {schedule}."
        )
        yield SettingNote(Effect.REFUSES, text, source)
        return
    longest, first = method.get("max_draft_len"), min(schedule)
    if longest is not None and schedule[first] != longest:
        yield SettingNote(
            Effect.REFUSES,
            f"{where} has {schedule[first]} for its smallest batch size, {first}. Write max_draft_len there, "
            f"which is {longest}.",
            source,
        )
    elif longest is not None and max(schedule.values()) > longest:
        text = f"{where} has {max(schedule.values())}, which is more than max_draft_len, {longest}."
        yield SettingNote(Effect.REFUSES, text, source)
    if method.get("max_concurrency"):
        yield SettingNote(
            Effect.REFUSES,
            f"{where} and max_concurrency exclude each other, because the schedule drafts nothing above its "
            "largest batch size. Leave out max_concurrency.",
            source,
        )


def _prompt_notes(values: Mapping[str, Any], context_length: int) -> Iterator[SettingNote]:
    tokens = values.get("max_num_tokens") or 8192
    longest = values.get("max_seq_len") or context_length
    if longest > tokens and not values.get("enable_chunked_prefill"):
        yield SettingNote(
            Effect.REJECTS,
            f"A prompt of more than max_num_tokens, {tokens}, has to fit into one step, so such a request "
            "gets an error. Write enable_chunked_prefill: true, or raise max_num_tokens.",
            "tensorrt_llm/llmapi/llm.py, _check_arguments",
        )


def _deprecation_notes(values: Mapping[str, Any]) -> Iterator[SettingNote]:
    source = f"JSON Schema of {SCHEMA_VERSION}"
    for key in deprecated_keys(values):
        text = f"{key} is deprecated. Leave it out."
        if key.endswith(".num_nextn_predict_layers"):
            text = f"{key} is read from the checkpoint. Write max_draft_len instead."
        yield SettingNote(Effect.WARNS, text, source)
    if (values.get("speculative_config") or {}).get("decoding_type") == "Eagle":
        text = "speculative_config.decoding_type Eagle is an alias. Write Eagle3."
        yield SettingNote(Effect.WARNS, text, f"{LLM_ARGS}, Eagle3DecodingConfig")


def refusals(values: Mapping[str, Any], context_length: int = 0) -> list[str]:
    """Return the remarks for which the engine refuses to start."""
    notes = settings_notes(values, context_length)
    return [note.text for note in notes if note.effect is Effect.REFUSES]


def require_none(faults: list[str]) -> None:
    """Refuse a start that the faults forbid.

    Raises:
        UnsupportedOption: There are faults. The message lists them.
    """
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise UnsupportedOption(f"TensorRT-LLM would not start with this:\n{lines}")


def read_settings(text: str) -> dict[str, Any]:
    """Return the settings in a file's text.

    Raises:
        UnsupportedOption: The text isn't YAML, or it has no keys.
    """
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise UnsupportedOption(f"The configuration isn't valid YAML: {error}") from error
    if not isinstance(values, dict) or not values:
        raise UnsupportedOption(
            "The configuration has no keys. Write at least one, such as `dtype: bfloat16`."
        )
    return values


def write_settings(values: Mapping[str, Any], path: str | Path, context_length: int = 0) -> Path:
    """Write settings to a YAML file, and print the remarks on them.

    Args:
        values: Settings with TensorRT-LLM's own keys.
        path: The file.
        context_length: See `settings_notes`.

    Raises:
        UnsupportedOption: The engine would refuse them. Nothing is written.
    """
    notes = settings_notes(values, context_length)
    require_none([note.text for note in notes if note.effect is Effect.REFUSES])
    for note in notes:
        print(f"TensorRT-LLM {note.effect}: {note.text}")
    path = Path(path)
    path.write_text(yaml.safe_dump(dict(values), sort_keys=False), encoding="utf-8")
    return path
