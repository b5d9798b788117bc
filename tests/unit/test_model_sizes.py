import json
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from utils import model_sizes

QWEN3_8B = {
    "model_type": "qwen3",
    "num_hidden_layers": 36,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "vocab_size": 151936,
    "torch_dtype": "bfloat16",
    "use_sliding_window": False,
    "sliding_window": None,
}


def test_qwen3_8b_keeps_144_kib_per_token():
    assert model_sizes.bytes_per_token(QWEN3_8B) == 144 * 1024


def test_head_dim_of_its_own_is_used_and_not_hidden_over_heads():
    config = {**QWEN3_8B, "head_dim": 64}
    assert model_sizes.bytes_per_token(config) == 72 * 1024


def test_without_head_dim_and_kv_heads_it_is_plain_multi_head_attention():
    config = {"num_hidden_layers": 2, "num_attention_heads": 4, "hidden_size": 64}
    assert model_sizes.cache_shape(config) == model_sizes.CacheShape(2, 4, 16, 4, "bfloat16")
    assert model_sizes.bytes_per_token(config) == 2 * 2 * 4 * 16 * 2


def test_text_config_of_a_multimodal_model_is_used():
    assert model_sizes.bytes_per_token({"text_config": QWEN3_8B}) == model_sizes.bytes_per_token(
        QWEN3_8B
    )


def test_fp8_halves_and_q8_0_pays_for_its_scales():
    full = model_sizes.bytes_per_token(QWEN3_8B)
    assert model_sizes.bytes_per_token(QWEN3_8B, "fp8_e4m3") * 2 == full
    assert model_sizes.bytes_per_token(QWEN3_8B, "q8_0") == full // 2 * 34 // 32
    assert (
        model_sizes.bytes_per_token(QWEN3_8B, "q8_0", "f16") == (full // 2 * 34 // 32 + full) // 2
    )


def test_dtype_of_newer_configs_is_read():
    config = {**QWEN3_8B, "dtype": "float32"}
    assert model_sizes.bytes_per_token(config) == 288 * 1024


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"kv_lora_rank": 512}, "latent attention"),
        ({"layer_types": ["full_attention", "linear_attention"]}, "linear_attention"),
        ({"use_sliding_window": True, "sliding_window": 4096}, "sliding_attention"),
        ({"num_hidden_layers": None}, "num_hidden_layers"),
        ({"num_key_value_heads": 5}, "do not divide"),
        ({"torch_dtype": "int3"}, "Unknown dtype"),
    ],
)
def test_configs_that_the_formula_does_not_cover_are_refused(change, words):
    with pytest.raises(model_sizes.ConfigError, match=words):
        model_sizes.bytes_per_token({**QWEN3_8B, **change})


def test_values_that_do_not_fill_a_group_are_refused():
    with pytest.raises(model_sizes.ConfigError, match="groups of 32"):
        model_sizes.dtype_bytes(33, "q8_0")


def test_blocks_as_vllm_reported_them():
    """vLLM 0.32.0 on this shape: 64 MiB gave 170 blocks of 128; with fp8 and 32, 1365."""
    config = {
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "hidden_size": 256,
        "dtype": "bfloat16",
    }
    assert model_sizes.blocks_in(64 * 2**20, config, 128) == 170
    assert model_sizes.blocks_in(64 * 2**20, config, 32, "fp8") == 1365


@given(tokens=st.integers(1, 10_000), block=st.integers(1, 512))
def test_blocks_for_is_the_smallest_number_that_holds(tokens, block):
    blocks = model_sizes.blocks_for(tokens, block)
    assert (blocks - 1) * block < tokens <= blocks * block


@given(budget=st.integers(1, 2**40), block=st.sampled_from([1, 16, 32, 128]))
def test_largest_fitting_load_fits_and_one_more_does_not(budget, block):
    blocks = model_sizes.blocks_in(budget, QWEN3_8B, block)
    page = block * model_sizes.bytes_per_token(QWEN3_8B)
    assert blocks * page <= budget
    assert (blocks + 1) * page > budget - 36 * page // 36


def test_requests_that_fit_rounds_each_request_up_to_blocks():
    token = model_sizes.bytes_per_token(QWEN3_8B)
    assert model_sizes.requests_that_fit(64 * token, QWEN3_8B, 17, block_size=16) == 2
    assert model_sizes.requests_that_fit(64 * token, QWEN3_8B, 16, block_size=16) == 4
    with pytest.raises(ValueError, match="at least one token"):
        model_sizes.requests_that_fit(1, QWEN3_8B, 0)


def test_weights_are_counted_from_the_headers(tmp_path: Path):
    save_file({"a": torch.zeros(10, 3, dtype=torch.bfloat16)}, tmp_path / "1.safetensors")
    save_file({"b": torch.zeros(7, dtype=torch.float32)}, tmp_path / "2.safetensors")
    assert model_sizes.weight_bytes(tmp_path) == 60 + 28


def test_incomplete_model_folders_are_refused(tmp_path: Path):
    with pytest.raises(model_sizes.ConfigError, match="complete"):
        model_sizes.weight_bytes(tmp_path)
    with pytest.raises(model_sizes.ConfigError, match="complete"):
        model_sizes.read_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(model_sizes.ConfigError, match="not valid JSON"):
        model_sizes.read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))
    assert model_sizes.read_config(tmp_path) == QWEN3_8B


@pytest.mark.parametrize("tied", [True, False])
def test_parameters_are_counted_as_transformers_builds_them(tied):
    from transformers import Qwen3Config, Qwen3ForCausalLM

    config = Qwen3Config(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        tie_word_embeddings=tied,
    )
    built = sum(p.numel() for p in Qwen3ForCausalLM(config).parameters())
    assert model_sizes.decoder_parameters(config.to_dict()) == built


def test_a_hub_id_is_fetched_and_a_failure_is_explained(tmp_path: Path, monkeypatch):
    (tmp_path / "config.json").write_text(json.dumps(QWEN3_8B))
    asked = []

    def download(repo, name):
        asked.append((repo, name))
        if repo == "no/where":
            raise OSError("offline")
        return str(tmp_path / name)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    assert model_sizes.read_config("Qwen/Qwen3-8B") == QWEN3_8B
    assert asked == [("Qwen/Qwen3-8B", "config.json")]
    with pytest.raises(model_sizes.ConfigError, match="HF_TOKEN"):
        model_sizes.read_config("no/where")


def test_total_is_the_sum_of_its_parts():
    plan = model_sizes.plan_memory(QWEN3_8B, 16_000, 4, 1000, batch_tokens=1)
    assert plan.kv_cache == 4000 * 144 * 1024
    assert plan.activations == 2 * 2 * (4096 + 12288) + 4 * 151936
    assert plan.total == 16_000 + plan.kv_cache + plan.activations


@pytest.mark.parametrize("content", [b"\xff\xfe\x00", b"[" * 100_000, b'{"a": ' + b"9" * 5000])
def test_a_config_that_is_no_text_is_refused(tmp_path, content):
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(model_sizes.ConfigError, match="not valid JSON"):
        model_sizes.read_config(tmp_path)


@pytest.mark.parametrize(
    "change",
    [
        *[{"num_key_value_heads": n} for n in (-4, 0, [1, 2], "x", True)],
        *[{"head_dim": n} for n in (-3, 0, "a", 0.5, [64])],
        {"hidden_size": 2},
        {"text_config": "x"},
        {"text_config": [1]},
    ],
)
def test_head_counts_that_are_none_are_refused(change):
    config = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, **change}
    with pytest.raises(model_sizes.ConfigError):
        model_sizes.cache_shape(config)
