"""A server written from Ollama's documents: docs/api.md, middleware/openai.go, server/routes.go at v0.24.0.

In a test: `with FakeOllama() as fake`. As a program: `fake_ollama.py serve` listens where OLLAMA_HOST says.
Its answer repeats the last message's words, one in each event, as many as `max_tokens` allows.
"""

import hashlib
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MS = 1_000_000
LIBRARY = {f"qwen3:{size}-fp16" for size in ("0.6b", "1.7b", "4b", "8b")}
LIBRARY |= {"hf.co/owner/model-GGUF:Q8_0"}
SIZE = 4_000_000_000


def full(name):
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def state(self):
        return self.server.state

    def do_HEAD(self):
        self.whole(None, 200 if self.path.removeprefix("/api/blobs/") in self.state.blobs else 404)

    def do_GET(self):
        answers = {
            "/api/version": {"version": "0.24.0"},
            "/api/tags": {"models": [{"name": name} for name in self.state.models]},
            "/api/ps": {
                "models": [
                    {"name": name, "size": SIZE, "size_vram": SIZE} for name in self.state.loaded
                ]
            },
        }
        self.whole(answers[self.path])

    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path.startswith("/api/blobs/"):
            return self.blob(self.path.removeprefix("/api/blobs/"), content)
        body = json.loads(content)
        self.state.bodies.append((self.path, body))
        routes = {
            "/api/create": self.create,
            "/api/pull": self.pull,
            "/api/copy": self.copy,
            "/api/generate": self.generate,
            "/v1/chat/completions": self.chat,
        }
        routes[self.path](body)

    def blob(self, digest, content):
        if "sha256:" + hashlib.sha256(content).hexdigest() != digest:
            return self.whole({"error": "digest mismatch"}, 400)
        self.state.blobs[digest] = len(content)
        self.whole(None, 201)

    def create(self, body):
        for name, digest in body["files"].items():
            if digest not in self.state.blobs:
                return self.lines([{"error": f"{name}: file does not exist"}])
        self.state.models[full(body["model"])] = body
        self.lines([{"status": "parsing GGUF"}, {"status": "success"}])

    def pull(self, body):
        name = full(body["model"])
        lines = [{"status": "pulling manifest"}]
        if name not in LIBRARY:
            return self.lines([*lines, {"error": "pull model manifest: file does not exist"}])
        part = {"status": "pulling abc", "digest": "sha256:abc", "total": SIZE}
        lines += [part, {**part, "completed": 1_000_000_000}]
        if not self.state.breaks_off:
            self.state.models[name] = {}
            lines.append({"status": "success"})
        self.lines(lines)

    def copy(self, body):
        self.state.models[full(body["destination"])] = self.state.models[full(body["source"])]
        self.whole(None)

    def generate(self, body):
        if full(body["model"]) not in self.state.models:
            return self.whole({"error": f"model '{body['model']}' not found"}, 404)
        self.state.loaded.add(full(body["model"]))
        answer = {"model": body["model"], "response": "", "done": True, "done_reason": "load"}
        if body.get("prompt"):
            times = {"load_duration": 0, "prompt_eval_count": 26, "prompt_eval_duration": 20 * MS}
            answer |= {"done_reason": "stop", "eval_count": 3, "eval_duration": 15 * MS, **times}
        self.whole(answer)

    def chat(self, body):
        if full(body["model"]) not in self.state.models:
            error = {"message": f"model '{body['model']}' not found", "type": "not_found_error"}
            return self.whole({"error": error}, 404)
        text = body["messages"][-1]["content"].split()
        words = text[: body.get("max_tokens")]
        reason = "length" if len(words) == body.get("max_tokens") else "stop"
        usage = {"prompt_tokens": 26, "completion_tokens": len(words)}
        head = {"id": "chatcmpl-1", "model": body["model"]}
        if not body.get("stream"):
            message = {"role": "assistant", "content": "".join(f"{word} " for word in words)}
            choice = {"index": 0, "message": message, "finish_reason": reason}
            return self.whole({**head, "choices": [choice], "usage": usage})

        def chunk(content, reason=None, **more):
            delta = {"role": "assistant", "content": content, **more}
            return {**head, "choices": [{"index": 0, "delta": delta, "finish_reason": reason}]}

        chunks = [chunk("", reasoning="so ")] if self.state.thinks else []
        chunks += [chunk(f"{word} ") for word in words]
        if self.state.fails_midway:  # what its middleware makes of the line with the error
            return self.events([*chunks[:1], chunk("")])
        counted = {**head, "choices": [], "usage": usage}
        wanted = (body.get("stream_options") or {}).get("include_usage")
        self.events([*chunks, chunk("", reason), *([counted] if wanted else []), "[DONE]"])

    def whole(self, value, status=200):
        content = b"" if value is None else json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def events(self, values):
        texts = [value if isinstance(value, str) else json.dumps(value) for value in values]
        self.chunked("text/event-stream", [f"data: {text}\n\n" for text in texts])

    def lines(self, values):
        self.chunked("application/x-ndjson", [json.dumps(value) + "\n" for value in values])

    def chunked(self, kind, pieces):
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for piece in pieces:
            content = piece.encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(content), content))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_):
        pass


class FakeOllama:
    """`bodies`: what was asked, with its path; `models`, `blobs`, `loaded`: what it has."""

    def __init__(self, host="127.0.0.1", port=0):
        self.bodies, self.models, self.blobs, self.loaded = [], {}, {}, set()
        self.breaks_off = self.fails_midway = self.thinks = False
        self.server = ThreadingHTTPServer((host, port), Handler)
        self.server.state = self
        self.url = f"http://{host}:{self.server.server_address[1]}"

    def __enter__(self):
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    async def __aenter__(self):
        return self.__enter__()

    async def __aexit__(self, *_):
        self.__exit__()


if __name__ == "__main__":
    assert sys.argv[1:] == ["serve"], sys.argv
    where, _, number = os.environ["OLLAMA_HOST"].partition(":")
    names = sorted(name for name in os.environ if name.startswith("OLLAMA_"))
    print(" ".join(f"{name}={os.environ[name]}" for name in names), flush=True)
    FakeOllama(where, int(number)).server.serve_forever()
