"""Engines that each lab starts on a GPU, their sizes, and whether a GPU has room. Standard library only.

A lab starts its engines in waves. The engines of a wave run at the same time, and all of them are stopped
before the next wave starts. So a lab fits if its largest wave does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from utils.gpu import Gpu
from utils.memory_plan import Need, config_of, kv_type, need
from utils.model_sizes import GIB, bytes_per_token

# Memory of a notebook that computes on the GPU itself with the tiny model: CUDA's context, PyTorch's cache.
NOTEBOOK_BYTES = 1e9
# A KV cache grows until a single engine takes this share of the GPU, so that a desktop has room too.
KV_SHARE = 0.9
SLOT_STEP = 256  # contexts of slots are multiples of it, tokens
# Each of lab 3.3.6's llama.cpp, which are compared by their types.
TYPES_SLOTS, TYPES_CONTEXT = 4, 1024
# Each of lab 3.3.7's three llama.cpp. With four slots, two engines still hold all users after one has died.
GATEWAY_SLOTS, GATEWAY_CONTEXT = 4, 2048
# Each of lab 3.3.7's two vLLM: the prompts of all groups stay in the prefix cache.
REPLICA_SEQUENCES, REPLICA_CONTEXT, REPLICA_KV_TOKENS = 16, 2048, 8192


class Profile(Protocol):
    """Sizes of a `utils.profiles.Profile`, which is made with these plans."""

    @property
    def device(self) -> str:
        """Device that engines compute on."""

    @property
    def dtype(self) -> str:
        """Data type of weights."""

    @property
    def models(self) -> Mapping[str, str]:
        """Model by engine name."""

    @property
    def context_length(self) -> int:
        """Longest prompt plus output, tokens."""

    @property
    def max_sequences(self) -> int:
        """Most requests at once."""

    @property
    def kv_cache_gib(self) -> float:
        """KV-cache budget, GiB."""

    @property
    def load(self) -> Any:
        """Sizes of the benchmarks."""


@dataclass(frozen=True)
class Start:
    """One engine that a lab starts.

    Attributes:
        engine: Engine name.
        options: Options of `launch`.
    """

    engine: str
    options: Mapping[str, Any] = field(default_factory=dict)


Wave = tuple[Start, ...]


def slot_tokens(profile: Profile) -> int:
    """Return the context of one slot that the profile's load needs, in tokens."""
    load = profile.load
    longest: int = max(load.prompt_tokens, load.prefill_tokens) + load.output_tokens
    return -(-longest // SLOT_STEP) * SLOT_STEP


def engine_sizes(engine: str, profile: Profile) -> dict[str, Any]:
    """Return the options that an engine gets on a GPU in place of the profile's.

    llama.cpp and Ollama reserve a whole context for every slot. So they get as many slots as the load has
    requests in flight, and a context that is as long as its requests.
    """
    if engine not in ("llama_cpp", "ollama") or profile.device != "cuda":
        return {}
    return {"max_sequences": max(profile.load.levels), "context_length": slot_tokens(profile)}


def gateway_replicas(profile: Profile) -> dict[str, dict[str, Any]]:
    """Return the options of lab 3.3.7's three llama.cpp, by name."""
    options: dict[str, Any] = {"engine": "llama_cpp", "max_sequences": 16}
    if profile.device == "cuda":
        options |= {
            "model": profile.models["llama_cpp_quantised"],
            "max_sequences": GATEWAY_SLOTS,
            "context_length": GATEWAY_CONTEXT,
        }
    return {name: options for name in ("first", "second", "third")}


def prefix_replicas(profile: Profile) -> dict[str, dict[str, Any]]:
    """Return the options of lab 3.3.7's two vLLM, by name."""
    options: dict[str, Any] = {}
    if profile.device == "cuda":
        options = {
            "max_sequences": REPLICA_SEQUENCES,
            "context_length": REPLICA_CONTEXT,
            "kv_cache_gib": kv_gib(profile, REPLICA_KV_TOKENS),
        }
    return {name: options for name in ("left", "right")}


def kv_gib(profile: Profile, tokens: int) -> float:
    """Return the GiB of KV cache that `tokens` tokens of the profile's vLLM model need, rounded up to 1/8."""
    config = config_of(profile.models["vllm"])
    if config is None:
        return profile.kv_cache_gib
    size = tokens * bytes_per_token(config, kv_type("vllm", profile.dtype, None))
    return -(-8 * size // GIB) / 8


def _tight_pair(profile: Profile) -> Wave:
    # The cache of lab 3.3.2's section 6 holds 10.5 prompts (`experiments.order_queue`).
    tokens = round(10.5 * profile.load.prompt_tokens)
    options = {"kv_blocks": tokens, "max_sequences": 1, "context_length": tokens}
    return Start("sglang", options), Start("sglang", options)


def _alone(*engines: str) -> Callable[[Profile], Sequence[Wave]]:
    return lambda profile: [(Start(name),) for name in engines if name in profile.models]


def _speculating(profile: Profile) -> Sequence[Wave]:
    waves: list[Wave] = [(Start("vllm"),)]
    if heads := profile.models.get("eagle3_heads"):
        waves += [(Start(engine, {"draft": heads}),) for engine in ("vllm", "sglang")]
    return waves


def _quantised(profile: Profile) -> Wave:
    return (Start("llama_cpp", {"model": profile.models["llama_cpp_quantised"]}),)


def _lab_6(profile: Profile) -> Sequence[Wave]:
    small = {"max_sequences": TYPES_SLOTS, "context_length": TYPES_CONTEXT}
    vllm = {"max_sequences": 16}
    compared = _alone("tensorrt_llm", "vllm", "sglang")(profile)
    return [(Start("vllm", vllm),), (Start("llama_cpp", small),), *compared]


def _lab_7(profile: Profile) -> Sequence[Wave]:
    first, second = gateway_replicas(profile), prefix_replicas(profile)
    return [
        tuple(
            Start("llama_cpp", {k: v for k, v in options.items() if k != "engine"})
            for options in first.values()
        ),
        tuple(Start("vllm", options) for options in second.values()),
    ]


# Waves of each lab, and memory that its notebook takes itself while they run, in bytes.
LABS: Mapping[int, tuple[Callable[[Profile], Sequence[Wave]], float]] = {
    1: (
        lambda p: [
            *_alone("vllm", "llama_cpp", "transformers", "sglang", "tensorrt_llm", "ollama")(p),
            _quantised(p),
        ],
        NOTEBOOK_BYTES,
    ),
    2: (lambda p: [*_alone("sglang", "vllm")(p), _tight_pair(p)], 0.0),
    3: (_alone("vllm", "llama_cpp"), 0.0),
    4: (_speculating, NOTEBOOK_BYTES),
    5: (_speculating, NOTEBOOK_BYTES),
    6: (_lab_6, NOTEBOOK_BYTES),
    7: (_lab_7, 0.0),
}


def need_of(start: Start, profile: Profile) -> Need | None:
    """Compute the memory of one engine with the options that `launch` would give it."""
    options = {
        "context_length": profile.context_length,
        "max_sequences": profile.max_sequences,
        "kv_cache_gib": profile.kv_cache_gib,
        "dtype": profile.dtype,
        "model": profile.models.get(start.engine),
        **engine_sizes(start.engine, profile),
        **start.options,
    }
    model = options.pop("model")
    return None if model is None else need(start.engine, str(model), **options)


@dataclass(frozen=True)
class LabPlan:
    """Largest wave of a lab.

    Attributes:
        needs: Need of each engine of the wave.
        notebook: Memory that the notebook takes itself, in bytes.
    """

    needs: tuple[Need, ...]
    notebook: float

    @property
    def total(self) -> float:
        """Memory of all engines of the wave and the notebook, in bytes."""
        return sum(each.total for each in self.needs) + self.notebook

    def fits(self, room: float) -> bool:
        """Return whether `room` bytes are enough."""
        return self.total <= room


def lab_plan(lab: int, profile: Profile) -> LabPlan:
    """Plan the largest wave of a lab. Engines whose model isn't known here are left out."""
    waves, notebook = LABS[lab]
    plans = []
    for wave in waves(profile):
        needs = (need_of(start, profile) for start in wave)
        plans.append(LabPlan(tuple(each for each in needs if each is not None), notebook))
    return max(plans, key=lambda plan: plan.total)


def largest_plan(profile: Profile) -> LabPlan:
    """Return the plan of the lab that needs most memory."""
    return max((lab_plan(lab, profile) for lab in LABS), key=lambda plan: plan.total)


def largest_kv_gib(profile: Profile, gpu: Gpu, most: float) -> float:
    """Return the KV-cache budget that leaves room for a vLLM with a draft model, and for a notebook.

    It is a multiple of 0.25 GiB up to `most`, or the least that the load needs if that is more.
    """
    start = Start("vllm", {"draft": profile.models.get("eagle3_heads"), "kv_cache_gib": 0.0})
    others = need_of(start, profile)
    if others is None:
        return profile.kv_cache_gib
    left = KV_SHARE * gpu.whole_room - NOTEBOOK_BYTES - others.total
    return max(min(most, int(4 * left / GIB) / 4), least_kv_gib(profile))


def least_kv_gib(profile: Profile) -> float:
    """Return the KV-cache budget in GiB of one request of the full context, or of the load's peak."""
    load = profile.load
    peak = max(load.levels) * (load.prompt_tokens + load.output_tokens)
    return kv_gib(profile, max(profile.context_length, peak))
