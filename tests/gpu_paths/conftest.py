"""Two ways to take a CUDA branch on a machine without a GPU. Both compute real numbers on the CPU."""

from contextlib import contextmanager
from unittest import mock

import pretend_gpu as gpu
import pytest
import torch

from utils.speculative.target import load_target
from utils.tinymodel.hub import TINY


@pytest.fixture
def as_if_on_gpu():
    """Context manager in which every tensor says that it is on a GPU."""

    @contextmanager
    def patched():
        with mock.patch.object(torch.Tensor, "is_cuda", True):
            yield

    return patched


@pytest.fixture
def pretended():
    """The pretended GPU: "cuda" is a device of its own. The value lists the synchronisations."""
    with gpu.pretend_gpu() as waits:
        yield waits


@pytest.fixture(scope="session")
def on_cpu():
    """The tiny model on the CPU."""
    torch.set_num_threads(1)
    return load_target(str(TINY))


@pytest.fixture
def on_gpu(pretended):
    """The tiny model on the pretended GPU."""
    return load_target(str(TINY), device="cuda")
