"""Requests through a gateway whose backends are killed and frozen at random.

Every request has to end once: with its own answer, or with an error. Backends are fake servers, in processes
of their own (`tests/support/fake_openai.py`): they answer with the request's own word, so that an answer of
somebody else is seen. Afterwards the pool has to be whole again within 10 s.

    python -m benchmarks.gateway_chaos --requests 10000        # make bench-chaos
"""

from __future__ import annotations

import argparse
import asyncio
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from utils import loopback
from utils.benchmark import Client, Request
from utils.benchmark.trace import RequestTrace
from utils.engines.runtime import free_port
from utils.gateway.local_gateway import serve

FAKE = Path(__file__).resolve().parents[1] / "tests" / "support" / "fake_openai.py"
MODEL, TOKENS = "toy", 8
WHOLE_AGAIN_S = 10.0
AFTER_ERROR_S = 0.5  # else a moment without any backend uses up all requests


class Victim:
    """A fake server that is killed and frozen, and comes back at the same port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.start()

    def start(self) -> None:
        """Starts it."""
        command = [sys.executable, str(FAKE), "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--tokens", str(TOKENS), "--gap", "0.002"], stdout=subprocess.DEVNULL
        )

    def end(self) -> None:
        """Ends it for good, frozen or not."""
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()

    async def suffer(self, rng: random.Random) -> str:
        """One misfortune, until it is over."""
        if rng.random() < 0.5:
            self.process.kill()
            await asyncio.to_thread(self.process.wait)
            await asyncio.sleep(rng.uniform(0.1, 1.0))
            self.start()
            return "killed"
        self.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(rng.uniform(0.2, 2.0))
        self.process.send_signal(signal.SIGCONT)
        return "frozen"


@dataclass
class Report:
    """What came of it.

    Attributes:
        answered: Requests with their own, whole answer.
        failed: Requests with an error, by its beginning.
        wrong: Answers that are not the request's own, or not whole, or twice.
        lost: Requests that ended with nothing.
        misfortunes: What backends suffered.
        whole_after_s: From the last misfortune until every backend serves again; None: not in time.
        seconds: How long the load ran.
        memory_mb: Memory of the gateway at the end.
    """

    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: int = 0
    misfortunes: Counter[str] = field(default_factory=Counter)
    whole_after_s: float | None = None
    seconds: float = 0.0
    memory_mb: float = 0.0

    def judge(self, word: str, trace: RequestTrace) -> None:
        """Adds one request."""
        if trace.ok:
            if trace.text == " ".join([word] * TOKENS):
                self.answered += 1
            else:
                self.wrong.append(f"{word}: {trace.text[:80]!r}")
        elif (trace.error or "").startswith("timed out"):
            self.lost += 1
        else:
            self.failed[(trace.error or "")[:70]] += 1


async def _load(url: str, victims: list[Victim], count: int, width: int, seed: int) -> Report:
    rng, report = random.Random(seed), Report()
    queue = iter(range(count))
    done = asyncio.Event()

    async def user(client: Client) -> None:
        for i in queue:
            word = f"w{i}x"
            request = Request(word, stream=i % 2 == 0, max_tokens=TOKENS)
            trace = await client.send(request)
            report.judge(word, trace)
            if not trace.ok:
                await asyncio.sleep(AFTER_ERROR_S)

    async def misfortune() -> None:
        while not done.is_set():
            report.misfortunes[await rng.choice(victims).suffer(rng)] += 1
            await asyncio.sleep(rng.uniform(0.0, 0.5))

    began = time.monotonic()
    async with Client(url, MODEL, timeout_s=60) as client:
        trouble = asyncio.create_task(misfortune())
        await asyncio.gather(*[user(client) for _ in range(width)])
        report.seconds = time.monotonic() - began
        done.set()
        await trouble
        ended = time.monotonic()
        async with loopback.async_client() as http:
            while time.monotonic() - ended < WHOLE_AGAIN_S:
                await client.send(Request("again", max_tokens=TOKENS))
                with suppress(httpx.HTTPError):
                    answer = (await http.get(f"{url}/health/ready")).json()
                    if all(answer["backends"].values()):
                        report.whole_after_s = time.monotonic() - ended
                        break
                await asyncio.sleep(0.1)
    return report


def chaos(count: int, width: int = 32, backends: int = 3, seed: int = 0) -> Report:
    """Runs it.

    Args:
        count: Requests.
        width: Requests in flight.
        backends: Fake servers.
        seed: Of the misfortunes.
    """
    with ExitStack() as stack:
        victims = [Victim() for _ in range(backends)]
        for victim in victims:
            stack.callback(victim.end)
        described = [
            {"name": f"b{i}", "engine": "llama_cpp", "url": f"http://127.0.0.1:{victim.port}"}
            for i, victim in enumerate(victims)
        ]
        health = {"every_s": 0.2, "timeout_s": 0.5, "circuit_open_s": 1.0, "retries": 3}
        limits = {"first_byte_s": 5, "idle_s": 3}
        models = [{"name": MODEL, "backends": described}]
        gateway = stack.enter_context(
            serve(models, health=health, timeouts=limits, log_level="error")
        )
        deadline = time.monotonic() + 20
        while not all(gateway.get("/health/ready")["backends"].values()):
            assert time.monotonic() < deadline, "the fake servers do not start"
            time.sleep(0.1)
        report = asyncio.run(_load(gateway.base_url, victims, count, width, seed))
        report.memory_mb = gateway.process.memory_info().rss / 1e6
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--width", type=int, default=32)
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    report = chaos(chosen.requests, chosen.width, seed=chosen.seed)
    print(
        f"{chosen.requests} requests in {report.seconds:.0f} s, {dict(report.misfortunes)}: "
        f"{report.answered} answered, {report.failed.total()} with an error, {report.lost} lost, "
        f"{len(report.wrong)} wrong; gateway {report.memory_mb:.0f} MB"
    )
    for error, count in report.failed.most_common(8):
        print(f"  {count:6} {error}")
    for wrong in report.wrong[:5]:
        print("  wrong:", wrong)
    whole = report.whole_after_s
    print("pool whole again after", "more than 10 s" if whole is None else f"{whole:.1f} s")
    sys.exit(bool(report.wrong or report.lost or whole is None))


if __name__ == "__main__":
    main()
