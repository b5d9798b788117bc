"""Chunked prefill on vLLM: how long a long prompt waits for its first token, and others for their next."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from statistics import median
from typing import Any

import pandas as pd

from utils.benchmark import Client, OpenLoop, Request, RequestTrace, make_record, run, write_record
from utils.benchmark.sweep import prompts
from utils.engines import EngineError, RunningEngine
from utils.profiles import Profile

OTHERS = 3  # requests that decode when the long prompt comes
RATE = 4.0  # arrivals per second: the others, then the long one
LONG = "long"


def variants(profile: Profile) -> dict[str, dict[str, Any]]:
    """Options of `launch("vllm", ...)`: one engine for each chunk size."""
    return {
        f"chunks of {chunk}": {
            "extra_arguments": ("--max-num-batched-tokens", str(chunk)),
            "max_sequences": 16,
            "prefix_caching": False,
        }
        for chunk in profile.load.inside.chunks
    }


@dataclass(frozen=True)
class Waits:
    """Waits of one long prompt, and of the other requests.

    Attributes:
        chunk: Most tokens in a step.
        ttft_s: Time to the long request's first token, seconds.
        stall_s: Longest time that another request waited for its next token meanwhile, seconds.
        quiet_s: Median time between tokens of the others when no prompt was computed, seconds.
        steps: Steps that the prompt took, derived: its tokens over the chunk size, rounded up.
    """

    chunk: int
    ttft_s: float
    stall_s: float
    quiet_s: float
    steps: int


def requests_for(profile: Profile) -> list[Request]:
    """Return the others, who answer long, then one long prompt with a short answer; no prefix is shared."""
    sizes = profile.load.inside
    short = prompts(profile, OTHERS, output=sizes.others_tokens)
    long = prompts(profile, 1, length=sizes.long_prompt, output=4)
    return [
        *(replace(request, tag="other") for request in short),
        *(replace(request, tag=LONG) for request in long),
    ]


def measure_waits(engine: RunningEngine, profile: Profile, chunk: int, label: str) -> Waits:
    """Let a long prompt arrive while others decode; write a record.

    Raises:
        EngineError: A request failed, or nobody was decoding when the prompt came.
    """
    requests = requests_for(profile)
    client = Client(engine.base_url, engine.model, api="completions")
    result = run(
        client,
        requests,
        OpenLoop(RATE, math.inf),
        warmup=prompts(profile, 1),
        label=f"{label}, {chunk}",
        alive=engine.running,
    )
    record = make_record(result, engine, profile, label=label, extra={"chunk": chunk})
    write_record(record)
    return waits_of(result.traces, chunk)


def waits_of(traces: Sequence[RequestTrace], chunk: int) -> Waits:
    """Read the waits from a run's traces.

    Raises:
        EngineError: A request failed, or nobody was decoding when the prompt came.
    """
    failed = next((trace for trace in traces if not trace.ok), None)
    if failed is not None:
        raise EngineError(f"A request failed: {failed.error}.")
    long = next(trace for trace in traces if trace.tag == LONG)
    assert long.first_token is not None
    during: list[float] = []
    quiet: list[float] = []
    for trace in traces:
        if trace.tag == LONG:
            continue
        for earlier, later in pairwise(trace.chunk_times):
            meets = later > long.sent and earlier < long.first_token
            (during if meets else quiet).append(later - earlier)
    if not during or not quiet:
        raise EngineError(
            "Nobody was decoding when the long prompt came: the others' answers are too short "
            "for this machine."
        )
    tokens = long.prompt_tokens or 0
    return Waits(chunk, long.ttft(), max(during), median(quiet), -(-tokens // chunk))


def typical(found: Sequence[Waits]) -> Waits:
    """Medians over repeats of the same chunk size."""
    return Waits(
        found[0].chunk,
        median(w.ttft_s for w in found),
        median(w.stall_s for w in found),
        median(w.quiet_s for w in found),
        found[0].steps,
    )


def waits_table(found: Mapping[str, Sequence[Waits]]) -> pd.DataFrame:
    """Return one row per chunk size: medians, and the range over the repeats."""
    rows = {}
    for name, runs in found.items():
        one = typical(runs)
        stalls = [1000 * w.stall_s for w in runs]
        rows[name] = {
            "steps for the prompt": one.steps,
            "TTFT of the long request (ms)": round(1000 * one.ttft_s),
            "longest wait of the others (ms)": round(1000 * one.stall_s),
            "least ... most": f"{min(stalls):.0f} ... {max(stalls):.0f}",
            "their usual wait (ms)": round(1000 * one.quiet_s, 1),
        }
    return pd.DataFrame.from_dict(rows, orient="index")
