"""Diagnosis of a failed start: from the end of an engine's log to a remedy that a person can try."""

from __future__ import annotations

import re

# Errors that name a cause. The last line of the log with one of them decides, and in that line the first
# pattern here. They match errors and not single words, because warnings use the same words. For example,
# huggingface_hub prints "Please set a HF_TOKEN" at every anonymous look-up.
CAUSES: tuple[tuple[str, str], ...] = (
    (
        r"[Aa]ddress already in use|couldn't bind HTTP server socket",
        "the port is taken: leave out port=, and a free one is used.",
    ),
    (
        r"GatedRepoError|gated repo|401 Client Error|Access to model .* is restricted",
        "the model needs a token: accept its licence on the model hub, then set HF_TOKEN before "
        "starting JupyterLab.",
    ),
    (
        r"can't import xllamacpp|libgomp\.so",
        "the engine's environment is not whole: make setup STEP=llama_cpp tells what is missing.",
    ),
    (
        r"No space left on device|Disk quota exceeded",
        "the disk is full: free some space. docker system df shows what images take.",
    ),
    (
        r"Free memory on device .* is less than desired GPU memory utilization",
        "less memory is free than the share that was asked for: stop other users of the GPU, or "
        "lower gpu_memory_utilization.",
    ),
    (
        r"KV cache is needed, which is larger than the available",
        "one request of the full context does not fit: lower context_length, or raise "
        "gpu_memory_utilization (kv_cache_gib on a CPU).",
    ),
    (
        r"No available memory for the cache blocks"
        r"|Not enough memory\. Please try to increase --mem-fraction-static",
        "too little memory is left inside the engine's share after the weights: raise "
        "gpu_memory_utilization (kv_cache_gib on a CPU), or stop other users of the GPU.",
    ),
    (
        r"cudaMalloc failed: out of memory",
        "slots times context do not fit: lower context_length or max_sequences, or stop other engines.",
    ),
    (
        r"Failed to initialize executor: .*out of memory",
        "too little GPU memory: stop other engines, or lower free_gpu_memory_fraction in the "
        "settings file.",
    ),
    (
        r"out of memory|OutOfMemoryError|MemoryError|Cannot allocate memory|bad_alloc"
        r"|No such device or address.*mem",
        "too little memory: stop other engines and kernels, or lower what this one takes "
        "(gpu_memory_utilization, or kv_cache_gib on a CPU; in llama.cpp and Ollama context_length or "
        "max_sequences). On a DGX Spark also: sync; echo 3 | sudo tee /proc/sys/vm/drop_caches",
    ),
    (
        r"Bfloat16 is only supported on GPUs with compute capability",
        "this GPU has no bfloat16, which needs compute capability 8.0: use float16, or the cpu "
        "profile (COURSE_PROFILE=cpu).",
    ),
    (
        r"NVIDIA driver on your system is too old|CUDA driver version is insufficient"
        r"|forward compatibility was attempted",
        "the NVIDIA driver is older than the image's CUDA: update the driver (580 or newer), or take "
        "an image of an older CUDA.",
    ),
    (
        r"no kernel image is available",
        "the image was not built for this GPU's compute capability: take another image or tag.",
    ),
    (
        r"Error 802|system not yet initialized",
        "the driver or the fabric manager is not ready (error 802): repair it on the host, and "
        "restart the machine.",
    ),
    (
        r"couldn't connect to '?https?://|LocalEntryNotFoundError",
        "no connection to the model hub: check network, proxy or HF_ENDPOINT, or fetch the model first.",
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
        r"|is not a file|No such file or directory",
        "the model is not there or not whole: check the path or hub id.",
    ),
    (
        r"does not recognize this architecture|Model architectures .* are not supported",
        "the engine does not know this kind of model: its version is older than the model, or it was "
        "never added.",
    ),
    (
        r"FP8 KV cache on CPU requires",
        "this CPU cannot: vLLM keeps a KV cache in FP8 only on x86-64 with AVX-512 or AMX. Leave out "
        "kv_cache_dtype.",
    ),
    (
        r"unrecognized arguments|error: argument|invalid choice|error: invalid argument",
        "this version of the engine does not know one of the arguments, or its value is wrong: the log "
        "names it.",
    ),
    (
        r"larger than the maximum|exceeds.*context"
        r"|(max_model_len|context_length) .* is greater than the derived",
        "the context length is more than the model or its KV cache holds: lower context_length.",
    ),
)
# Errors that follow from another one. They count only if the log has no cause.
CONSEQUENCES: tuple[tuple[str, str], ...] = (
    (
        r"failed to load model|error loading model",
        "the model is not there or not whole: check the path or hub id.",
    ),
    (
        r"Worker proc .* died unexpectedly|EngineDeadError|EngineCore encountered an issue",
        "a worker process of the engine died: start it again; if it dies again, the lines above its "
        "death in the log name the cause.",
    ),
)


def hint_for(log_tail: str, exit_code: int | None) -> str:
    """Return what to try after a failed start.

    Args:
        log_tail: End of the engine's log.
        exit_code: Exit code, or None if the engine still runs but isn't healthy.
    """
    lines = log_tail.splitlines()
    for table in (CAUSES, CONSEQUENCES):
        for line in reversed(lines):
            for pattern, hint in table:
                if re.search(pattern, line):
                    return hint
    if exit_code in (137, -9):
        return (
            "the process was killed (exit code 137), most likely for want of memory: stop other "
            "engines and kernels, then try again."
        )
    if exit_code is None:
        return "it may only need longer: raise start_timeout_s in the profile; or read the log."
    return "the log above names the reason; run the command by hand to see all of it."
