"""Measurement of every engine of lab 3.3.1, the engines in turn."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from utils.benchmark import Record
from utils.benchmark.sweep import Prefill, measure_prefill, sweep
from utils.engines import ENGINES, RunningEngine
from utils.engines.engine_errors import FAILURES, reason_of
from utils.engines.fleet import Fleet
from utils.engines.launch import MissingEngine, quantisation_of
from utils.profiles import Profile

ONE_SLOT = "one slot"


@dataclass
class Rounds:
    """Results of some rounds over the engines.

    Attributes:
        records: One record for each engine, level and round.
        prefills: Prefill rate by label, measured in the first round.
        not_run: Reasons why an engine wasn't measured, or not to the end, by label.
    """

    records: list[Record] = field(default_factory=list)
    prefills: dict[str, Prefill] = field(default_factory=dict)
    not_run: dict[str, str] = field(default_factory=dict)


def variants(profile: Profile) -> dict[str, dict[str, Any]]:
    """Return the options of `launch` for every engine of the lab, by label."""
    found: dict[str, dict[str, Any]] = {"vLLM": {"engine": "vllm"}}
    for key in ("llama_cpp", "llama_cpp_quantised"):
        model = profile.models[key]
        label = f"llama.cpp {quantisation_of(model, profile.dtype)}"
        found[label] = {"engine": "llama_cpp", "model": model}
    found[f"{label}, {ONE_SLOT}"] = {"engine": "llama_cpp", "model": model, "max_sequences": 1}
    found["transformers"] = {"engine": "transformers"}
    for name in ("sglang", "tensorrt_llm", "ollama"):
        found[ENGINES[name].title] = {"engine": name}
    return found


def start_fleet(
    profile: Profile, first: RunningEngine | MissingEngine, not_run: Mapping[str, str]
) -> Fleet:
    """Start every engine of the lab that can run next to others, one after the other.

    Args:
        profile: Profile of this machine.
        first: Engine of the lab's first sections. It joins the fleet if it is vLLM, and is stopped if not.
        not_run: Reasons by label of engines that are not tried again.
    """
    running: dict[str, RunningEngine] = {}
    if isinstance(first, RunningEngine):
        if first.name == "vllm":
            running["vLLM"] = first
        else:
            first.stop()
    wanted = {
        label: options for label, options in variants(profile).items() if label not in not_run
    }
    return Fleet(profile, wanted, one_by_one=True, running=running)


def levels_of(label: str, profile: Profile) -> tuple[Sequence[int], Sequence[int]]:
    """Return the levels of an engine, and the number of requests at each.

    An engine with one slot gets one level. The naive server gets fewer requests, and not the highest level,
    because it serves one at a time and would only let everybody wait longer.
    """
    levels = profile.load.levels
    if label.endswith(ONE_SLOT):
        levels = levels[:1]
    elif label == "transformers":
        return levels[:-1], [max(4, level) for level in levels[:-1]]
    return levels, [profile.load.requests_at(level) for level in levels]


def measure_rounds(fleet: Fleet, profile: Profile, rounds: int = 3) -> Rounds:
    """Measure every engine of a fleet at its levels, the engines in turn.

    Turns spread a slow phase of the machine over all engines, and runs of the same round can be compared in
    pairs. An engine that fails is left out from then on.
    """
    done = Rounds()

    def work(label: str, engine: RunningEngine, turn: int) -> None:
        if label in done.not_run:
            return
        levels, counts = levels_of(label, profile)
        try:
            done.records += sweep(
                engine,
                profile,
                label=label,
                levels=levels,
                requests_at=counts,
                output=profile.load.round_tokens,
                round_number=turn,
            )
            if turn == 0 and not label.endswith(ONE_SLOT):
                length = profile.load.prefill_tokens
                done.prefills[label] = measure_prefill(engine, profile, length=length)
        except FAILURES as error:
            done.not_run[label] = reason_of(error)
            print(f"{label}: {error}")

    fleet.each(work, turns=rounds, in_turn=True)
    done.not_run |= fleet.reasons
    return done
