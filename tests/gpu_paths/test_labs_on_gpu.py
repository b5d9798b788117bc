"""The code of labs 3.3.4 to 3.3.6 that computes with PyTorch, with everything on the pretended GPU.

Each result is compared with that of the CPU branch. Only the norm has other arithmetic there, so logits
agree to a few parts in a million, and greedy tokens agree.
"""

import math

import pretend_gpu
import pytest
import torch
from small_target import small_target

from utils.compiled.engine import eager
from utils.compiled.prefill_decode import Cache, first_layers
from utils.labs.lab_3_3_4 import experiments as lab4
from utils.labs.lab_3_3_5 import experiments as lab5
from utils.labs.lab_3_3_5.hidden_state_probe import probe
from utils.labs.lab_3_3_6 import ridge_point
from utils.profiles import PROFILES
from utils.roofline import rates
from utils.speculative.checkpoints import load_heads, save_heads
from utils.speculative.comparison import step_costs
from utils.speculative.compiled_step.step import CompiledStep, CompiledStepError
from utils.speculative.dataset import self_generated
from utils.speculative.drafters import PlainDrafter
from utils.speculative.generate import generate
from utils.speculative.lossless import small_language
from utils.speculative.pretrained import load_shipped
from utils.speculative.target import load_target
from utils.speculative.training import (
    TrainingConfig,
    eagle_accuracy,
    train_eagle1,
    train_eagle3,
    train_medusa,
)
from utils.speculative.tree import DraftTree, chain
from utils.speculative.verify import Greedy, SpeculativeSampling, Typical
from utils.tinymodel.hub import TINY

