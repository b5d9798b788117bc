"""Measured runs of lab 3.3.2: hit rates of an engine's prefix cache, and their effect on TTFT."""

from __future__ import annotations

import random
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Any

import httpx

from utils import loopback
from utils.benchmark import Client, ClosedLoop, Request, fresh_seed, make_record, run, write_record
from utils.benchmark.engine_clients import chat_client
from utils.benchmark.engine_run import Run, measure, require_success
from utils.benchmark.load import LoadResult
from utils.benchmark.prompts import load_tokenizer
from utils.engines import EngineError, RunningEngine
from utils.engines.router import route
from utils.engines.structured import Constraint, fault, request_fields
from utils.http.answers import error_text
from utils.kvcache.radix import Tokens
from utils.labs.lab_3_3_2.workloads import (
    Maker,
    Prompts,
    as_requests,
    partly_shared,
    tokenizer_of,
)
from utils.model_sizes import cache_shape
from utils.profiles import Profile
from utils.roofline.roofline import Model
from utils.telemetry import ScrapeError, scrape

UNITS = 10  # length of the prompts that TTFT is measured with
WARM = 0.95  # of such a prompt: all but its end
ANSWER_TOKENS = 2  # enough to see a first token; the lab's subject is the prompt


@dataclass(frozen=True)
class Hits:
    """Hits of the prefix cache in one workload.

    Attributes:
        run: Measured run.
        cached: Cached prompt tokens of each request, from its `usage`.
        prompt: Prompt tokens of each request, from its `usage`.
    """

    run: Run
    cached: tuple[int, ...]
    prompt: tuple[int, ...]

    @property
    def rate(self) -> float:
        """Cached over all prompt tokens, by the requests' `usage`, 0 to 1."""
        return sum(self.cached) / sum(self.prompt)

    @property
    def counted(self) -> float | None:
        """Hit rate by the engine's own counters, or None if it has none."""
        hits = self.run.series.increase("prefix_hits")
        looked_up = self.run.series.increase("prefix_queries")
        return None if hits is None or not looked_up else hits / looked_up


def hits_of(measured: Run) -> Hits:
    """Read the cached tokens of a run.

    Raises:
        EngineError: If a request failed.
    """
    traces = measured.result.traces
    require_success(traces)
    return Hits(
        measured,
        tuple(trace.cached_tokens or 0 for trace in traces),
        tuple(trace.prompt_tokens or 0 for trace in traces),
    )


def measure_hits(
    engine: RunningEngine,
    profile: Profile,
    prompts: Sequence[Tokens],
    label: str,
    concurrency: int = 1,
) -> Hits:
    """Send prompts in their order, `concurrency` at a time, and read the cached tokens of each."""
    requests = as_requests(prompts, ANSWER_TOKENS)
    return hits_of(measure(engine, profile, requests, concurrency, label))


@dataclass(frozen=True)
class Point:
    """TTFT of prompts of one length that begin with a cached prefix.

    Attributes:
        fraction: Share of the prompt that was cached, 0 to 1, as the engine counted it.
        ttft_s: TTFT of each request, in seconds.
    """

    fraction: float
    ttft_s: tuple[float, ...]

    @property
    def median(self) -> float:
        """Median TTFT, seconds."""
        return median(self.ttft_s)


def curve_point(engine: RunningEngine, profile: Profile, fraction: float, label: str) -> Point:
    """Measure TTFT after `fraction` of a prompt of `UNITS` units was sent.

    One request brings the prefix into the cache, and isn't measured. A few follow one after the other,
    each with its own end. No prompt occurs twice.
    """
    make = Maker(profile, fresh_seed())
    prefix, prompts = partly_shared(make, UNITS * make.unit, fraction, count=2)
    if prefix:
        send_alone(engine, prefix)
    label = f"{label}, {fraction:.0%} sent before"
    hits = hits_of(measure(engine, profile, as_requests(prompts, ANSWER_TOKENS), 1, label))
    times = tuple(trace.ttft() for trace in hits.run.result.traces)
    return Point(hits.rate, times)


