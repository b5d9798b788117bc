"""A registry on this machine that serves one image slowly, and can break off: pulls of Docker's API V2."""

import gzip
import hashlib
import http.server
import io
import json
import os
import tarfile
import threading
import time

MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"
LIST = "application/vnd.docker.distribution.manifest.list.v2+json"
CONFIG = "application/vnd.docker.container.image.v1+json"
LAYER = "application/vnd.docker.image.rootfs.diff.tar.gzip"
LAYER_BYTES = 6_000_000


def digest(data):
    return "sha256:" + hashlib.sha256(data).hexdigest()


def reference(kind, data):
    return {"mediaType": kind, "size": len(data), "digest": digest(data)}


class Registry:
    """Has `slow:1`, `broken:1` (its layer breaks off) and `foreign:1` (for another processor)."""

    def __init__(self, architecture):
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as file:
            entry = tarfile.TarInfo("data")
            entry.size = LAYER_BYTES
            file.addfile(entry, io.BytesIO(os.urandom(LAYER_BYTES)))
        layer = gzip.compress(tar.getvalue(), 1)
        config = json.dumps(
            {
                "os": "linux",
                "architecture": architecture,
                "rootfs": {"type": "layers", "diff_ids": [digest(tar.getvalue())]},
            }
        ).encode()
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST}
        manifest |= {"config": reference(CONFIG, config), "layers": [reference(LAYER, layer)]}
        self.manifest = json.dumps(manifest).encode()
        foreign = reference(MANIFEST, self.manifest)
        foreign["platform"] = {"os": "linux", "architecture": "s390x"}
        self.foreign = json.dumps(
            {"schemaVersion": 2, "mediaType": LIST, "manifests": [foreign]}
        ).encode()
        self.blobs = {digest(layer): layer, digest(config): config}
        self.broken_off = threading.Event()
        self.seconds = 1.0  # that the layer takes
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        self.address = f"127.0.0.1:{self.server.server_port}"

    def _handler(registry):
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                _, _, *rest = self.path.split("/")  # "", "v2", name, kind, reference
                if rest in ([], [""]):
                    return self.answer(b"{}", "application/json")
                name, kind, wanted = rest
                if kind == "blobs":
                    return self.send_blob(registry.blobs[wanted], broken=name == "broken")
                if name not in ("slow", "broken", "foreign"):
                    return self.answer(
                        b'{"errors":[{"code":"MANIFEST_UNKNOWN"}]}', "application/json", 404
                    )
                if name == "foreign":
                    return self.answer(registry.foreign, LIST)
                return self.answer(registry.manifest, MANIFEST)

            do_HEAD = do_GET

            def answer(self, data, kind, status=200):
                self.send_response(status)
                self.send_header("Content-Type", kind)
                self.send_header("Content-Length", str(len(data)))
                self.send_header("Docker-Content-Digest", digest(data))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(data)

            def send_blob(self, data, broken):
                self.send_response(200)
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                step = len(data) // 20 + 1
                try:
                    for start in range(0, len(data) // 2 if broken else len(data), step):
                        self.wfile.write(data[start : start + step])
                        if len(data) > LAYER_BYTES / 2:
                            time.sleep(registry.seconds / 20)
                except OSError:
                    registry.broken_off.set()
                self.close_connection = True

            def log_message(self, *arguments):
                pass

        return Handler

    def close(self):
        self.server.shutdown()
        self.server.server_close()