TEXT = [7, 3, 11, 2, 42, 7, 3, 11]
PROMPTS = [[1, 5, 9, 5, 9, 5], [4, 8]]
RULES = {
    "greedy": lambda device: Greedy(),
    "sampling": lambda device: SpeculativeSampling(1.0, torch.Generator(device).manual_seed(1)),
    "typical": lambda device: Typical(),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_forward_pass_is_same_on_gpu(pretended, dtype):
    ids = [[1, 2, 3], [4, 5, 6]]
    seen = []
    for device in ("cpu", "cuda"):
        target = load_target(str(TINY), device=device, dtype=dtype)
        target.aux_layers = (1, 2)
        tree = DraftTree([-1, 0, 0])
        out = target(torch.tensor(ids, device=device), [tree, chain(1)], target.cache(2, 8))
        assert out.hidden.device.type == device
        seen.append((out.hidden.cpu(), out.features.cpu()))
    tolerance = 1e-4 if dtype == torch.float32 else 0.25
    torch.testing.assert_close(seen[1], seen[0], rtol=tolerance, atol=tolerance)


def test_every_drafter_gives_same_tokens_on_gpu(on_cpu, on_gpu):
    drafters = {
        device: {"plain": PlainDrafter(), **lab5.drafters(load_shipped(target))}
        for device, target in (("cpu", on_cpu), ("cuda", on_gpu))
    }
    for name, drafter in drafters["cuda"].items():
        expected = generate(on_cpu, PROMPTS, drafters["cpu"][name], max_new_tokens=4)
        found = generate(on_gpu, PROMPTS, drafter, max_new_tokens=4)
        assert [g.tokens for g in found.generations] == [g.tokens for g in expected.generations]


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("name", ["n-gram", "EAGLE-3, dynamic tree"])
def test_every_rule_gives_same_tokens_on_gpu(on_cpu, on_gpu, rule, name):
    tokens = []
    for device, target in (("cpu", on_cpu), ("cuda", on_gpu)):
        drafter = lab5.drafters(load_shipped(target))[name]
        run = generate(target, PROMPTS, drafter, max_new_tokens=8, rule=RULES[rule](device))
        tokens.append([g.tokens for g in run.generations])
    assert tokens[1] == tokens[0]


def test_lab_4_looks_at_same_states_on_gpu(on_cpu, on_gpu):
    assert lab4.best_next(on_gpu, TEXT) == lab4.best_next(on_cpu, TEXT)
    tree = DraftTree([-1, 0, 0, 1])
    assert lab4.tree_error(on_gpu, TEXT, tree, [11, 2, 3, 4]) < 1e-3


def test_lab_4_cuts_same_language_on_gpu(on_cpu, on_gpu):
    expected, found = (small_language(target, TEXT, 4) for target in (on_cpu, on_gpu))
    assert found.tokens == expected.tokens
    assert found.pairs == pytest.approx(expected.pairs, abs=1e-4)


def test_lab_4_times_run_on_gpu(on_gpu):
    drafter = lab5.drafters(load_shipped(on_gpu))["Medusa, chain"]
    assert lab4.draft_seconds(on_gpu, drafter, repeats=1) > 0
    assert min(step_costs(on_gpu, [1, 3], context=4, repeats=1).values()) > 0


def test_compiled_step_leaves_gpu_to_pytorch(on_gpu):
    with pytest.raises(CompiledStepError, match="on the CPU, and the target is"):
        CompiledStep(on_gpu, None)


def test_lab_5_hidden_states_come_from_gpu(on_cpu, on_gpu):
    expected, found = (lab5.hidden_states(target, TEXT) for target in (on_cpu, on_gpu))
    assert found.device.type == "cpu"
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_lab_5_expands_same_tree_on_gpu(on_cpu, on_gpu):
    expected, found = (
        lab5.expand(target, load_shipped(target).eagle3, PROMPTS[0], 2, 2, range(1, 3))
        for target in (on_cpu, on_gpu)
    )
    assert found.parents == expected.parents


def test_lab_5_samples_by_temperature_on_gpu(on_gpu, monkeypatch):
    eagle = load_shipped(on_gpu).eagle3
    monkeypatch.setattr(lab5, "limit_of", lambda profile: 6)
    found = lab5.by_temperature(on_gpu, eagle, PROMPTS[:1], PROFILES["spark"], (0.0, 1.0))
    assert min(found.values()) >= 1


def train(kind, target):
    config = TrainingConfig(steps=2, rate=1e-3, rows=2)
    prompts, aux = [[1, 2, 3 + i] for i in range(4)], (1, 2)
    data = self_generated(target, prompts, [[5]] * 4, aux, max_new_tokens=20, batch=4)
    torch.manual_seed(4)
    match kind:
        case "medusa":
            made, log = train_medusa(target, data, config, heads=2)
        case "eagle1":
            made, log = train_eagle1(target, data, config)
        case "eagle3":
            made, log = train_eagle3(target, data, aux, config, unrolled=2, draft_vocab=20)
            eagle_accuracy(target, made, data, 2)
    assert probe(target, data, data)
    return made, [line.loss for line in log]


@pytest.mark.parametrize("kind", ["medusa", "eagle1", "eagle3"])
def test_training_takes_same_steps_on_gpu(pretended, kind, tmp_path):
    _, expected = train(kind, small_target("cpu"))
    target = small_target("cuda")
    made, losses = train(kind, target)
    assert all(parameter.is_cuda for parameter in made.parameters())
    assert all(map(math.isfinite, losses))
    save_heads(made, target, tmp_path)
    assert all(parameter.is_cuda for parameter in load_heads(tmp_path, target).parameters())
    # Muon's products are bfloat16 on a GPU, so only the first loss is the same.
    assert losses[0] == pytest.approx(expected[0], rel=1e-4)


@pytest.mark.parametrize("name", ["prefill", "decode"])
def test_eager_step_is_same_on_gpu(on_cpu, on_gpu, name):
    """Lab 3.3.6 builds its engine files for the CPU, so only the eager steps can be on a GPU."""
    found = []
    for device, target in (("cpu", on_cpu), ("cuda", on_gpu)):
        target = first_layers(target, 2)
        cache = Cache.empty(target.shape, 8)
        keys, values = ([t.to(device) for t in part] for part in (cache.keys, cache.values))
        arguments = [torch.tensor([TEXT[:4]]), keys, values]
        if name == "decode":
            arguments = [torch.tensor([[7]]), torch.tensor([0], device=device), keys, values]
        arguments[0] = arguments[0].to(device)
        found.append(getattr(eager(target), name)(*arguments).cpu())
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_ridge_point_is_timed_on_gpu(on_gpu, pretended):
    matrices = ridge_point.layer_matrices(on_gpu)
    assert set(ridge_point.time_matrices(matrices, [1, 2], 1)) == {1, 2}
    assert set(ridge_point.time_prefill(on_gpu, [2, 4], 1)) == {2, 4}
    assert set(ridge_point.time_decode(on_gpu, [1, 2], 4, 1)) == {1, 2}
    assert len(pretended) >= 2 * 2 * 2 * 3


def test_machine_is_measured_on_gpu(pretended, monkeypatch):
    shapes = []

    def rate(shape, seconds, threads, device, dtype):
        shapes.append((shape, device, dtype))
        return 1e12

    monkeypatch.setattr(rates, "_matmul_rate", rate)
    machine = rates.measure_machine(working_set=2**20, seconds=0.02)
    assert machine.name == pretend_gpu.NAME
    assert "CUDA" in machine.source
    assert shapes == [((8192, 8192, 8192), "cuda", torch.bfloat16)]
    assert [bandwidth.level for bandwidth in machine.bandwidths] == ["L2"] * 3
    assert len(pretended) > 3


def test_gpu_memory_bounds_the_working_set(pretended):
    assert rates.cache_sizes("cuda") == {"L2": pretend_gpu.L2_BYTES}
    assert rates._free_memory("cuda") == pretend_gpu.MEMORY_BYTES


def test_matrix_rate_waits_for_gpu(pretended):
    assert rates._matmul_rate((8, 8, 8), 0.001, 1, "cuda", torch.bfloat16) > 0
    assert len(pretended) >= 3
