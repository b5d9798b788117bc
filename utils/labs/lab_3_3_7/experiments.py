"""The measured runs of lab 3.3.7, on real engines with the real gateway in front."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from statistics import median
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from utils import loopback
from utils.benchmark import (
    Client,
    ClosedLoop,
    LoadResult,
    Request,
    make_record,
    run,
    run_async,
    write_record,
)
from utils.benchmark.prompts import PromptMaker
from utils.benchmark.threads import run_in_thread
from utils.benchmark.trace import RequestTrace
from utils.engines import RunningEngine
from utils.engines.fleet import Fleet, StartingFleet, start_later
from utils.fleet_plan import gateway_replicas, prefix_replicas
from utils.gateway.auth import digest
from utils.gateway.local_gateway import LocalGateway, models_of, serve
from utils.gateway.schemas import parse
from utils.gateway.settings import Affinity, GatewayLimits
from utils.gateway.timing import Timing
from utils.labs.lab_3_3_7.fault_injection import PASS, FaultProxy
from utils.profiles import Profile
from utils.telemetry.snapshot import scrape

MODEL = "tiny"  # the name under which the lab's gateways serve, whatever the engines' own is
PREFIX_WORDS, OWN_WORDS = 280, 6
SCALED_S = {"every_s": 0.5, "timeout_s": 1.0, "circuit_failures": 3, "circuit_open_s": 2.0}
# A healthy engine needs less than a fifth of these limits, whatever the machine.
PATIENCE = 5.0
LEAST_PATIENCE_S = {"first_byte_s": 2.0, "idle_s": 1.0}


def raw_pieces(engine: RunningEngine, prompt: str, tokens: int) -> list[bytes]:
    """Return the bytes of a stream as they came from an engine."""
    request = Request(prompt, max_tokens=tokens, ignore_eos=True)
    body = request.body(engine.model, "completions")
    with (
        loopback.client(timeout=60.0) as client,
        client.stream("POST", f"{engine.base_url}/v1/completions", json=body) as response,
    ):
        return list(response.iter_raw())


def recut(stream: bytes, seed: int) -> list[bytes]:
    """Return the same bytes in other pieces: 1 to 60 bytes each."""
    rng, pieces = random.Random(seed), []
    while stream:
        size = rng.randint(1, 60)
        pieces.append(stream[:size])
        stream = stream[size:]
    return pieces


Observe = Callable[[Timing, Mapping[str, Any], float], Timing]


def watched_answer(observe: Observe, first_s: float, gap_s: float) -> Timing:
    """Run a small ASGI app below a middleware that hands every message to `observe`.

    The app sends the head and a comment at once, the first of three pieces after `first_s`, and the others
    `gap_s` apart.
    """

    async def app(send: Callable[[Mapping[str, Any]], Awaitable[None]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b": ping\n\n", "more_body": True})
        await asyncio.sleep(first_s)
        for left in (2, 1, 0):
            body = b'data: {"choices": [{"text": "x"}]}\n\n'
            await send({"type": "http.response.body", "body": body, "more_body": left > 0})
            await asyncio.sleep(gap_s if left else 0)

    async def middleware() -> Timing:
        timing = Timing(time.monotonic())

        async def sending(message: Mapping[str, Any]) -> None:
            nonlocal timing
            timing = observe(timing, message, time.monotonic())

        await app(sending)
        return timing

    return run_in_thread(middleware())


def burst(gateway: LocalGateway, key: str, count: int) -> tuple[list[int], float, str]:
    """Send small requests one after the other.

    Returns:
        The status of each, the seconds that it took, and the first `Retry-After`.
    """
    statuses, wait = [], ""
    body = Request("hello", max_tokens=1, stream=False).body(MODEL, "completions")
    began = time.monotonic()
    with loopback.client(timeout=60.0) as client:
        for _ in range(count):
            answer = client.post(
                f"{gateway.base_url}/v1/completions",
                json=body,
                headers={"authorization": f"Bearer {key}"},
            )
            statuses.append(answer.status_code)
            wait = wait or answer.headers.get("retry-after", "")
    return statuses, time.monotonic() - began, wait


# Balancing


def replicas_later(profile: Profile) -> StartingFleet | None:
    """Start two vLLM in the background, or None on a GPU, whose memory other engines need first."""
    if profile.device == "cuda":
        return None
    return start_later(profile, prefix_replicas(profile))


def replicas_alone(profile: Profile, small: Fleet, starting: StartingFleet | None) -> Fleet:
    """Return the two vLLM. On a GPU the three llama.cpp are stopped for them, so that they fit.

    Args:
        profile: The profile.
        small: The three llama.cpp.
        starting: Result of `replicas_later`.
    """
    if starting is not None and _all_run(started := starting.result()):
        return started
    if starting is None:
        small.stop()
    return Fleet(profile, prefix_replicas(profile), together=True)


def _all_run(fleet: Fleet) -> bool:
    """Tell whether every engine of a fleet that could start still runs. Cells may be run twice."""
    return len(fleet.running) + len(fleet.reasons) >= len(fleet.variants)


def three_again(profile: Profile, small: Fleet) -> Fleet:
    """Return the three llama.cpp. They are started again if they made room or if a fault has killed one."""
    if profile.device == "cpu" and _all_run(small):
        return small
    small.stop()
    return Fleet(profile, gateway_replicas(profile), together=True)


@dataclass(frozen=True)
class PolicyRun:
    """Result of one balancing policy on one set of prompts.

    Attributes:
        policy: Name of the policy.
        hit_rate: Prompt tokens found in a prefix cache over tokens looked up, for all replicas together.
        ttft_ms: Median TTFT in milliseconds.
        shares: Number of requests that each replica got.
    """

    policy: str
    hit_rate: float
    ttft_ms: float
    shares: Mapping[str, int]


def grouped_prompts(profile: Profile, seed: int) -> list[Request]:
    """Prompts that share long beginnings, the groups in turn."""
    sizes, rng, maker = profile.load.serving, random.Random(seed), PromptMaker()
    beginnings = [maker.text(rng, PREFIX_WORDS) for _ in range(sizes.groups)]
    return [
        Request(f"{beginning} {maker.text(rng, OWN_WORDS)}", max_tokens=4, tag=str(group))
        for _ in range(sizes.per_group)
        for group, beginning in enumerate(beginnings)
    ]


def affinity_key(request: Request) -> str:
    """Return the part of a prompt that the gateway hashes."""
    assert isinstance(request.prompt, str)
    return request.prompt[: Affinity().characters]


def keys_of_chats(count: int) -> dict[str, int]:
    """Count the different affinity keys of `count` chats with one system prompt, by two rules."""
    system, characters = "You follow these rules. " * 40, Affinity().characters
    texts, keys = set(), set()
    for number in range(count):
        first = f"conversation {number}"
        messages = [{"role": "system", "content": system}, {"role": "user", "content": first}]
        body = json.dumps({"model": MODEL, "messages": messages}).encode()
        keys.add(parse("chat", body, GatewayLimits(), Affinity()).affinity_key)
        texts.add(f"{system}\n{first}"[:characters])
    return {
        f"first {characters} characters": len(texts),
        "system and first user message": len(keys),
    }


def first_visits(requests: Sequence[Request], replicas: Sequence[str]) -> float:
    """Share of requests that come to a replica which has seen their beginning, if no_fault is evicted.

    Args:
        requests: Requests of `grouped_prompts`.
        replicas: Replica for each of them.
    """
    seen: set[tuple[str, str]] = set()
    warm = 0
    for request, replica in zip(requests, replicas, strict=True):
        warm += (request.tag, replica) in seen
        seen.add((request.tag, replica))
    return warm / len(requests)


def measure_policy(
    engines: Sequence[RunningEngine], profile: Profile, policy: str, seed: int
) -> PolicyRun:
    """Send grouped prompts through a gateway with one policy, two at a time, and write a record."""
    requests = grouped_prompts(profile, seed)
    patient = {"timeout_s": 10.0}  # no_fault is broken here, and a busy engine must not look so
    models = models_of({MODEL: engines}, policy)
    with serve(models, health=patient, log_level="warning") as gateway:
        client = Client(gateway.base_url, MODEL, api="completions")
        warmup = [Request(text, max_tokens=4) for text in _texts(6, seed)]
        run(client, warmup, ClosedLoop(2), progress=False)
        before = [scrape(engine) for engine in engines]
        earlier = counted(gateway, "gateway_requests_total", "backend")
        result = run(client, requests, ClosedLoop(2), label=policy, progress=False)
        after = [scrape(engine) for engine in engines]
        shares = counted(gateway, "gateway_requests_total", "backend") - earlier
    _keep(result, gateway, profile, f"lab 3.3.7: {policy}")
    looked_up = _grown(before, after, "prefix_queries")
    return PolicyRun(
        policy,
        _grown(before, after, "prefix_hits") / looked_up if looked_up else float("nan"),
        1000 * median(trace.ttft() for trace in result.traces if trace.ok),
        {name: int(count) for name, count in shares.items()},
    )


def _grown(before: Sequence[Any], after: Sequence[Any], what: str) -> float:
    pairs = zip(before, after, strict=True)
    return sum((getattr(b, what) or 0) - (getattr(a, what) or 0) for a, b in pairs)


def counted(gateway: LocalGateway, name: str, label: str) -> Counter[str]:
    """Return a counter of `/metrics`, summed by one label."""
    found: Counter[str] = Counter()
    for family in text_string_to_metric_families(gateway.metrics()):
        for sample in family.samples:
            if sample.name == name:
                found[sample.labels[label]] += int(sample.value)
    return found


def _keep(result: LoadResult, gateway: LocalGateway, profile: Profile, label: str) -> None:
    write_record(make_record(result, gateway, profile, label=label))


# Faults


OUTCOMES = (
    "answered",
    "error event",
    "error answer",
)  # whole; a stream that broke off; no stream at all


@dataclass(frozen=True)
class FaultRun:
    """Load during which a fault happened.

    Attributes:
        what: Name of the fault.
        traces: One trace per request, as its client saw it.
        retried: Attempts that the gateway repeated, by reason.
        shares: Number of requests that each backend ended.
        whole_after_s: Seconds from the end of the load until every backend served again, or None if they
            didn't within 10 s.
        fault_at: Start of the fault on the traces' clock, or None if there was no fault.
    """

    what: str
    traces: tuple[RequestTrace, ...]
    retried: Mapping[str, int]
    shares: Mapping[str, int]
    whole_after_s: float | None
    fault_at: float | None = None

    @staticmethod
    def outcome(trace: RequestTrace) -> str:
        """Classify how a request ended, as one of `OUTCOMES`."""
        if trace.ok:
            return OUTCOMES[0]
        return OUTCOMES[1] if "mid-stream" in (trace.error or "") else OUTCOMES[2]

    def count(self, outcome: str) -> int:
        """Count the requests with this outcome."""
        return sum(self.outcome(trace) == outcome for trace in self.traces)

    def e2e_ms(self, share: float) -> float:
        """End-to-end latency that `share` of the answers did not exceed, ms."""
        times = sorted(trace.e2el() for trace in self.traces if trace.ok)
        return 1000 * times[min(len(times) - 1, int(share * len(times)))] if times else float("nan")


def tokens_in(fault_run: FaultRun, seconds: float) -> int:
    """Return the number of tokens that one stream of a run got in `seconds`, from 32 to 1500."""
    return max(32, min(1500, round(seconds / median(t.tpot for t in fault_run.traces if t.ok))))


def no_fault() -> None:
    """Do nothing: the fault of the run without one."""


def run_with_fault(
    gateway: LocalGateway,
    profile: Profile,
    what: str,
    fault: Callable[[], None] = no_fault,
    undo: Callable[[], None] = no_fault,
) -> FaultRun:
    """Run a load, call `fault` after a third of it, and call `undo` when the load has ended."""
    sizes = profile.load.serving
    requests = [
        Request(f"{what} {i}: {text}", max_tokens=sizes.answer_tokens, ignore_eos=True)
        for i, text in enumerate(_texts(sizes.requests))
    ]
    before = {name: counted(gateway, name, by) for name, by in _COUNTERS.items()}
    done = 0

    def count(trace: RequestTrace) -> None:
        nonlocal done
        done += 1
        if done == len(requests) // 3:
            fault()

    client = Client(gateway.base_url, MODEL, api="completions", timeout_s=60)
    try:
        result = run_in_thread(run_async(client, requests, ClosedLoop(sizes.users), on_done=count))
    finally:
        undo()
    ended = time.monotonic()
    whole = None
    while whole is None and time.monotonic() - ended < 10:
        if all(gateway.get("/health/ready")["backends"].values()):
            whole = time.monotonic() - ended
        time.sleep(0.1)
    _keep(result, gateway, profile, f"lab 3.3.7: {what}")
    grown = {name: counted(gateway, name, by) - before[name] for name, by in _COUNTERS.items()}
    shares = {name: n for name, n in grown["gateway_requests_total"].items() if name != "none"}
    began = sorted(trace.finished for trace in result.traces)[len(requests) // 3 - 1]
    fault_at = None if fault is no_fault else began
    return FaultRun(what, result.traces, grown["gateway_retries_total"], shares, whole, fault_at)


_COUNTERS = {"gateway_requests_total": "backend", "gateway_retries_total": "reason"}


def _texts(count: int, seed: int = 5) -> list[str]:
    rng, maker = random.Random(seed), PromptMaker()
    return [maker.text(rng, 12) for _ in range(count)]


# Back-pressure


def crowd(gateway: LocalGateway, count: int, tokens: int) -> tuple[Counter[int], list[str]]:
    """Send `count` requests at the same moment.

    Returns:
        Number of answers by status, and every `Retry-After`.
    """
    waits: list[str] = []

    async def all_at_once() -> Counter[int]:
        body = Request("Write a story.", max_tokens=tokens, ignore_eos=True, stream=False).body(
            MODEL, "completions"
        )
        async with loopback.async_client(timeout=120.0) as client:
            url = f"{gateway.base_url}/v1/completions"
            answers = await asyncio.gather(*[client.post(url, json=body) for _ in range(count)])
        waits.extend(a.headers["retry-after"] for a in answers if "retry-after" in a.headers)
        return Counter(answer.status_code for answer in answers)

    return run_in_thread(all_at_once()), waits


@dataclass(frozen=True)
class SharedRun:
    """Answers to two keys that used one engine together, counted by HTTP status."""

    heavy: Counter[int]
    light: Counter[int]


def heavy_and_light(engine: RunningEngine, profile: Profile, heavy: int, light: int) -> SharedRun:
    """Keep `heavy` requests of one key in a gateway with 4 places, while another sends `light` in turn."""
    keys = [
        {"name": name, "sha256": digest(name), "max_parallel": 1000} for name in ("heavy", "light")
    ]
    tokens = profile.load.serving.answer_tokens
    body = Request("Write.", max_tokens=tokens, ignore_eos=True, stream=False)
    counts: dict[str, Counter[int]] = {"heavy": Counter(), "light": Counter()}

    async def both(url: str) -> None:
        async with loopback.async_client(timeout=120.0) as client:

            async def ask(name: str) -> None:
                answer = await client.post(
                    f"{url}/v1/completions",
                    json=body.body(MODEL, "completions"),
                    headers={"authorization": f"Bearer {name}"},
                )
                counts[name][answer.status_code] += 1

            async def loop() -> None:
                while True:
                    await ask("heavy")

            loops = [asyncio.create_task(loop()) for _ in range(heavy)]
            try:
                await asyncio.sleep(0.2)
                for _ in range(light):
                    await ask("light")
            finally:
                for each in loops:
                    each.cancel()
                await asyncio.gather(*loops, return_exceptions=True)

    models = models_of({MODEL: [engine]}, max_outstanding=4)
    queue = {"size": heavy, "wait_s": 60}
    with serve(models, keys=keys, queue=queue, log_level="warning") as gateway:
        run_in_thread(both(gateway.base_url))
    return SharedRun(counts["heavy"], counts["light"])


# Drain


@dataclass
class DrainRun:
    """Observations while a gateway drained.

    Attributes:
        moments: Seconds since SIGTERM, status of `/health/ready`, and status of a new request. A status of
            0 means that the connection was refused.
        finished: Seconds from SIGTERM until each running stream had ended whole, or None if it was cut.
        ended_s: Seconds from SIGTERM until the gateway's process had ended.
    """

    moments: list[tuple[float, int, int]] = field(default_factory=list)
    finished: list[float | None] = field(default_factory=list)
    ended_s: float = 0.0

    def running_at(self, at_s: float) -> int:
        """Return the streams that were still running then."""
        return sum(end is None or end > at_s for end in self.finished)


def drain_under_load(gateway: LocalGateway, streams: int, tokens: int) -> DrainRun:
    """Start streams, send SIGTERM, and look on until the gateway has ended."""
    found = DrainRun()
    started, began = threading.Event(), [0.0]

    async def one(client: Client) -> float | None:
        request = Request("Write a long story.", max_tokens=tokens, ignore_eos=True)
        trace = await client.send(request)
        return time.monotonic() - began[0] if trace.ok else None

    async def all_streams() -> list[float | None]:
        async with Client(gateway.base_url, MODEL, api="completions") as client:
            tasks = [asyncio.create_task(one(client)) for _ in range(streams)]
            await asyncio.sleep(0.3)
            started.set()
            return list(await asyncio.gather(*tasks))

    def look_on() -> None:
        started.wait()
        began[0] = time.monotonic()
        gateway.terminate()
        while gateway.running():
            ready, new = _status(gateway, "/health/ready"), _new_request(gateway)
            found.moments.append((time.monotonic() - began[0], ready, new))
            time.sleep(0.1)
        found.ended_s = time.monotonic() - began[0]

    onlooker = threading.Thread(target=look_on)
    onlooker.start()
    found.finished = run_in_thread(all_streams())
    onlooker.join()
    return found


def _status(gateway: LocalGateway, path: str) -> int:
    with suppress(httpx.HTTPError):
        return loopback.get(gateway.base_url + path, timeout=5.0).status_code
    return 0


def _new_request(gateway: LocalGateway) -> int:
    body = Request("hi", max_tokens=1, stream=False).body(MODEL, "completions")
    with suppress(httpx.HTTPError):
        url = f"{gateway.base_url}/v1/completions"
        return loopback.post(url, json=body, timeout=10.0).status_code
    return 0


# What the notebook needs besides


def page_title(gateway: LocalGateway) -> str:
    """Title of the page at `/`."""
    text = loopback.get(f"{gateway.base_url}/", timeout=10.0).text
    return text.partition("<title>")[2].partition("</title>")[0]


def patience(traces: Sequence[RequestTrace]) -> dict[str, float]:
    """Derive the limits of a gateway from a load without a fault.

    A limit from one machine makes a slower machine look broken.

    Returns:
        `first_byte_s` and `idle_s`: five times the longest wait for a first token and for a next piece.
    """
    answered = [trace for trace in traces if trace.ok]
    gaps = [
        after - before
        for trace in answered
        for before, after in itertools.pairwise(trace.chunk_times)
    ]
    longest = {
        "first_byte_s": max((trace.ttft() for trace in answered), default=0.0),
        "idle_s": max(gaps, default=0.0),
    }
    return {
        name: round(max(PATIENCE * seconds, LEAST_PATIENCE_S[name]), 1)
        for name, seconds in longest.items()
    }


@contextmanager
def faulty_pool(
    engines: Sequence[RunningEngine], profile: Profile
) -> Iterator[tuple[LocalGateway, FaultProxy]]:
    """Start a gateway in front of three engines, with a proxy that can misbehave in front of the second.

    Its limits come from a warm-up on this machine, and are printed.
    """
    proxy = FaultProxy(engines[1])
    try:
        models = models_of({MODEL: engines})
        models[0]["backends"][1]["url"] = proxy.base_url
        sizes = profile.load.serving
        warmup = [
            Request(text, max_tokens=sizes.answer_tokens, ignore_eos=True)
            for text in _texts(2 * sizes.users, seed=6)
        ]
        with serve(models, log_level="warning") as gateway:
            client = Client(gateway.base_url, MODEL, api="completions")
            traces = run(client, warmup, ClosedLoop(sizes.users), progress=False).traces
        limits = patience(traces)
        print(
            f"Limits from a warm-up on this machine (measured): first_byte_s = {limits['first_byte_s']:g}, "
            f"idle_s = {limits['idle_s']:g}"
        )
        with serve(models, health=SCALED_S, timeouts=limits, log_level="warning") as gateway:
            yield gateway, proxy
    finally:
        proxy.stop()


def misbehave(proxy: FaultProxy, mode: str) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return the beginning and the end of a fault of the proxy."""
    return (lambda: setattr(proxy, "mode", mode)), (lambda: setattr(proxy, "mode", PASS))


def frozen(engine: RunningEngine) -> tuple[Callable[[], None], Callable[[], None]]:
    """Return the beginning and the end of an engine's freeze."""
    return engine.freeze, engine.thaw
