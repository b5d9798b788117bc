"""The GGUF files say what the safetensors model says, in real llama.cpp; skipped where it is not set up."""

import httpx
import pytest

from utils.engines import NotRunHere, launch
from utils.profiles import load_profile
from utils.tinymodel import evaluate, export, hub, tasks


@pytest.fixture(scope="module")
def by_transformers():
    asked = [t.messages for t in tasks.heldout(8, seed=42)]
    return asked, evaluate.generate(*hub.load(hub.TINY), asked, batch=8, max_new_tokens=128)


@pytest.mark.parametrize("kind", export.SHIPPED_TYPES)
def test_llama_cpp_agrees_with_transformers(by_transformers, kind):
    asked, outputs = by_transformers
    file = str(hub.TINY / f"tiny-{kind}.gguf")
    try:
        engine = launch("llama_cpp", load_profile("cpu"), model=file, quiet=True)
    except NotRunHere as reason:
        pytest.skip(str(reason))
    same = stopped = 0
    with engine:
        for messages, output in zip(asked, outputs, strict=True):
            body = {
                "model": engine.model,
                "messages": messages,
                "temperature": 0,
                "max_tokens": 128,
            }
            url = f"{engine.base_url}/v1/chat/completions"
            choice = httpx.post(url, json=body, timeout=60).json()["choices"][0]
            same += choice["message"]["content"] == output.text
            stopped += choice["finish_reason"] == "stop"
    # 16- and 8-bit arithmetic may turn a near tie; most answers hold none
    assert same >= 6
    assert stopped >= 7
