"""Ceilings against known values, weights counted from files, published rows judged."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from benchmark_records import scaled
from gguf import GGUFWriter
from safetensors.numpy import save_file

from utils.benchmark import Cited, ClosedLoop, Record
from utils.model_sizes import BITS_PER_WEIGHT, QWEN3, bytes_per_token
from utils.roofline import rates
from utils.roofline.ceilings import Ceiling, Claim, decode_ceiling, judge, prefill_ceiling
from utils.roofline.machine import MIB, Bandwidth, Machine
from utils.roofline.published import (
    DGX_SPARK,
    LLAMA_3_1_8B,
    OLD_TABLE,
    PUBLISHED,
    judge_rows,
)
from utils.roofline.rates import MATMUL_SHAPES, cache_sizes, measure_bandwidth, measure_machine
from utils.roofline.roofline import Model, compare, describe_model, judge_published, record_claim
from utils.roofline.weights import WeightsError, read_weights, weights_of_config

LLAMA = weights_of_config(LLAMA_3_1_8B)


def test_parameters_of_llama_3_1_8b() -> None:
    # meta-llama/Llama-3.1-8B: 8,030,261,248 parameters.
    assert LLAMA.total_bytes == 2 * 8_030_261_248
    assert LLAMA.decode_parameters == 8_030_261_248 - 128256 * 4096
    assert LLAMA.prefill_parameters == LLAMA.decode_parameters - 128256 * 4096


def test_llama_3_1_8b_in_bf16_on_a_spark() -> None:
    # With the embedding table counted as traffic: FACTS.md's 273 / 16.1 = 17. Without: 18.2.
    assert 273e9 / LLAMA.total_bytes == pytest.approx(17.0, abs=0.05)
    ceiling = decode_ceiling(LLAMA, DGX_SPARK)
    assert ceiling.tokens_per_s == pytest.approx(18.19, abs=0.01)
    assert ceiling.bound_by == "bandwidth"
    assert ceiling.origin == "predicted"
    assert ceiling.formula == "273 GB/s (LPDDR5X) ÷ (15 GB of weights) = 18.2 tok/s"


def test_llama_3_1_8b_quantised_on_a_spark() -> None:
    fp8 = decode_ceiling(weights_of_config(LLAMA_3_1_8B, 8), DGX_SPARK)
    assert fp8.tokens_per_s == pytest.approx(2 * 18.19, abs=0.02)
    # FACTS.md, the whole file: 32 to 34 at FP8, 55 to 59 at 4 bits. Ours are bounds above.
    assert 34 < fp8.tokens_per_s < 38
    q4 = decode_ceiling(weights_of_config(LLAMA_3_1_8B, 4.5), DGX_SPARK)
    assert 59 < q4.tokens_per_s < 66


def test_kv_cache_and_batch() -> None:
    # 2 x 32 layers x 8 heads x 128 x 2 bytes = 131,072 bytes a token.
    step = LLAMA.decode_bytes + 32 * 2048 * 131_072
    ceiling = decode_ceiling(LLAMA, DGX_SPARK, batch=32, context=2048, config=LLAMA_3_1_8B)
    assert ceiling.tokens_per_s == pytest.approx(32 * 273e9 / step)
    assert "8.59 GB of KV cache" in ceiling.formula
    assert ceiling.formula.startswith("32 × ")
    fp8 = decode_ceiling(
        LLAMA, DGX_SPARK, batch=32, context=2048, config=LLAMA_3_1_8B, kv_dtype="fp8"
    )
    assert fp8.tokens_per_s > ceiling.tokens_per_s


def test_a_large_batch_is_bound_by_compute() -> None:
    ceiling = decode_ceiling(LLAMA, DGX_SPARK, batch=100_000)
    assert ceiling.bound_by == "compute"
    assert ceiling.tokens_per_s == pytest.approx(125e12 / (2 * LLAMA.decode_parameters))


def test_speculation_raises_the_decode_ceiling() -> None:
    plain = decode_ceiling(LLAMA, DGX_SPARK)
    spec = decode_ceiling(LLAMA, DGX_SPARK, tokens_per_step=2.5)
    assert spec.tokens_per_s == pytest.approx(2.5 * plain.tokens_per_s)


def test_prefill() -> None:
    bare = prefill_ceiling(LLAMA, DGX_SPARK)
    assert bare.tokens_per_s == pytest.approx(125e12 / (2 * LLAMA.prefill_parameters))
    long = prefill_ceiling(LLAMA, DGX_SPARK, prompt_tokens=2048, config=LLAMA_3_1_8B)
    # Attention over T tokens, causal: 2 x 32 layers x 4096 x T a token.
    per_token = 2 * LLAMA.prefill_parameters + 2 * 32 * 4096 * 2048
    assert long.tokens_per_s == pytest.approx(125e12 / per_token)
    assert prefill_ceiling(LLAMA, DGX_SPARK, weight_bits=4.5).tokens_per_s > 3 * bare.tokens_per_s


def test_bad_input() -> None:
    with pytest.raises(ValueError, match="batch"):
        decode_ceiling(LLAMA, DGX_SPARK, batch=0)
    with pytest.raises(ValueError, match="config="):
        decode_ceiling(LLAMA, DGX_SPARK, context=5)
    with pytest.raises(ValueError, match="config="):
        prefill_ceiling(LLAMA, DGX_SPARK, prompt_tokens=5)
    with pytest.raises(WeightsError, match="mixture"):
        weights_of_config({**LLAMA_3_1_8B, "num_experts": 8})


def claim(value: float | None) -> Claim:
    bound = Ceiling(100.0, "bandwidth", "formula")
    return Claim("x", "decode", value, bound, "measured", "record")


@pytest.mark.parametrize(
    ("value", "verdict", "flagged"),
    [
        (100.1, "above the ceiling", True),
        (95, "at the ceiling", False),
        (50, "possible", False),
        (None, "not given", False),
        (math.nan, "not given", False),
    ],
)
def test_judge(value: float | None, verdict: str, flagged: bool) -> None:
    (judgement,) = judge([claim(value)])
    assert judgement.verdict == verdict
    assert judgement.flagged == flagged


def test_the_old_table_row_by_row() -> None:
    verdicts = {verdict.row.engine: verdict for verdict in judge_rows(OLD_TABLE)}
    assert len(verdicts) == 6
    # FACTS.md: nothing in the table is possible at bf16 or FP8.
    for verdict in verdicts.values():
        assert not {"BF16", "FP8"} & set(verdict.possible_at)
    assert "within 10 % of the ceiling" in verdicts["llama.cpp"].text
    assert verdicts["SGLang + Medusa"].possible_at == ()
    assert "impossible at" in verdicts["SGLang + Medusa"].text
    assert verdicts["TensorRT-LLM"].possible_at == ("NVFP4", "Q4_K_M")
    assert "possible only at NVFP4, Q4_K_M, not at BF16, FP8" in verdicts["vLLM"].text


def test_published_rows_are_possible_at_what_they_say() -> None:
    for verdict in judge_rows(PUBLISHED):
        assert verdict.possible_at == (verdict.row.quantisation,), verdict.text
        assert verdict.row.source
        assert verdict.row.origin == "cited"


def test_an_honest_bf16_number_is_not_flagged_and_a_wrong_one_is() -> None:
    row = {"engine": "x", "model": "y", "quantisation": "BF16", "machine": "z", "source": "s"}
    rows = [Cited(**row, decode_tok_s=15.5), Cited(**row, decode_tok_s=18.5)]
    honest, wrong = judge_rows(rows)
    assert honest.possible_at == ("BF16",)
    assert wrong.possible_at == ()


def test_every_published_quantisation_has_a_width() -> None:
    named = {row.quantisation for row in OLD_TABLE + PUBLISHED if row.quantisation}
    assert named <= set(BITS_PER_WEIGHT)
    frame = judge_published()
    assert frame["origin"].str.startswith("cited: ").all()
    assert len(frame) == 9


CONFIG = {
    "model_type": "qwen3", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "vocab_size": 100,
}  # fmt: skip


def tensors(tied: bool, dtype: type = np.float16) -> dict[str, np.ndarray]:
    found = {
        "model.embed_tokens.weight": np.zeros((100, 64), dtype),
        "model.layers.0.self_attn.o_proj.weight": np.zeros((64, 64), dtype),
        "model.norm.weight": np.zeros(64, dtype),
    }
    return found if tied else found | {"lm_head.weight": np.zeros((100, 64), dtype)}


@pytest.mark.parametrize("tied", [True, False])
def test_weights_of_a_safetensors_file(tmp_path: Path, tied: bool) -> None:
    save_file(tensors(tied), tmp_path / "model.safetensors")
    weights = read_weights(tmp_path)
    body, table = 64 * 64 + 64, 100 * 64
    assert weights.decode_bytes == 2 * (body + table)
    assert weights.total_bytes == 2 * (body + table * (1 if tied else 2))
    assert (weights.decode_parameters, weights.prefill_parameters) == (body + table, body)
    assert ("tied" in weights.note) == tied


@pytest.mark.parametrize("tied", [True, False])
def test_weights_of_a_gguf_file(tmp_path: Path, tied: bool) -> None:
    writer = GGUFWriter(tmp_path / "x.gguf", "llama")
    writer.add_tensor("token_embd.weight", np.zeros((100, 64), np.float16))
    # Ends like the head's name, and is not the head.
    writer.add_tensor("blk.0.attn_output.weight", np.zeros((64, 64), np.float16))
    if not tied:
        writer.add_tensor("output.weight", np.zeros((100, 64), np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    weights = read_weights(tmp_path / "x.gguf")
    assert weights.decode_bytes == 2 * (64 * 64 + 100 * 64)
    assert weights.total_bytes == 2 * (64 * 64 + 100 * 64 * (1 if tied else 2))


def test_damaged_and_missing_weights(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="no weights at"):
        read_weights(tmp_path)
    for name, content in (("a", b"\xff" * 8), ("b", b"\x02"), ("c", b"\x02" + b"\0" * 7 + b"{x")):
        (tmp_path / f"{name}.safetensors").write_bytes(content)
        with pytest.raises(WeightsError, match=name):
            read_weights(tmp_path / f"{name}.safetensors")
    (tmp_path / "d.gguf").write_bytes(b"GGUX" + b"\0" * 64)
    with pytest.raises(WeightsError, match=r"d\.gguf"):
        read_weights(tmp_path / "d.gguf")
    save_file({"mlp.experts.0.weight": np.zeros(4, np.float16)}, tmp_path / "moe.safetensors")
    with pytest.raises(WeightsError, match="mixture"):
        read_weights(tmp_path / "moe.safetensors")


def test_the_next_smaller_working_set_bounds_from_above() -> None:
    bands = tuple(Bandwidth(size, rate, "x") for size, rate in ((1, 90.0), (10, 50.0), (100, 9.0)))
    machine = Machine("m", bands, 1.0, "bfloat16", "measured", "s")
    rates = [machine.bandwidth_for(size).bytes_per_s for size in (0.5, 1, 9, 10, 99, 1000)]
    assert rates == [90, 90, 90, 50, 50, 9]
    assert machine.bandwidth == 9


def test_only_a_cited_accelerator_gains_flops_from_narrow_operands() -> None:
    assert DGX_SPARK.flops_at(8) == 2 * DGX_SPARK.flops_at(16) == 250e12
    measured = Machine("m", DGX_SPARK.bandwidths, 1.0, "bfloat16", "measured", "s")
    assert measured.flops_at(4) == measured.flops_at(16) == 1.0


def test_products_that_would_take_minutes_are_not_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def rate(shape: tuple[int, int, int], *_: object) -> float:
        tried.append(shape)
        return 0.5e9  # a CPU that emulates bfloat16

    monkeypatch.setattr(rates, "_matmul_rate", rate)
    assert measure_machine(working_set=4 * MIB, seconds=8.0).flops == 0.5e9
    assert tried == [MATMUL_SHAPES[0]]
    monkeypatch.setattr(rates, "_matmul_rate", lambda shape, *_: rate(shape) * 1000)
    assert measure_machine(working_set=4 * MIB, seconds=8.0).flops == 0.5e12
    assert tried[1:] == list(MATMUL_SHAPES)


def test_measuring_this_machine() -> None:
    machine = measure_machine(working_set=4 * MIB, seconds=1.0, dtype="float32")
    assert machine.origin == "measured"
    assert machine.flops > 1e8
    assert [band.working_set for band in machine.bandwidths] == [MIB, 2 * MIB, 4 * MIB]
    assert 1e8 < machine.bandwidth < 1e13
    assert machine.flops_dtype == "float32"
    text = str(machine)
    assert "GB/s" in text
    assert "float32 products" in text
    assert "4 MiB" in text
    assert "best float32 matrix product" in text


def test_products_are_measured_in_the_dtype_that_is_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = []

    def rate(shape: object, seconds: float, threads: int, device: str, dtype: object) -> float:
        tried.append(dtype)
        return 1e15

    monkeypatch.setattr(rates, "_matmul_rate", rate)
    assert measure_machine(working_set=MIB, seconds=0.5).flops_dtype == "bfloat16"
    measure_machine(working_set=MIB, seconds=0.5, dtype="float32")
    assert set(tried) == {torch.bfloat16, torch.float32}


def test_levels_are_named() -> None:
    caches = {"L1": 1 * MIB, "L2": 8 * MIB}
    sizes = (MIB // 2, 4 * MIB, 16 * MIB)
    assert [measure_bandwidth(s, caches, 0.05).level for s in sizes] == ["L1", "L2", "memory"]
    assert all(name.startswith("L") and size > 0 for name, size in cache_sizes().items())


def test_our_own_records_beside_their_ceilings(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors(tied=True), tmp_path / "model.safetensors")
    model = describe_model(tmp_path)
    assert model.kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    assert "tied" in str(model)
    assert model.weight_bytes == 2 * (64 * 64 + 64 + 6400)
    machine = Machine("m", (Bandwidth(1, 1e6, "x"),), 1e9, "bfloat16", "measured", "s")
    records = [
        replace(scaled(name, ClosedLoop(1), speed), model=str(tmp_path))
        for name, speed in (("slow", 0.1), ("too fast", 10))
    ]
    frame = compare(
        records, {"slow": SimpleNamespace(prompt_tokens=8, tokens_per_s=9.0)}, machine, model
    )
    assert list(frame["verdict"]) == ["possible", "above the ceiling", "possible"]
    # 4 prompt tokens and half of 3: 5 tokens of 256 bytes.
    expected = 1e6 / (model.weight_bytes + 5 * model.kv_bytes_per_token)
    assert frame["ceiling tok/s"].iloc[0] == pytest.approx(expected)
    own = compare(records, {}, machine, model, lambda bandwidth, *_: bandwidth / 1e4)
    assert list(own["ceiling tok/s"]) == [100, 100]


def test_weights_are_counted_in_the_dtype_that_the_engine_holds_them_in(tmp_path: Path) -> None:
    quantised = {"q": np.zeros(8, np.int8)}
    save_file(tensors(tied=False) | quantised, tmp_path / "model.safetensors")
    stored, wide = read_weights(tmp_path), read_weights(tmp_path, "float32")
    assert wide.total_bytes - 8 == 2 * (stored.total_bytes - 8)
    assert wide.decode_bytes - 8 == 2 * (stored.decode_bytes - 8)
    assert wide.decode_parameters == stored.decode_parameters
    assert read_weights(tmp_path, "bfloat16") == stored


def test_each_engines_own_bytes_bound_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors(tied=True), tmp_path / "model.safetensors")
    model = describe_model(tmp_path, "float32")
    assert model.weight_bytes == 4 * (64 * 64 + 64 + 6400)
    assert model.kv_bytes_per_token == 2 * 2 * 2 * 16 * 4
    machine = Machine("m", (Bandwidth(1, 1e6, "x"),), 1e12, "float32", "measured", "s")
    wide = replace(scaled("vLLM", ClosedLoop(1), 0.1), dtype="float32", model=str(tmp_path))
    llama = replace(wide, id="other", label="llama.cpp", engine="llama_cpp")
    frame = compare([wide, llama], {}, machine, model)
    # 4 prompt tokens and half of 3: 5 tokens; llama.cpp keeps them in 2 bytes a number.
    expected = [1e6 / (model.weight_bytes + 5 * kv) for kv in (512, 256)]
    assert list(frame["ceiling tok/s"]) == pytest.approx(expected)


def test_a_learners_right_ceiling_is_ours(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    save_file(tensors(tied=True), tmp_path / "model.safetensors")
    model = describe_model(tmp_path)
    edge = int(model.weight_bytes) + 1  # the KV cache reaches into the slower memory
    bands = (Bandwidth(1, 9e6, "L3"), Bandwidth(edge, 1e6, "memory"))
    machine = Machine("m", bands, 1e12, "bfloat16", "measured", "s")
    records = [scaled("x", ClosedLoop(n), 1) for n in (1, 8)]
    ours = compare(records, {}, machine, model)
    expected = compare(records, {}, machine, model, lambda b, w, k, c, n: n * b / (w + n * c * k))
    assert list(expected["ceiling tok/s"]) == pytest.approx(list(ours["ceiling tok/s"]))


@pytest.mark.parametrize(
    "header",
    [
        b'{"a": {"dtype": "BF16"}}',
        b'{"a": {"shape": [1], "data_offsets": [0]}}',
        b'{"a": {"shape": ["x"], "data_offsets": [0, "y"]}}',
        b"[1]",
        b"[" * 90_000,
        b"\xff\xfe",
    ],
    ids=lambda header: ascii(header[:30]),
)
def test_a_safetensors_header_without_tensors_is_refused(tmp_path: Path, header: bytes) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header)
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        read_weights(file)


QWEN = Model(
    "Qwen/Qwen3-8B",
    weights_of_config(QWEN3["8B"], 16),
    bytes_per_token(QWEN3["8B"], "bfloat16"),
    QWEN3["8B"],
)


def hub_record(quantisation: str, throughput: float) -> Record:
    record = replace(
        scaled("llama.cpp", ClosedLoop(1), 1),
        model=f"bartowski/Qwen_Qwen3-8B-GGUF:{quantisation}",
        quantisation=quantisation,
        engine="llama_cpp",
        dtype="bfloat16",
    )
    return replace(record, summary={**record.summary, "output_throughput": throughput})


@pytest.mark.parametrize(
    ("quantisation", "gigabytes", "verdict"),
    [
        ("Q8_0", 8.04, "possible"),
        ("BF16", 15.14, "above the ceiling"),
        ("FP16", 15.14, "above the ceiling"),
        ("IQ7_X", math.nan, "not given"),
    ],
)
def test_hub_model_is_judged_by_the_bytes_of_its_quantisation(
    quantisation: str, gigabytes: float, verdict: str
) -> None:
    claim = record_claim(hub_record(quantisation, 27.0), DGX_SPARK, QWEN)
    expected = 273e9 / (gigabytes * 1e9)
    assert claim.ceiling.tokens_per_s == pytest.approx(expected, rel=0.01, nan_ok=True)
    (judged,) = judge([claim])
    assert judged.verdict == verdict
    assert claim.tokens_per_s == 27.0
