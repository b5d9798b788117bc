"""A fake OpenAI server that behaves, or misbehaves, as it is told. No model, no engine.

In a test: `async with FakeServer() as fake: fake.mode = "cut"`. As a process, for signals:
`python tests/support/fake_openai.py --port 0` prints its port; the path `/mode/NAME` sets a mode.
Its answer repeats the prompt's last word, so that a test sees whose answer a client got.
"""

import argparse
import asyncio
import contextlib
import json
import pathlib
import sys

MODES = {
    "ok": "answers",
    "http_500": "healthy, but every request fails",
    "http_400": "refuses every request as wrong",
    "http_404": "has another model",
    "http_503": "is overloaded, and asks for a pause of a second",
    "error_200": "says 200, and that it failed",
    "mute": "accepts, and says nothing",
    "hangs": "the same, but its health check answers",
    "head_only": "sends the head of a stream, and nothing more",
    "cut": "breaks off in the middle of a stream",
    "ends": "ends a stream in good order, but without [DONE]",
    "freezes": "stops in the middle of a stream",
    "sick": "answers, but its health check fails",
    "drops": "takes a request, and closes the connection without an answer",
    "hangs_up": "answers, and closes the connection without a word",
    "says_error": "ends a stream with an event that tells of an error, and [DONE]",
    "halves": "cuts events in pieces at odd places, with CRLF",
}


