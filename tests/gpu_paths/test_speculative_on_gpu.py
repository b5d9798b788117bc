"""Forward passes, drafters, verification and training of labs 3.3.4 to 3.3.6, in their CUDA branches."""

import math
from functools import cache

import pytest
import torch
from small_target import small_target

from utils.speculative.dataset import self_generated
from utils.speculative.drafters import EagleDrafter, MedusaDrafter, NGramDrafter, PlainDrafter
from utils.speculative.generate import generate
from utils.speculative.muon import Muon
from utils.speculative.pretrained import load_medusa, load_shipped
from utils.speculative.target import load_target, rms_norm
from utils.speculative.training import TrainingConfig, train_eagle1, train_eagle3, train_medusa
from utils.speculative.tree import chain
from utils.tinymodel.hub import TINY

AUX = (1, 2)


@cache
def tiny():
    torch.set_num_threads(1)
    return load_target(str(TINY))


@pytest.mark.parametrize("shape", [None, (64,), (5, 64)])
def test_rms_norm_is_same_on_gpu_path(as_if_on_gpu, shape):
    torch.manual_seed(0)
    x, weight = torch.randn(2, 3, 5, 64), None if shape is None else torch.rand(shape)
    on_cpu = rms_norm(x, weight, 1e-6)
    with as_if_on_gpu():
        on_gpu = rms_norm(x, weight, 1e-6)
    torch.testing.assert_close(on_gpu, on_cpu)


def test_forward_pass_is_same_on_gpu_path(as_if_on_gpu):
    ids, model = torch.tensor([[1, 2, 3]]), tiny()

    def hidden():
        return model(ids, [chain(2)], model.cache(1, 3)).hidden

    on_cpu = hidden()
    with as_if_on_gpu():
        on_gpu = hidden()
    torch.testing.assert_close(on_gpu, on_cpu)


@pytest.mark.parametrize(
    "make_drafter",
    [
        PlainDrafter,
        lambda: NGramDrafter(4),
        lambda: MedusaDrafter(load_medusa(tiny())),
        lambda: EagleDrafter(load_shipped(tiny()).eagle3, depth=3),
        lambda: EagleDrafter(load_shipped(tiny()).eagle3, depth=3, width=2, nodes=5),
    ],
    ids=["plain", "n-gram", "medusa", "eagle3 chain", "eagle3 tree"],
)
def test_generation_is_same_on_gpu_path(as_if_on_gpu, make_drafter):
    prompts = [[1, 5, 9, 5, 9, 5]]

    def tokens():
        return generate(tiny(), prompts, make_drafter(), max_new_tokens=12).generations[0].tokens

    on_cpu = tokens()
    with as_if_on_gpu():
        on_gpu = tokens()
    assert on_gpu == on_cpu


@pytest.mark.parametrize("train", ["medusa", "eagle1", "eagle3"])
def test_training_steps_run_on_gpu_path(as_if_on_gpu, train):
    target = small_target()
    config = TrainingConfig(steps=2, rate=1e-3, rows=2)
    with as_if_on_gpu():
        data = self_generated(
            target, [[1, 2, 3 + i] for i in range(4)], [[5]] * 4, AUX, max_new_tokens=20, batch=4
        )
        match train:
            case "medusa":
                _, log = train_medusa(target, data, config, heads=2)
            case "eagle1":
                _, log = train_eagle1(target, data, config)
            case _:
                _, log = train_eagle3(target, data, AUX, config, unrolled=2, draft_vocab=20)
    assert all(math.isfinite(line.loss) for line in log)


def test_muon_takes_pytorchs_step_on_gpu_path(as_if_on_gpu):
    torch.manual_seed(0)
    start, gradient = torch.randn(6, 24), torch.randn(6, 24)
    actual, expected = (torch.nn.Parameter(start.clone()) for _ in range(2))
    actual.grad, expected.grad = gradient.clone(), gradient.clone()
    options = {"lr": 1e-2, "adjust_lr_fn": "match_rms_adamw"}
    with as_if_on_gpu():
        Muon([actual], **options).step()
    torch.optim.Muon([expected], **options).step()
    assert torch.equal(actual, expected)
