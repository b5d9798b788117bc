"""The YAML file of `trtllm-serve --config`, written from typed settings and checked before anything starts.

Sources: NVIDIA/TensorRT-LLM, tensorrt_llm/llmapi/llm_args.py (TorchLlmArgs, KvCacheConfig, CudaGraphConfig
and the classes of speculative decoding), in two readings: one that still has TrtLlmArgs beside them, one from
after its removal. Speculation was read in both, the other keys in the earlier one; neither is the tag of our
container. What those classes refuse is refused here in the same cases, and with what to change.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import yaml

from utils.engines.engine_errors import UnsupportedOption

T = TypeVar("T")
DTYPES = ("auto", "bfloat16", "float16", "float32")
KV_DTYPES = ("auto", "fp8", "nvfp4")
GUIDED_DECODING = ("xgrammar", "llguidance")

REMOVED = (
    "TensorRT-LLM builds no engines any more: trtllm-build, convert_checkpoint and the backend "
    "that ran their "
    "files were removed (docs/source/legacy/tensorrt-backend-removal.md). The PyTorch backend "
    "loads a Hugging "
    "Face checkpoint directly: launch('tensorrt_llm', model='owner/name'), that is "
    "`trtllm-serve owner/name`."
)
# Keys of earlier versions, and of the removed backend: what stands in their place.
FORMER: Mapping[str, str] = {
    "pytorch_backend_config": "its keys stand at the top level now",
    "use_cuda_graph": "cuda_graph_config; null switches graphs off",
    "cuda_graph_batch_sizes": "cuda_graph_config: {batch_sizes: [...]}",
    "cuda_graph_max_batch_size": "cuda_graph_config: {max_batch_size: N}",
    "kv_cache_dtype": "kv_cache_config: {dtype: fp8}",
    "decoding_config": "speculative_config",
    "build_config": REMOVED,
    "enable_build_cache": REMOVED,
    "fast_build": REMOVED,
    "calib_config": REMOVED,
    "engine_dir": REMOVED,
}
# Keys that the version knows and these settings do not write (TorchLlmArgs).
OTHERS = frozenset(
    re.findall(
        r"\w+",
        """
    tokenizer tokenizer_mode custom_tokenizer skip_tokenizer_init trust_remote_code tensor_parallel_size
    revision tokenizer_revision model_kwargs pipeline_parallel_size context_parallel_size gpus_per_node
    moe_cluster_parallel_size moe_tensor_parallel_size moe_expert_parallel_size enable_attention_dp
    pp_partition cp_config load_format enable_lora lora_config batched_logits_processor
    peft_cache_config scheduler_config cache_transceiver_config sparse_attention_config max_beam_width
    num_postprocess_workers reasoning_parser otlp_traces_endpoint perf_metrics_max_requests
    orchestrator_type env_overrides attention_dp_config moe_config nvfp4_gemm_config attn_backend
    sampler_type enable_iter_req_stats print_iter_log batch_wait_timeout_ms batch_wait_timeout_iters
    batch_wait_max_tokens_ratio torch_compile_config enable_autotuner stream_interval allreduce_strategy
    checkpoint_format kv_connector_config max_stats_len max_seq_len
        """,
    )
)


@dataclass(frozen=True)
class KvCache:
    """`kv_cache_config`.

    Attributes:
        dtype: Of keys and values: `auto` (the model's), `fp8` or `nvfp4`.
        enable_block_reuse: Whether requests share blocks with the same beginning.
        free_gpu_memory_fraction: Share of the memory that is free after the weights, 0 to 1.
        max_tokens: Tokens that it holds at most; None for what the memory gives.
    """

    dtype: str = "auto"
    enable_block_reuse: bool = True
    free_gpu_memory_fraction: float = 0.9
    max_tokens: int | None = None

    def faults(self) -> list[str]:
        """What the engine would refuse, and what to write instead."""
        found = []
        if self.dtype not in KV_DTYPES:
            known = ", ".join(KV_DTYPES)
            found.append(f"kv_cache_config.dtype is {self.dtype!r}: write one of {known}.")
        if not 0 < self.free_gpu_memory_fraction <= 1:
            found.append(
                f"kv_cache_config.free_gpu_memory_fraction is {self.free_gpu_memory_fraction}: "
                "it is a share, "
                "more than 0 and at most 1, of the memory left free by the weights."
            )
        return found + _positive("kv_cache_config.max_tokens", self.max_tokens)


@dataclass(frozen=True)
class CudaGraphs:
    """`cuda_graph_config`: batch sizes whose decode step is recorded once and replayed.

    Attributes:
        batch_sizes: Which; empty, the engine chooses them up to `max_batch_size`.
        max_batch_size: Largest; None for the engine's own, 128.
        enable_padding: Whether a batch between two sizes is filled up to the larger one.
    """

    batch_sizes: tuple[int, ...] = ()
    max_batch_size: int | None = None
    enable_padding: bool = False

    def faults(self) -> list[str]:
        """What the engine would refuse, and what to write instead."""
        found = _positive("cuda_graph_config.max_batch_size", self.max_batch_size)
        for size in self.batch_sizes:
            found += _positive("cuda_graph_config.batch_sizes", size)
        largest = max(self.batch_sizes, default=None)
        if largest and self.max_batch_size and self.max_batch_size != largest:
            found.append(
                f"cuda_graph_config.max_batch_size is {self.max_batch_size}, the largest of batch_sizes "
                f"{largest}: leave out one of them."
            )
        return found


@dataclass(frozen=True)
class Drafted:
    """What the methods of `speculative_config` have in common.

    Attributes:
        max_draft_len: Tokens drafted at a time.
    """

    decoding_type: ClassVar[str]
    needs_model: ClassVar[bool] = False
    needs_no_overlap: ClassVar[bool] = False

    max_draft_len: int = 3

    def faults(self) -> list[str]:
        """What the engine would refuse, and what to write instead."""
        found = _positive("speculative_config.max_draft_len", self.max_draft_len)
        if self.needs_model and not getattr(self, "speculative_model", ""):
            found.append(
                f"speculative_config of {self.decoding_type} has no draft model: give "
                "speculative_model, a "
                "folder or a hub id."
            )
        return found


@dataclass(frozen=True)
class Eagle3(Drafted):
    """A one-layer draft that reads the target's hidden states.

    Attributes:
        speculative_model: Its folder or hub id.
    """

    decoding_type = "Eagle3"
    needs_model = True

    speculative_model: str = ""


@dataclass(frozen=True)
class NGram(Drafted):
    """Lookup in the text so far; runs without the overlap scheduler only.

    Attributes:
        max_matching_ngram_size: Longest run of tokens that is looked up.
    """

    decoding_type = "NGram"
    needs_no_overlap = True

    max_matching_ngram_size: int = 2

    def faults(self) -> list[str]:
        """What the engine would refuse, and what to write instead."""
        name = "speculative_config.max_matching_ngram_size"
        return super().faults() + _positive(name, self.max_matching_ngram_size)


@dataclass(frozen=True)
class DraftTarget(Drafted):
    """A small model that drafts for a large one; runs without the overlap scheduler only.

    Attributes:
        speculative_model: Its folder or hub id; of the target's vocabulary.
    """

    decoding_type = "Draft_Target"
    needs_model = True
    needs_no_overlap = True

    speculative_model: str = ""


@dataclass(frozen=True)
class MTP:
    """Multi-token prediction layers that are part of the checkpoint (DeepSeek-V3 and its kin have them).

    Attributes:
        num_nextn_predict_layers: Of them to use; each drafts one token.
    """

    decoding_type: ClassVar[str] = "MTP"
    needs_no_overlap: ClassVar[bool] = False

    num_nextn_predict_layers: int = 1

    def faults(self) -> list[str]:
        """What the engine would refuse, and what to write instead."""
        name = "speculative_config.num_nextn_predict_layers"
        return _positive(name, self.num_nextn_predict_layers)


Speculative = Eagle3 | NGram | DraftTarget | MTP
METHODS: Mapping[str, type[Speculative]] = {
    kind.decoding_type: kind for kind in (Eagle3, NGram, DraftTarget, MTP)
}


@dataclass(frozen=True)
class TrtLlmSettings:
    """What goes into the YAML file; names are the file's own.

    Attributes:
        dtype: Of weights and activations; `auto` is the checkpoint's.
        kv_cache_config: The KV cache.
        cuda_graph_config: CUDA graphs; None: none.
        enable_chunked_prefill: Whether a long prompt is computed in pieces of up to `max_num_tokens`.
        max_batch_size: Most requests in a step.
        max_num_tokens: Most tokens in a step, of all requests together.
        speculative_config: A method of speculative decoding; None: none.
        disable_overlap_scheduler: Whether the scheduler waits for a step to end before it plans the next.
        guided_decoding_backend: What constrains answers, `xgrammar` or `llguidance`; None: they cannot be.
        enable_iter_perf_stats: Whether `/metrics` has statistics of every step.
        return_perf_metrics: Whether Prometheus has latencies of requests.
    """

    dtype: str = "bfloat16"
    kv_cache_config: KvCache = KvCache()
    cuda_graph_config: CudaGraphs | None = CudaGraphs()
    enable_chunked_prefill: bool = False
    max_batch_size: int = 64
    max_num_tokens: int = 8192
    speculative_config: Speculative | None = None
    disable_overlap_scheduler: bool = False
    guided_decoding_backend: str | None = None
    enable_iter_perf_stats: bool = True
    return_perf_metrics: bool = True

    def faults(self, context_length: int = 0) -> list[str]:
        """What could not work, each with what to change; empty: nothing found.

        Args:
            context_length: Longest prompt plus output that the engine is started for, tokens.
        """
        found = []
        if self.dtype not in DTYPES:
            known = ", ".join(DTYPES)
            found.append(
                f"dtype is {self.dtype!r}: write one of {known}. Weights in FP8 or NVFP4 are a "
                "property of the "
                "checkpoint: name one that was quantised, and leave dtype at auto."
            )
        found += _positive("max_batch_size", self.max_batch_size)
        found += _positive("max_num_tokens", self.max_num_tokens)
        found += self.kv_cache_config.faults()
        found += self.cuda_graph_config.faults() if self.cuda_graph_config else []
        if self.max_batch_size > self.max_num_tokens:
            found.append(
                f"max_batch_size {self.max_batch_size} is more than max_num_tokens "
                f"{self.max_num_tokens}: a "
                "decode step has one token of each request. Raise max_num_tokens."
            )
        if not self.enable_chunked_prefill and self.max_num_tokens < context_length:
            found.append(
                f"A prompt of up to {context_length} tokens has to fit into one step of max_num_tokens "
                f"{self.max_num_tokens}: set enable_chunked_prefill: true, or raise max_num_tokens."
            )
        if self.guided_decoding_backend not in (None, *GUIDED_DECODING):
            known = ", ".join(GUIDED_DECODING)
            found.append(
                f"guided_decoding_backend is {self.guided_decoding_backend!r}: write one of {known}."
            )
        return found + self._speculation_faults()

    def _speculation_faults(self) -> list[str]:
        method = self.speculative_config
        if method is None:
            return []
        found = method.faults()
        if method.needs_no_overlap and not self.disable_overlap_scheduler:
            found.append(
                f"speculative_config of {method.decoding_type} does not run with the overlap "
                "scheduler: set "
                "disable_overlap_scheduler: true."
            )
        return found

    def to_yaml(self) -> str:
        """The file's text; what is None is left out, but for graphs, where null switches them off."""
        values = {key: value for key, value in _plain(self).items() if value is not None}
        if self.cuda_graph_config is None:
            values["cuda_graph_config"] = None
        if self.speculative_config is not None:
            method = {"decoding_type": self.speculative_config.decoding_type}
            values["speculative_config"] = method | values["speculative_config"]
        return yaml.safe_dump(values, sort_keys=False)

    def write(self, path: str | Path, context_length: int = 0) -> Path:
        """Writes the file.

        Raises:
            UnsupportedOption: Something could not work (`faults`); nothing is written.
        """
        require_none(self.faults(context_length))
        path = Path(path)
        path.write_text(self.to_yaml(), encoding="utf-8")
        return path

    @classmethod
    def read(cls, text: str) -> TrtLlmSettings:
        """Read settings from a file's text.

        Raises:
            UnsupportedOption: No YAML, a key that the version does not know, or a value of another kind.
        """
        try:
            values = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise UnsupportedOption(f"The configuration is no YAML: {error}") from error
        if not isinstance(values, dict):
            raise UnsupportedOption(
                "The configuration holds no keys: write `dtype: bfloat16` and the like."
            )
        values = dict(values)
        if values.pop("backend", "pytorch") != "pytorch":
            raise UnsupportedOption(f"backend: only pytorch is left. {REMOVED}")
        if isinstance(method := values.get("speculative_config"), dict):
            values["speculative_config"] = _read_method(method)
        if isinstance(cache := values.get("kv_cache_config"), dict):
            values["kv_cache_config"] = _read(KvCache, cache, "kv_cache_config")
        if isinstance(graphs := values.get("cuda_graph_config"), dict):
            values["cuda_graph_config"] = _read(CudaGraphs, graphs, "cuda_graph_config")
        return _read(cls, values, "")


def require_none(faults: list[str]) -> None:
    """Refuses settings with faults.

    Raises:
        UnsupportedOption: There are some; all are named.
    """
    if faults:
        lines = "\n".join(f"  - {fault}" for fault in faults)
        raise UnsupportedOption(f"TensorRT-LLM would not start with this:\n{lines}")


def _read_method(values: dict[str, Any]) -> Speculative:
    values = dict(values)
    kind = values.pop("decoding_type", None)
    if kind not in METHODS:
        known = ", ".join(METHODS)
        more = " Medusa went with the engine builds." if kind == "Medusa" else ""
        raise UnsupportedOption(
            f"speculative_config.decoding_type is {kind!r}: write one of {known}.{more}"
        )
    return _read(METHODS[kind], values, "speculative_config")


def _read(kind: type[T], values: Mapping[str, Any], where: str) -> T:
    types = {field.name: str(field.type) for field in dataclasses.fields(kind)}  # type: ignore[arg-type]
    for key, value in values.items():
        name = f"{where}.{key}" if where else key
        if key not in types:
            raise UnsupportedOption(_unknown(key, name, list(types), top=not where))
        _require_type(name, value, types[key])
    return kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in values.items()})


