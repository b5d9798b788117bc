"""Engines that misbehave in other ways than HTTP 500, as back ends of a gateway. They serve no model.

They refuse fast, hang with a healthy `/health`, send comments before the first token, end their streams
loosely, or hide an error in HTTP 200. Use them in a test like `fake_openai.FakeServer`:

    async with case(Engine("fast_404"), Engine("good", first_s=0.2)) as c:
        answers = await asyncio.gather(*[c.ask() for _ in range(8)])

For an answer of your own, `Engine(parts=[event("a"), 0.5, DONE])` streams these bytes (numbers are pauses
in seconds), and `Engine(answer=(409, {"error": {"message": "no"}}))` answers in one piece.
"""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import itertools
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

Part = bytes | float  # what is sent next, or how long to wait before it, s
MODEL = "toy"
DONE = b"data: [DONE]\n\n"
PING = b":\n\n"
ENGINE_KEY = "engine-key"
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
)


def event(text: str, field: str = "content", end: str = "\n\n", **choice: Any) -> bytes:
    """Return one chunk of a chat's stream whose delta has `text` in `field`."""
    delta = {field: text} if text else {}
    body = {"id": "x", "object": "chat.completion.chunk", "created": 1, "model": MODEL}
    return f"data: {json.dumps(body | {'choices': [{'index': 0, 'delta': delta, **choice}]})}{end}".encode()


def usage(completion_tokens: int = 2, **more: Any) -> bytes:
    """Return the block that ends a stream with `include_usage`; llama.cpp puts `timings` into it."""
    counts = {"prompt_tokens": 7, "completion_tokens": completion_tokens}
    body = {
        "id": "x",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": MODEL,
        "choices": [],
    }
    counts["total_tokens"] = sum(counts.values())
    return f"data: {json.dumps(body | {'usage': counts} | more)}\n\n".encode()


@dataclass(frozen=True)
class Reply:
    """Answer to a request.

    Attributes:
        status, headers, body: An answer in one piece, used if `parts` is None.
        parts: The pieces of a stream.
        ends: `whole` ends in good order, `cut` drops the connection after the last piece, and `never` stays
            silent.
    """

    status: int = 200
    headers: tuple[str, ...] = ("content-type: application/json",)
    body: bytes = b""
    parts: Iterable[Part] | None = None
    ends: str = "whole"


def refusal(status: int, error: Any, *headers: str) -> Reply:
    """Return an error of the engine, as JSON."""
    body = json.dumps({"error": error}).encode()
    return Reply(status, ("content-type: application/json", *headers), body)


def whole(text: str = "one two") -> bytes:
    """Return a chat's answer in one piece."""
    message = {"role": "assistant", "content": text}
    counts = {"prompt_tokens": 7, "completion_tokens": 2, "total_tokens": 9}
    choice = {"index": 0, "finish_reason": "stop", "message": message}
    body = {"id": "x", "object": "chat.completion", "created": 1, "model": MODEL}
    return json.dumps(body | {"choices": [choice], "usage": counts}).encode()


def _stream(*parts: Part, ends: str = "whole") -> Callable[[Mapping[str, str]], Reply]:
    return lambda headers: Reply(parts=parts, ends=ends)


def _always(reply: Reply) -> Callable[[Mapping[str, str]], Reply]:
    return lambda headers: reply


def _needs_key(headers: Mapping[str, str]) -> Reply:
    if headers.get("authorization", "").lower() == f"bearer {ENGINE_KEY}":
        return Reply(body=whole())
    return refusal(401, {"message": "Unauthorized"})


_NO_MODEL = {"message": "The model `toy` does not exist.", "type": "NotFoundError", "code": 404}
_QUOTA = {"message": "quota exceeded", "code": 402}
_BOOM = b'data: {"error": {"message": "boom", "code": 500}}\n\n'
_THOUGHT = [event(f"Okay, the user asks {i}. ", "reasoning_content") for i in range(40)]
_TIMINGS = {"predicted_per_second": 9.5}

