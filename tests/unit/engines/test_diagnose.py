"""Hints for failed starts, tried on log lines that people reported."""

import pytest

from utils.engines.diagnose import hint_for

# huggingface_hub prints it at every anonymous look-up (UKGovernmentBEIS/inspect_ai#4600).
NOISE = (
    "(APIServer pid=1) WARNING 11-30 10:20:39 [_http.py:951] Warning: You are sending unauthenticated "
    "requests to the HF Hub. Please set a HF_TOKEN to enable higher rate limits and faster downloads."
)
TOKEN = "needs a token"
LOGS = {  # line of the log: words of the hint, words that would mislead
    # vllm-project/vllm#48140
    "ValueError: Free memory on device cuda:0 (58.19/121.69 GiB) on startup is less than desired GPU "
    "memory utilization (0.7, 85.18 GiB). Decrease GPU memory utilization or reduce GPU memory used by "
    "other processes.": ("lower gpu_memory_utilization", "context"),
    "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.": (
        "too little memory: stop other engines and kernels",
        "token",
    ),
    # gpustack/gpustack#1269
    "ggml_backend_cuda_buffer_type_alloc_buffer: allocating 36864.00 MiB on device 0: cudaMalloc "
    "failed: out of memory": ("lower context_length or max_sequences", "gpu_memory_utilization"),
    # vllm-project/vllm#34076
    "ValueError: To serve at least one request with the models's max seq len (8192), (1.12 GiB KV cache "
    "is needed, which is larger than the available KV cache memory (0.50 GiB).": (
        "lower context_length, or raise gpu_memory_utilization",
        "lower gpu_memory_utilization",
    ),
    # vllm-project/vllm#1157
    "ValueError: Bfloat16 is only supported on GPUs with compute capability of at least 8.0. Your Tesla "
    "T4 GPU has compute capability 7.5.": ("float16, or the cpu profile", "memory"),
    "RuntimeError: The NVIDIA driver on your system is too old (found version 12080).": (
        "update the driver",
        "memory",
    ),
    # ggml-org/llama.cpp#22561
    "ggml_cuda_init: failed to initialize CUDA: forward compatibility was attempted on non supported HW": (
        "update the driver",
        "memory",
    ),
    # gpustack/gpustack#1382
    "torch.AcceleratorError: CUDA error: no kernel image is available for execution on the device": (
        "compute capability",
        "uname",
    ),
    "OSError: We couldn't connect to 'https://huggingface.co' to load the files, and couldn't find them "
    "in the cached files.": ("no connection to the model hub", "check the path"),
    "OSError: [Errno 28] No space left on device": ("the disk is full", "memory"),
    # sgl-project/sglang#4330
    "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.": (
        "raise gpu_memory_utilization",
        "lower gpu_memory_utilization",
    ),
    # MiniMax-AI/MiniMax-M2.5#9
    "RuntimeError: Unexpected error from cudaGetDeviceCount(). Error 802: system not yet initialized": (
        "restart the machine",
        "memory",
    ),
    "[TRT-LLM] [E] Failed to initialize executor: CUDA error: out of memory": (
        "free_gpu_memory_fraction",
        "drop_caches",
    ),
}


@pytest.mark.parametrize("line", LOGS)
@pytest.mark.parametrize("before", ["", NOISE + "\n"], ids=["alone", "after-noise"])
def test_hint_names_cause(line, before):
    expected, misleading = LOGS[line]
    hint = hint_for(before + line, 1)
    assert expected in hint
    assert misleading not in hint
    assert TOKEN not in hint


@pytest.mark.parametrize("line", LOGS)
def test_hint_is_same_when_noise_and_consequences_follow(line):
    after = "\nllama_load_model: error loading model\nEngineCore encountered an issue.\n" + NOISE
    assert hint_for(line + after, 1) == hint_for(line, 1)


def test_noise_alone_names_no_reason():
    assert "the log above names the reason" in hint_for(NOISE, 1)
    assert "start_timeout_s" in hint_for(NOISE, None)


def test_gated_model_needs_token_after_noise():
    error = (
        "huggingface_hub.errors.GatedRepoError: 403 Client Error. Access to model x is restricted"
    )
    assert TOKEN in hint_for(f"{NOISE}\n{error}", 1)


def test_last_cause_decides():
    log = "OSError: [Errno 98] Address already in use\nretrying\ntorch.OutOfMemoryError: CUDA out of memory."
    assert "too little memory" in hint_for(log, 1)


def test_configuration_in_log_is_no_cause():
    assert "context" not in hint_for("args: max_model_len=2048, dtype=bfloat16\nTraceback", 1)
