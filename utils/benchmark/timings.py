"""What an engine says about where a request's time went, in one form.

Ollama's last line has counts and nanoseconds (docs/api.md), llama.cpp's last chunk `timings` in milliseconds
(tools/server/README.md). Both are the engine's own clock, without the network.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from utils.benchmark.trace import RequestTrace

# Ours: the field that holds it, and its unit in seconds (1 for counts).
_OLLAMA = {
    "total_s": ("total_duration", 1e-9),
    "load_s": ("load_duration", 1e-9),
    "prefill_s": ("prompt_eval_duration", 1e-9),
    "decode_s": ("eval_duration", 1e-9),
    "prefill_tokens": ("prompt_eval_count", 1),
    "decode_tokens": ("eval_count", 1),
}
_LLAMA_CPP = {
    "prefill_s": ("prompt_ms", 1e-3),
    "decode_s": ("predicted_ms", 1e-3),
    "prefill_tokens": ("prompt_n", 1),
    "decode_tokens": ("predicted_n", 1),
}


def read_timings(values: object) -> dict[str, float] | None:
    """Reads the `timings` of an answer.

    Returns:
        `prefill_s`, `decode_s` in seconds, `prefill_tokens`, `decode_tokens`; of Ollama also `total_s`,
        `load_s`, and `waited_s`, the rest of the total: it waits for a slot after loading (llm/server.go at
        v0.24.0). None for what is no such block.
    """
    if not isinstance(values, Mapping):
        return None
    for names in (_OLLAMA, _LLAMA_CPP):
        if names["decode_s"][0] in values:
            found = {
                ours: _number(values.get(field)) * unit for ours, (field, unit) in names.items()
            }
            if "total_s" in found:
                worked = found["load_s"] + found["prefill_s"] + found["decode_s"]
                found["waited_s"] = max(0.0, found["total_s"] - worked)
            return found
    return None


def median_timings(traces: Sequence[RequestTrace]) -> dict[str, float]:
    """Medians over the requests whose engine said something, and rates; {} if none did.

    Returns:
        The keys of `read_timings`, and `prefill_rate`, `decode_rate`: medians of tokens per second.
    """
    text = [t.engine_timings for t in traces if t.ok and t.engine_timings]
    if not text:
        return {}
    found = {key: median(one[key] for one in text if key in one) for key in text[0]}
    for phase in ("prefill", "decode"):
        rates = [
            one[f"{phase}_tokens"] / one[f"{phase}_s"]
            for one in text
            if one.get(f"{phase}_s", 0) > 0
        ]
        if rates:
            found[f"{phase}_rate"] = median(rates)
    return found


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else 0.0
