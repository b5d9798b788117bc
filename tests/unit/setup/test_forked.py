"""Processes that engines spawn are forked on a CPU, and hold no port."""

import subprocess
import sys

from utils.profiles import ROOT

LIVE = """
import multiprocessing as mp, socket, sys, types
from tools.setup.forked import course_fork

def live(pipe):
    pipe.send("here")
    pipe.recv()

def show(context):
    port = socket.create_server(("127.0.0.1", 0))
    address = port.getsockname()
    here, there = mp.Pipe()  # a pair of sockets too, of no network
    child = context.Process(target=live, args=(there,))
    child.start()
    print(context.get_start_method(), here.recv())
    port.close()
    try:
        socket.create_connection(address)
    except ConnectionRefusedError:
        print("closed")
    here.send("go")
    child.join()
"""
SGLANG = """
course_fork.sglang()
mp.set_start_method("spawn", force=True)
show(mp)
"""
VLLM = """
for name in ("vllm", "vllm.v1", "vllm.v1.engine", "vllm.v1.engine.utils"):
    sys.modules[name] = types.ModuleType(name)
    parent, _, child = name.rpartition(".")
    if parent:
        setattr(sys.modules[parent], child, sys.modules[name])
core = sys.modules["vllm.v1.engine.utils"]
core.get_mp_context = lambda: mp.get_context("spawn")
course_fork.vllm()
show(core.get_mp_context())
"""


def run(code):
    """Runs `code` in a fresh Python; the words that it prints."""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.split()


def test_sglangs_processes_are_forked_and_hold_no_port():
    assert run(LIVE + SGLANG) == ["fork", "here", "closed"]


def test_vllms_engine_core_is_forked_and_holds_no_port():
    assert run(LIVE + VLLM) == ["fork", "here", "closed"]
