"""Experiments of lab 3.3.6 on small or made-up runs: formats, policies, speeds, and engines on a GPU."""

import dataclasses
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch

from utils.checks import lab_3_3_6 as checks
from utils.compiled.prefill_decode import first_layers
from utils.engines import NotRunHere
from utils.engines.tensorrt_llm_settings import Effect, settings_notes
from utils.gpu import Gpu
from utils.kvcache.scheduler import Job
from utils.kvcache.simulate import StepCost
from utils.labs.lab_3_3_6 import capacity_policies, format_quality, gpu_engines, wide_speed
from utils.labs.lab_3_3_6.recipes import RECIPES
from utils.model_sizes import blocks_for
from utils.profiles import MODELS, PROFILES, fit
from utils.quantisation.number_formats import FORMATS, NumberFormat
from utils.roofline.machine import Bandwidth, Machine
from utils.speculative.target import load_target

COST = StepCost(0.004, 0.0004)
MACHINE = Machine("m", (Bandwidth(0, 10e9, "memory"),), 1e12, "float32", "measured", "made up")


@pytest.fixture(scope="module")
def tiny():
    return first_layers(load_target(str(MODELS / "tiny")), 2)


def test_formats_are_measured_on_the_model_which_is_as_before(tiny):
    before = [weight.clone() for weight in format_quality._layer_weights(tiny)]
    texts = {"prose": [format_quality.JudgedText(list(range(300, 340)), 1)]}
    noise = NumberFormat("noise", 1, "none", torch.zeros_like)
    found = format_quality.measure_formats(tiny, {"INT8": FORMATS["INT8"], "noise": noise}, texts)
    assert list(found) == ["float32", "INT8", "noise"]
    assert found["INT8"].error == pytest.approx(0.007, abs=0.002)
    assert found["noise"].error == 1
    exact, noisy = (found[name].perplexity["prose"] for name in ("float32", "noise"))
    assert found["INT8"].perplexity["prose"] == pytest.approx(exact, rel=0.05)
    assert noisy != pytest.approx(exact, rel=0.05)
    after = format_quality._layer_weights(tiny)
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def test_model_is_as_before_when_a_format_fails(tiny):
    def fail(weight):
        raise ValueError("no such format")

    before = format_quality._layer_weights(tiny)[0].clone()
    formats = {"INT8": FORMATS["INT8"], "bad": NumberFormat("bad", 1, "none", fail)}
    with pytest.raises(ValueError, match="no such format"):
        format_quality.measure_formats(tiny, formats, {})
    assert torch.equal(format_quality._layer_weights(tiny)[0], before)


def test_formats_table_has_bytes_and_no_speed():
    quality = format_quality.FormatQuality(4.5, "16, E4M3", 0.095, {"prose": 16.15})
    exact = format_quality.FormatQuality(32, "none", 0.0, {"prose": 15.9})
    table = format_quality.formats_table({"float32": exact, "NVFP4": quality}, 8_000_000)
    assert table.loc["NVFP4", "matrices (MB)"] == 4.5
    assert table.loc["NVFP4", "prose, change"] == "+1.57%"
    assert not [column for column in table if "tok/s" in column]


def test_guarantee_never_pauses_and_full_use_does():
    runs = capacity_policies.run_policies(COST)
    guaranteed, utilised = runs["GUARANTEED_NO_EVICT"], runs["MAX_UTILIZATION"]
    each = blocks_for(capacity_policies.PROMPT + capacity_policies.LONGEST, capacity_policies.BLOCK)
    assert capacity_policies.most_running(guaranteed) == capacity_policies.POOL // each
    assert guaranteed.preemptions == 0
    assert utilised.preemptions > 0
    assert len(utilised.steps) < len(guaranteed.steps)
    table = capacity_policies.policies_table(runs)
    tokens = table["tokens computed"]
    assert tokens["MAX_UTILIZATION"] > tokens["GUARANTEED_NO_EVICT"]


def test_policies_agree_if_answers_reach_their_limits_in_turn():
    jobs = [Job(i, 1000.0 * i, 64, capacity_policies.LONGEST) for i in range(3)]
    runs = capacity_policies.run_policies(COST, jobs)
    assert len({len(run.steps) for run in runs.values()}) == 1
    assert sum(run.preemptions for run in runs.values()) == 0


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_refused_until_it_is_repaired(name):
    recipe = dict(RECIPES[name].settings)
    effects = {note.effect for note in settings_notes(recipe)}
    assert Effect.REFUSES in effects
    assert settings_notes(checks.repair_recipe.reference(recipe)) == []


