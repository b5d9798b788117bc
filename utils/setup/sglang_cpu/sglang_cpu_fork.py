"""A plugin for SGLang on a CPU: its processes are forked, and do not import everything again.

SGLang starts its scheduler and its detokenizer with multiprocessing's "spawn" (0.5.23, in
srt/entrypoints/engine.py), since CUDA does not survive a fork. Each then imports PyTorch, transformers and
SGLang anew: 15 s of one core, twice. Without CUDA, and with one thread (`OMP_NUM_THREADS=1`, in
utils/engines/sglang.py), a fork is safe and takes no time.

Found by SGLang through the entry point `sglang.srt.plugins`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket


def register() -> None:
    """Makes "fork" of any start method that is set from now on."""
    upstream = multiprocessing.set_start_method

    def fork(method: str | None, force: bool = False) -> None:
        upstream("fork", force=force)

    multiprocessing.set_start_method = fork
    os.register_at_fork(after_in_child=close_ports)


def close_ports() -> None:
    """Closes inherited network sockets: a port must not stay open when the server is gone."""
    for name in os.listdir("/proc/self/fd"):
        with contextlib.suppress(OSError):  # no socket, or the listing's own file
            held = socket.socket(fileno=int(name))
            if held.family in (socket.AF_INET, socket.AF_INET6):
                held.close()
            else:
                held.detach()
