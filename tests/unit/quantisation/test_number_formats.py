"""Number formats: their rounding, their scales, and the order of their errors."""

import pytest
import torch

from utils.quantisation import number_formats as formats
from utils.quantisation.number_formats import FORMATS, round_e2m1, round_e4m3


def test_e2m1_rounds_ties_to_the_even_mantissa():
    ties = torch.tensor([0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0])
    assert round_e2m1(ties).tolist() == [0, 1, 1, 2, 2, 4, 4]
    assert round_e2m1(-ties).tolist() == [0, -1, -1, -2, -2, -4, -4]


def test_e2m1_takes_the_nearest_value_and_cuts_off_at_6():
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    values = torch.tensor([s * v for v in formats.E2M1_VALUES for s in (1, -1)])
    distance = (x[:, None] - values).abs().amin(1)
    assert torch.equal((round_e2m1(x) - x).abs(), distance)
    assert round_e2m1(torch.tensor([100.0, -100.0])).tolist() == [6, -6]


def test_e4m3_has_448_as_its_largest_and_a_512th_as_its_smallest_value():
    x = torch.tensor([500.0, -1e9, 2.0**-9, 2.0**-11, 17.0, 19.0])
    assert round_e4m3(x).tolist() == [448, -448, 2**-9, 0, 16, 20]


def test_values_that_a_format_has_are_kept():
    e2m1 = torch.tensor([[*formats.E2M1_VALUES, *(-v for v in formats.E2M1_VALUES)] * 2])
    assert torch.equal(formats.nvfp4(448 * e2m1), 448 * e2m1)
    assert torch.equal(formats.mxfp4(e2m1), e2m1)
    whole = torch.arange(-8.0, 8.0).repeat(2)[None]
    assert torch.equal(formats.q4_0(whole), whole)
    assert torch.allclose(
        formats.int8(torch.tensor([[127.0, -3.0, 0.0]])), torch.tensor([[127.0, -3, 0]])
    )
    assert torch.equal(formats.fp8(torch.tensor([[448.0, 1.0]])), torch.tensor([[448.0, 1.0]]))


def test_mxfp4_cuts_off_what_is_above_six_times_its_scale():
    row = torch.zeros(1, 32)
    row[0, 0], row[0, 1] = 7.9, 1.0
    assert formats.mxfp4(row)[0, :2].tolist() == [6.0, 1.0]


@pytest.mark.parametrize("name", FORMATS)
def test_format_keeps_zeros_shape_and_sign(name):
    rounded = FORMATS[name].rounded
    assert rounded(torch.zeros(3, 64)).count_nonzero() == 0
    weight = torch.randn(5, 96, generator=torch.Generator().manual_seed(1))
    got = rounded(weight)
    assert got.shape == weight.shape
    assert (got * weight >= 0).all()


def test_errors_of_normal_weights_have_the_order_that_the_lab_explains():
    weight = torch.randn(256, 512, generator=torch.Generator().manual_seed(2)) * 0.05

    def error(rounded):
        return float((rounded(weight) - weight).norm() / weight.norm())

    found = {name: error(one.rounded) for name, one in FORMATS.items()}
    assert found["INT8"] < found["FP8 E4M3"] < 0.04
    assert 0.07 < found["Q4_0"] < found["NVFP4"] < found["MXFP4"] < 0.14
    # One thing at a time: the real scale helps at either size, and smaller blocks help only with it.
    small = error(formats.BETWEEN["E2M1, blocks of 16, power of two"].rounded)
    real = error(formats.BETWEEN["E2M1, blocks of 32, E4M3"].rounded)
    assert found["NVFP4"] < real < found["MXFP4"]
    assert small == pytest.approx(found["MXFP4"], rel=0.02)


@pytest.mark.parametrize(
    ("name", "weights", "scales"),
    [("Q4_0", 32, 16), ("NVFP4", 16, 8), ("MXFP4", 32, 8)],
)
def test_bits_count_the_scale_of_a_block(name, weights, scales):
    assert FORMATS[name].bits == 4 + scales / weights
