"""The memory plan: needs from configs and files, labs' fleets on cards of every size, and engines' shares."""

from dataclasses import replace

import pytest

from utils import fleet_plan, memory_plan
from utils.gpu import MIB, Gpu
from utils.memory_plan import GB, Need, need, share_of
from utils.model_sizes import GIB
from utils.profiles import MODELS, PROFILES, fit

HUB = "Qwen/Qwen3-8B"
CARDS = {
    "8 GB": (8188, 8.9, "0.6B", "bfloat16"),
    "12 GB": (12288, 8.6, "1.7B", "bfloat16"),
    "16 GB, Turing": (15360, 7.5, "1.7B", "float16"),
    "24 GB": (24564, 8.9, "4B", "bfloat16"),
    "48 GB": (46068, 8.9, "8B", "bfloat16"),
    "80 GB": (81559, 9.0, "8B", "bfloat16"),
}


def card(mebibytes, capability=8.9, used=100):
    return Gpu("a GPU", capability, mebibytes * MIB, False, (mebibytes - used) * MIB)


def sizes(engine, model=HUB, **options):
    defaults = {
        "dtype": "bfloat16",
        "context_length": 8192,
        "max_sequences": 32,
        "kv_cache_gib": 16.0,
    }
    return need(engine, model, **{**defaults, **options})


def test_slots_times_context_of_lab_1_took_55_gb():
    found = sizes("llama_cpp", "bartowski/Qwen_Qwen3-8B-GGUF:bf16")
    assert (found.weights + found.kv_cache) / GB == pytest.approx(55.0, abs=0.1)


@pytest.mark.parametrize(
    ("model", "gigabytes"),
    [
        ("Qwen/Qwen3-0.6B", 1.19),
        ("Qwen/Qwen3-1.7B", 3.44),
        ("Qwen/Qwen3-4B", 8.04),
        (HUB, 16.38),
        ("bartowski/Qwen_Qwen3-8B-GGUF:Q8_0", 8.70),
        ("nvidia/Qwen3-8B-FP8", 9.4),
        ("nvidia/Qwen3-8B-NVFP4", 6.4),
        ("qwen3:8b-fp16", 16.38),
        ("qwen3:0.6b-fp16", 1.19),
    ],
)
def test_weights_follow_from_name_and_quantisation(model, gigabytes, monkeypatch):
    monkeypatch.setattr(memory_plan, "read_config", lambda model: pytest.fail("asked the hub"))
    assert memory_plan.weights_of(model, "bfloat16") / GB == pytest.approx(gigabytes, rel=0.01)


def test_weights_of_file_and_folder_are_read():
    file = MODELS / "tiny" / "tiny-Q8_0.gguf"
    assert memory_plan.weights_of(str(file), "float32") == file.stat().st_size
    assert memory_plan.weights_of(str(MODELS / "tiny"), "bfloat16") == pytest.approx(19e6, rel=0.1)


def test_unknown_model_has_no_plan(monkeypatch):
    def fail(model):
        raise memory_plan.ConfigError("no network")

    monkeypatch.setattr(memory_plan, "read_config", fail)
    assert sizes("vllm", "owner/unknown") is None


@pytest.mark.parametrize(
    ("options", "tokens"),
    [
        ({}, 16 * GIB / 147456),
        ({"kv_blocks": 161, "block_size": 32}, 161 * 32),
        ({"kv_blocks": 161}, 161 * 16),
        ({"kv_cache_dtype": "fp8", "kv_blocks": 10}, 80),
    ],
)
def test_kv_cache_of_vllm_is_budget_or_blocks(options, tokens):
    assert sizes("vllm", **options).kv_cache == pytest.approx(tokens * 147456)


def test_draft_model_counts_and_is_found_in_arguments():
    config = (
        '{"method": "eagle3", "model": "AngelSlim/Qwen3-4B_eagle3", "num_speculative_tokens": 3}'
    )
    heads = memory_plan.draft_in(("--speculative-config", config))
    assert heads == "AngelSlim/Qwen3-4B_eagle3"
    assert memory_plan.draft_in(("--speculative-draft-model-path", "x/y", "--z")) == "x/y"
    assert memory_plan.draft_in(("--speculative-config", '{"method": "ngram"}')) is None
    more = sizes("vllm", draft=heads).weights - sizes("vllm").weights
    assert more == memory_plan.DRAFT_BYTES


