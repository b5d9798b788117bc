"""One engine over the profile's concurrency levels, each level a record on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.benchmark.arrivals import ClosedLoop
from utils.benchmark.client import Client
from utils.benchmark.load import run
from utils.benchmark.records import Record, make_record, write_record
from utils.benchmark.stats import Slo
from utils.benchmark.workload import Request, random_prompts
from utils.engines import RunningEngine
from utils.model_sizes import ConfigError, tokenizer_file
from utils.profiles import Profile

WARMUP_SEED = 1_000_000  # prompts that no measurement uses: a prefix cache would remember them
LATE_S = 0.2  # of the client's event loop; records keep the figure itself


@dataclass(frozen=True)
class Prefill:
    """Prompt processing of one engine, one request at a time.

    Attributes:
        prompt_tokens: Prompt length as the engine counted it, tokens.
        ttft_s: Median time to first token, seconds.
        tokens_per_s: Prompt tokens over median TTFT.
    """

    prompt_tokens: int
    ttft_s: float
    tokens_per_s: float


def prompts(
    profile: Profile, count: int, *, length: int = 0, output: int = 0, seed: int = 0
) -> list[Request]:
    """Random prompts of the profile's length, for answers of exactly the profile's length.

    Lengths are exact in the tokens of the profile's vLLM model. If the hub doesn't give its tokenizer, they
    are in words, and a line says so.

    Args:
        profile: Gives the lengths.
        count: How many requests.
        length: Prompt length in place of the profile's, tokens.
        output: Answer length in place of the profile's, tokens.
        seed: Other seeds give other prompts, so that no prefix cache can help.
    """
    return random_prompts(
        count,
        length or profile.load.prompt_tokens,
        tokenizer=_tokenizer(profile.models["vllm"]),
        seed=seed,
        max_tokens=output or profile.load.output_tokens,
        ignore_eos=True,
    )


def _tokenizer(model: str) -> Path | None:
    try:
        return tokenizer_file(model)
    except ConfigError as error:
        print(f"Prompt lengths are in words and not in tokens, because {error}")
        return None


def sweep(
    engine: RunningEngine,
    profile: Profile,
    *,
    label: str = "",
    levels: Sequence[int] | None = None,
    requests_at: Sequence[int] | None = None,
    slo: Slo | None = None,
) -> list[Record]:
    """Runs a closed loop at each concurrency level and writes a record for each.

    Args:
        engine: What serves.
        profile: Gives levels, request counts and lengths.
        label: Name of the engine in tables and plots; its title by default.
        levels: Concurrency levels in place of the profile's.
        requests_at: Requests at each level in place of the profile's.
        slo: Objectives for goodput.

    Returns:
        One record per level, in the order of the levels.

    Raises:
        RuntimeError: No request of a level succeeded; its record is written all the same.
        EngineDied: The engine went away.
    """
    levels = levels or profile.load.levels
    counts = requests_at or [profile.load.requests_at(level) for level in levels]
    title = label or engine.spec.title
    client = Client(engine.base_url, engine.model, "completions")
    memory = engine.memory_bytes()
    records = []
    for level, count in zip(levels, counts, strict=True):
        result = run(
            client,
            prompts(profile, count, seed=level),
            ClosedLoop(level),
            warmup=prompts(profile, min(level, 4), seed=WARMUP_SEED + level),
            label=f"{title}, {level} in flight",
            alive=engine.running,
        )
        if result.client_lag > LATE_S:
            print(
                f"{title}, {level} in flight: the client itself was late by up to "
                f"{result.client_lag * 1000:.0f} ms, since something else uses the cores. "
                "Latencies are uncertain by as much."
            )
        extra = {"start_seconds": engine.start_seconds, "memory_bytes": memory}
        record = make_record(result, engine, profile, label=title, slo=slo, extra=extra)
        write_record(record)
        records.append(record)
        if not any(trace.ok for trace in result.traces):
            raise RuntimeError(
                f"{title}, {level} in flight: no request succeeded "
                f"({result.traces[0].error}). Look at the engine's log (engine.tail())"
            )
    return records


def measure_prefill(
    engine: RunningEngine, profile: Profile, *, length: int, repeats: int = 5
) -> Prefill:
    """Prompt tokens per second of one request at a time, with answers of a single token.

    Args:
        engine: What serves.
        profile: Gives the tokenizer.
        length: Prompt length, tokens.
        repeats: Requests, each with a prompt of its own; their median counts.

    Raises:
        RuntimeError: No request succeeded; holds the first error.
    """
    client = Client(engine.base_url, engine.model, "completions")
    requests = prompts(profile, repeats, length=length, output=1, seed=1000 + length)
    title = f"{engine.spec.title}, prefill of {length} tokens"
    warmup = prompts(profile, 1, length=length, output=1, seed=WARMUP_SEED)
    result = run(client, requests, ClosedLoop(1), warmup=warmup, label=title, alive=engine.running)
    done = [trace for trace in result.traces if trace.ok and trace.prompt_tokens]
    if not done:
        raise RuntimeError(f"no request succeeded: {result.traces[0].error}")
    tokens = done[0].prompt_tokens
    assert tokens is not None
    ttft = result.summary()["median_ttft_ms"] / 1000
    return Prefill(tokens, ttft, tokens / ttft)
