"""What old texts and scripts still say and today's engines do not accept, with what to write instead.

A text may name such a thing to say that it is gone: see `TOLD`. And names of models that exist.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


@dataclass(frozen=True)
class Stale:
    """One thing that is gone.

    Attributes:
        name: What to call it in a message.
        pattern: What it looks like in a text.
        instead: What to write in its place.
        source: Where that stands.
    """

    name: str
    pattern: re.Pattern[str]
    instead: str
    source: str


def _word(text: str) -> re.Pattern[str]:
    return re.compile(rf"(?<![\w-]){re.escape(text)}(?![\w-])")


_VLLM = "vLLM 0.32.0, its argument parser"
_TRT = "TensorRT-LLM docs/source/legacy/tensorrt-backend-removal.md"
STALE: tuple[Stale, ...] = (
    *(
        Stale(name, _word(name), "response_format, or the body's structured_outputs", _VLLM)
        for name in ("guided_json", "guided_regex", "guided_choice", "guided_grammar")
    ),
    Stale(
        "--guided-decoding-backend",
        _word("--guided-decoding-backend"),
        '--structured-outputs-config \'{"backend": "xgrammar"}\'',
        _VLLM,
    ),
    Stale(
        "--speculative-model",
        _word("--speculative-model"),
        "--speculative-config (vLLM), --speculative-draft-model-path (SGLang)",
        _VLLM,
    ),
    Stale(
        "gpu_cache_usage_perc",
        _word("gpu_cache_usage_perc"),
        "vllm:kv_cache_usage_perc",
        "vLLM 0.32.0 v1/metrics/loggers.py",
    ),
    *(
        Stale(name, _word(name), "trtllm-serve MODEL: a checkpoint is loaded directly", _TRT)
        for name in ("trtllm-build", "convert_checkpoint.py", "tensorrt_llm.commands.build")
    ),
    *(
        Stale(name, _word(name), "--spec-draft-n-max", "llama-server --help")
        for name in ("--draft-max", "--draft-n", "--draft")
    ),
    Stale("--draft-min", _word("--draft-min"), "--spec-draft-n-min", "llama-server --help"),
    Stale(
        "Qwen/Qwen3-8B-Instruct",
        _word("Qwen/Qwen3-8B-Instruct"),
        "Qwen/Qwen3-8B, which is the post-trained one",
        "the publisher's page of models",
    ),
    Stale(
        "nvcr.io/nvidia/vllm:spark",
        _word("nvcr.io/nvidia/vllm:spark"),
        "the image that utils/engines/vllm.py pins",
        "NVIDIA/dgx-spark-playbooks nvidia/vllm",
    ),
    Stale(
        "lmsysorg/sglang:spark",
        _word("lmsysorg/sglang:spark"),
        "the image that utils/engines/sglang.py pins",
        "NVIDIA/dgx-spark-playbooks issue 68",
    ),
    Stale(
        "add_medusa_heads",
        _word("add_medusa_heads"),
        "utils.speculative.heads: the package never had it",
        "FasterDecoding/Medusa medusa/__init__.py",
    ),
)
# What a sentence says that names a thing because it is gone.
TOLD = re.compile(
    r"\b(any ?more|no longer|former(ly)?|removed|gone|earlier|deleted|does not exist|renamed|refused|"
    r"used to|went with|history|legacy|superseded)\b"
)

# Models that the course names, with the date on which their publishers' pages last had them.
MODELS: Mapping[str, str] = {
    "Qwen/Qwen3-8B": "2026-11-21",
    "Qwen/Qwen3-8B-Base": "2026-11-21",
    "bartowski/Qwen_Qwen3-8B-GGUF": "2026-11-21",
    "Tengyunw/qwen3_8b_eagle3": "2026-11-21",
    "meta-llama/Llama-3.1-8B": "2026-11-21",
    "meta-llama/Llama-3.1-8B-Instruct": "2026-11-21",
    "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B": "2026-11-21",
    "qwen3:8b": "2026-11-21",
    "qwen3:8b-fp16": "2026-11-21",
}


def find_stale(text: str) -> Iterator[tuple[Stale, int]]:
    """Every stale thing in a text, with its offset; the longest name where one holds another."""
    taken: set[int] = set()
    for stale in STALE:
        for match in stale.pattern.finditer(text):
            if match.start() not in taken:
                taken.add(match.start())
                yield stale, match.start()
