"""Results of other tools become cited rows, judged by the roofline next to our own."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from benchmark_records import record

from utils.benchmark import RecordError
from utils.benchmark.foreign import load_foreign, read_foreign
from utils.benchmark.records import RecordWarning
from utils.benchmark.report import table
from utils.profiles import MODELS, ROOT
from utils.roofline import roofline
from utils.roofline.published import DGX_SPARK, judge_rows

FILES = ROOT / "tests" / "support" / "foreign_results"


def test_llama_bench():
    prefill, decode = read_foreign(FILES / "llama-bench.json")
    assert (prefill.prefill_tok_s, prefill.decode_tok_s) == (pytest.approx(7100.0, rel=1e-3), None)
    assert decode.decode_tok_s == pytest.approx(118.88, rel=1e-3)
    assert decode.batch == 1
    assert decode.quantisation == "Q4_K_M"
    assert decode.machine == "NVIDIA GeForce RTX 4080"
    assert decode.source == "llama-bench.json (llama-bench)"
    assert decode.note == "128 tokens"
    assert decode.origin == "cited"


def test_vllm_bench_serve():
    (row,) = read_foreign(FILES / "vllm-bench-serve.json")
    values = json.loads((FILES / "vllm-bench-serve.json").read_text())
    assert row.decode_tok_s == values["output_throughput"]
    assert (row.model, row.batch) == ("paced", 8)
    assert row.figures["median_ttft_ms"] == values["median_ttft_ms"]
    assert "vllm bench serve" in row.source


def test_sglang_has_the_mean_in_flight_by_littles_law():
    slow, fast = read_foreign(FILES / "sglang.jsonl")
    assert (slow.engine, slow.batch) == ("sglang-oai-chat", 2)  # 8.0 requests/s for 0.23 s each
    assert slow.decode_tok_s == pytest.approx(255.9, rel=1e-3)
    assert slow.note == "8.0 requests/s, mean in flight"
    assert (fast.batch, fast.note) == (8, "")


def test_guidellm(tmp_path: Path):
    (row,) = read_foreign(FILES / "guidellm.json")
    values = json.loads((FILES / "guidellm.json").read_text())
    metrics = values["benchmarks"][0]["metrics"]
    assert (row.engine, row.model, row.batch, row.note) == ("openai", "paced", 8, "concurrent")
    assert row.decode_tok_s == metrics["output_tokens_per_second"]["successful"]["mean"]
    percentiles = metrics["time_to_first_token_ms"]["successful"]["percentiles"]
    assert row.figures["p99_ttft_ms"] == percentiles["p99"]
    # An open loop has no streams, so the row has the mean in flight. Version 0.3 named the model in `args`.
    config = values["benchmarks"][0]["config"]
    config |= {"strategy": {"type_": "constant", "streams": None}, "backend": None}
    metrics["request_concurrency"]["successful"]["mean"] = 3.2
    (tmp_path / "open.json").write_text(json.dumps(values | {"args": {"model": "org/model"}}))
    (row,) = read_foreign(tmp_path / "open.json")
    assert (row.model, row.batch, row.note) == ("org/model", 3, "constant")


def test_aiperf(tmp_path: Path):
    (row,) = read_foreign(FILES / "aiperf.json")
    values = json.loads((FILES / "aiperf.json").read_text())
    assert (row.engine, row.model, row.batch) == ("openai", "paced", 8)
    assert row.decode_tok_s == values["output_token_throughput"]["avg"]
    assert row.figures["median_ttft_ms"] == values["time_to_first_token"]["p50"]
    assert row.note == "counted 2560 tokens, but the server reported 1280"
    values["input_config"] = {
        "endpoint": {"model_names": ["org/model"]},
        "loadgen": {"concurrency": 2},
    }
    del values["total_usage_completion_tokens"]
    (tmp_path / "older.json").write_text(json.dumps(values))
    (row,) = read_foreign(tmp_path / "older.json")
    assert (row.model, row.batch, row.note) == ("org/model", 2, "")


def test_folder_of_others_names_what_it_leaves_out(tmp_path: Path):
    for file in FILES.glob("*.json*"):
        shutil.copy(file, tmp_path)
    (tmp_path / "odd.json").write_text('{"avg_ts": 1, "n_prompt": 2}')
    (tmp_path / "half.json").write_text("{half")
    (tmp_path / "broken.json").write_text('{"benchmarks": 5}')
    with pytest.warns(RecordWarning) as caught:
        found = load_foreign(tmp_path)
    assert len(found) == 7
    text = " ".join(str(warning.message) for warning in caught)
    assert all(name in text for name in ("odd.json", "half.json", "broken.json"))
    assert load_foreign(tmp_path / "none") == []
    with pytest.raises(RecordError, match=r"none\.json"):
        read_foreign(tmp_path / "none.json")


def test_hostile_names_of_others_stay_text(tmp_path: Path):
    values = json.loads((FILES / "vllm-bench-serve.json").read_text())
    (tmp_path / "x.json").write_text(
        json.dumps({**values, "model_id": "<script>", "backend": "$x$"})
    )
    html = table([record()], read_foreign(tmp_path / "x.json")).to_html(escape=True)
    assert "&lt;script&gt;" in html
    assert "<script>" not in html


def test_roofline_judges_others_next_to_our_own():
    rows = read_foreign(FILES / "llama-bench.json")
    model = roofline.describe_model(str(MODELS / "tiny"), "bfloat16")
    frame = roofline.compare([record()], {}, DGX_SPARK, model, cited=rows)
    origins = list(frame["origin"])
    assert origins[0] == "measured"
    assert "cited: llama-bench.json (llama-bench)" in origins
    assert (frame["share of the ceiling"] > 0).all()
    assert judge_rows(rows)[1].by_quantisation.keys() == {"Q4_K_M"}
    unknown = read_foreign(FILES / "sglang.jsonl")
    assert len(judge_rows(unknown)[0].by_quantisation) > 1
