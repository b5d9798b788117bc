"""Benchmark of any OpenAI-compatible endpoint, with a record for each load and an HTML report.

python -m utils.benchmark http://127.0.0.1:8000 --model M --concurrency 1 8 32
python -m utils.benchmark https://host/v1 --model M --rate 2 4 8 --duration 60
python -m utils.benchmark http://127.0.0.1:8000 --model M --find-rate --ttft-ms 500 --tpot-ms 50
"""

from __future__ import annotations

import argparse
import itertools
import os
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from utils.benchmark import report
from utils.benchmark.arrivals import ClosedLoop, LoadPattern, OpenLoop, StopRule
from utils.benchmark.client import Client
from utils.benchmark.cost import PowerMeter, costs
from utils.benchmark.datasets import endless, read_requests
from utils.benchmark.load import EngineDied, Item, LoadInterrupted, LoadResult, run
from utils.benchmark.rate_search import GOOD_SHARE, highest_rate
from utils.benchmark.records import Record, RecordError, make_record, records_dir, write_record
from utils.benchmark.redact import redact_text
from utils.benchmark.stats import Slo
from utils.benchmark.workload import Request, random_prompts

WAVES = 5  # requests of a closed loop, in multiples of its concurrency
SECONDS = 30  # of an open loop without --requests and --duration


@dataclass(frozen=True)
class Endpoint:
    """Endpoint that somebody else runs, as a record needs to know it."""

    name: str
    model_path: str
    version: str = "unknown"
    quantisation: str = "unknown"
    command: tuple[str, ...] = ()
    origin: str = "attached"


