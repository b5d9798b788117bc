"""Requests through a gateway whose backends suffer misfortunes at random.

They are killed, frozen and overloaded, they hang with a good health check, have another model, fail with
500 or with an error in a 200, and break off in the middle of answers. Two of three suffer at the same time.
Every request has to end once: with its own answer, or with an error that has a name. Backends are fake
servers in processes of their own (`tests/support/fake_openai.py`). They answer with the request's own word,
so that an answer of somebody else is seen. Afterwards the pool has to be whole again within 2 s.

    python -m benchmarks.gateway_chaos --requests 10000        # make bench-chaos
"""

from __future__ import annotations

import argparse
import asyncio
import random
import re
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
WHOLE_AGAIN_S = 2.0
NAMED = re.compile(
    r"(ResponseError: )?HTTP (429|502|503|504): \S|(ResponseError: )?error in mid-stream: \S"
)
# Misfortune: the fake server's mode.
MODES = {
    "hung": "hangs",
    "wrong model": "http_404",
    "overloaded": "http_503",
    "failing": "http_500",
    "error in 200": "error_200",
    "breaking off": "cut",
}
AFTER_ERROR_S = 0.5  # else a moment without any backend uses up all requests


class Victim:
    """A fake server that suffers misfortunes, and comes back at the same port."""

    def __init__(self) -> None:
        self.port = free_port()
        self.start()

    def start(self) -> None:
        """Starts it."""
        command = [sys.executable, str(FAKE), "--port", str(self.port)]
        self.process = subprocess.Popen(
            [*command, "--tokens", str(TOKENS), "--gap", "0.01"], stdout=subprocess.DEVNULL
        )

    def end(self) -> None:
        """Ends it for good, frozen or not."""
        self.process.send_signal(signal.SIGCONT)
        self.process.kill()
        self.process.wait()

    async def suffer(self, rng: random.Random) -> str:
        """One misfortune, until it is over."""
        fate = rng.choice(["killed", "frozen", *MODES])
        if fate in MODES:
            await self.set_mode(MODES[fate])
            await asyncio.sleep(rng.uniform(0.2, 2.0))
            await self.set_mode("ok")
            return fate
        if fate == "killed":
            self.process.kill()
            await asyncio.to_thread(self.process.wait)
            await asyncio.sleep(rng.uniform(0.1, 1.0))
            self.start()
            return fate
        self.process.send_signal(signal.SIGSTOP)
        await asyncio.sleep(rng.uniform(0.2, 2.0))
        self.process.send_signal(signal.SIGCONT)
        return fate

    async def set_mode(self, mode: str) -> None:
        """Let it misbehave. One that has just been started takes a moment."""
        deadline = time.monotonic() + 20
        async with loopback.async_client(timeout=20.0) as http:
            while True:
                try:
                    await http.get(f"http://127.0.0.1:{self.port}/mode/{mode}")
                    return
                except httpx.HTTPError:
                    assert time.monotonic() < deadline, "a fake server does not start"
                    await asyncio.sleep(0.02)


@dataclass
class Report:
    """What came of it.

    Attributes:
        answered: Requests with their own, whole answer.
        failed: Requests with an error, by its beginning.
        wrong: Answers that are not the request's own, or not whole, or twice.
        lost: Requests that ended with nothing.
        unnamed: Errors without a status and a message of the gateway's own.
        uncounted: Requests that the gateway's metrics don't have.
        misfortunes: What backends suffered.
        whole_after_s: From the last misfortune until every backend serves again; None: not in time.
        seconds: How long the load ran.
        memory_mb: Memory of the gateway at the end.
    """

    answered: int = 0
    failed: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    lost: int = 0
    unnamed: list[str] = field(default_factory=list)
    uncounted: int = 0
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
            if not NAMED.match(trace.error or ""):
                self.unnamed.append(trace.error or "")


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

    healthy = list(victims)

    async def misfortune() -> None:
        while not done.is_set():
            victim = healthy.pop(rng.randrange(len(healthy)))
            report.misfortunes[await victim.suffer(rng)] += 1
            healthy.append(victim)
            await asyncio.sleep(rng.uniform(0.0, 0.5))

    asked = 0
    began = time.monotonic()
    async with Client(url, MODEL, timeout_s=60) as client:
        troubles = [asyncio.create_task(misfortune()) for _ in range(max(1, len(victims) - 1))]
        await asyncio.gather(*[user(client) for _ in range(width)])
        report.seconds = time.monotonic() - began
        done.set()
        await asyncio.gather(*troubles)
        ended = time.monotonic()
        async with loopback.async_client() as http:
            while time.monotonic() - ended < WHOLE_AGAIN_S:
                await client.send(Request("again", max_tokens=TOKENS))
                asked += 1
                with suppress(httpx.HTTPError):
                    answer = (await http.get(f"{url}/health/ready")).json()
                    if all(answer["backends"].values()):
                        report.whole_after_s = time.monotonic() - ended
                        break
                await asyncio.sleep(0.1)
            text = (await http.get(f"{url}/metrics")).text
    counted = re.findall(r"^gateway_requests_total\{.*\} (\S+)$", text, re.MULTILINE)
    report.uncounted = count + asked - int(sum(map(float, counted)))
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
        health = {"every_s": 0.2, "timeout_s": 0.5, "circuit_open_s": 0.5, "retries": 3}
        health |= {"silence_s": 0.5, "probe_s": 0.5}
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
        f"{len(report.wrong)} wrong, {len(report.unnamed)} without a name, {report.uncounted} not counted; "
        f"gateway {report.memory_mb:.0f} MB"
    )
    for error, count in report.failed.most_common(8):
        print(f"  {count:6} {error}")
    for wrong in report.wrong[:5]:
        print("  wrong:", wrong)
    whole = report.whole_after_s
    late = f"more than {WHOLE_AGAIN_S:g} s"
    print("pool whole again after", late if whole is None else f"{whole:.1f} s")
    bad = report.wrong or report.lost or report.unnamed or report.uncounted or whole is None
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