def cold_and_warm(engine: RunningEngine, profile: Profile) -> tuple[Point, Point]:
    """Measure TTFT with nothing cached and with 95 % of the prompt cached, each twice in turn."""
    turns = [measure_curve(engine, profile, (0.0, WARM), "SGLang, shared prefix") for _ in range(2)]
    cold, warm = merge_turns(turns)
    return cold, warm


def fit_prefill(cold: Point, warm: Point) -> tuple[float, float]:
    """Return the seconds of prefill of the whole prompt and of the rest, from the line through two points.

    Raises:
        EngineError: If both points have about the same share cached.
    """
    if warm.fraction - cold.fraction < 0.1:
        raise EngineError(
            f"{cold.fraction:.0%} of the cold prompt was cached and {warm.fraction:.0%} of the warm one: "
            "nothing to tell apart. Is the prefix cache on?"
        )
    prefill_s = (cold.median - warm.median) / (warm.fraction - cold.fraction)
    return prefill_s, max(0.0, cold.median - prefill_s * (1 - cold.fraction))


def measure_curve(
    engine: RunningEngine, profile: Profile, fractions: Sequence[float], label: str
) -> list[Point]:
    """Measure TTFT for each share of the prompt (see `curve_point`)."""
    return [curve_point(engine, profile, fraction, label) for fraction in fractions]


def merge_turns(turns: Sequence[Sequence[Point]]) -> list[Point]:
    """Merge the curves of several turns: average the shares and collect the times."""
    return [
        Point(
            sum(point.fraction for point in same) / len(same),
            tuple(time for point in same for time in point.ttft_s),
        )
        for same in zip(*turns, strict=True)
    ]


def prefill_work(config: Mapping[str, Any], parameters: int, length: int, cached: int) -> float:
    """Return the floating-point operations for a prompt whose first `cached` tokens are cached.

    Each new token takes two operations per weight. In each layer and query head, every pair of a new
    token and a token up to itself also takes two products of `head_dim` numbers.

    Args:
        config: Hugging Face config of the model.
        parameters: Weights that every prompt token is multiplied with.
        length: Tokens of the prompt.
        cached: Tokens of the prompt that are cached.
    """
    shape = cache_shape(config)
    pairs = (length * (length + 1) - cached * (cached + 1)) / 2
    attention = 4 * shape.layers * shape.query_heads * shape.head_dim * pairs
    return 2.0 * parameters * (length - cached) + attention


def roofline_speedup(model: Model, length: int, fraction: float) -> float:
    """Return the speed-up of a partly cached prompt if only arithmetic took time.

    Args:
        model: Model that computes the prompt.
        length: Tokens of the prompt.
        fraction: Share of the prompt that is cached, 0 to 1. At least the last token is computed.
    """
    work = partial(prefill_work, model.config, model.weights.prefill_parameters, length)
    return work(0) / work(min(length - 1, round(fraction * length)))


def measure_crowd(engine: RunningEngine, profile: Profile, label: str) -> Run:
    """Measure six requests at once after a system prompt that was sent before."""
    make = Maker(profile, fresh_seed())
    system = make.tokens(7)
    send_alone(engine, system)
    requests = as_requests([system + make.tokens(1) for _ in range(6)], 8)
    return measure(engine, profile, requests, len(requests), label)


def send_alone(engine: RunningEngine, prompt: Tokens) -> None:
    """Bring a prompt into the engine's cache, without a measurement."""
    client = Client(engine.base_url, engine.model, "completions")
    run(client, as_requests([prompt], 1), ClosedLoop(1), progress=False)


def small_cache_queue(profile: Profile, seed: int = 7) -> tuple[Prompts, list[int], int]:
    """Return a queue for a cache that is too small: three groups in turn, and a stranger.

    Returns:
        Prompts in order of arrival, the group of each (-1 for the stranger, which shares nothing), and the
        number of tokens that the cache may hold, which is enough for little more than one group.
    """
    make = Maker(profile, seed)
    prefixes = [make.tokens(6) for _ in range(3)]
    prompts = [prefix + make.tokens(1) for _ in range(4) for prefix in prefixes]
    groups = [0, 1, 2] * 4
    prompts.insert(2, make.tokens(7))
    groups.insert(2, -1)
    return prompts, groups, round(1.5 * 7 * make.unit)


