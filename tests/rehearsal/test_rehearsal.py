"""Every lab from top to bottom as a learner on a DGX Spark and on a machine with an NVIDIA GPU.

The engines are stand-ins in containers of a real Docker Engine (`stage.py`). So this shows that the labs
start the engines they name, with arguments that the engines take, that they can read the answers, and that
they leave nothing behind. It shows no speed. Labs 3.3.4 to 3.3.6 compute with PyTorch too: on the CPU for
`spark`, as with a PyTorch that has no CUDA, and on the pretended GPU for `cuda`.
"""

import json
import os

import pytest

from utils.profiles import ROOT

pytestmark = [pytest.mark.engine, pytest.mark.timeout(2500)]
STEMS = sorted(path.stem for path in (ROOT / "solutions").glob("lab-*.py"))
# Engines that a lab starts in containers.
STARTED = {
    "3.3.1": {"vllm", "sglang", "tensorrt_llm", "llama_cpp", "ollama"},
    "3.3.2": {"vllm", "sglang"},
    "3.3.3": {"vllm", "llama_cpp"},
    "3.3.4": {"vllm"},
    "3.3.5": {"vllm", "sglang"},
    "3.3.6": {"vllm", "llama_cpp", "tensorrt_llm"},
    "3.3.7": {"llama_cpp", "vllm"},
}
# They time the tiny model in bfloat16, which most CPUs emulate: more than ten minutes each on two busy cores.
SLOW = ("3.3.4", "3.3.5")
ALL = "REHEARSE_ALL"


def number(stem):
    return stem.split("-")[1]


def lab(stem):
    asked = os.environ.get(ALL) == "1"
    reason = f"not asked for: {ALL}=1 make rehearse"
    slow = number(stem) in SLOW and not asked
    return pytest.param(stem, marks=pytest.mark.skipif(slow, reason=reason))


@pytest.mark.parametrize("stem", map(lab, STEMS))
@pytest.mark.parametrize("profile", ["spark", "cuda"])
def test_lab_runs_on_gpu_profile(stage, stem, profile):
    changes = {}
    if profile == "cuda" and number(stem) in ("3.3.4", "3.3.5", "3.3.6"):
        changes["REHEARSAL_TORCH"] = "cuda"
    limits = {"limit": 900, "whole": 2400} if number(stem) in SLOW else {}
    ran = stage.notebook(stem, profile, **limits, **changes)
    assert ran["faults"] == []
    texts = {id_: cell["text"] for id_, cell in ran["cells"].items()}
    assert {id_: text for id_, text in texts.items() if "Traceback" in text} == {}
    assert {about["engine"] for about in stage.hub.started} == STARTED[number(stem)]
    assert stage.wait_until_nothing_is_left() == []


def test_engine_of_rehearsal_has_its_origin(stage):
    """Records of an engine take its origin."""
    code = "from utils.engines import launch\nwith launch('vllm', quiet=True) as engine: print(engine.origin)"
    code, text = stage.python(code, "spark")
    assert code == 0, text
    assert text.splitlines()[-1] == "rehearsal"


def test_engine_refuses_flag_that_its_parser_refuses(stage):
    code, text = stage.python(
        "from utils.engines import launch\n"
        "launch('vllm', quiet=True, extra_arguments=('--no-such-flag',))",
        "spark",
    )
    assert code != 0
    assert "unrecognized arguments: --no-such-flag" in text
    assert json.dumps(stage.hub.started[0]["arguments"]).count("--no-such-flag") == 1
