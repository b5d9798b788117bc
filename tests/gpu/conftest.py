"""The tests of this folder need an NVIDIA GPU that PyTorch can use."""

import pytest
import torch

from utils.speculative.target import load_target
from utils.tinymodel.hub import TINY


@pytest.fixture(scope="session", autouse=True)
def needs_gpu():
    if not torch.cuda.is_available():
        pytest.skip("not run here: PyTorch sees no CUDA device")


@pytest.fixture(scope="session")
def on_cpu():
    """The tiny model on the CPU."""
    return load_target(str(TINY))


@pytest.fixture(scope="session")
def on_gpu(needs_gpu):
    """The tiny model on the GPU."""
    return load_target(str(TINY), device="cuda")