# Streams: only a request with `stream: true` gets them; others get a good answer in one piece.
STREAMS: dict[str, tuple[str, Callable[[Mapping[str, str]], Reply]]] = {
    "good": ("answers", _stream(event("one "), event("two"), usage(), DONE)),
    "pings_first": (
        "comments at 0, 0.5 and 1 s, the first token at 1.5 s",
        _stream(PING, 0.5, PING, 0.5, PING, 0.5, event("a"), usage(1), DONE),
    ),
    "pings_then_dies": ("one comment, then the connection drops", _stream(PING, 0.2, ends="cut")),
    "pings_for_ever": (
        "a comment each 0.1 s and never a token",
        lambda headers: Reply(parts=itertools.cycle([PING, 0.1])),
    ),
    "bare_done": (
        "ends with `data: [DONE]` and one line end, without the empty line",
        _stream(event("a"), usage(1), b"data: [DONE]\n"),
    ),
    "lf_crlf": (
        "ends events with LF CRLF, which the standard allows",
        _stream(
            event("a", end="\n\r\n"), 0.2, event("b", end="\n\r\n"), 0.2, b"data: [DONE]\n\r\n"
        ),
    ),
    "error_first": ("an error is the first event", _stream(_BOOM, DONE)),
    "error_event": (
        "after a token, an event of the type `error`",
        _stream(event("a"), b'event: error\ndata: {"message": "boom"}\n\n'),
    ),
    "thinking": (
        "256 tokens of thinking, and no text",
        _stream(
            *[part for t in _THOUGHT for part in (t, 0.015)],
            event("", finish_reason="length"),
            usage(256),
            DONE,
        ),
    ),
    "timings": (
        "llama.cpp's `timings` in the usage block",
        _stream(event("a"), usage(1, timings=_TIMINGS), DONE),
    ),
}
# The same for every request.
ANSWERS: dict[str, tuple[str, Callable[[Mapping[str, str]], Reply]]] = {
    "fast_404": ("404 at once: the model is not loaded", _always(refusal(404, _NO_MODEL))),
    "fast_401": (
        "401 at once: started with an API key",
        _always(refusal(401, {"message": "Unauthorized"})),
    ),
    "needs_key": (f"401 unless the key is {ENGINE_KEY!r}", _needs_key),
    "hung": ("accepts, never answers; /health says 200", _always(Reply(ends="never"))),
    "busy_503": (
        "503 with Retry-After: 17; /health says 200",
        _always(refusal(503, {"message": "overloaded"}, "retry-after: 17")),
    ),
    "fails_500": ("500 at once", _always(refusal(500, {"message": "x"}))),
    "error_text_500": ("500 whose error is a text", _always(refusal(500, "CUDA out of memory"))),
    "error_in_200": ("200 with an error as JSON, streamed or not", _always(refusal(200, _QUOTA))),
    "gzip": (
        "compresses though `identity` was asked for",
        _always(
            Reply(
                headers=("content-type: application/json", "content-encoding: gzip"),
                body=gzip.compress(whole()),
            )
        ),
    ),
    "drops": ("closes the connection after each request", _always(Reply(ends="cut"))),
}
MODES = STREAMS | ANSWERS


class Engine:
    """Back end that behaves as its mode says.

    Args:
        mode: One of `MODES`, ignored if `parts` or `answer` is given.
        parts: Pieces of a stream, in place of a mode.
        answer: `(status, JSON value)` in place of a mode.
        body: Body of a 200 in place of a mode.
        first_s: Wait before an answer, s, like the prefill of a healthy engine.
        gap_s: Pause before each piece of a stream, s.
        health: HTTP status of every GET, including `/health`.

    Attributes:
        requests: `(path, headers, body)` of each POST that came.
        running: Number of POSTs that are being answered.
        cancelled: Number of POSTs whose client went away before the end.
        url: Its address, once it runs.
    """

    def __init__(
        self,
        mode: str = "good",
        *,
        parts: Iterable[Part] | None = None,
        answer: tuple[int, Any] | None = None,
        body: bytes | None = None,
        first_s: float = 0.0,
        gap_s: float = 0.0,
        health: int = 200,
        port: int = 0,
        host: str = "127.0.0.1",
    ) -> None:
        self.mode, self.parts, self.answer = mode, parts and list(parts), answer
        self.body, self.host = body, host
        self.first_s, self.gap_s, self.health, self.port = first_s, gap_s, health, port
        self.requests: list[tuple[str, dict[str, str], bytes]] = []
        self.running = self.cancelled = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Engine:
        self._server = await asyncio.start_server(self._serve, self.host, self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://{self.host}:{self.port}"
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._one(reader, writer):
                    pass
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            writer.close()

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Answer a request; return whether the connection stays."""
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {k.lower(): v for k, _, v in (line.partition(": ") for line in head[1:] if line)}
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        method, path, _ = head[0].split(" ", 2)
        if method == "GET":
            self._whole(writer, Reply(self.health, body=b"{}"))
            return True
        self.requests.append((path, headers, body))
        self.running += 1
        gone = asyncio.create_task(reader.read(1))
        sending = asyncio.create_task(self._send(writer, self._reply(headers, body)))
        try:
            await asyncio.wait([gone, sending], return_when=asyncio.FIRST_COMPLETED)
            if not sending.done() or sending.exception():
                self.cancelled += 1
                return False
            return sending.result() and not gone.done()
        finally:
            self.running -= 1
            for task in (gone, sending):
                task.cancel()
            await asyncio.gather(gone, sending, return_exceptions=True)

    def _reply(self, headers: Mapping[str, str], body: bytes) -> Reply:
        if self.answer is not None:
            status, value = self.answer
            return Reply(status, body=json.dumps(value).encode())
        if self.body is not None:
            return Reply(headers=("content-type: text/html",), body=self.body)
        streams = bool(json.loads(body).get("stream"))
        if self.parts is not None:
            return Reply(parts=self.parts) if streams else Reply(body=whole())
        if self.mode in STREAMS and not streams:
            return Reply(body=whole())
        return MODES[self.mode][1](headers)

    async def _send(self, writer: asyncio.StreamWriter, reply: Reply) -> bool:
        await asyncio.sleep(self.first_s)
        if reply.parts is not None:
            writer.write(STREAM_HEAD)
            for part in reply.parts:
                if isinstance(part, bytes):
                    await asyncio.sleep(self.gap_s)
                    writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                    await writer.drain()
                else:
                    await asyncio.sleep(part)
        if reply.ends == "never":
            await asyncio.sleep(86400)
        if reply.ends == "cut":
            writer.transport.abort()
            return False
        if reply.parts is None:
            self._whole(writer, reply)
        else:
            writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    def _whole(self, writer: asyncio.StreamWriter, reply: Reply) -> None:
        lines = [f"HTTP/1.1 {reply.status} X", *reply.headers, f"content-length: {len(reply.body)}"]
        writer.write("\r\n".join([*lines, "", ""]).encode() + reply.body)
