"""Settings of public recipes for TensorRT-LLM, shortened, with the faults that they have today."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Recipe:
    """Settings of a public recipe, shortened to the keys that matter here.

    Attributes:
        source: Repository and file, or the kind of file, where we read it on 2026-12-01.
        settings: Its keys and values.
    """

    source: str
    settings: Mapping[str, Any]


RECIPES: Mapping[str, Recipe] = {
    "throughput of DeepSeek-R1, early 2025": Recipe(
        "NVIDIA/TensorRT-LLM, docs/source/blogs/Best_perf_practice_on_DeepSeek-R1_in_TensorRT-LLM.md",
        {
            "pytorch_backend_config": {
                "use_cuda_graph": True,
                "cuda_graph_padding_enabled": True,
                "cuda_graph_batch_sizes": [1, 8, 64, 256, 384],
                "print_iter_log": True,
                "enable_overlap_scheduler": True,
            },
            "enable_attention_dp": True,
        },
    ),
    "a worker for prefill alone, mid 2025": Recipe(
        "a script for disaggregated serving of DeepSeek-R1 in a public repository",
        {
            "enable_attention_dp": True,
            "use_cuda_graph": True,
            "cuda_graph_padding_enabled": True,
            "cuda_graph_batch_sizes": [1, 4, 16, 64, 256],
            "kv_cache_dtype": "fp8",
        },
    ),
    "curated throughput of DeepSeek-R1": Recipe(
        "NVIDIA/TensorRT-LLM, examples/configs/curated/deepseek-r1-throughput.yaml (an older version)",
        {
            "max_batch_size": 1024,
            "max_num_tokens": 3200,
            "kv_cache_free_gpu_memory_fraction": 0.8,
            "tensor_parallel_size": 8,
            "cuda_graph_config": {"enable_padding": True, "max_batch_size": 128},
            "kv_cache_config": {"dtype": "fp8"},
            "speculative_config": {"decoding_type": "MTP", "num_nextn_predict_layers": 1},
        },
    ),
}
