"""The pretended GPU raises where a real one does, and FakeTensorMode agrees where it reaches."""

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

from utils.roofline.rates import synchronizer
from utils.speculative.target import attend, rms_norm


def gpu(*shape):
    return torch.ones(*shape, device="cuda")


FAULTS = {
    "sum": lambda: gpu(3) + torch.ones(3),
    "product": lambda: torch.ones(2, 2) @ gpu(2, 2),
    "embedding": lambda: F.embedding(torch.tensor([1]), gpu(2, 2)),
    "linear": lambda: torch.nn.Linear(2, 2)(gpu(1, 2)),
    "mask": lambda: gpu(3).masked_fill_(torch.ones(3, dtype=torch.bool), 0),
    "cat": lambda: torch.cat((gpu(1), torch.ones(1))),
    "index write": lambda: gpu(3).__setitem__(torch.tensor([1]), torch.ones(1)),
    "index of a CPU tensor": lambda: torch.ones(3)[torch.tensor([1], device="cuda")],
    "generator": lambda: torch.multinomial(gpu(3), 1, generator=torch.Generator()),
    "generator of the GPU": lambda: torch.rand(1, generator=torch.Generator("cuda")),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_pretended_gpu_refuses_tensors_of_two_devices(pretended, fault):
    with pytest.raises(RuntimeError, match="device"):
        FAULTS[fault]()


@pytest.mark.parametrize("read", [lambda t: t.numpy(), np.asarray], ids=["numpy", "asarray"])
def test_pretended_gpu_gives_numpy_nothing(pretended, read):
    with pytest.raises(TypeError, match="cuda"):
        read(gpu(2))
    assert read(gpu(2).cpu()).tolist() == [1, 1]


def test_pretended_gpu_takes_what_a_gpu_takes(pretended):
    x = gpu(3)
    x[0] = torch.tensor(5.0)
    x[1:] = torch.tensor([6.0, 7.0])
    assert x[torch.tensor([0, 2])].tolist() == [5, 7]
    assert (x * torch.tensor(2.0)).is_cuda
    assert torch.zeros(3).copy_(x).device.type == "cpu"


def test_pretended_gpu_keeps_devices_of_modules(pretended):
    module = torch.nn.Linear(2, 2).to("cuda")
    assert copy.deepcopy(module).weight.is_cuda
    module(gpu(1, 2)).sum().backward()
    assert module.weight.grad.is_cuda
    assert not module.to("cpu").weight.is_cuda


def test_pretended_gpu_ends_with_its_block():
    assert not torch.cuda.is_available()
    assert torch.ones(1).device.type == "cpu"


def test_synchronizer_waits_for_gpu_only(pretended):
    synchronizer("cpu")()
    assert pretended == []
    synchronizer("cuda")()
    assert len(pretended) == 1


@pytest.mark.parametrize("shape", [None, (64,), (5, 64)])
def test_rms_norm_has_same_shape_on_fake_gpu(shape):
    with FakeTensorMode(), torch.no_grad():
        x = torch.randn(2, 3, 5, 64, device="cuda")
        weight = None if shape is None else torch.ones(shape, device="cuda")
        y = rms_norm(x, weight, 1e-6)
        assert (y.shape, y.device.type) == (x.shape, "cuda")


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_has_same_shape_on_fake_gpu(dtype):
    with FakeTensorMode(), torch.no_grad():
        q = torch.randn(2, 3, 4, 8, device="cuda", dtype=dtype)
        keys = torch.randn(2, 2, 16, 8, device="cuda", dtype=dtype)
        mask = torch.zeros(2, 1, 6, 16, device="cuda", dtype=dtype)
        y = attend(q, keys, keys, mask)
        assert (y.shape, y.device.type) == ((2, 3, 32), "cuda")


def test_fake_gpu_finds_mask_that_was_left_on_cpu():
    with FakeTensorMode(), torch.no_grad():
        q = torch.randn(2, 3, 4, 8, device="cuda")
        keys = torch.randn(2, 2, 16, 8, device="cuda")
        with pytest.raises(RuntimeError, match="device"):
            attend(q, keys, keys, torch.zeros(2, 1, 6, 16))
