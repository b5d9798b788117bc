"""What a gateway costs: the same engine direct, behind ours, and behind others. Part of no test.

Streams run in rounds, everybody in turn, so that a slow phase of the machine hits all. A quiet load (one
request at a time, then four) shows what a request costs by itself; at 32 streams proxy, client and engine
share the cores. The paced engine tells its own time to first token of each request, which is taken off;
of a real engine that is part of the noise. A figure is the median over rounds.

    python -m benchmarks.gateway_peers --engine vllm        # make bench-gateway
    python -m benchmarks.gateway_peers --engine paced       # a fake server: the costs alone
"""

from __future__ import annotations

import argparse
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from statistics import median

from benchmarks.paced_server import MODEL
from benchmarks.peers import PEERS, Engine, NotHere, Served, started
from utils import loopback
from utils.benchmark import Client, ClosedLoop, random_prompts, records_dir, run
from utils.benchmark.host import describe_host
from utils.engines import launch
from utils.engines.runtime import free_port
from utils.files import to_json, write_whole
from utils.profiles import load_profile

DIRECT = "direct"
PACED_STEP_S, PACED_TTFT_S = 0.01, 0.02


@dataclass(frozen=True)
class Load:
    """`requests` answers of `tokens` tokens, `streams` at a time."""

    streams: int
    requests: int
    tokens: int


QUIET, FEW = Load(1, 24, 8), Load(4, 48, 8)
FULL, SHORT = Load(32, 64, 64), Load(32, 128, 1)
LOADS = (QUIET, FEW, FULL, SHORT)


class Failed(Exception):
    """Requests that were not answered; says how many, and the first error."""


@dataclass(frozen=True)
class Sample:
    """One load, once.

    Attributes:
        ttft_ms: Median time to first token, ms; of the paced engine without its own part.
        tokens_per_s: Output tokens per second.
        cpu_s: CPU seconds of the proxy.
        chunks: Pieces of streams that arrived.
    """

    ttft_ms: float
    tokens_per_s: float
    cpu_s: float
    chunks: int


def measure(engine: Engine, served: Served, load: Load, seed: int) -> Sample:
    """Runs a load once.

    Raises:
        Failed: A request was not answered.
    """
    options = {"max_tokens": load.tokens, "ignore_eos": True}
    requests = random_prompts(load.requests, 32, seed=seed, **options)  # type: ignore[arg-type]
    own_times(engine)  # forgets what was before
    cpu_s = served.cpu_s()
    result = run(
        Client(served.url, engine.model), requests, ClosedLoop(load.streams), progress=False
    )
    cpu_s = served.cpu_s() - cpu_s
    if failed := [trace for trace in result.traces if not trace.ok]:
        raise Failed(f"{len(failed)} of {load.requests} requests failed: {failed[0].error}")
    own = own_times(engine)
    ttfts = [
        trace.ttft() - own.get(str(request.prompt), 0.0)
        for trace, request in zip(result.traces, requests, strict=True)
    ]
    chunks = sum(len(trace.chunk_times) for trace in result.traces)
    rate = result.summary()["output_throughput"]
    return Sample(1000 * median(ttfts), rate, cpu_s, chunks)


def own_times(engine: Engine) -> dict[str, float]:
    """The paced engine's own time to first token, s, by prompt; of others nothing is known."""
    if engine.model != MODEL:
        return {}
    answer = loopback.get(f"{engine.url}/truth", timeout=10.0)
    return {one["prompt"]: one["ttft"] for one in answer.json()}


Rounds = dict[str, dict[Load, list[Sample]]]


def rounds(engine: Engine, served: dict[str, Served], count: int) -> tuple[Rounds, dict[str, str]]:
    """All loads against everybody, `count` times after a short warm-up; and who failed."""
    found: Rounds = defaultdict(lambda: defaultdict(list))
    failed: dict[str, str] = {}
    for turn in range(-1, count):
        print(f"round {turn + 1} of {count}", file=sys.stderr, flush=True)
        names = [name for name in served if name not in failed]
        first = turn % len(names)  # nobody is always the one after the pause
        for name in names[first:] + names[:first]:
            for number, load in enumerate(LOADS if turn >= 0 else [FEW]):
                try:
                    sample = measure(engine, served[name], load, 1000 * (turn + 1) + number)
                except Failed as reason:
                    failed[name] = str(reason)
                    break
                if turn >= 0:
                    found[name][load].append(sample)
    return found, failed