class FakeServer:
    def __init__(self, mode="ok", tokens=5, gap_s=0.0, first_s=0.0, filler="", port=0):
        self.mode, self.tokens, self.gap_s, self.first_s = mode, tokens, gap_s, first_s
        self.filler, self.port = filler, port
        self.metrics = ""  # what GET /metrics answers
        self.requests, self.headers, self.cancelled, self.running = [], [], 0, 0
        self.open = asyncio.Event()  # cleared: requests are taken, and wait for their answers
        self.open.set()

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=1024)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._tasks = set()
        return self

    async def __aexit__(self, *_):
        self._server.close()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _serve(self, reader, writer):
        task = asyncio.current_task()
        self._tasks.add(task)
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._one(reader, writer):
                    pass
        except asyncio.CancelledError:
            pass
        finally:
            self._tasks.discard(task)
            writer.transport.abort()

    async def _one(self, reader, writer):
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(headers.get("content-length", 0)))
        path = head[0].split(" ")[1]
        if path.startswith("/mode/"):
            self.mode = path.removeprefix("/mode/")
            return self._json(writer, {})
        if path == "/metrics":
            return self._text(writer, self.metrics)
        if path == "/v1/models":
            model = {"id": "shared-model", "root": "Owner/shared-model", "max_model_len": 4096}
            return self._json(writer, {"data": [model]})
        if path == "/version":
            return self._json(writer, {"version": "9.9"})
        if not path.startswith("/v1/"):
            if self.mode == "mute":
                await asyncio.sleep(3600)
            return self._json(writer, {}, 503 if self.mode == "sick" else 200)
        if not path.endswith("/completions"):
            return self._json(writer, {"error": {"message": "Not Found"}}, 404)
        self.headers.append(headers)
        asked = json.loads(body)
        self.requests.append(asked)
        return await self._answer(reader, writer, asked, "chat" in path) and self.mode != "hangs_up"

    async def _answer(self, reader, writer, asked, chat):
        if self.mode.startswith("http_") or self.mode == "error_200":
            status = int(self.mode[-3:])
            return self._json(writer, {"error": {"message": "as I was told"}}, status)
        if self.mode in ("mute", "hangs"):
            await asyncio.sleep(3600)
        if self.mode == "drops":
            return False
        await self.open.wait()
        prompt = asked["messages"][-1]["content"] if chat else asked["prompt"]
        text = prompt if isinstance(prompt, str) else json.dumps(prompt)
        word = (text.split() or [""])[-1] + self.filler
        usage = {"prompt_tokens": 7, "completion_tokens": self.tokens, "total_tokens": 0}
        if not asked.get("stream"):
            text = " ".join([word] * self.tokens)
            part = {"message": {"role": "assistant", "content": text}} if chat else {"text": text}
            if asked.get("tools"):
                call = {"id": "c1", "type": "function", "function": asked["tools"][0]["function"]}
                call["function"] = {"name": call["function"]["name"], "arguments": "{}"}
                part["message"]["tool_calls"] = [call]
            await asyncio.sleep(self.first_s)
            choice = {"index": 0, **part, "finish_reason": "stop"}
            return self._json(writer, self._chunk([choice], asked, usage=usage))
        writer.write(
            b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        )
        self.running += 1
        gone = asyncio.create_task(reader.read(1))
        stream = asyncio.create_task(self._stream(writer, asked, chat, word, usage))
        try:
            await asyncio.wait([gone, stream], return_when=asyncio.FIRST_COMPLETED)
            if not stream.done() or stream.exception():
                self.cancelled += 1
                return False
            return stream.result() and not gone.done()
        finally:
            self.running -= 1
            stream.cancel()
            gone.cancel()
            await asyncio.gather(stream, gone, return_exceptions=True)

    async def _stream(self, writer, asked, chat, word, usage):
        if self.mode == "head_only":
            await asyncio.sleep(3600)
        await asyncio.sleep(self.first_s)
        for i in range(self.tokens):
            if i == self.tokens // 2:
                if self.mode == "cut":
                    writer.transport.abort()
                    return False
                if self.mode == "freezes":
                    await asyncio.sleep(3600)
            text = word if i == 0 else " " + word
            part = {"delta": {"content": text}} if chat else {"text": text}
            if asked.get("tools") and i < 2:
                part["delta"]["tool_calls"] = [_part_of_call(asked["tools"][0], i)]
            # With a reason, an answer without [DONE] is whole; the gateway then adds the [DONE].
            whole = i == self.tokens - 1 and self.mode != "ends"
            reason = "stop" if whole else None
            choice = {"index": 0, **part, "finish_reason": reason}
            await self._send(writer, json.dumps(self._chunk([choice], asked)))
            await asyncio.sleep(self.gap_s)
        if asked.get("stream_options", {}).get("include_usage"):
            await self._send(writer, json.dumps(self._chunk([], asked, usage=usage)))
        if self.mode == "says_error":
            await self._send(writer, json.dumps({"error": {"message": "as I was told"}}))
        if self.mode != "ends":
            await self._send(writer, "[DONE]")
        writer.write(b"0\r\n\r\n")
        await writer.drain()
        return True

    async def _send(self, writer, text):
        data = f"data: {text}\n\n".encode()
        if self.mode == "halves":
            data = data.replace(b"\n", b"\r\n")
            for at in range(0, len(data), 7):
                part = data[at : at + 7]
                writer.write(b"%x\r\n%s\r\n" % (len(part), part))
                await asyncio.sleep(0)
            return
        writer.write(b"%x\r\n%s\r\n" % (len(data), data))
        await writer.drain()

    def _chunk(self, choices, asked, usage=None):
        chunk = {"id": "x", "object": "chunk", "created": 1, "model": asked["model"]}
        return chunk | {"choices": choices} | ({"usage": usage} if usage else {})

    def _json(self, writer, data, status=200):
        return self._text(writer, json.dumps(data), status, "application/json")

    def _text(self, writer, text, status=200, kind="text/plain; version=0.0.4"):
        body = text.encode()
        writer.write(
            f"HTTP/1.1 {status} Status\r\ncontent-type: {kind}\r\n"
            f"content-length: {len(body)}\r\n\r\n".encode()
            + body
        )
        return True


def _part_of_call(tool, number):
    """A call of a tool comes in two pieces: its name and half of the arguments, and the rest."""
    whole = {"name": tool["function"]["name"], "arguments": '{"city": "Lu'}
    rest = {"index": 0, "function": {"arguments": 'nd"}'}}
    return rest if number else {"index": 0, "id": "c1", "type": "function", "function": whole}


async def _main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--tokens", type=int, default=5)
    parser.add_argument("--gap", type=float, default=0.0)
    parser.add_argument("--mode", default="ok", choices=MODES)
    parser.add_argument("--metrics", type=pathlib.Path, help="a file: what GET /metrics answers")
    arguments = parser.parse_args()
    options = {"tokens": arguments.tokens, "gap_s": arguments.gap, "port": arguments.port}
    fake = FakeServer(arguments.mode, **options)
    if arguments.metrics:
        fake.metrics = arguments.metrics.read_text()
    async with fake:
        print(fake.port, flush=True)
        await asyncio.sleep(3600)


if __name__ == "__main__":
    sys.exit(asyncio.run(_main()))
