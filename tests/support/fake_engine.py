"""A program that behaves, or misbehaves, like an engine at its edges. Serves no model."""

import argparse
import http.server
import os
import signal
import socket
import subprocess
import sys
import time

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int, required=True)
parser.add_argument("--mode", default="ok")
parser.add_argument("--pids", default="")
parser.add_argument("--log", default="", help="text to log before it serves")
parser.add_argument("--silent", action="store_true", help="accept requests and never answer")
arguments = parser.parse_args()

if arguments.log:
    print(arguments.log, flush=True)
if arguments.mode == "dies":
    print("loading", flush=True)
    print("ValueError: No available memory for the cache blocks.", flush=True)
    sys.exit(3)
if arguments.mode == "hangs":
    print("compiling kernels", flush=True)
    time.sleep(600)
if arguments.mode == "stubborn":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
if arguments.pids:
    # A worker in a session of its own, as some engines start them, that ignores SIGTERM.
    code = "import signal,time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
    worker = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    with open(arguments.pids, "w") as file:
        file.write(f"{os.getpid()} {worker.pid}")


if arguments.silent:
    print("accepting", flush=True)
    with socket.create_server(("127.0.0.1", arguments.port)):
        time.sleep(600)


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = b'{"version": "1.2.3"}'
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


http.server.ThreadingHTTPServer(("127.0.0.1", arguments.port), Handler).serve_forever()
