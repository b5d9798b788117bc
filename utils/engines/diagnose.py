"""From the end of an engine's log to what a person can try."""

from __future__ import annotations

import re

# The first pattern that is found decides.
HINTS: tuple[tuple[str, str], ...] = (
    (
        r"[Aa]ddress already in use|couldn't bind HTTP server socket",
        "the port is taken: leave out port=, and a free one is used.",
    ),
    (
        r"gated repo|401 Client Error|Access to model .* is restricted|HF_TOKEN",
        "the model needs a token: accept its licence on the model hub, then set HF_TOKEN before "
        "starting JupyterLab.",
    ),
    (
        r"No available memory for the cache blocks|Not enough memory|out of memory|MemoryError"
        r"|Cannot allocate memory|bad_alloc|No such device or address.*mem",
        "too little memory: stop other engines and kernels, or lower gpu_memory_utilization "
        "(kv_cache_gib on a CPU). On a DGX Spark also: sync; echo 3 | sudo tee "
        "/proc/sys/vm/drop_caches",
    ),
    (
        r"exec format error|Exec format error",
        "the image or program was built for another processor (uname -m says which this is).",
    ),
    (
        r"\[FATAL tini .*exec .* failed",
        "the image does not have the program that is started in it: it is another image than the "
        "engine's.",
    ),
    (
        r"does not appear to have a file named|Repository Not Found|is not a local folder"
        r"|failed to load model|No such file or directory|error loading model",
        "the model is not there or not whole: check the path or hub id.",
    ),
    (
        r"does not recognize this architecture|Model architectures .* are not supported",
        "the engine does not know this kind of model: its version is older than the model, or it was "
        "never added.",
    ),
    (
        r"can't import xllamacpp|libgomp\.so",
        "the engine's environment is not whole: make setup STEP=llama_cpp tells what is missing.",
    ),
    (
        r"FP8 KV cache on CPU requires",
        "this CPU cannot: vLLM keeps a KV cache in FP8 only on x86-64 with AVX-512 or AMX. Leave out "
        "kv_cache_dtype.",
    ),
    (
        r"Worker proc .* died unexpectedly|EngineDeadError|EngineCore encountered an issue",
        "a worker process of the engine died: start it again; if it dies again, the lines above its "
        "death in the log name the cause.",
    ),
    (
        r"unrecognized arguments|error: argument|invalid choice|error: invalid argument",
        "this version of the engine does not know one of the arguments, or its value is wrong: the log "
        "names it.",
    ),
    (
        r"max_model_len|larger than the maximum|exceeds.*context"
        r"|context_length .* is greater than the derived",
        "the context length is more than the model or its KV cache holds: lower context_length.",
    ),
)


def hint_for(log_tail: str, exit_code: int | None) -> str:
    """What to try, given the end of the log and the exit code (None: still running, but not healthy)."""
    for pattern, hint in HINTS:
        if re.search(pattern, log_tail):
            return hint
    if exit_code in (137, -9):
        return (
            "the process was killed (exit code 137), most likely for want of memory: stop other "
            "engines and kernels, then try again."
        )
    if exit_code is None:
        return "it may only need longer: raise start_timeout_s in the profile; or read the log."
    return "the log above names the reason; run the command by hand to see all of it."
