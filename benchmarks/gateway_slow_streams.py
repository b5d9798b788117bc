"""Memory of the gateway while many clients read their streams slowly.

python -m benchmarks.gateway_slow_streams --streams 500
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys

from benchmarks.gateway_chaos import FAKE as _FAKE
from benchmarks.gateway_chaos import MODEL
from benchmarks.peers import started
from utils.engines.runtime import free_port
from utils.gateway.local_gateway import LocalGateway, serve

LIMIT_MB = 300.0
READ_EVERY_S, READ_BYTES = 1.0, 512  # a client that reads far slower than its answer comes


async def _slow(port: int, seconds: float) -> bool:
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=READ_BYTES)
    asked = {"model": MODEL, "stream": True, "messages": [{"role": "user", "content": "x" * 400}]}
    body = json.dumps(asked).encode()
    head = f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)
    deadline = asyncio.get_running_loop().time() + seconds
    alive = True
    while alive and asyncio.get_running_loop().time() < deadline:
        alive = bool(await reader.read(READ_BYTES))
        await asyncio.sleep(READ_EVERY_S)
    writer.transport.abort()
    return alive


async def _all(gateway: LocalGateway, count: int, seconds: float) -> tuple[float, int]:
    port = int(gateway.base_url.rpartition(":")[2])
    clients = [asyncio.create_task(_slow(port, seconds)) for _ in range(count)]
    worst = 0.0
    while not all(client.done() for client in clients):
        worst = max(worst, gateway.process.memory_info().rss / 1e6)
        await asyncio.sleep(0.2)
    return worst, sum(client.result() for client in clients)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--seconds", type=float, default=15.0)
    chosen = parser.parse_args()
    port = free_port()
    command = [sys.executable, str(_FAKE), "--port", str(port), "--tokens", "3000"]
    with started(command, f"http://127.0.0.1:{port}", "/health") as fake:
        backend = {"name": "a", "engine": "llama_cpp", "url": fake.url}
        backend["max_outstanding"] = 2 * chosen.streams
        models = [{"name": MODEL, "backends": [backend]}]
        health = {"timeout_s": 30}
        with serve(models, log_level="error", health=health) as gateway:
            idle = gateway.process.memory_info().rss / 1e6
            worst, alive = asyncio.run(_all(gateway, chosen.streams, chosen.seconds))
    print(
        f"{chosen.streams} streams read slowly for {chosen.seconds:g} s, {alive} still open at the end: "
        f"gateway {worst:.0f} MB at most, {idle:.0f} MB before"
    )
    sys.exit(worst > LIMIT_MB or alive < chosen.streams)


if __name__ == "__main__":
    main()
