"""The PyTorch code of labs 3.3.4 to 3.3.6 and the baseline server, on a real GPU."""

import math

import pytest
import torch

from utils.labs.lab_3_3_4 import experiments as lab4
from utils.labs.lab_3_3_5 import experiments as lab5
from utils.labs.lab_3_3_6 import ridge_point
from utils.roofline.rates import measure_machine
from utils.speculative.dataset import self_generated
from utils.speculative.drafters import PlainDrafter
from utils.speculative.generate import generate
from utils.speculative.pretrained import load_shipped
from utils.speculative.training import TrainingConfig, train_eagle3, train_medusa
from utils.speculative.tree import DraftTree

TEXT = [7, 3, 11, 2, 42, 7, 3, 11]
PROMPTS = [[1, 5, 9, 5, 9, 5], [4, 8]]


def test_states_are_those_of_cpu(on_cpu, on_gpu):
    expected, found = (lab5.hidden_states(target, TEXT) for target in (on_cpu, on_gpu))
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)


def test_drafters_are_lossless_on_gpu(on_gpu):
    plain = generate(on_gpu, PROMPTS, PlainDrafter(), max_new_tokens=24).generations
    for name, drafter in lab5.drafters(load_shipped(on_gpu)).items():
        found = generate(on_gpu, PROMPTS, drafter, max_new_tokens=24).generations
        assert [g.tokens for g in found] == [g.tokens for g in plain], name


def test_tree_is_that_of_its_paths_on_gpu(on_gpu):
    assert lab4.tree_error(on_gpu, TEXT, DraftTree([-1, 0, 0, 1]), [11, 2, 3, 4]) < 1e-2


@pytest.mark.parametrize("kind", ["medusa", "eagle3"])
def test_training_lowers_loss_on_gpu(on_gpu, kind):
    data = self_generated(on_gpu, PROMPTS * 4, [[5]] * 8, (1, 2), max_new_tokens=24, batch=8)
    config = TrainingConfig(steps=20, rate=1e-3, rows=4)
    if kind == "medusa":
        _, log = train_medusa(on_gpu, data, config, heads=2)
    else:
        _, log = train_eagle3(on_gpu, data, (1, 2), config, unrolled=2, draft_vocab=256)
    assert all(math.isfinite(line.loss) for line in log)
    assert log[-1].loss < log[0].loss


def test_machine_is_that_of_the_gpu():
    machine = measure_machine(seconds=2.0)
    assert machine.name == torch.cuda.get_device_name()
    assert machine.flops > 1e12
    assert machine.bandwidths[-1].bytes_per_s > 5e10


def test_time_of_a_step_has_a_flat_part_on_gpu(on_gpu):
    matrices = ridge_point.layer_matrices(on_gpu)
    times = ridge_point.time_matrices(matrices, [1, 8, 4096], 5)
    assert times[8] < 3 * times[1]
    assert times[4096] > times[8]