def starving_queue(profile: Profile, followers: int) -> tuple[Prompts, int]:
    """Return a long queue of one group with a stranger in it, and the stranger's position."""
    make = Maker(profile, seed=8)
    prefix = make.tokens(4)
    prompts = [prefix + make.tokens(1) for _ in range(followers)]
    prompts.insert(2, make.tokens(5))
    return prompts, 2


def measure_order(
    engine: RunningEngine, profile: Profile, prompts: Sequence[Tokens], label: str
) -> tuple[Hits, tuple[int, ...]]:
    """Send a whole queue at once to an engine that serves one request at a time.

    Returns:
        Hits, and the positions of the requests in the order of service.
    """
    hits = measure_hits(engine, profile, prompts, label, concurrency=len(prompts))
    traces = hits.run.result.traces
    order = sorted(range(len(traces)), key=lambda i: traces[i].first_token or 0.0)
    return hits, tuple(order)


@dataclass(frozen=True)
class Structured:
    """Answers under one constraint.

    Attributes:
        kind: `free`, `json_schema`, `regex` or `choice`.
        result: Result of the load generator.
        faults: Reasons why answers are not valid, one for each such answer.
    """

    kind: str
    result: LoadResult
    faults: tuple[str, ...]


def measure_structured(
    engine: RunningEngine,
    profile: Profile,
    constraint: Constraint,
    questions: Sequence[str],
    *,
    max_tokens: int,
    concurrency: int = 32,
) -> Structured:
    """Ask every question under a constraint and check every answer.

    Args:
        engine: Engine to ask.
        profile: Profile of this machine.
        constraint: Constraint of `utils.engines.structured`, or an empty one for none.
        questions: Chat messages.
        max_tokens: Length at which an answer is cut off, valid or not.
        concurrency: Requests in flight.
    """
    kind = next(iter(constraint), "free")
    extra = request_fields(engine.spec, constraint)
    requests = [
        Request(question, max_tokens=max_tokens, temperature=0.8, seed=seed, extra_body=extra)
        for seed, question in enumerate(questions)
    ]
    label = f"{engine.spec.title}, {kind}"
    result = run(
        chat_client(engine),
        requests,
        ClosedLoop(concurrency),
        label=label,
        alive=engine.running,
    )
    write_record(make_record(result, engine, profile, label=label, extra={"constraint": kind}))
    faults = [trace.error or fault(trace.text, constraint) for trace in result.traces]
    return Structured(kind, result, tuple(why for why in faults if why))


QUESTIONS = {
    "json_schema": "Write an order for {n} drinks as JSON.",
    "regex": "Which day comes {n} days after the first of March 2026?",
    "choice": "Is this review positive or negative: it took {n} minutes, but it was worth it?",
    "free": "Write a list of {n} words.",
}


def questions(kind: str, count: int) -> list[str]:
    """Return chat messages for one kind of constraint, no two alike."""
    return [QUESTIONS[kind].format(n=n) for n in range(1, count + 1)]


def impossible_requests(
    engine: RunningEngine, profile: Profile
) -> list[tuple[str, Mapping[str, Any]]]:
    """Return requests that an engine can't serve: the fault of each and the fields of its JSON body."""

    def constrained(constraint: Constraint) -> dict[str, Any]:
        return {"messages": _SAY, "max_tokens": 16} | request_fields(engine.spec, constraint)

    long = [{"role": "user", "content": "word " * (2 * profile.context_length)}]
    return [
        ("a schema of no known type", constrained({"json_schema": {"type": "nonsense"}})),
        ("an expression with an open bracket", constrained({"regex": "(a|b"})),
        ("an expression that matches nothing", constrained({"regex": r"[^\s\S]"})),
        ("a prompt beyond the context", {"messages": long, "max_tokens": 16}),
    ]