@pytest.mark.parametrize("name", CARDS)
def test_every_fleet_of_every_lab_fits_the_card(name):
    mebibytes, capability, size, dtype = CARDS[name]
    gpu = card(mebibytes, capability)
    profile = fit(PROFILES["cuda"], gpu)
    assert profile.models["vllm"] == f"Qwen/Qwen3-{size}"
    assert profile.dtype == dtype
    for lab in fleet_plan.LABS:
        assert fleet_plan.lab_plan(lab, profile).fits(gpu.room), lab


def test_spark_has_the_8b_model_in_bfloat16():
    spark = Gpu("NVIDIA GB10", 12.1, 128e9, True, 118e9)
    profile = fit(PROFILES["spark"], spark)
    assert profile == PROFILES["spark"]
    assert fleet_plan.largest_plan(profile).fits(spark.room)


def test_too_small_card_keeps_the_smallest_model_and_fits_nothing():
    profile = fit(PROFILES["cuda"], card(2048))
    assert profile.models["vllm"] == "Qwen/Qwen3-0.6B"
    assert "eagle3_heads" not in profile.models
    assert not fleet_plan.lab_plan(1, profile).fits(card(2048).room)


def test_largest_fleet_of_lab_7_is_two_vllm_or_three_llama_cpp():
    def engines(profile):
        return [each.engine for each in fleet_plan.lab_plan(7, profile).needs]

    assert engines(PROFILES["spark"]) == ["vllm"] * 2
    assert engines(fit(PROFILES["cuda"], card(8188))) == ["llama_cpp"] * 3


def test_slots_come_from_the_load_on_a_gpu_only():
    spark, cpu = PROFILES["spark"], PROFILES["cpu"]
    assert fleet_plan.engine_sizes("llama_cpp", spark) == {
        "max_sequences": 32,
        "context_length": 1280,
    }
    quick = replace(spark, load=spark.load.quick())
    assert fleet_plan.engine_sizes("ollama", quick)["max_sequences"] == 8
    assert fleet_plan.engine_sizes("vllm", spark) == {}
    assert fleet_plan.engine_sizes("llama_cpp", cpu) == {}
    assert fleet_plan.gateway_replicas(cpu)["first"] == {"engine": "llama_cpp", "max_sequences": 16}
    assert fleet_plan.prefix_replicas(cpu) == {"left": {}, "right": {}}


@pytest.mark.parametrize("used", [0, 30_000])
@pytest.mark.parametrize("gib", [0.75, 4.0, 16.0])
def test_share_of_sglang_leaves_the_cache_that_was_planned(gib, used):
    gpu = card(81559, used=used)
    wanted = sizes("sglang", kv_cache_gib=gib)
    before = gpu.free_bytes - memory_plan.CUDA_BYTES
    rest = before - wanted.weights - before * (1 - share_of(wanted, gpu))  # SGLang's own formula
    assert wanted.kv_cache <= rest <= wanted.kv_cache + 0.2 * GB + 0.011 * before


def test_share_of_vllm_is_never_more_than_the_need():
    gpu = card(24564)
    wanted = Need("vllm", 8e9, 2e9, 2e9)
    share = share_of(wanted, gpu)
    assert share * gpu.memory_bytes <= wanted.total
    assert share == 0.46


def test_share_of_tensorrt_llm_is_that_of_the_memory_after_the_weights():
    wanted = Need("tensorrt_llm", 16e9, 10e9, 2e9)
    gpu = Gpu("a GPU", 9.0, 80e9, False, 68e9)
    assert share_of(wanted, gpu) == 0.2


def test_refusal_names_need_room_and_the_option_to_lower():
    text = memory_plan.refusal(
        "llama.cpp", Need("llama_cpp", 16.4e9, 38.6e9, 1e9), 23e9, card(24564)
    )
    assert "llama.cpp needs 56.0 GB (16.4 for weights, 38.6 for the KV cache" in text
    assert "23.0 GB of a GPU's 25.8 GB" in text
    assert "Lower max_sequences or context_length" in text
    assert "gpu_memory_utilization" not in text
