"""What a gateway costs: the same engine direct, behind ours, and behind others. Part of no test.

Streams run in rounds, everybody in turn, so that a slow phase of the machine hits all. "Added TTFT" is the
difference of the medians of a round; throughput is output tokens per second over the direct one's.

    python -m benchmarks.gateway_peers --engine vllm        # make bench-gateway
    python -m benchmarks.gateway_peers --engine paced       # a fake server: the costs alone
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from statistics import median

import httpx

from utils.benchmark import Client, ClosedLoop, random_prompts, records_dir, run
from utils.benchmark.files import to_json, write_whole
from utils.benchmark.host import describe_host
from utils.engines import launch
from utils.engines.runtime import free_port
from utils.gateway.local import serve
from utils.profiles import load_profile

NGINX = """
worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy;
  fastcgi_temp_path {folder}/f; uwsgi_temp_path {folder}/u; scgi_temp_path {folder}/s;
  upstream engine {{ server {target}; keepalive 64; }}
  server {{
    listen 127.0.0.1:{port};
    location / {{ proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection "";
                 proxy_buffering off; }}
  }}
}}
"""


class NotHere(Exception):
    """A peer that is not installed."""


def free_environment() -> dict[str, str]:
    """An environment in which nothing is sent through a proxy."""
    import os

    return {k: v for k, v in os.environ.items() if not k.lower().endswith("_proxy")}


@contextmanager
def started(command: list[str], url: str, path: str, wait_s: float = 60.0) -> Iterator[str]:
    """A program that serves at `url`."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=free_environment()
    )
    try:
        deadline = time.monotonic() + wait_s
        while True:
            with suppress(httpx.HTTPError):
                if httpx.get(url + path, timeout=2.0, trust_env=False).status_code < 500:
                    break
            if process.poll() is not None or time.monotonic() > deadline:
                raise NotHere(f"{command[0]} did not start")
            time.sleep(0.2)
        yield url
    finally:
        process.terminate()
        process.wait()


@contextmanager
def ours(target: str, model: str, engine: str) -> Iterator[str]:
    backend = {"name": "a", "engine": engine, "url": target}
    with serve([{"name": model, "backends": [backend]}], log_level="warning") as gateway:
        yield gateway.base_url


@contextmanager
def nginx(target: str, model: str, engine: str) -> Iterator[str]:
    program = shutil.which("nginx")
    if program is None:
        raise NotHere("nginx is not installed")
    port = free_port()
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "nginx.conf"
        address = target.removeprefix("http://")
        config.write_text(NGINX.format(folder=folder, target=address, port=port))
        with started([program, "-c", str(config)], f"http://127.0.0.1:{port}", "/health") as url:
            yield url


@contextmanager
def litellm(target: str, model: str, engine: str) -> Iterator[str]:
    program = Path(sys.executable).with_name("litellm")
    if not program.exists():
        raise NotHere("litellm is not installed")
    port = free_port()
    options = ["--model", f"openai/{model}", "--api_base", f"{target}/v1", "--alias", model]
    command = [str(program), *options, "--port", str(port)]
    with started(command, f"http://127.0.0.1:{port}", "/health/liveliness", 120) as url:
        yield url


@contextmanager
def sglang_router(target: str, model: str, engine: str) -> Iterator[str]:
    port = free_port()
    command = [sys.executable, "-m", "sglang_router.launch_router", "--worker-urls", target]
    command += ["--host", "127.0.0.1", "--port", str(port), "--policy", "round_robin"]
    command += ["--prometheus-port", str(free_port())]
    with started(command, f"http://127.0.0.1:{port}", "/health") as url:
        yield url


Peer = Callable[[str, str, str], object]
PEERS: dict[str, Peer] = {
    "our gateway": ours,
    "sglang-router": sglang_router,
    "nginx": nginx,
    "LiteLLM proxy": litellm,
}


@contextmanager
def engine_at(name: str) -> Iterator[tuple[str, str, str]]:
    """The engine that stands behind everybody: address, model, name of the engine."""
    if name != "paced":
        with launch(name, load_profile()) as engine:
            yield engine.base_url, engine.model, engine.name
        return
    port = free_port()
    command = [sys.executable, "-m", "benchmarks.paced_server", "--port", str(port)]
    with started([*command, "--step", "0.01"], f"http://127.0.0.1:{port}", "/health") as url:
        yield url, "paced", "llama_cpp"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", default="vllm", choices=["vllm", "llama_cpp", "paced"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--requests", type=int, default=128)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--peers", nargs="*", default=list(PEERS))
    chosen = parser.parse_args()
    with ExitStack() as stack:
        target, model, engine = stack.enter_context(engine_at(chosen.engine))
        urls, missing = {"direct": target}, {}
        for name in chosen.peers:
            try:
                urls[name] = stack.enter_context(PEERS[name](target, model, engine))  # type: ignore[arg-type]
            except NotHere as reason:
                missing[name] = f"not run here: {reason}"
        rates: dict[str, list[float]] = {name: [] for name in urls}
        ttfts: dict[str, dict[int, list[float]]] = {
            name: {1: [], chosen.streams: []} for name in urls
        }
        for turn in range(-1, chosen.rounds):
            for name, url in urls.items():
                for streams, count in ((1, 16), (chosen.streams, chosen.requests)):
                    requests = random_prompts(
                        count,
                        32,
                        seed=1000 * turn + streams,
                        max_tokens=chosen.tokens,
                        ignore_eos=True,
                    )
                    client = Client(url, model, api="completions")
                    result = run(client, requests, ClosedLoop(streams), progress=False)
                    summary = result.summary()
                    if summary["failed"]:
                        raise SystemExit(
                            f"{name}: {summary['failed']} requests failed: {result.traces[0].error}"
                        )
                    if turn < 0:
                        continue  # warm-up
                    ttfts[name][streams].append(summary["p50_ttft_ms"])
                    if streams > 1:
                        rates[name].append(summary["output_throughput"])
    rows = {}
    print(
        f"\n{chosen.engine}, {chosen.rounds} rounds, {chosen.streams} streams, {chosen.tokens} tokens each"
    )
    for name in urls:
        added = {
            streams: median(a - b for a, b in zip(got, ttfts["direct"][streams], strict=True))
            for streams, got in ttfts[name].items()
        }
        share = median(a / b for a, b in zip(rates[name], rates["direct"], strict=True))
        rows[name] = {
            "ttft_p50_ms": {streams: median(got) for streams, got in ttfts[name].items()},
            "added_ttft_p50_ms": added,
            "throughput": median(rates[name]),
            "share_of_direct": share,
        }
        print(
            f"{name:>16}: TTFT p50 added {added[1]:6.2f} ms at 1, {added[chosen.streams]:7.2f} ms at "
            f"{chosen.streams}; {median(rates[name]):8.0f} tok/s, {share:6.1%} of direct"
        )
    for name, reason in missing.items():
        print(f"{name:>16}: {reason}")
    record = {"arguments": vars(chosen), "host": describe_host(), "rows": rows, "missing": missing}
    path = records_dir() / f"gateway-peers-{chosen.engine}-{time.strftime('%Y%m%d-%H%M%S')}.json"
    write_whole(path, to_json(record))
    print(path)


if __name__ == "__main__":
    main()
