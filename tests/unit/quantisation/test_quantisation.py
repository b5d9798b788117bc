"""Perplexity and divergence from an engine's probabilities; which types run where."""

import math

import pytest

from utils.engines import EngineError
from utils.labs.lab_3_3_6 import quantisation
from utils.profiles import PROFILES
from utils.quantisation.quality import Judged, agreement, divergence, read_distribution

REFERENCE = Judged((1, 2), ({1: 0.5, 2: 0.5}, {2: 0.25, 3: 0.75}))


def test_perplexity_is_the_number_of_equally_likely_tokens():
    assert Judged((1, 2), ({1: 0.25}, {2: 0.25})).perplexity == pytest.approx(4)
    assert Judged((1,), ({1: 1.0},)).perplexity == pytest.approx(1)
    assert REFERENCE.perplexity == pytest.approx(math.exp(-(math.log(0.5) + math.log(0.25)) / 2))


def test_a_token_that_was_not_listed_counts_as_very_unlikely():
    assert Judged((9,), ({1: 1.0},)).perplexity == pytest.approx(1e9)


def test_divergence_is_zero_for_the_same_and_positive_for_another():
    assert divergence(REFERENCE, REFERENCE) == pytest.approx(0)
    other = Judged((1, 2), ({1: 0.5, 2: 0.5}, {2: 0.75, 3: 0.25}))
    wanted = (0.25 * math.log(0.25 / 0.75) + 0.75 * math.log(0.75 / 0.25)) / 2
    assert divergence(REFERENCE, other) == pytest.approx(wanted)
    assert agreement(REFERENCE, other) == 0.5


def test_llama_cpps_answer_is_read_and_another_refused():
    likeliest = [{"id": 5, "logprob": math.log(0.25)}, {"id": 7, "logprob": math.log(0.75)}]
    answer = {"completion_probabilities": [{"id": 7, "top_logprobs": likeliest}]}
    assert read_distribution(answer) == pytest.approx({5: 0.25, 7: 0.75})
    with pytest.raises(EngineError, match="no probabilities"):
        read_distribution({"error": "x"})


def judged(*, kv_bytes, speed, distribution):
    of = Judged((1,), (distribution,))
    return quantisation.Variant("BF16", "x", 10, kv_bytes, (speed, speed), of)


def test_variants_table_compares_with_the_reference():
    found = {
        quantisation.REFERENCE: judged(
            kv_bytes=4096 * 100.0, speed=50.0, distribution={1: 0.5, 2: 0.4}
        ),
        "BF16 weights, q8_0 KV": judged(
            kv_bytes=4096 * 53.125, speed=40.0, distribution={1: 0.4, 2: 0.5}
        ),
    }
    table = quantisation.variants_table(found)
    assert list(table["KV bytes per token"]) == [100, 53]
    assert list(table["requests in the f16 cache's memory"]) == [4, 7]
    assert list(table["KV, share of f16"]) == ["100.0%", "53.1%"]
    assert list(table["perplexity change"]) == ["+0.00%", "+25.00%"]
    assert list(table["times the reference's speed"]) == [1.0, 0.8]


def test_texts_are_held_out_and_the_same_every_time():
    texts = quantisation.texts_for(4)
    assert texts == quantisation.texts_for(4)
    assert len(texts) == 4
    assert all(beginning and continuation for beginning, continuation in texts)


def test_variants_differ_in_one_type_each_and_the_missing_file_is_written(tmp_path):
    found = quantisation.variants(PROFILES["cpu"], tmp_path)
    assert list(found) == [
        "BF16 weights, f16 KV",
        "BF16 weights, q8_0 KV",
        "BF16 weights, q4_0 KV",
        "Q8_0 weights, f16 KV",
        "Q4_0 weights, f16 KV",
    ]
    file = tmp_path / "tiny-Q4_0.gguf"
    assert found["Q4_0 weights, f16 KV"]["model"] == str(file)
    assert 4e6 < file.stat().st_size < 7e6
    assert "Q4_0 weights, f16 KV" not in quantisation.variants(PROFILES["cuda"], tmp_path)


def test_variant_that_cannot_run_has_reason():
    assert "192, 448" in quantisation.why_no_k_quants([192, 256, 448, 192])
    assert quantisation.why_no_k_quants([256, 1024]) == ""
    assert quantisation.why_no_fp8_cache("flags : fpu avx2 avx512f") == ""
    assert "AVX-512" in quantisation.why_no_fp8_cache("flags : fpu avx2")
    assert "AVX-512" in quantisation.why_no_fp8_cache("Features : bf16 asimd")
    assert quantisation.fp8_reason(PROFILES["cuda"]) == ""
