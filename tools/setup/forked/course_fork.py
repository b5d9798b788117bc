"""A plugin for vLLM and SGLang on a CPU: processes that they spawn are forked, and import nothing again.

Since CUDA does not survive a fork, both start theirs with multiprocessing's "spawn". Each then imports
PyTorch, transformers and the engine anew, 10 to 15 s of one core. Without CUDA a fork is safe, and takes no
time, as long as nothing has begun to compute:

* SGLang 0.5.23 (srt/entrypoints/engine.py): scheduler and detokenizer. One thread each
  (`OMP_NUM_THREADS=1`, utils/engines/sglang.py).
* vLLM 0.32.0 (v1/engine/utils.py; "spawn" is set in platforms/cpu.py): the engine core. Its worker, which
  computes, is still spawned: it reads which threads are its own when it loads OpenMP
  (utils/ompmultiprocessing.py).

Found through the entry points `sglang.srt.plugins` and `vllm.general_plugins`.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import socket


def sglang() -> None:
    """Makes "fork" of any start method that is set from now on."""
    upstream = multiprocessing.set_start_method

    def fork(method: str | None, force: bool = False) -> None:
        upstream("fork", force=force)

    multiprocessing.set_start_method = fork
    os.register_at_fork(after_in_child=close_ports)


def vllm() -> None:
    """Makes the API server's process fork the engine core."""
    import vllm.v1.engine.utils as core

    core.get_mp_context = lambda: multiprocessing.get_context("fork")
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
