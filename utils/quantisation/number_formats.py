"""Number formats of weights, emulated in PyTorch: INT8, FP8 E4M3, Q4_0, NVFP4 and MXFP4.

Each format rounds a matrix and returns the rounded values in float32. So the error and the quality are those
of the format, but the speed is not, because the products still run in float32. Sources: OCP Microscaling
Formats (MX) v1.0 for E2M1, E8M0 and MXFP4, OCP 8-bit Floating Point v1.0 for E4M3, NVIDIA's introduction of
NVFP4 (2025-06) for its blocks and scales, and llama.cpp's ggml/src/ggml-quants.c for Q4_0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

E2M1_VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # without the sign
E2M1_MAX = 6.0
E4M3_MAX = 448.0
_SMALLEST = 1e-30  # in place of a scale of 0, for a block of zeros


@dataclass(frozen=True)
class NumberFormat:
    """Way to store the weights of a matrix.

    Attributes:
        name: Its usual name.
        bits: Bits per weight, scales included.
        scale: Number of weights that share a scale, and the scale's type.
        rounded: Function that rounds a matrix [rows, columns] and returns it in float32.
    """

    name: str
    bits: float
    scale: str
    rounded: Callable[[Tensor], Tensor]


def round_e2m1(x: Tensor) -> Tensor:
    """Round to the nearest 4-bit float. Ties go to the even mantissa, and larger numbers become 6.

    E2M1 has a sign, two bits of exponent and one of mantissa. Its values are 0, 0.5, 1, 1.5, 2, 3, 4 and 6.
    Every second one has an even mantissa, so a tie goes to 0, 1, 2 or 4.
    """
    values = torch.tensor(E2M1_VALUES, dtype=x.dtype, device=x.device)
    bounds = (values[1:] + values[:-1]) / 2
    odd_above = torch.arange(len(bounds), device=x.device) % 2 == 0  # a tie goes down
    just_below = torch.nextafter(bounds, torch.zeros_like(bounds))
    index = torch.bucketize(x.abs(), torch.where(odd_above, bounds, just_below))
    return values[index].copysign(x)


def round_e4m3(x: Tensor) -> Tensor:
    """Round to the nearest 8-bit float with 4 bits of exponent. Numbers above 448 become 448."""
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype)


def nearest_e2m1(x: float) -> float:
    """Return `round_e2m1` of one number."""
    return float(round_e2m1(torch.tensor(x, dtype=torch.float64)))


def nearest_e4m3(x: float) -> float:
    """Return `round_e4m3` of one number."""
    return float(round_e4m3(torch.tensor(x, dtype=torch.float64)))


def int8(weight: Tensor) -> Tensor:
    """Round to whole numbers from -127 to 127, with a float32 scale per row."""
    scale = (weight.abs().amax(-1, keepdim=True) / 127).clamp(min=_SMALLEST)
    return (weight / scale).round() * scale


def fp8(weight: Tensor) -> Tensor:
    """Round to E4M3 with one float32 scale for the matrix."""
    scale = (weight.abs().max() / E4M3_MAX).clamp(min=_SMALLEST)
    return round_e4m3(weight / scale) * scale


def nvfp4_unit(weight: Tensor) -> Tensor:
    """Return the float32 scale of a matrix in NVFP4, with which the largest block scale is 448."""
    return (weight.abs().max() / (E2M1_MAX * E4M3_MAX)).clamp(min=_SMALLEST)


def nvfp4(weight: Tensor, block: int = 16) -> Tensor:
    """Round to E2M1 in blocks with a scale in E4M3 each, and one float32 scale for the matrix."""
    blocks, unit = _blocks(weight, block), nvfp4_unit(weight)
    scale = round_e4m3(blocks.abs().amax(-1, keepdim=True) / E2M1_MAX / unit) * unit
    return (round_e2m1(blocks / scale.clamp(min=_SMALLEST)) * scale).view_as(weight)


def mxfp4(weight: Tensor, block: int = 32) -> Tensor:
    """Round to E2M1 in blocks with a power of two each.

    The scale leaves the largest weight of the block between 4 and 8. Above 6 it is cut off.
    """
    blocks = _blocks(weight, block)
    largest = blocks.abs().amax(-1, keepdim=True).clamp(min=_SMALLEST)
    scale = torch.exp2(torch.floor(torch.log2(largest)) - 2)
    return (round_e2m1(blocks / scale) * scale).view_as(weight)


def q4_0(weight: Tensor) -> Tensor:
    """Round to whole numbers from -8 to 7 in blocks of 32, with a float16 scale each.

    The weight with the largest magnitude becomes -8.
    """
    blocks = _blocks(weight, 32)
    largest = blocks.gather(-1, blocks.abs().argmax(-1, keepdim=True))
    scale = (largest / -8).half().to(weight.dtype)
    inverse = torch.where(scale == 0, torch.zeros_like(scale), 1 / scale)
    return (((blocks * inverse + 8.5).floor().clamp(0, 15) - 8) * scale).view_as(weight)


def _blocks(weight: Tensor, size: int) -> Tensor:
    return weight.reshape(weight.shape[0], -1, size)


FORMATS: Mapping[str, NumberFormat] = MappingProxyType(
    {
        one.name: one
        for one in (
            NumberFormat("INT8", 8, "row, float32", int8),
            NumberFormat("FP8 E4M3", 8, "matrix, float32", fp8),
            NumberFormat("Q4_0", 4.5, "32, float16", q4_0),
            NumberFormat("NVFP4", 4.5, "16, E4M3", nvfp4),
            NumberFormat("MXFP4", 4.25, "32, power of two", mxfp4),
        )
    }
)
# Cases between the two: the same 4-bit numbers, with one thing changed at a time.
BETWEEN: Mapping[str, NumberFormat] = MappingProxyType(
    {
        one.name: one
        for one in (
            NumberFormat(
                "E2M1, blocks of 16, power of two",
                4.5,
                "16, power of two",
                lambda weight: mxfp4(weight, 16),
            ),
            NumberFormat(
                "E2M1, blocks of 32, E4M3", 4.25, "32, E4M3", lambda weight: nvfp4(weight, 32)
            ),
        )
    }
)