def test_kinds_table_compares_with_the_bound_and_with_bf16():
    kinds = {
        "BF16": wide_speed.KindSpeed(200e6, [25, 20, 30], [100, 110, 120]),
        "Q4_0": wide_speed.KindSpeed(50e6, [50, 60, 55], [220, 210, 230]),
    }
    table = wide_speed.kinds_table(kinds, MACHINE)
    assert table.loc["BF16", "share of the bound"] == "50%"
    assert table.loc["Q4_0", "decode, times BF16"] == 2.2
    assert table.loc["Q4_0", "prefill, times BF16"] == 2.0


def test_kinds_table_without_bf16_has_no_ratio():
    kinds = {"Q8_0": wide_speed.KindSpeed(100e6, [50], [200])}
    assert wide_speed.kinds_table(kinds, MACHINE).loc["Q8_0", "decode, times BF16"] is None


@pytest.mark.parametrize(
    ("capability", "formats"),
    [
        (8.0, ["BF16"]),
        (8.9, ["BF16", "FP8"]),
        (9.0, ["BF16", "FP8"]),
        (12.1, ["BF16", "FP8", "NVFP4"]),
    ],
)
def test_gpu_gets_the_checkpoints_that_it_has_numbers_for(capability, formats):
    profile = fit(PROFILES["spark"], Gpu("GPU", capability, 80e9))
    found = gpu_engines.gpu_checkpoints(profile)
    assert list(found) == formats
    assert found["BF16"] == profile.models["tensorrt_llm"]


def test_small_gpu_has_a_model_without_quantised_checkpoints():
    profile = fit(PROFILES["cuda"], Gpu("GPU", 12.0, 8e9))
    assert list(gpu_engines.gpu_checkpoints(profile)) == ["BF16"]


def test_machine_without_gpu_starts_no_engine(monkeypatch):
    monkeypatch.setattr(gpu_engines, "launch", None)
    profile = PROFILES["cpu"]
    assert gpu_engines.gpu_checkpoints(profile) == {}
    assert gpu_engines.compare_engines(profile, {}, None) == ({}, {})


def test_engine_that_fails_becomes_a_reason_and_the_others_go_on(monkeypatch, tmp_path):
    started = []

    @contextmanager
    def fake_launch(name, profile, model, quiet, config=None):
        started.append((name, model, config))
        if name == "sglang":
            raise NotRunHere("SGLang", "no such image\nmore")
        yield SimpleNamespace(name=name)

    def measure(engine, profile, label):
        if "vllm, FP8" in label:
            raise RuntimeError("no request succeeded")
        return gpu_engines.EngineRates(1000.4, 0.0123, 20.04, 300, 32)

    monkeypatch.setattr(gpu_engines, "launch", fake_launch)
    rates, reasons = gpu_engines.compare_engines(
        PROFILES["cuda"], {"BF16": "a/b", "FP8": "a/b-FP8"}, tmp_path, measure
    )
    assert started[0] == ("tensorrt_llm", "a/b", tmp_path)
    assert started[1] == ("vllm", "a/b", None)
    assert list(rates) == [("BF16", "tensorrt_llm"), ("BF16", "vllm"), ("FP8", "tensorrt_llm")]
    assert reasons == {
        "sglang, BF16": "SGLang: not run here: no such image",
        "vllm, FP8": "no request succeeded",
        "sglang, FP8": "SGLang: not run here: no such image",
    }
    row = gpu_engines.engines_table(rates).loc["BF16", "vllm"]
    assert row["prefill (tok/s)"] == 1000
    assert row["TTFT (ms)"] == 12


def test_engine_is_measured_alone_and_at_the_highest_load(monkeypatch):
    profile = PROFILES["cuda"]
    asked = []

    def sweep(engine, profile, *, label, levels):
        asked.append(levels)
        summaries = ({"median_ttft_ms": 50.0, "median_tpot_ms": 20.0}, {"output_throughput": 640.0})
        return [SimpleNamespace(summary=summary) for summary in summaries]

    prefill = SimpleNamespace(tokens_per_s=900.0)
    monkeypatch.setattr(gpu_engines.sweep, "sweep", sweep)
    monkeypatch.setattr(gpu_engines.sweep, "measure_prefill", lambda *a, **k: prefill)
    rates = gpu_engines.measure_engine(SimpleNamespace(), profile, "x")
    assert dataclasses.astuple(rates) == (900.0, 0.05, 50.0, 640.0, max(profile.load.levels))
    assert asked == [(1, max(profile.load.levels))]