def _unknown(key: str, name: str, known: list[str], *, top: bool) -> str:
    if top and key in FORMER:
        return f"{name} is a key of earlier versions. Now: {FORMER[key]}"
    if top and key in OTHERS:
        return (
            f"TensorRT-LLM knows {name}, but these settings do not write it: for that, start "
            "trtllm-serve by hand, with a file of your own."
        )
    near = difflib.get_close_matches(key, [*known, *(OTHERS if top else ())], n=1, cutoff=0.5)
    guess = f" Did you mean {near[0]}?" if near else ""
    if not top:
        return (
            f"These settings do not write the key {name}.{guess} If your version of TensorRT-LLM has "
            "it, start trtllm-serve by hand, with a file of your own."
        )
    return f"This version of TensorRT-LLM does not know the key {name}, and would not start.{guess}"


_KINDS: Mapping[str, tuple[type, ...]] = {
    "str": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "tuple[int, ...]": (list, tuple),
    "None": (type(None),),
}


def _require_type(name: str, value: Any, declared: str) -> None:
    parts = declared.split(" | ")
    if not all(part in _KINDS for part in parts):  # a class of its own, read before
        parts = [part for part in parts if part in _KINDS]
        if not isinstance(value, (bool, int, float, str, list, tuple)):
            return
    allowed = tuple(kind for part in parts for kind in _KINDS[part])
    right = isinstance(value, allowed) and (not isinstance(value, bool) or bool in allowed)
    whole = not isinstance(value, (list, tuple)) or all(type(item) is int for item in value)
    if not (right and whole):
        wanted = (
            " or ".join(parts).replace("tuple[int, ...]", "a list of whole numbers")
            or "keys of its own"
        )
        raise UnsupportedOption(f"{name} is {value!r}: write {wanted}.")


def _positive(name: str, value: int | None) -> list[str]:
    if value is None or value > 0:
        return []
    return [f"{name} is {value}: write a whole number from 1 on, or leave it out."]


def _plain(settings: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for field in dataclasses.fields(settings):
        value = getattr(settings, field.name)
        if dataclasses.is_dataclass(value):
            value = {k: v for k, v in _plain(value).items() if v not in (None, ())}
        found[field.name] = list(value) if isinstance(value, tuple) and value else value
    return found
