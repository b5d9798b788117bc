"""A small HTTP server that behaves exactly as badly as a test's script tells it to.

It speaks raw bytes on real sockets (127.0.0.1, a free port) in a thread of its own, so that a
script decides about every chunk border, pause and broken connection.
"""

from __future__ import annotations

import asyncio
import json
import socket
import ssl
import struct
import threading
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any


class Hangup(Exception):
    """Raised by a script to end the connection at once."""


@dataclass
class Exchange:
    """One request, and the means to answer it badly."""

    body: dict[str, Any]
    path: str
    headers: dict[str, str]
    number: int
    on_connection: int
    writer: asyncio.StreamWriter

    async def raw(self, data: bytes) -> None:
        self.writer.write(data)
        await self.writer.drain()

    async def head(self, status: str = "200 OK", kind: str = "text/event-stream") -> None:
        await self.raw(
            f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n"
            "Transfer-Encoding: chunked\r\n\r\n".encode()
        )

    async def chunk(self, data: bytes) -> None:
        await self.raw(f"{len(data):x}\r\n".encode() + data + b"\r\n")

    async def event(self, data: Any) -> None:
        await self.chunk(sse(data))

    async def end(self) -> None:
        await self.raw(b"0\r\n\r\n")

    async def json(self, data: Any, status: str = "200 OK") -> None:
        body = json.dumps(data).encode()
        await self.raw(
            f"HTTP/1.1 {status}\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n".encode()
            + body
        )

    def reset(self) -> None:
        """Ends the connection with RST."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        raise Hangup

    def close(self) -> None:
        """Ends the connection with FIN."""
        raise Hangup

    async def answer(
        self, *texts: str, usage: dict[str, Any] | None = None, gap: float = 0
    ) -> None:
        """A well-behaved streamed chat answer, one chunk per text."""
        await self.answer_without_end(*texts, usage=usage, gap=gap)
        await self.end()

    async def answer_without_end(
        self, *texts: str, usage: dict[str, Any] | None = None, gap: float = 0
    ) -> None:
        """The same, but the body stays open after [DONE]."""
        await self.head()
        await self.event(delta(role="assistant", content=""))
        for text in texts:
            await asyncio.sleep(gap)
            await self.event(delta(content=text))
        await self.event(finish())
        if usage is not None:
            await self.event({"choices": [], "usage": usage})
        await self.event("[DONE]")


Script = Callable[[Exchange], Awaitable[None]]


def sse(data: Any) -> bytes:
    text = data if isinstance(data, str) else json.dumps(data)
    return f"data: {text}\n\n".encode()


def delta(**fields: Any) -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": fields, "finish_reason": None}]}


def finish(reason: str = "stop") -> dict[str, Any]:
    return {"choices": [{"index": 0, "delta": {}, "finish_reason": reason}]}


def usage(prompt: int, completion: int, **more: Any) -> dict[str, Any]:
    return {"prompt_tokens": prompt, "completion_tokens": completion, **more}


class Adversary:
    """Context manager: runs `script` for every request; `requests` keeps what came in."""

    def __init__(self, script: Script, ssl_context: ssl.SSLContext | None = None) -> None:
        self.script = script
        self.ssl_context = ssl_context
        self.requests: list[Exchange] = []
        self.connections = 0
        self.in_flight = 0
        self.most_in_flight = 0
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)

    def __enter__(self) -> Adversary:
        self._thread.start()
        start = asyncio.start_server(self._connection, "127.0.0.1", 0, ssl=self.ssl_context)
        self._server = asyncio.run_coroutine_threadsafe(start, self._loop).result(10)
        self.port = self._server.sockets[0].getsockname()[1]
        scheme = "https" if self.ssl_context else "http"
        self.base_url = f"{scheme}://127.0.0.1:{self.port}"
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self._stop(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def die(self) -> None:
        """Stops listening and breaks every open connection, as a crashed engine does."""
        self._server.close()
        for task in self._tasks:
            task.cancel()

    async def _stop(self) -> None:
        self.die()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.connections += 1
        served = 0
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                lines = head.decode().split("\r\n")
                headers = dict(line.lower().split(": ", 1) for line in lines[1:] if line)
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                path = lines[0].split(" ")[1]
                exchange = Exchange(
                    json.loads(body or b"{}"), path, headers, len(self.requests), served, writer
                )
                self.requests.append(exchange)
                served += 1
                self.in_flight += 1
                self.most_in_flight = max(self.most_in_flight, self.in_flight)
                try:
                    await self.script(exchange)
                finally:
                    self.in_flight -= 1
        except (asyncio.IncompleteReadError, ConnectionError, Hangup, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()
