"""A server written from Ollama's API document: docs/api.md, api/types.go, server/routes.go at v0.24.0.

In a test: `with FakeOllama() as fake`. As a program: `fake_ollama.py serve` listens where OLLAMA_HOST says.
Its answer repeats the last message's words, one a line of the stream, as many as `num_predict` allows.
"""

import hashlib
import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

MS = 1_000_000
CREATED = "2026-11-26T12:00:00.000000Z"
LIBRARY = {"qwen3:8b-fp16", "hf.co/owner/model-GGUF:Q8_0"}


def full(name):
    return name if ":" in name.rpartition("/")[2] else f"{name}:latest"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    @property
    def state(self):
        return self.server.state

    def do_HEAD(self):
        digest = self.path.removeprefix("/api/blobs/")
        self.send_response(200 if digest in self.state.blobs else 404)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def do_GET(self):
        answers = {
            "/": "Ollama is running",
            "/api/version": {"version": "0.24.0"},
            "/api/tags": {"models": [{"name": n, "size": 1} for n in self.state.models]},
            "/api/ps": {"models": list(self.state.loaded.values())},
        }
        self.whole(answers[self.path]) if self.path in answers else self.fail(
            404, "404 page not found"
        )

    def do_DELETE(self):
        name = full(self.body()["model"])
        if self.state.models.pop(name, None) is None:
            return self.fail(404, f"model '{name}' not found")
        self.whole(None)

    def do_POST(self):
        if self.path.startswith("/api/blobs/"):
            return self.blob(self.path.removeprefix("/api/blobs/"))
        body = self.body()
        self.state.bodies.append((self.path, body))
        routes = {
            "/api/create": self.create,
            "/api/pull": self.pull,
            "/api/copy": self.copy,
            "/api/show": self.show,
            "/api/generate": self.generate,
            "/api/chat": self.chat,
            "/v1/chat/completions": self.openai,
        }
        routes[self.path](body)

    def blob(self, digest):
        content = self.raw()
        if "sha256:" + hashlib.sha256(content).hexdigest() != digest:
            return self.fail(400, "digest mismatch")
        self.state.blobs[digest] = len(content)
        self.whole(None, 201)

    def create(self, body):
        for name, digest in body.get("files", {}).items():
            if digest not in self.state.blobs:
                return self.lines([{"error": f"{name}: file does not exist"}])
        digest = next(iter(body["files"].values()))
        self.state.models[full(body["model"])] = body
        self.lines(
            [
                {"status": "parsing GGUF"},
                {"status": f"using existing layer {digest}"},
                {"status": "writing manifest"},
                {"status": "success"},
            ]
        )

    def pull(self, body):
        name = full(body["model"])
        if name not in LIBRARY:
            return self.lines(
                [
                    {"status": "pulling manifest"},
                    {"error": "pull model manifest: file does not exist"},
                ]
            )
        part = {"status": "pulling abc", "digest": "sha256:abc", "total": 4_000_000_000}
        lines = [{"status": "pulling manifest"}, part, {**part, "completed": 1_000_000_000}]
        if self.state.breaks_off:
            return self.lines(lines)
        self.state.models[name] = {}
        lines += [{**part, "completed": 4_000_000_000}, {"status": "verifying sha256 digest"}]
        self.lines([*lines, {"status": "writing manifest"}, {"status": "success"}])

    def copy(self, body):
        self.state.models[full(body["destination"])] = self.state.models[full(body["source"])]
        self.whole(None)

    def show(self, body):
        if not self.known(body):
            return
        made = self.state.models[full(body["model"])]
        self.whole({"template": made.get("template", ""), "details": {"format": "gguf"}})

    def generate(self, body):
        if not self.known(body):
            return
        name = full(body["model"])
        if body.get("keep_alive") == 0:
            self.state.loaded.pop(name, None)
            reason = "unload"
        else:
            self.load(name, body)
            reason = "load"
        line = {"model": body["model"], "created_at": CREATED, "response": "", "done": True}
        self.whole({**line, "done_reason": reason})

    def load(self, name, body):
        cold = name not in self.state.loaded
        self.state.loaded[name] = {
            "name": name,
            "model": name,
            "size": 5137025024,
            "digest": "2ae6",
            "details": {},
            "expires_at": "2318-01-01T00:00:00Z",
            "size_vram": 0,
            "context_length": body.get("options", {}).get("num_ctx", 4096),
        }
        return 250 * MS if cold else 0

    def chat(self, body):
        if not self.known(body):
            return
        head = {"model": body["model"], "created_at": CREATED}
        load_ns = self.load(full(body["model"]), body)
        words = str(body["messages"][-1]["content"]).split()
        words = words[: body.get("options", {}).get("num_predict", len(words))]
        said = [
            {**head, "message": {"role": "assistant", "content": f"{w} "}, "done": False}
            for w in words
        ]
        if body.get("tools"):
            function = {"name": "look", "arguments": {"at": words[0]}}
            calls = {"role": "assistant", "content": "", "tool_calls": [{"function": function}]}
            said = [{**head, "message": calls, "done": False}]
        end = {
            **head,
            "message": {"role": "assistant", "content": ""},
            "done": True,
            "done_reason": "length"
            if len(words) == body.get("options", {}).get("num_predict")
            else "stop",
            "total_duration": load_ns + (20 + 5 * len(words) + 3) * MS,
            "load_duration": load_ns,
            "prompt_eval_count": 26,
            "prompt_eval_duration": 20 * MS,
            "eval_count": len(words),
            "eval_duration": 5 * len(words) * MS,
        }
        if self.state.fails_midway and not body.get("stream", True):
            return self.fail(500, "an error was encountered while running the model")
        if self.state.fails_midway:
            return self.lines(
                [*said[:1], {"error": "an error was encountered while running the model"}]
            )
        if body.get("stream", True):
            return self.lines([*said, end])
        message = (
            said[0]["message"]
            if body.get("tools")
            else {"role": "assistant", "content": "".join(f"{w} " for w in words)}
        )
        self.whole({**end, "message": message})

    def openai(self, body):
        if not self.known(body):
            return
        message = {"role": "assistant", "content": "over /v1"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        self.whole(
            {
                "model": body["model"],
                "choices": [choice],
                "usage": {"prompt_tokens": 1, "completion_tokens": 2},
            }
        )

    def known(self, body):
        if full(body["model"]) in self.state.models:
            return True
        self.fail(404, f"model '{body['model']}' not found")
        return False

    def raw(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        content = b""
        while size := int(self.rfile.readline(), 16):
            content += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return content

    def body(self):
        return json.loads(self.raw() or b"{}")

    def fail(self, status, words):
        self.whole({"error": words}, status)

    def whole(self, value, status=200):
        content = (
            b""
            if value is None
            else (value if isinstance(value, str) else json.dumps(value)).encode()
        )
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def lines(self, values):
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for value in values:
            line = json.dumps(value).encode() + b"\n"
            for half in (
                line[: len(line) // 2],
                line[len(line) // 2 :],
            ):  # the network's borders are not ours
                self.wfile.write(b"%x\r\n%s\r\n" % (len(half), half))
        self.wfile.write(b"0\r\n\r\n")

    def log_message(self, *_):
        pass


class FakeOllama:
    """`bodies`: what was asked, with its path; `models`, `blobs`, `loaded`: what it has."""

    def __init__(self, host="127.0.0.1", port=0):
        self.bodies, self.models, self.blobs, self.loaded = [], {}, {}, {}
        self.breaks_off = self.fails_midway = False
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


if __name__ == "__main__":
    assert sys.argv[1:] == ["serve"], sys.argv
    where, _, number = os.environ["OLLAMA_HOST"].partition(":")
    names = sorted(name for name in os.environ if name.startswith("OLLAMA_"))
    print(" ".join(f"{name}={os.environ[name]}" for name in names), flush=True)
    FakeOllama(where, int(number)).server.serve_forever()
