"""llama.cpp's wheel compared with the build that is compiled for this machine: `make bench-llama-cpp`.

For each case both servers run with the same arguments, and are asked in turn, so that a busy spell of the
machine meets both. The models are the tiny one and the untrained one of 102 million parameters
(`utils.tinymodel.untrained`). The table shows medians over the rounds.

    python -m benchmarks.llama_cpp_builds --rounds 6
    python -m benchmarks.llama_cpp_builds --rounds 2 --native /path/to/llama-server
"""

from __future__ import annotations

import argparse
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import httpx
import pandas as pd

from utils import loopback
from utils.benchmark.host import describe_host
from utils.engines import llama_cpp, llama_cpp_server
from utils.engines.process import SHARED_CORES
from utils.engines.runtime import free_port
from utils.profiles import ENGINES, MODELS
from utils.tinymodel.export import write_gguf
from utils.tinymodel.untrained import untrained_gguf

PREFILL = {1: 384, 16: 64}  # tokens of a prompt with one token of answer, by the number of requests
DECODE = {1: 64, 16: 32}  # tokens of an answer to a short prompt
SHORT = 4  # tokens of that prompt
KINDS = ("BF16", "Q8_0")
SIZES = ("tiny", "102M")
PHASES = ("decode", "prefill")


@dataclass(frozen=True)
class Case:
    """What one server is measured with.

    Attributes:
        model: Name of the model.
        threads: Number of threads that compute.
        requests: Number of requests in flight.
    """

    model: str
    threads: int
    requests: int


@contextmanager
def served(command: list[str], model: Path, case: Case) -> Iterator[str]:
    """Start a server for a case, and yield its address once it is healthy."""
    url = f"http://127.0.0.1:{(port := free_port())}"
    context = case.requests * 512
    threads = ("-t", str(case.threads), "-tb", str(case.threads))
    sizes = ("-np", str(case.requests), "-c", str(context), *threads)
    line = [*command, "-m", str(model), "--port", str(port), *sizes, "--no-repack"]
    silent = subprocess.DEVNULL
    server = subprocess.Popen(
        line, stdout=silent, stderr=silent, env={**os.environ, **SHARED_CORES}
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            if server.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"The server did not start: {' '.join(line)}")
            try:
                if loopback.get(f"{url}/health", timeout=5).status_code == 200:
                    break
            except httpx.TransportError:
                pass
            time.sleep(0.05)
        yield url
    finally:
        server.kill()
        server.wait()


def measure(url: str, case: Case, phase: str, seed: int) -> float:
    """Return the rate of all requests together in one phase, tokens per second."""
    draw = random.Random(seed)
    prefill, decode = PREFILL[case.requests], DECODE[case.requests]
    length, tokens = (prefill, 1) if phase == "prefill" else (SHORT, decode)
    prompts = [[draw.randrange(300, 2000) for _ in range(length)] for _ in range(case.requests)]

    def ask(prompt: list[int]) -> None:
        body = {"prompt": prompt, "n_predict": tokens, "ignore_eos": True, "temperature": 0}
        answer = loopback.post(
            f"{url}/completion", json=body | {"cache_prompt": False}, timeout=300
        )
        answer.raise_for_status()

    with ThreadPoolExecutor(case.requests) as pool:
        began = time.monotonic()
        list(pool.map(ask, prompts))
        took = time.monotonic() - began
    return case.requests * (length if phase == "prefill" else tokens) / took


def compare(
    builds: dict[str, list[str]], models: dict[str, Path], rounds: int
) -> Iterator[dict[str, object]]:
    """Measure each case `rounds` times with each build in turn, and yield the table's rows."""
    for name, threads, requests in product(models, (1, 2), PREFILL):
        case = Case(name, threads, requests)
        rates: dict[tuple[str, str], list[float]] = {key: [] for key in product(PHASES, builds)}
        with ExitStack() as stack:
            urls = {
                build: stack.enter_context(served(command, models[name], case))
                for build, command in builds.items()
            }
            for turn, phase in product(range(-1, rounds), PHASES):
                for build in builds if turn % 2 == 0 else reversed(builds):
                    rate = measure(urls[build], case, phase, turn)
                    if turn >= 0:  # the first requests of a server take longer
                        rates[phase, build].append(rate)
        for phase in PHASES:
            pairs = list(zip(*(rates[phase, build] for build in builds), strict=True))
            ratios = [wheel / compiled for wheel, compiled in pairs]
            print(f"{case}, {phase}: {statistics.median(ratios):.2f}", flush=True)
            yield {
                **asdict(case),
                "phase": phase,
                **{
                    f"{build} (tok/s)": round(statistics.median(rates[phase, build]))
                    for build in builds
                },
                "wheel / compiled": round(statistics.median(ratios), 2),
                "least ... most": f"{min(ratios):.2f} ... {max(ratios):.2f}",
            }


def main() -> None:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--native", type=Path, default=llama_cpp.NATIVE_SERVER)
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS))
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    arguments = parser.parse_args()
    python = ENGINES / "llama_cpp" / "bin" / "python"
    for needed in (python, arguments.native):
        if not needed.exists():
            parser.error(f"{needed} does not exist. Run: make setup STEP=llama_cpp NATIVE=1")
    builds = {
        "wheel": [str(python), "-P", str(llama_cpp_server.__file__)],
        "compiled": [str(arguments.native)],
    }
    with tempfile.TemporaryDirectory() as name:
        files = {
            "tiny": lambda kind: write_gguf(MODELS / "tiny", kind, Path(name) / kind),
            "102M": untrained_gguf,
        }
        models = {
            f"{size} {kind}": files[size](kind)
            for size, kind in product(arguments.sizes, arguments.kinds)
        }
        table = pd.DataFrame(compare(builds, models, arguments.rounds))
    host = describe_host()
    print(f"\n{host['cpu']}, {os.cpu_count()} cores, {arguments.rounds} rounds\n")
    print(table.to_string(index=False))


if __name__ == "__main__":
    main()
