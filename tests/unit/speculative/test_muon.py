"""Muon in the parameters' own data type walks where PyTorch's does."""

import pytest
import torch

from utils.speculative.muon import Muon, orthogonalized


@pytest.mark.parametrize("size", [(6, 24), (24, 6), (8, 8)])
def test_steps_are_pytorchs_up_to_bfloat16(size):
    torch.manual_seed(0)
    start = torch.randn(size)
    actual, expected = (torch.nn.Parameter(start.clone()) for _ in range(2))
    options = {"lr": 1e-2, "adjust_lr_fn": "match_rms_adamw"}
    ours, reference = Muon([actual], **options), torch.optim.Muon([expected], **options)
    for _ in range(3):
        gradient = torch.randn(size)
        actual.grad, expected.grad = gradient.clone(), gradient.clone()
        ours.step()
        reference.step()
    assert (actual - expected).norm() < 0.02 * (expected - start).norm()
    assert ours.state_dict()["param_groups"] == reference.state_dict()["param_groups"]
    reference.load_state_dict(ours.state_dict())  # a checkpoint of one goes on with the other


def test_singular_values_come_near_one():
    torch.manual_seed(0)
    values = torch.linalg.svdvals(orthogonalized(torch.randn(8, 40)))
    assert values.min() > 0.5 and values.max() < 1.4


def test_a_parameter_without_gradient_stays():
    parameter = torch.nn.Parameter(torch.ones(2, 2))
    Muon([parameter], lr=0.1, adjust_lr_fn="match_rms_adamw").step()
    assert torch.equal(parameter, torch.ones(2, 2))
