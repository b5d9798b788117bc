"""Measured runs of lab 3.3.3: sweeps over concurrency, waves of requests and variants of vLLM."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from statistics import mean, median
from typing import Any, TypeVar

from utils.benchmark import Interval, Request, repeat_interval
from utils.benchmark.engine_run import Run, make_requests, measure, require_success
from utils.benchmark.prompts import PromptMaker
from utils.benchmark.workload import fresh_seed
from utils.engines import EngineError, RunningEngine
from utils.engines.fleet import Fleet
from utils.kvcache.scheduler import Job
from utils.model_sizes import tokenizer_file
from utils.profiles import Profile

ANSWER_TOKENS = 2  # the cache's content is the subject, not the answers
T = TypeVar("T")


def as_jobs(requests: Sequence[Request], profile: Profile) -> list[Job]:
    """Return the same requests for the simulator, where all arrive at time 0."""
    prompt = profile.load.prompt_tokens
    return [Job(i, 0.0, prompt, request.max_tokens) for i, request in enumerate(requests)]


def sweep(engine: RunningEngine, profile: Profile, levels: Sequence[int], label: str) -> list[Run]:
    """Measure each concurrency level `profile.load.repeats` times, the levels in turn.

    Turns spread a slow phase of the machine over all levels. No prompt occurs twice.
    """
    runs = []
    for repeat in range(profile.load.repeats):
        for level in levels:
            count = profile.load.requests_at(level)
            requests = make_requests(profile, count)
            warmup = level if repeat == 0 else 0
            runs.append(measure(engine, profile, requests, level, label, warmup))
    return runs


def waves(
    engine: RunningEngine, profile: Profile, requests: Sequence[Request], size: int, label: str
) -> list[Run]:
    """Send requests in waves, each when the slowest answer of the last wave is back.

    This is a static batch as its users see it, but without padding, because the engine computes nothing
    for a request that has ended.
    """
    starts = range(0, len(requests), size)
    return [
        measure(engine, profile, requests[start : start + size], size, label) for start in starts
    ]


def throughput_at(runs: Sequence[Run], level: int) -> Interval:
    """Return the mean output tokens per second at a level over its repeats, with a 95 % interval."""
    return repeat_interval([one.throughput for one in runs if one.concurrency == level])


def latency_at(runs: Sequence[Run], level: int, metric: str) -> float:
    """Return a latency of the summary at a level, in milliseconds, as the median over the repeats."""
    return median(one.milliseconds(metric) for one in runs if one.concurrency == level)


def lag_at(runs: Sequence[Run], level: int) -> float:
    """Return the client's worst delay at a level in milliseconds. Latencies are uncertain by as much."""
    return max(1000 * one.result.client_lag for one in runs if one.concurrency == level)


def speedup(runs: Sequence[Run], base: int, top: int) -> float:
    """Return throughput at level `top` over throughput at level `base`, means over the repeats."""
    return throughput_at(runs, top).value / throughput_at(runs, base).value


def empty_share(runs: Sequence[Run]) -> float:
    """Return the share of places in flight that held no request, over the time of the runs, 0 to 1."""
    traces = [trace for run in runs for trace in run.result.traces]
    held_s = sum(trace.finished - trace.sent for trace in traces)
    return 1 - held_s / sum(run.concurrency * run.result.duration for run in runs)


def same_answers(first: Run, second: Run) -> float:
    """Return the share of requests that got the same text in two runs, 0 to 1."""
    pairs = list(zip(first.result.traces, second.result.traces, strict=True))
    return mean(a.text == b.text for a, b in pairs)


def run_variants(
    profile: Profile,
    variants: Mapping[str, Mapping[str, Any]],
    work: Callable[[str, RunningEngine], T],
) -> tuple[dict[str, T], dict[str, str]]:
    """Start vLLM with several sets of options, and do the same work on each in turn.

    Returns:
        Results of `work` by variant, and the reasons why other variants didn't run.
    """
    with Fleet(profile, variants) as fleet:
        found = fleet.each(lambda name, engine, turn: work(name, engine))
    results = {name: once[0] for name, once in found.items()}
    return results, fleet.reasons


def make_visits(
    profile: Profile, order: str, beginning: int, own: int, seed: int | None = None
) -> list[tuple[int, ...]]:
    """Return prompts of visitors to several assistants, each of which has a system prompt of its own.

    Args:
        profile: Profile with the vLLM model, whose tokenizer is used.
        order: One letter for each visit, which names the assistant.
        beginning: Tokens of each system prompt.
        own: Tokens of each visitor's question.
        seed: Seed. None takes one that no engine has seen.
    """
    rng = random.Random(fresh_seed() if seed is None else seed)
    maker = PromptMaker(str(tokenizer_file(profile.models["vllm"])))

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(maker.prompt(rng, count, token_ids=True))  # type: ignore[arg-type]

    systems = {name: tokens(beginning) for name in sorted(set(order))}
    return [systems[name] + tokens(own) for name in order]


def cached_tokens(
    engine: RunningEngine, profile: Profile, prompts: Sequence[tuple[int, ...]], label: str
) -> list[int]:
    """Send prompts one after the other, and return the cached tokens that the engine reports for each.

    Raises:
        EngineError: If a request failed, or the engine doesn't report cached tokens.
    """
    requests = [
        Request(prompt=prompt, max_tokens=ANSWER_TOKENS, ignore_eos=True) for prompt in prompts
    ]
    traces = measure(engine, profile, requests, 1, label).result.traces
    require_success(traces)
    found = [trace.cached_tokens for trace in traces if trace.cached_tokens is not None]
    if len(found) < len(traces):
        raise EngineError(f"{engine.spec.title} doesn't report cached tokens.")
    return found


def too_slow_to_compile(engine: RunningEngine, profile: Profile) -> str:
    """Return why the compiled twin of an eager engine isn't started here, or "" if it is.

    On a CPU, a first compiled start took about three times as long as an eager one (measured on two
    cores, 24 layers). If that would take over 40 % of the profile's time for a notebook, it is left out.
    """
    expected_s = 3 * engine.start_seconds
    if expected_s <= 0.4 * profile.time_budget_s:
        return ""
    return (
        f"not run here: the eager engine took {engine.start_seconds:.0f} s to start, so compiling "
        f"may take {expected_s:.0f} s of the {profile.time_budget_s:.0f} s that profile "
        f"{profile.name!r} allows a notebook. Run it when the machine is quiet."
    )
