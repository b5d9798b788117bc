"""CPU tensors that claim to be on a GPU, so that the CUDA branches run on real numbers."""

from contextlib import contextmanager
from unittest import mock

import pytest
import torch


@pytest.fixture
def as_if_on_gpu():
    """Context manager in which every tensor says that it is on a GPU."""

    @contextmanager
    def patched():
        with mock.patch.object(torch.Tensor, "is_cuda", True):
            yield

    return patched
