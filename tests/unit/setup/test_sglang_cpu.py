"""What stands in for parts of SGLang on a CPU, and its language without its engine."""

import importlib.util
import subprocess
import sys

import pytest

from tools.setup.setup_steps import SGLANG_CPU
from tools.setup.sglang_cpu import sgl_kernel
from utils.profiles import ROOT


def run(code, *arguments):
    """Runs `code` in a fresh Python; its output."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=True).stdout


def test_kernels_that_are_imported_can_be_and_refuse_to_be_called():
    from tools.setup.sglang_cpu.sgl_kernel import assign_req_to_token_pool_cpu

    with pytest.raises(NotImplementedError, match=r"assign_req_to_token_pool_cpu.*no speculative"):
        assign_req_to_token_pool_cpu(1, 2)


def test_no_other_kernel_is_offered():
    assert not hasattr(sgl_kernel, "decode_attention_cpu")
    with pytest.raises(ImportError):
        from tools.setup.sglang_cpu.sgl_kernel import rotate_input_ids_cpu  # noqa: F401


FAKE_TORCHVISION = """
import torch
if torch.version.cuda is None:
    register = torch.library.register_fake("torchvision::nms")
    register(lambda dets, scores, iou_threshold: dets)
"""
LOOK = """
import sys
sys.path[:0] = sys.argv[1:]
import torchvision_schemas
print("torch" in sys.modules)
import torchvision
print(torchvision.__name__)
"""


def test_torchvision_can_be_imported_and_torch_is_not_before(tmp_path):
    (tmp_path / "torchvision.py").write_text(FAKE_TORCHVISION)
    assert run(LOOK, str(SGLANG_CPU), str(tmp_path)).split() == ["False", "torchvision"]


def test_without_the_schemas_torchvision_fails(tmp_path):
    import torch

    if torch.version.cuda is not None:
        pytest.skip("a CUDA build of PyTorch")
    (tmp_path / "torchvision.py").write_text(FAKE_TORCHVISION)
    code = "import sys; sys.path.insert(0, sys.argv[1]); import torchvision"
    with pytest.raises(subprocess.CalledProcessError) as caught:
        run(code, str(tmp_path))
    assert "torchvision::nms does not exist" in caught.value.stderr


needs_sglang = pytest.mark.skipif(
    importlib.util.find_spec("sglang") is None, reason="no sglang for this system"
)


@needs_sglang
def test_the_language_is_sglangs_own_and_brings_no_engine():
    code = """
import sys
from utils.engines.sglang_language import sgl
from sglang.lang import api
print(sgl.gen is api.gen, "torch" in sys.modules, "triton" in sys.modules)
"""
    assert run(code).split() == ["True", "False", "False"]


@needs_sglang
def test_an_sglang_that_was_imported_before_is_left_as_it_is():
    code = """
import sys, types, importlib.util
whole = importlib.util.module_from_spec(importlib.util.find_spec("sglang"))
whole.mark = "whole"
sys.modules["sglang"] = whole
from utils.engines.sglang_language import sgl
print(sys.modules["sglang"].mark, sgl.RuntimeEndpoint.__name__)
"""
    assert run(code).split() == ["whole", "RuntimeEndpoint"]


@needs_sglang
def test_a_program_runs_against_a_backend_of_ones_own():
    from utils.engines.sglang_language import sgl

    @sgl.function
    def program(s):
        s += "a"
        branches = s.fork(2)
        branches += lambda i: f"{i}"
        branches.join()
        s += "b"

    from sglang.lang.backend.base_backend import BaseBackend

    assert program.run(backend=BaseBackend()).text() == "ab"


def test_without_the_package_it_is_said_how_to_get_it(monkeypatch):
    from utils.engines import sglang_language

    monkeypatch.delitem(sys.modules, "sglang", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ModuleNotFoundError, match="make setup STEP=course"):
        sglang_language.enter_package()