_SAY = [{"role": "user", "content": "Say something."}]


def say(engine: RunningEngine, fields: Mapping[str, Any]) -> str:
    """Send a chat request and return the answer or the refusal in one line."""
    url = f"{engine.base_url}/v1/chat/completions"
    try:
        response = loopback.post(url, json={"model": engine.model, **fields}, timeout=60.0)
    except httpx.HTTPError as error:
        return f"no answer ({type(error).__name__}: {error})"
    if response.status_code != 200:
        return f"refused with HTTP {response.status_code}: {error_text(response.text):.200}"
    return f"answered with {response.json()['choices'][0]['message']['content']!r}"


def as_text(profile: Profile, prompts: Sequence[Tokens]) -> list[str]:
    """Return prompts as text, because the router takes no token ids."""
    tokenizer = load_tokenizer(tokenizer_of(profile))
    return [tokenizer.decode(prompt) for prompt in prompts]


def router_prompts(profile: Profile) -> list[str]:
    """Return three groups of four prompts with a prefix per group, as text in a fixed mixed order."""
    make = Maker(profile, fresh_seed())
    prompts = [
        prefix + make.tokens(1) for prefix in (make.tokens(6) for _ in range(3)) for _ in range(4)
    ]
    random.Random(102).shuffle(prompts)
    return as_text(profile, prompts)


@dataclass(frozen=True)
class Routed:
    """Result of a load that went through a router.

    Attributes:
        policy: Policy of the router.
        result: Result of the load generator.
        shares: Prompt tokens that each worker received, by its own counter. NaN for a worker that died.
    """

    policy: str
    result: LoadResult
    shares: tuple[float, ...]

    @property
    def rate(self) -> float:
        """Cached over all prompt tokens of the requests that were answered, 0 to 1."""
        answered = [trace for trace in self.result.traces if trace.ok]
        total = sum(trace.prompt_tokens or 0 for trace in answered)
        return sum(trace.cached_tokens or 0 for trace in answered) / total if total else 0.0

    @property
    def failed(self) -> int:
        """Number of requests without a whole answer."""
        return sum(not trace.ok for trace in self.result.traces)


def measure_routed(
    workers: Sequence[RunningEngine],
    profile: Profile,
    policy: str,
    prompts: Sequence[str],
    *,
    output_tokens: int = ANSWER_TOKENS,
    concurrency: int = 2,
    kill_after_s: float | None = None,
) -> Routed:
    """Send prompts through SGLang's router to workers that serve the same model.

    Args:
        workers: Engines that serve the same model.
        profile: Profile of this machine.
        policy: Policy of the router (see `utils.engines.router.route`).
        prompts: Prompts as text, because this router takes no token ids.
        output_tokens: Tokens of each answer.
        concurrency: Requests in flight.
        kill_after_s: Seconds after which the last worker is killed, or None for never.
    """
    requests = [Request(prompt, max_tokens=output_tokens, ignore_eos=True) for prompt in prompts]
    before = [_received(worker) for worker in workers]
    label = f"router, {policy}" + ("" if kill_after_s is None else ", a worker killed")
    with route(workers, policy) as url:
        client = Client(url, workers[0].model, "completions")
        killer = threading.Timer(kill_after_s or 0.0, workers[-1].kill)
        if kill_after_s is not None:
            killer.start()
        try:
            result = run(client, requests, ClosedLoop(concurrency), label=label)
        finally:
            killer.cancel()
    extra = {"router": policy, "workers": len(workers), "kill_after_s": kill_after_s}
    write_record(make_record(result, workers[0], profile, label=label, extra=extra))
    received = tuple(
        _received(worker) - start for worker, start in zip(workers, before, strict=True)
    )
    return Routed(policy, result, received)


def _received(worker: RunningEngine) -> float:
    """Return the prompt tokens that an engine has processed, or NaN if it can't be asked any more."""
    try:
        return scrape(worker).prompt_tokens or 0.0
    except ScrapeError:
        return float("nan")