@dataclass(frozen=True)
class Unknown:
    """Profile of an endpoint that tells nothing about itself."""

    name: str = "attached"
    dtype: str = "unknown"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code."""
    arguments = _arguments(argv)
    warnings.showwarning = _warn  # type: ignore[assignment]
    records: list[Record] = []
    try:
        session = _Session(arguments, records)
        session.run()
    except KeyboardInterrupt:
        print("\nInterrupted. The records below hold what had ended.", file=sys.stderr)
        code = 130
    except EngineDied as error:
        print(redact_text(str(error)), file=sys.stderr)
        code = 1
    except (ValueError, RecordError) as error:
        print(redact_text(str(error)), file=sys.stderr)
        return 2
    else:
        code = 0 if all(record.summary["completed"] for record in records) else 1
    if records:
        print(report.table(records).T.to_string())
        folder = arguments.out or records_dir()
        page = report.write_html(
            records, folder / "report.html", title=f"{records[0].label}, measured"
        )
        print(f"records: {folder}\nreport: {page}")
    return code


class _Session:
    """Loads of one command line; each ends with a record."""

    def __init__(self, arguments: argparse.Namespace, records: list[Record]) -> None:
        self.arguments = arguments
        self.records = records
        self.client = Client(
            arguments.url,
            arguments.model,
            arguments.api,
            api_key=os.environ.get(arguments.key_env),
            timeout_s=arguments.timeout,
            proxy=_proxy(arguments.proxy, arguments.url),
        )
        self.slo = Slo(arguments.ttft_ms, arguments.tpot_ms, arguments.e2el_ms)
        self.stop = StopRule(arguments.duration, arguments.max_error_rate)
        name = arguments.label or arguments.model
        self.endpoint = Endpoint(name, arguments.model, command=(self.client.base_url,))
        self._file: Iterator[Item] | None = None

    def run(self) -> None:
        """Run every load that was asked for, the loads in turn for each repeat."""
        arguments = self.arguments
        if arguments.find_rate:
            self._find_rate()
            return
        loads: list[LoadPattern] = [ClosedLoop(level) for level in arguments.concurrency or ()]
        for number, rate in enumerate(arguments.rate or ()):
            loads.append(OpenLoop(rate, arguments.burstiness, seed=number))
        for turn in range(arguments.repeats):
            for load in loads or [ClosedLoop(1)]:
                self._measure(load, turn)

    def _find_rate(self) -> None:
        if self.slo == Slo():
            raise ValueError(
                "--find-rate needs an objective: add --ttft-ms, --tpot-ms or --e2el-ms"
            )

        def share(rate: float) -> float:
            result = self._measure(OpenLoop(rate, self.arguments.burstiness), 0)
            good = result.summary(slo=self.slo).request_goodput or 0.0
            return good * result.duration / max(1, len(result.traces))

        found = highest_rate(share, (self.arguments.rate or [1.0])[0])
        for rate, good in sorted(found.shares.items()):
            print(f"{rate:8.3g} requests/s: {good:.1%} within the objectives")
        best = "no rate" if found.best is None else f"{found.best:.3g} requests/s"
        print(f"highest rate with at least {GOOD_SHARE:.0%} good requests: {best}")

    def _measure(self, load: LoadPattern, turn: int) -> LoadResult:
        meter = PowerMeter()
        try:
            with meter:
                result = run(
                    self.client,
                    self._requests(load),
                    load,
                    warmup=self._warm_up(load),
                    stop=self.stop,
                    label=f"{self.endpoint.name}, {_words(load)}",
                )
        except (LoadInterrupted, EngineDied) as broken:
            self._keep(broken.result, meter, turn)
            raise
        self._keep(result, meter, turn)
        return result

    def _keep(self, result: LoadResult, meter: PowerMeter, turn: int) -> None:
        arguments = self.arguments
        cost = costs(result.summary().to_dict(), meter.watts, arguments.price_per_hour)
        record = make_record(
            result,
            self.endpoint,
            Unknown(),
            slo=None if self.slo == Slo() else self.slo,
            extra={"round": turn, "cost": cost},
        )
        write_record(record, arguments.out)
        self.records.append(record)
        for name, value in cost.items():
            print(f"{name.replace('_', ' ')}: {value:.3g}")

    def _requests(self, load: LoadPattern) -> Iterable[Item]:
        arguments = self.arguments
        count = arguments.requests or _count(load)
        if arguments.dataset:
            if self._file is None:
                self._file = endless(
                    read_requests(
                        arguments.dataset,
                        max_tokens=arguments.output_tokens,
                        turns=arguments.turns,
                        think_s=arguments.think,
                        seed=arguments.seed or 0,
                    )
                )
            return self._file if self.stop.duration_s else list(itertools.islice(self._file, count))
        if self.stop.duration_s:
            return self._endless_random()
        return self._random(count)

    def _random(self, count: int) -> list[Request]:
        arguments = self.arguments
        return random_prompts(
            count,
            arguments.prompt_tokens,
            tokenizer=arguments.tokenizer,
            spread=arguments.spread,
            output_spread=arguments.spread,
            seed=arguments.seed,
            max_tokens=arguments.output_tokens or 64,
            ignore_eos=arguments.ignore_eos,
        )

    def _endless_random(self) -> Iterator[Request]:
        while True:
            yield from self._random(64)

    def _warm_up(self, load: LoadPattern) -> list[Request]:
        width = load.concurrency if isinstance(load, ClosedLoop) else 1
        return self._random(min(width, 4)) if self.arguments.warmup else []


def _count(load: LoadPattern) -> int:
    if isinstance(load, ClosedLoop):
        return max(10, WAVES * load.concurrency)
    return max(10, round(SECONDS * load.request_rate))


def _words(load: LoadPattern) -> str:
    if isinstance(load, ClosedLoop):
        return f"{load.concurrency} in flight"
    return f"{load.request_rate:g} requests/s"


def _proxy(chosen: str | None, url: str) -> str | None:
    """Return the proxy that was asked for; "env" asks for the one of the environment."""
    if chosen != "env":
        return chosen
    scheme = url.split("://")[0]
    for name in (f"{scheme}_proxy", f"{scheme.upper()}_PROXY", "all_proxy", "ALL_PROXY"):
        if os.environ.get(name):
            return os.environ[name]
    raise ValueError(f"--proxy env: the environment names no proxy for {scheme}")


def _warn(message: Warning | str, *_: object) -> None:
    print(f"warning: {redact_text(str(message))}", file=sys.stderr)


def _arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m utils.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "url",
        help="address of the API, such as http://127.0.0.1:8000 or https://host/v1beta/openai",
    )
    add("--model", required=True, help="name of the model that the server knows")
    add("--api", choices=["chat", "completions"], default="chat")
    add("--label", default="", help="name in tables and plots; default: the model")
    add("--concurrency", type=int, nargs="+", metavar="N", help="closed loops, requests in flight")
    add("--rate", type=float, nargs="+", metavar="R", help="open loops, requests per second")
    add("--burstiness", type=float, default=1.0, help="1 is a Poisson process")
    add("--find-rate", action="store_true", help="search the highest rate within the objectives")
    add("--requests", type=int, help="requests of each load")
    add("--duration", type=float, help="seconds of each load, in place of --requests")
    add("--repeats", type=int, default=1, help="how often all loads are measured, in turn")
    add("--max-error-rate", type=float, default=0.5, help="share of failures that ends a load")
    add("--prompt-tokens", type=int, default=256, help="mean length of random prompts")
    add("--output-tokens", type=int, help="mean limit of answers; default 64, or the file's own")
    add("--spread", type=float, default=0.5, help="lengths vary in mean * (1 ± spread)")
    add("--tokenizer", help="tokenizer.json or folder; without it prompts are counted in words")
    add("--seed", type=int, help="seed of prompts; default: prompts that no server has seen")
    add(
        "--ignore-eos",
        action="store_true",
        help="answers of exactly their limit (vLLM, SGLang, llama.cpp)",
    )
    add("--dataset", type=Path, help="JSONL with prompt or messages, or ShareGPT's JSON")
    add("--turns", action="store_true", help="hold the file's conversations turn by turn")
    add("--think", type=float, default=0.0, help="mean seconds between turns")
    add("--no-warmup", dest="warmup", action="store_false")
    add("--ttft-ms", type=float, help="objective")
    add("--tpot-ms", type=float, help="objective")
    add("--e2el-ms", type=float, help="objective")
    add("--price-per-hour", type=float, help="price of the machine; gives the cost of tokens")
    add("--key-env", default="OPENAI_API_KEY", help="variable that holds the key")
    add("--proxy", help="address of a proxy, or env for the environment's; default: none")
    add("--timeout", type=float, default=300.0, help="seconds for one request")
    add("--out", type=Path, help="folder of records and report; default: records/")
    return parser.parse_args(argv)


if __name__ == "__main__":
    sys.exit(main())
