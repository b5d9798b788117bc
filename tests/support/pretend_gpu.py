"""Tensors on the CPU that PyTorch takes for tensors on a GPU, so that CUDA branches run on real numbers.

Inside `with pretend_gpu():`, `torch.cuda.is_available()` is true. A tensor that was put on "cuda" says
that it is there, and so do all tensors that are computed from it. An operation on tensors of both devices
raises, as it does on a GPU. The numbers are still computed on the CPU, so a result can be compared with the
CPU branch's. PyTorch's FakeTensorMode has devices without numbers, and in a build for CPUs it can neither
index nor write a tensor on "cuda".
"""

from __future__ import annotations

import contextlib
import threading
from types import SimpleNamespace
from unittest import mock

import torch
import torch._dynamo  # reads the signature of `_make_subclass`, which is replaced below
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map_only

GPU = torch.device("cuda", 0)
CPU = torch.device("cpu")
Tensor = torch.Tensor
NAME = "Pretended GPU"
MEMORY_BYTES = 8 * 2**30
L2_BYTES = 4 * 2**20
# Operations that take tensors of both devices. So does a read, whose index may be on the CPU.
COPIES = (Tensor.to, Tensor.copy_, torch._has_compatible_shallow_copy_type)
_BOOTSTRAP = threading.Thread._bootstrap_inner
TO_NUMPY = (Tensor.numpy, Tensor.__array__)


def on_gpu(tensor):
    """Tell whether a tensor is one of those that pretend to be on a GPU."""
    return getattr(tensor, "_pretends_gpu", False)


def _mark(result, gpu):
    def mark(tensor):
        if gpu:
            tensor._pretends_gpu = True
        return tensor

    return tree_map_only(Tensor, mark, result)


def _is_gpu(device):
    return device is not None and torch.device(device).type == "cuda"


def _wanted_device(func, args, kwargs):
    """Return the device that a call asks for, or None."""
    if kwargs.get("device") is not None:
        return kwargs["device"]
    if func == Tensor.cpu:
        return CPU
    if func == Tensor.cuda:
        return GPU
    if func == Tensor.to and len(args) > 1:
        wanted = args[1]
        if isinstance(wanted, Tensor):
            return GPU if on_gpu(wanted) else CPU
        if isinstance(wanted, str | torch.device | int):
            return wanted
    return None


def _without_device(func, args, kwargs):
    """Return the arguments of the same call on the CPU."""
    if _is_gpu(kwargs.get("device")):
        kwargs = kwargs | {"device": CPU}
    if func == Tensor.to and len(args) > 1 and isinstance(args[1], str | torch.device | int):
        args = (args[0], CPU if _is_gpu(args[1]) else args[1], *args[2:])
    return args, kwargs


def _refuse_mixed(func, args, kwargs):
    """Raise as PyTorch does for tensors, or a generator, of two devices."""
    tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
    gpu = [on_gpu(tensor) for tensor in tensors]
    name = getattr(func, "__name__", str(func))
    generator = kwargs.get("generator")
    if isinstance(generator, _Generator):
        wanted = kwargs.get("device")
        if generator.gpu != (any(gpu) or _is_gpu(wanted)):
            raise RuntimeError(f"{name}: the generator is on another device than the tensor")
    if not any(gpu) or name.startswith("_foreach") or name in ("__get__", "__set__"):
        return
    if func in COPIES or (func == Tensor.__getitem__ and on_gpu(args[0])):
        return
    if func == Tensor.__setitem__ and not any(
        isinstance(leaf, Tensor) for leaf in tree_leaves(args[1])
    ):
        return
    if any(not own and tensor.dim() for own, tensor in zip(gpu, tensors, strict=True)):
        raise RuntimeError(
            f"{name}: Expected all tensors to be on the same device, but found cuda:0 and cpu"
        )


class _Generator(torch.Generator):
    """Generator of random numbers that knows where it was wanted."""

    def __new__(cls, device="cpu"):
        made = super().__new__(cls)
        made.gpu = _is_gpu(device)
        return made

    def __init__(self, device="cpu"):
        super().__init__()


class PretendGpu(TorchFunctionMode):
    """Mode of PyTorch in which "cuda" is a device of this machine. It holds for one thread."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func == Tensor.is_cuda.__get__:
            return on_gpu(args[0])
        if func == Tensor.is_cpu.__get__:
            return func(*args) and not on_gpu(args[0])
        if func == Tensor.device.__get__:
            return GPU if on_gpu(args[0]) else func(*args)
        if func == Tensor.get_device:
            return 0 if on_gpu(args[0]) else -1
        if func == torch._C._nn._parse_to:  # reads arguments for Module.to, and moves nothing
            return func(*args, **kwargs)
        if func in TO_NUMPY and on_gpu(args[0]):
            raise TypeError(
                "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first"
            )
        _refuse_mixed(func, args, kwargs)
        wanted = _wanted_device(func, args, kwargs)
        if func == Tensor.copy_:
            return func(*args, **kwargs)
        args, kwargs = _without_device(func, args, kwargs)
        result = func(*args, **kwargs)
        if func == Tensor.data.__set__:
            args[0]._pretends_gpu = on_gpu(args[1])
            return result
        if wanted is None:
            inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            return _mark(result, any(map(on_gpu, inputs)))
        moves = func in (Tensor.to, Tensor.cpu, Tensor.cuda)
        if moves and on_gpu(args[0]) != _is_gpu(wanted):
            result = result.clone() if result is args[0] else result
            if not _is_gpu(wanted):
                result._pretends_gpu = False
        return _mark(result, _is_gpu(wanted))


def _bootstrap(thread):
    """Begin a thread that sees the pretended GPU too."""
    with PretendGpu():
        _BOOTSTRAP(thread)


def _make_subclass(cls, data, *rest, **options):
    made = torch._C.TensorBase._make_subclass(cls, data, *rest, **options)
    return _mark(made, on_gpu(data))


@contextlib.contextmanager
def pretend_gpu():
    """Make "cuda" a device of this machine, and yield a list that gets an entry per synchronisation."""
    waits = []
    properties = SimpleNamespace(L2_cache_size=L2_BYTES, name=NAME, total_memory=MEMORY_BYTES)
    with contextlib.ExitStack() as stack:
        for name, value in {
            "is_available": lambda: True,
            "synchronize": lambda device=None: waits.append(device),
            "get_device_name": lambda device=None: NAME,
            "get_device_properties": lambda device=None: properties,
            "mem_get_info": lambda device=None: (MEMORY_BYTES, MEMORY_BYTES),
        }.items():
            stack.enter_context(mock.patch.object(torch.cuda, name, value))
        stack.enter_context(mock.patch.object(torch, "Generator", _Generator))
        stack.enter_context(mock.patch.object(torch.Tensor, "_make_subclass", _make_subclass))
        stack.enter_context(mock.patch.object(threading.Thread, "_bootstrap_inner", _bootstrap))
        stack.enter_context(PretendGpu())
        yield waits
