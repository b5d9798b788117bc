"""The engines of the course, by name."""

from __future__ import annotations

from utils.engines import llama_cpp, ollama, sglang, tensorrt_llm, transformers_baseline, vllm
from utils.engines.engine_errors import UnknownEngine
from utils.engines.spec import EngineSpec

ENGINES: dict[str, EngineSpec] = {
    module.SPEC.name: module.SPEC
    for module in (vllm, sglang, tensorrt_llm, llama_cpp, ollama, transformers_baseline)
}


def get_spec(name: str) -> EngineSpec:
    """Return the specification of engine `name`.

    Raises:
        UnknownEngine: No such engine; the message lists those there are.
    """
    if name not in ENGINES:
        raise UnknownEngine(name, tuple(ENGINES))
    return ENGINES[name]