def row(samples: dict[Load, list[Sample]], direct: dict[Load, list[Sample]]) -> dict[str, float]:
    """One peer's figures, each the median over rounds of the difference to, or share of, going direct."""

    def over(load: Load, value: Callable[[Sample, Sample], float]) -> float:
        return median(value(a, b) for a, b in zip(samples[load], direct[load], strict=True))

    pairs = list(zip(samples[FULL], samples[SHORT], strict=True))
    chunk_s = median(
        (full.cpu_s - short.cpu_s * FULL.requests / SHORT.requests)
        / (full.chunks - short.chunks * FULL.requests / SHORT.requests)
        for full, short in pairs
    )
    request_s = median((s.cpu_s - s.chunks * chunk_s) / SHORT.requests for _, s in pairs)
    added = {
        f"added_ttft_ms_{load.streams}": over(load, lambda a, b: a.ttft_ms - b.ttft_ms)
        for load in (QUIET, FEW, FULL)
    }
    return {
        **added,
        "tokens_per_s": median(sample.tokens_per_s for sample in samples[FULL]),
        "share_of_direct": over(FULL, lambda a, b: a.tokens_per_s / b.tokens_per_s),
        "cpu_s_per_1000_chunks": 1000 * chunk_s,
        "cpu_ms_per_request": 1000 * request_s,
    }


HEAD = f"""
{"":>14}  added TTFT p50, ms, at      {FULL.streams} streams:           CPU s per      CPU ms per
{"":>14} {"1":>7} {"4":>7} {"32":>7} streams    tok/s   of direct   1,000 chunks   request besides"""


def line(name: str, found: dict[str, float]) -> str:
    """A row as it is printed."""
    added = " ".join(
        f"{found[f'added_ttft_ms_{load.streams}']:7.2f}" for load in (QUIET, FEW, FULL)
    )
    words = f"{name:>14} {added} {found['tokens_per_s']:16.0f} {found['share_of_direct']:11.1%}"
    if name == DIRECT:
        return words
    return words + f"{found['cpu_s_per_1000_chunks']:15.3f} {found['cpu_ms_per_request']:17.2f}"


@contextmanager
def engine_at(name: str) -> Iterator[Engine]:
    """The engine that stands behind everybody."""
    if name != MODEL:
        with launch(name, load_profile()) as engine:
            yield Engine(engine.base_url, engine.model, engine.name)
        return
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.paced_server", "--port", str(port)]
    command += ["--step", str(PACED_STEP_S), "--ttft", str(PACED_TTFT_S)]
    with started(command, f"http://127.0.0.1:{port}", "/health") as served:
        yield Engine(served.url, MODEL, "llama_cpp")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", default="vllm", choices=["vllm", "llama_cpp", MODEL])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--peers", nargs="*", default=list(PEERS), choices=list(PEERS))
    chosen = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # what was started is stopped
    with ExitStack() as stack:
        engine = stack.enter_context(engine_at(chosen.engine))
        served, missing = {DIRECT: Served(engine.url)}, {}
        for name in chosen.peers:
            try:
                served[name] = stack.enter_context(PEERS[name](engine))
            except NotHere as reason:
                missing[name] = str(reason)
        found, failed = rounds(engine, served, chosen.rounds)
    rows = {
        name: row(actual, found[DIRECT]) for name, actual in found.items() if name not in failed
    }
    print(f"{chosen.engine}, {chosen.rounds} rounds", HEAD)
    for name, figures in rows.items():
        print(line(name, figures))
    for name, why in (failed | missing).items():
        print(f"{name:>14} not measured: {why}")
    record = {"arguments": vars(chosen), "host": describe_host(), "loads": list(map(asdict, LOADS))}
    record |= {"rows": rows, "failed": failed, "missing": missing}
    path = records_dir() / f"gateway-peers-{chosen.engine}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    print(write_whole(path, to_json(record)))


if __name__ == "__main__":
    main()
