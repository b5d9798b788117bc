"""The steps that are compiled, against the decoder they are made of; the roofline's arithmetic."""

import dataclasses

import pytest
import torch

from utils.compiled import engine
from utils.compiled.prefill_decode import Cache, DecodeModule, PrefillModule, first_layers
from utils.labs.lab_3_3_6 import experiments, ridge_point, tables
from utils.roofline.machine import Bandwidth, Machine
from utils.speculative.target import Rotary, Target, TargetShape

SHAPE = TargetShape(
    layers=3,
    hidden=16,
    ffn=24,
    heads=4,
    kv_heads=2,
    head_dim=8,
    vocab=40,
    eps=1e-6,
    qk_norm=True,
)
MACHINE = Machine("a machine", (Bandwidth(0, 10e9, "memory"),), 100e9, "float32", "measured", "")


@pytest.fixture(scope="module")
def target():
    torch.manual_seed(1)
    built = Target(SHAPE, Rotary(torch.tensor([1.0, 0.3, 0.1, 0.03]), 64))
    for parameter in built.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return built.requires_grad_(False).eval()


def expected(target, ids):
    return target.head(target.causal(torch.tensor([ids])))[0]


def test_prefill_and_decode_compute_what_the_decoder_does(target):
    ids = [3, 9, 1, 30, 7, 7, 2]
    cache = Cache.empty(SHAPE, 16)
    first = PrefillModule(target)(torch.tensor([ids[:4]]), cache.keys, cache.values)
    wanted = expected(target, ids)
    assert torch.allclose(first[0], wanted[3], atol=1e-5)
    for place in range(4, 7):
        one, position = torch.tensor([[ids[place]]]), torch.tensor([place])
        logits = DecodeModule(target)(one, position, cache.keys, cache.values)
        assert torch.allclose(logits[0], wanted[place], atol=1e-5)


def test_decode_ignores_slots_after_position(target):
    clean, dirty = Cache.empty(SHAPE, 16), Cache.empty(SHAPE, 16)
    for tensor in dirty.keys + dirty.values:
        tensor[:, :, 5:] = 100.0
    args = torch.tensor([[3]]), torch.tensor([4])
    one, other = (DecodeModule(target)(*args, c.keys, c.values) for c in (clean, dirty))
    assert torch.equal(one, other)


def test_a_copy_of_a_cache_is_written_by_itself():
    cache = Cache.empty(SHAPE, 4)
    copy = cache.copy()
    copy.keys[0].fill_(1)
    assert float(cache.keys[0].sum()) == 0


def test_the_first_layers_are_the_models_own(target):
    small = first_layers(target, 2)
    assert small.shape == dataclasses.replace(SHAPE, layers=2)
    assert small.decoder_layers == target.decoder_layers[:2]
    assert first_layers(target, 99).shape == SHAPE
    assert len(target.decoder_layers) == 3


def test_agreement_tells_the_same_from_another_model(target):
    eager = engine.eager(target)
    same = experiments.agreement(target, eager, eager, [1, 2, 3], 16, count=5)
    assert (same.logits, same.cache, same.same_tokens, same.tokens) == (0.0, 0.0, True, 5)
    assert same.within

    def off(ids, position, keys, values):
        return eager.decode(ids, position + 1, keys, values)

    other = experiments.agreement(
        target, eager, engine.Steps(eager.prefill, off), [1, 2, 3], 16, count=5
    )
    assert not other.within
    table = tables.agreement_table({"eager": same, "off by one": other})
    assert list(table["within 0.001"]) == [True, False]
    assert list(table["the same 5 greedy tokens"]) == [True, other.same_tokens]


def test_ways_are_timed_in_turn_as_often_as_asked(target):
    eager = engine.eager(target)
    order = []

    def noted(name):
        def prefill(*args):
            order.append(name)
            return eager.prefill(*args)

        return engine.Steps(prefill, eager.decode)

    ways = {"eager": noted("eager"), "built engine": noted("built")}
    times = experiments.time_steps(target, ways, (4,), 8, 2)
    assert {work: {n: len(t) for n, t in found.items()} for work, found in times.items()} == {
        "prefill 4": {"eager": 2, "built engine": 2},
        "decode": {"eager": 10, "built engine": 10},
    }
    assert order == ["eager", "built", "eager", "built", "built", "eager"]


def test_speedups_compare_the_same_repeat():
    times = {"eager": [4.0, 9.0, 8.0], "built engine": [2.0, 3.0, 8.0]}
    assert experiments.speedups(times) == {"built engine": [2.0, 3.0, 1.0]}
    assert experiments.median_speedup(times, "built engine") == 2.0
    table = tables.times_table({"decode": times})
    assert list(table["times eager's speed"]) == [1.0, 2.0]
    assert list(table["least ... most"]) == ["1.00 ... 1.00", "1.00 ... 3.00"]


def test_without_a_compiler_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("CXX", "/no/such/compiler")
    with pytest.raises(engine.CompileError, match=r"apt install g\+\+"):
        engine.require_compiler()
    with pytest.raises(engine.CompileError):
        engine.build(torch.nn.Identity(), (torch.zeros(1),), None, None)


def test_a_models_work_is_that_of_its_layers_matrices(target):
    work = ridge_point.work_of(ridge_point.layer_matrices(target))
    heads, kv, hidden = 4 * 8, 2 * 8, 16
    assert work.parameters == 3 * (2 * hidden * heads + 2 * hidden * kv + 3 * hidden * 24)
    assert work.bytes == 4 * work.parameters
    assert work.flops_per_token == 2 * work.parameters


def test_measured_ridge_point_is_where_flat_and_rising_lines_meet():
    times = {1: 0.010, 8: 0.011, 128: 0.080, 512: 0.320}
    assert ridge_point.measured_ridge_point(times) == pytest.approx(0.010 / (0.320 / 512))


def test_overlap_table_compares_the_step_nearest_to_the_ridge_point():
    table = tables.overlap_table({1: 0.010, 16: 0.015, 512: 0.320})
    assert list(table.index) == [16]
    assert table.loc[16].to_dict() == {
        "if they overlap (ms)": 10.0,
        "if they take turns (ms)": 20.0,
        "measured (ms)": 15.0,
    }


def test_ridge_point_table_compares_times_and_rates():
    work = ridge_point.Work(parameters=10**6, bytes=4 * 10**6)

    def predict(flops, bytes_, flops_per_s, bytes_per_s):
        return max(flops / flops_per_s, bytes_ / bytes_per_s)

    table = tables.ridge_point_table({1: 0.0012, 512: 0.01024}, work, MACHINE, predict)
    assert list(table["measured / predicted"]) == [3.0, 1.0]
    assert table.loc[1, "weights read (GB/s)"] == 3.3
    assert table.loc[512, "multiplied (GFLOP/s)"] == 100


def test_prefill_and_decode_of_the_whole_model_are_timed(target):
    assert set(ridge_point.time_prefill(target, (2, 4), 1)) == {2, 4}
    assert set(ridge_point.time_decode(target, (1, 3), 8, 1)) == {1, 3}
    assert all(
        t > 0
        for t in ridge_point.time_matrices(ridge_point.layer_matrices(target), (1, 2), 1).values()
    )
