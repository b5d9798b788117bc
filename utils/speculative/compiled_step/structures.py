"""The structures of `step.cpp`, and matrices in its layout."""

from __future__ import annotations

from ctypes import POINTER, Structure, c_float, c_int, c_void_p

import torch
from torch import Tensor


class Matrix(Structure):
    """A matrix in panels."""

    _fields_ = (
        ("weights", c_void_p),
        ("inputs", c_int),
        ("outputs", c_int),
        ("halves", c_int),
    )


class Layer(Structure):
    """One decoder layer."""

    _fields_ = (
        *((name, Matrix) for name in ("qkv", "o", "gate_up", "down")),
        *((name, c_void_p) for name in ("input_norm", "post_norm", "qk_norm")),
    )


class Shape(Structure):
    """Sizes that all layers share, and the tables of rotary positions."""

    _fields_ = (
        *((name, c_int) for name in ("hidden", "ffn", "heads", "kv_heads", "head_dim")),
        ("eps", c_float),
        *((name, c_void_p) for name in ("cosine", "sine")),
    )


class Eagle(Structure):
    """An EAGLE draft."""

    _fields_ = (
        ("shape", Shape),
        ("layer", Layer),
        ("fc", Matrix),
        ("head", Matrix),
        *(
            (name, c_void_p)
            for name in ("fc_bias", "feature_norm", "norm", "embedding", "to_target")
        ),
    )


LayerPointer = POINTER(Layer)


def in_panels(weight: Tensor, panel: int, lanes: int) -> Tensor:
    """Return a matrix [outputs, inputs] as [outputs / panel, inputs, panel].

    The result is bfloat16 if every weight is one already, which is so for the shipped model. Then a step
    reads half the bytes and computes the same numbers. Of each 2 x `lanes` outputs, number i and number
    i + lanes are neighbours.
    """
    outputs, inputs = weight.shape
    panels = weight.detach().float().view(outputs // panel, panel, inputs).transpose(1, 2)
    halves = panels.bfloat16()
    if not torch.equal(halves.float(), panels):
        return panels.contiguous()
    pairs = halves.reshape(outputs // panel, inputs, -1, 2, lanes)
    return pairs.transpose(-1, -2).contiguous()
