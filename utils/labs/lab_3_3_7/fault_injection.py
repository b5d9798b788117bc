"""Things that go wrong with an engine, on purpose: for the lab's fault day.

Killing and freezing is done to the engine itself. Slowness and lies come from a small proxy of ours in
front of a real engine.
"""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from utils.engines.launch import RunningEngine

PASS, SLOW, HANGS = "pass", "slow", "hangs"
# Answers of an engine whose health check passes. Each of them is a common fault in production.
LIES = {
    "lying (500)": b"500 Internal Server Error",
    "no such model (404)": b"404 Not Found",
    "wants a key (401)": b"401 Unauthorized",
    "error in a 200": b"200 OK",
}
_REFUSAL = b'{"error": {"message": "the proxy was told to fail this request"}}'
_LIE = b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
_START_S = 10.0


class FaultProxy:
    """Proxy in front of an engine that hands on, slowly, or not at all.

    Attributes:
        mode: `pass`. In `slow`, each piece of an answer waits `delay_s`. In the others, health checks pass:
            `hangs` takes a request and never answers, and each of `LIES` is answered at once.
        base_url: Its own address.
    """

    def __init__(self, engine: RunningEngine, delay_s: float = 0.05) -> None:
        self.mode = PASS
        self.delay_s = delay_s
        self._target = int(engine.base_url.rpartition(":")[2])
        self._loop = asyncio.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        assert self._ready.wait(_START_S), "the proxy did not start"

    def stop(self) -> None:
        """End it. Twice does no harm."""
        if self._thread.is_alive():
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        server = self._loop.run_until_complete(asyncio.start_server(self._serve, "127.0.0.1", 0))
        self.base_url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        self._ready.set()
        self._loop.run_forever()
        server.close()
        for task in asyncio.all_tasks(self._loop):
            task.cancel()
        self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream, to_engine = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        there = asyncio.create_task(self._pump(reader, to_engine, writer))
        back = asyncio.create_task(self._back(upstream, writer))
        try:
            await asyncio.wait([there, back], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (there, back):
                task.cancel()
            to_engine.close()
            writer.close()

    async def _pump(
        self, reader: asyncio.StreamReader, to_engine: Any, to_client: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65536):
            if self.mode in LIES and data.startswith(b"POST "):
                head = _LIE % (LIES[self.mode], len(_REFUSAL))
                to_client.write(head + b"connection: close\r\n\r\n" + _REFUSAL)
                await to_client.drain()
                return
            if self.mode == HANGS and data.startswith(b"POST "):
                while await reader.read(65536):
                    pass
                return
            to_engine.write(data)

    async def _back(self, upstream: asyncio.StreamReader, to_client: asyncio.StreamWriter) -> None:
        while data := await upstream.read(65536):
            if self.mode == SLOW:
                await asyncio.sleep(self.delay_s)
            to_client.write(data)
