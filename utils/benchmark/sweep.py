"""One engine over the profile's concurrency levels, each level a record on disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.benchmark.arrivals import ClosedLoop
from utils.benchmark.engine_clients import benchmark_client
from utils.benchmark.load import EngineDied, LoadInterrupted, run
from utils.benchmark.records import Record, make_record, write_record
from utils.benchmark.stats import Slo
from utils.benchmark.workload import Request, random_prompts
from utils.engines import EngineError, RunningEngine
from utils.model_sizes import ConfigError, tokenizer_file
from utils.profiles import Profile

SPREAD = 0.5  # of the lengths in a sweep
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
    profile: Profile,
    count: int,
    *,
    length: int = 0,
    output: int = 0,
    spread: float = 0.0,
    seed: int | None = None,
) -> list[Request]:
    """Return random prompts of the profile's length, for answers of exactly the profile's length.

    Lengths are exact in the tokens of the profile's vLLM model. If the hub doesn't give its tokenizer, they
    are in words, and a printed line tells it.

    Args:
        profile: Profile that gives the lengths.
        count: Number of requests.
        length: Prompt length in place of the profile's, tokens.
        output: Answer length in place of the profile's, tokens.
        spread: Lengths of prompts and answers vary evenly in `length * (1 ± spread)`, as in real life.
            Requests of equal lengths start and end together, and no prefill meets another request's decode.
        seed: Random seed. None takes one that no engine has seen, so that no prefix cache can help.
    """
    return random_prompts(
        count,
        length or profile.load.prompt_tokens,
        tokenizer=_tokenizer(profile.models["vllm"]),
        spread=spread,
        output_spread=spread,
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
    output: int = 0,
    slo: Slo | None = None,
    round_number: int | None = None,
) -> list[Record]:
    """Run a closed loop at each concurrency level and write a record for each.

    Args:
        engine: Engine that serves.
        profile: Profile that gives levels, request counts and lengths.
        label: Name of the engine in tables and plots; its title by default.
        levels: Concurrency levels in place of the profile's.
        requests_at: Requests at each level in place of the profile's.
        output: Mean length of the answers in place of the profile's, tokens.
        slo: Objectives for goodput.
        round_number: Number of the round if engines are measured in turn. Runs of the same round are pairs.

    Returns:
        One record per level, in the order of the levels.

    Raises:
        EngineError: No request of a level succeeded; its record is written all the same.
        EngineDied: The engine went away; a record of its answers is written.
        LoadInterrupted: On Ctrl-C; a record of the requests that had ended is written.
    """
    levels = levels or profile.load.levels
    counts = requests_at or [profile.load.requests_at(level) for level in levels]
    title = label or engine.spec.title
    client = benchmark_client(engine)
    memory = engine.memory_bytes()
    records = []
    extra = {"start_seconds": engine.start_seconds, "memory_bytes": memory}
    if round_number is not None:
        extra["round"] = round_number
    for level, count in zip(levels, counts, strict=True):
        try:
            result = run(
                client,
                prompts(profile, count, output=output, spread=SPREAD),
                ClosedLoop(level),
                warmup=prompts(profile, min(level, 4)),
                label=f"{title}, {level} in flight",
                alive=engine.running,
            )
        except (LoadInterrupted, EngineDied) as broken:
            partly = make_record(broken.result, engine, profile, label=title, slo=slo, extra=extra)
            write_record(partly)
            raise
        if result.client_lag > LATE_S:
            print(
                f"{title}, {level} in flight: the client itself was late by up to "
                f"{result.client_lag * 1000:.0f} ms, since something else uses the cores. "
                "Latencies are uncertain by as much."
            )
        record = make_record(result, engine, profile, label=title, slo=slo, extra=extra)
        write_record(record)
        records.append(record)
        if not any(trace.ok for trace in result.traces):
            raise EngineError(
                f"{title}, {level} in flight: no request succeeded "
                f"({result.traces[0].error}). Look at the engine's log (engine.tail())"
            )
    return records


def measure_prefill(
    engine: RunningEngine, profile: Profile, *, length: int, repeats: int = 5
) -> Prefill:
    """Return the prompt tokens per second of one request at a time, with answers of a single token.

    Args:
        engine: Engine that serves.
        profile: Profile that gives the tokenizer.
        length: Prompt length, tokens.
        repeats: Requests, each with a prompt of its own; their median counts.

    Raises:
        EngineError: No request succeeded; holds the first error.
    """
    client = benchmark_client(engine)
    requests = prompts(profile, repeats, length=length, output=1)
    title = f"{engine.spec.title}, prefill of {length} tokens"
    warmup = prompts(profile, 1, length=length, output=1)
    result = run(client, requests, ClosedLoop(1), warmup=warmup, label=title, alive=engine.running)
    done = [trace for trace in result.traces if trace.ok and trace.prompt_tokens]
    if not done:
        raise EngineError(f"no request succeeded: {result.traces[0].error}")
    tokens = done[0].prompt_tokens
    assert tokens is not None
    ttft = result.summary()["median_ttft_ms"] / 1000
    return Prefill(tokens, ttft, tokens / ttft)
