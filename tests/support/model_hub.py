"""A model hub on this machine with the tiny model under the names of the GPU profiles.

It answers the requests that huggingface_hub and the rehearsal's engines make for a public model, with the
file layout of the real repositories, and no others. It also keeps the arguments that the rehearsal's
containers report (`started`), and tells them how to fail (`faults`).
"""

import functools
import hashlib
import json
import re
import threading
import urllib.parse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from safetensors.torch import load_file, save_file

from utils.profiles import MODELS, gpu_models

COMMIT = "0123456789abcdef" * 2 + "01234567"
DAY = "2025-01-01T00:00:00.000Z"
ABOUT = {
    "_id": "x",
    "sha": COMMIT,
    "private": False,
    "gated": False,
    "disabled": False,
    "downloads": 1,
    "likes": 0,
    "tags": [],
    "config": {},
    "createdAt": DAY,
    "lastModified": DAY,
    "library_name": "transformers",
}
SIZES = ("0.6B", "1.7B", "4B", "8B")  # of Qwen3, of which a profile takes what fits its GPU
CONTEXT = 40960  # positions of Qwen3-8B, so that the profiles' contexts are accepted
FILES = ("generation_config.json", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja")


def write_first_layers(folder, layers=2):
    """Write the tiny model's first layers, which a CPU computes fast enough in bfloat16."""
    tiny, config, weights = MODELS / "tiny", folder / "config.json", folder / "model.safetensors"
    values = json.loads((tiny / "config.json").read_text())
    values |= {"max_position_embeddings": CONTEXT, "num_hidden_layers": layers}
    if "layer_types" in values:
        values["layer_types"] = values["layer_types"][:layers]
    config.write_text(json.dumps(values))
    tensors = load_file(tiny / "model.safetensors")
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not (found := re.match(r"model\.layers\.(\d+)\.", name)) or int(found[1]) < layers
    }
    save_file(kept, weights, metadata={"format": "pt"})
    return {path.name: path for path in (config, weights)}


def repositories(folder):
    """Return the files of each repository by name; `folder` gets those that are made."""
    tiny, small, found = MODELS / "tiny", write_first_layers(Path(folder)), {}
    for size in SIZES:
        for engine, model in gpu_models(size).items():
            repository, _, quantisation = model.partition(":")
            if engine == "ollama":
                continue
            files = found.setdefault(repository, {})
            if engine.endswith("_heads"):
                heads = MODELS / "heads" / engine.removesuffix("_heads")
                files |= {path.name: path for path in sorted(heads.iterdir())}
            elif quantisation:
                stem = repository.partition("/")[2].removesuffix("-GGUF")
                kind = "Q8_0" if quantisation == "Q8_0" else "BF16"
                files[f"{stem}-{quantisation}.gguf"] = tiny / f"tiny-{kind}.gguf"
            else:
                files |= small | {name: tiny / name for name in FILES}
    return found


@functools.cache
def digest(path):
    """Return a file's SHA-256."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Handler(BaseHTTPRequestHandler):
    """Answers of the hub."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body, status=200, size=None, **headers):
        """Send JSON or bytes; `size` is that of a body that a HEAD request does not get."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        kind = "octet-stream" if data is body else "json"
        self.send_header("Content-Type", f"application/{kind}")
        self.send_header("Content-Length", str(len(data) if size is None else size))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.path == "/rehearsal/started":
            return self.answer(self.server.hub.begin(json.loads(body)))
        self.answer([])  # a question about paths

    def do_GET(self):
        path = urllib.parse.urlparse(self.path).path.strip("/")
        parts = [urllib.parse.unquote(part) for part in path.split("/")]
        at = 2 if parts[0] == "api" else 0
        name = "/".join(parts[at : at + 2])
        if (files := self.server.hub.files.get(name)) is None:
            self.answer({"error": "Repository not found"}, 404, X_Error_Code="RepoNotFound")
        elif parts[0] == "api" and parts[4:5] == ["tree"]:
            self.answer([self.entry(file, path) for file, path in files.items()])
        elif parts[0] == "api" and parts[4:5] == ["refs"]:
            main = {"name": "main", "ref": "refs/heads/main", "targetCommit": COMMIT}
            self.answer({"branches": [main], "tags": [], "converts": []})
        elif parts[0] == "api":
            siblings = [{"rfilename": file} for file in files]
            self.answer(ABOUT | {"id": name, "modelId": name, "siblings": siblings})
        elif parts[2:3] == ["resolve"] and (file := "/".join(parts[4:])) in files:
            self.send_file(files[file])
        else:
            headers = {"X_Error_Code": "EntryNotFound", "X_Repo_Commit": COMMIT}
            self.answer({"error": "Entry not found"}, 404, **headers)

    do_HEAD = do_GET

    def entry(self, name, path):
        """Return a file's line in the tree of a repository."""
        size = path.stat().st_size
        lfs = {"oid": digest(path), "size": size, "pointerSize": 130}
        return {"type": "file", "path": name, "size": size, "oid": COMMIT, "lfs": lfs}

    def send_file(self, path):
        """Send a file, or the part of it that `Range` asks for."""
        tag = f'"{digest(path)}"'
        headers = {"ETag": tag, "X_Repo_Commit": COMMIT, "Accept_Ranges": "bytes"}
        if self.command == "HEAD":
            return self.answer(b"", size=path.stat().st_size, **headers)
        data = path.read_bytes()
        if not (wanted := self.headers.get("Range")):
            return self.answer(data, **headers)
        first, _, last = wanted.removeprefix("bytes=").partition("-")
        begin, end = int(first), int(last or len(data) - 1)
        span = f"bytes {begin}-{end}/{len(data)}"
        self.answer(data[begin : end + 1], 206, Content_Range=span, **headers)


class ModelHub:
    """The hub, serving from a thread.

    Attributes:
        url: Its address.
        started: What each container told when it began: engine, arguments, names of variables.
        faults: How the next containers are to fail, by engine ("" for any): `code`, `log`, `never_healthy`.
            `after` containers begin well before that.
    """

    def __init__(self, folder, host, port):
        self.files, self.started, self.faults = repositories(folder), [], {}
        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer((host, port), Handler)
        self.server.daemon_threads = True
        self.server.hub = self
        self.url = f"http://{host}:{port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def begin(self, about):
        """Keep what a container tells, and return its fault, or nothing."""
        with self.lock:
            self.started.append(about)
            for engine in (about["engine"], ""):
                fault = self.faults.get(engine)
                if not fault:
                    continue
                if fault.get("after", 0) > 0:
                    fault["after"] -= 1
                    continue
                return {key: value for key, value in fault.items() if key != "after"}
        return {}

    def close(self):
        """End it."""
        self.server.shutdown()
        self.server.server_close()
