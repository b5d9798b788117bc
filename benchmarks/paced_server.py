"""A server whose token times are known: the ground truth for measuring a measuring client.

It answers `/v1/completions` and `/v1/chat/completions` with server-sent events of the size that
vLLM sends. Like an engine with continuous batching it works in steps: every `step_s` each running
request gets one token, all in the same instant, which is the hardest pattern for a client. With
`step_s` 0 it sends as fast as the client reads.

`GET /truth` returns, and clears, what it did: per request its prompt, when it was received, when its first
token and its last token were written and the mean gap, in seconds of this machine's monotonic
clock (on Linux the same clock in every process).

    python -m benchmarks.paced_server --port 0 --step 0.00625 --ttft 0.05
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path

MODEL = "paced"


class Stream:
    """One request being answered."""

    def __init__(
        self, transport: asyncio.WriteTransport, body: dict[str, object], chat: bool
    ) -> None:
        self.transport = transport
        self.left = int(str(body.get("max_tokens") or body.get("max_completion_tokens") or 16))
        self.total = self.left
        self.chat = chat
        messages = body.get("messages")
        self.prompt = messages[-1]["content"] if isinstance(messages, list) else body.get("prompt")
        self.received = time.perf_counter()
        self.times: list[float] = []
        self.token = _chunk(_choice(chat, " word", None))

    def head(self) -> None:
        """Writes the response's head."""
        self.transport.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
            b"transfer-encoding: chunked\r\n\r\n"
        )

    def step(self) -> bool:
        """Writes the next token; False after the last."""
        self.left -= 1
        now = time.perf_counter()
        self.times.append(now)
        if self.left:
            self.transport.write(self.token)
            return True
        usage = {"prompt_tokens": 8, "total_tokens": 8 + self.total}
        usage["completion_tokens"] = self.total
        last = {"id": "x", "object": "chunk", "model": MODEL, "choices": [], "usage": usage}
        self.transport.write(
            _chunk(_choice(self.chat, " word", "length"))
            + _chunk(json.dumps(last))
            + _chunk("[DONE]")
            + b"0\r\n\r\n"
        )
        return False

    def truth(self) -> dict[str, object]:
        """When it was received and what was written when, s."""
        gaps = [later - earlier for earlier, later in zip(self.times, self.times[1:], strict=False)]
        ttft = self.times[0] - self.received
        return {"prompt": self.prompt, "received": self.received, "ttft": ttft, "itls": gaps}


class Engine:
    """Steps all running streams together."""

    def __init__(self, step_s: float, ttft_s: float) -> None:
        self.step_s = step_s
        self.ttft_s = ttft_s
        self.running: list[Stream] = []
        self.done: list[dict[str, object]] = []

    def admit(self, stream: Stream) -> None:
        """Starts to answer a request."""
        loop = asyncio.get_running_loop()
        if self.step_s:
            stream.head()
            loop.call_later(self.ttft_s, lambda: self.running.append(stream))
        else:
            task = loop.create_task(self._flood(stream))
            task.add_done_callback(lambda _: self.done.append(stream.truth()))

    async def run(self) -> None:
        """Steps for ever."""
        due = time.perf_counter()
        while True:
            due = max(due + self.step_s, time.perf_counter())
            await asyncio.sleep(due - time.perf_counter())
            self.running = [stream for stream in self.running if self._advance(stream)]

    def _advance(self, stream: Stream) -> bool:
        if stream.step():
            return True
        self.done.append(stream.truth())
        return False

    async def _flood(self, stream: Stream) -> None:
        stream.head()
        while stream.step():
            await asyncio.sleep(0)
            while stream.transport.get_write_buffer_size() > 1 << 16:
                await asyncio.sleep(0.0005)


class Connection(asyncio.Protocol):
    """Just enough HTTP/1.1."""

    def __init__(self, engine: Engine, metrics: bytes = b"") -> None:
        self.engine = engine
        self.metrics = metrics
        self.buffer = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Keeps the way back."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        """Answers every request that is complete."""
        self.buffer += data
        for path, body in self._requests():
            if path == "/truth":
                done, self.engine.done = self.engine.done, []
                self._json(done)
            elif path == "/metrics":
                self._answer(self.metrics, "text/plain")
            elif path == "/health":
                self._json({})
            elif path == "/v1/models":
                self._json({"data": [{"id": MODEL, "root": MODEL}]})
            elif path.startswith("/v1/") and body:
                self.engine.admit(Stream(self.transport, json.loads(body), "chat" in path))
            else:
                self._json({"error": {"message": f"no {path} here"}}, "404 Not Found")

    def _requests(self) -> Iterator[tuple[str, bytes]]:
        while b"\r\n\r\n" in self.buffer:
            head, rest = self.buffer.split(b"\r\n\r\n", 1)
            lines = head.decode().split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines[1:])
            length = int(headers.get("content-length", 0))
            if len(rest) < length:
                return
            self.buffer = rest[length:]
            yield lines[0].split(" ")[1], rest[:length]

    def _json(self, data: object, status: str = "200 OK") -> None:
        self._answer(json.dumps(data).encode(), "application/json", status)

    def _answer(self, body: bytes, kind: str, status: str = "200 OK") -> None:
        self.transport.write(
            f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )


def _choice(chat: bool, text: str, reason: str | None) -> str:
    part = {"delta": {"content": text}} if chat else {"text": text}
    choice = {"index": 0, **part, "logprobs": None, "finish_reason": reason, "stop_reason": None}
    return json.dumps(
        {
            "id": "cmpl-0123456789abcdef0123456789abcdef",
            "object": "chat.completion.chunk" if chat else "text_completion",
            "created": 1795251600,
            "model": MODEL,
            "choices": [choice],
            "usage": None,
        }
    )


def _chunk(text: str) -> bytes:
    data = f"data: {text}\n\n".encode()
    return f"{len(data):x}\r\n".encode() + data + b"\r\n"


async def serve(port: int, step_s: float, ttft_s: float, metrics: bytes = b"") -> None:
    engine = Engine(step_s, ttft_s)
    loop = asyncio.get_running_loop()
    server = await loop.create_server(
        lambda: Connection(engine, metrics), "127.0.0.1", port, backlog=1024
    )
    print(server.sockets[0].getsockname()[1], flush=True)
    await engine.run() if step_s else await server.serve_forever()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--port", type=int, default=0, help="0 takes a free one and prints it")
    parser.add_argument("--step", type=float, default=0.00625, help="seconds; 0: no pacing")
    parser.add_argument("--ttft", type=float, default=0.05, help="seconds")
    parser.add_argument("--metrics", type=Path, help="file that GET /metrics answers")
    arguments = parser.parse_args()
    metrics = arguments.metrics.read_bytes() if arguments.metrics else b""
    asyncio.run(serve(arguments.port, arguments.step, arguments.ttft, metrics))


if __name__ == "__main__":
    main()
