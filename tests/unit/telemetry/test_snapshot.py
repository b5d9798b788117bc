"""The vLLM texts were recorded on this machine from vLLM 0.32.0 (n-gram speculation, 60 KV blocks of
32) under 32 concurrent requests, a second apart; llama.cpp's from llama-server of llama-cpp-python
0.3.36 under three requests. SGLang's and TensorRT-LLM's are written after their documented names:
neither ran here."""

from dataclasses import dataclass, fields
from pathlib import Path
from types import SimpleNamespace

import pytest

from utils.engines import get_spec
from utils.engines.spec import MetricNames
from utils.profiles import ROOT
from utils.telemetry import ScrapeError, Snapshot
from utils.telemetry.cache import (
    CacheReport,
    kv_budget_bytes,
    llama_cpp_cache_bytes,
    parse_cache_report,
)
from utils.telemetry.snapshot import parse

TEXTS = ROOT / "tests" / "support" / "telemetry_texts"
VLLM = get_spec("vllm").metrics


def text(name: str) -> str:
    return (TEXTS / name).read_text()


def test_vllm_under_load():
    snapshot = parse(text("vllm-0.32.0-later.txt"), VLLM, time=3.0)
    assert snapshot.time == 3.0
    assert (snapshot.running, snapshot.waiting, snapshot.preemptions) == (8, 7, 81)
    assert snapshot.kv_usage == pytest.approx(57 / 59)  # 60 blocks, one of them the placeholder
    assert (snapshot.prefix_hits, snapshot.prefix_queries) == (32, 3904)
    assert snapshot.hit_rate == 32 / 3904
    assert snapshot.prefix_hit_rate is None
    assert (snapshot.prompt_tokens, snapshot.generated_tokens) == (3904, 11321)
    assert (snapshot.drafts, snapshot.drafted_tokens, snapshot.accepted_tokens) == (
        2890,
        8251,
        8183,
    )
    assert snapshot.acceptance_length == 1 + 8183 / 2890


def test_every_name_that_vllm_declares_is_in_its_text():
    snapshot = parse(text("vllm-0.32.0-later.txt"), VLLM)
    for field in fields(MetricNames):
        declared = getattr(VLLM, field.name) is not None
        assert (getattr(snapshot, field.name) is not None) == declared, field.name


def test_vllm_histograms_are_read_whole_and_subtract():
    before = parse(text("vllm-0.32.0-earlier.txt"), VLLM)
    after = parse(text("vllm-0.32.0-later.txt"), VLLM)
    assert after.e2e.count > before.e2e.count
    between = after.e2e.since(before.e2e)
    assert between.count == after.e2e.count - before.e2e.count
    assert between.mean == pytest.approx((after.e2e.sum - before.e2e.sum) / between.count)
    assert 0 < after.itl.quantile(0.5) < after.itl.quantile(0.99) < 1


def test_the_cache_that_vllm_reports():
    assert parse_cache_report(text("vllm-0.32.0-later.txt")) == CacheReport(60, 32, 1920, "auto")
    with pytest.raises(ScrapeError, match="only vLLM"):
        parse_cache_report("up 1\n")


SGLANG = """\
# TYPE sglang:num_running_reqs gauge
sglang:num_running_reqs{engine_type="unified",model_name="m",tp_rank="0"} 5.0
# TYPE sglang:num_queue_reqs gauge
sglang:num_queue_reqs{engine_type="unified",model_name="m",tp_rank="0"} 2.0
# TYPE sglang:token_usage gauge
sglang:token_usage{engine_type="unified",model_name="m",tp_rank="0"} 0.28
# TYPE sglang:cache_hit_rate gauge
sglang:cache_hit_rate{engine_type="unified",model_name="m",tp_rank="0"} 0.75
# TYPE sglang:generation_tokens counter
sglang:generation_tokens_total{model_name="m"} 77.0
# TYPE sglang:time_to_first_token_seconds histogram
sglang:time_to_first_token_seconds_bucket{le="0.1",model_name="m"} 1.0
sglang:time_to_first_token_seconds_bucket{le="1.0",model_name="m"} 3.0
sglang:time_to_first_token_seconds_bucket{le="+Inf",model_name="m"} 4.0
sglang:time_to_first_token_seconds_count{model_name="m"} 4.0
sglang:time_to_first_token_seconds_sum{model_name="m"} 3.5
"""
TENSORRT_LLM = """\
# TYPE trtllm_kv_cache_utilization gauge
trtllm_kv_cache_utilization{model_name="m"} 0.5
# TYPE trtllm_kv_cache_hit_rate gauge
trtllm_kv_cache_hit_rate{model_name="m"} 0.25
# TYPE trtllm_num_requests_running gauge
trtllm_num_requests_running{model_name="m"} 1.0
# TYPE trtllm_time_per_output_token_seconds histogram
trtllm_time_per_output_token_seconds_bucket{le="0.05",model_name="m"} 2.0
trtllm_time_per_output_token_seconds_bucket{le="+Inf",model_name="m"} 2.0
trtllm_time_per_output_token_seconds_sum{model_name="m"} 0.06
"""


@dataclass
class Started:
    log_path: Path
    options: object
    attached: bool = False


def started(tmp_path, log, **options):
    path = tmp_path / "engine.log"
    path.write_text(log)
    return Started(path, SimpleNamespace(**options))


def test_the_memory_that_vllm_set_aside(tmp_path):
    on_cpu = started(tmp_path, "", device="cpu", kv_cache_gib=0.5)
    assert kv_budget_bytes(on_cpu) == 2**30, "vLLM's CPU backend takes whole GiB"
    line = "(EngineCore pid=7) INFO [gpu_worker.py:1] Available KV cache memory: 12.50 GiB\n"
    unplanned = {"device": "cuda", "kv_cache_bytes": None}
    assert kv_budget_bytes(started(tmp_path, line, **unplanned)) == 12.5 * 2**30
    # With --kv-cache-memory-bytes vLLM skips the line.
    planned = {"device": "cuda", "kv_cache_bytes": 3 * 2**30}
    assert kv_budget_bytes(started(tmp_path, "nothing", **planned)) == 3 * 2**30
    with pytest.raises(ScrapeError, match="does not say"):
        kv_budget_bytes(started(tmp_path, "nothing", **unplanned))


def test_the_size_of_llama_cpps_cache(tmp_path):
    line = "0.00.071 I llama_kv_cache: size =   51.00 MiB (  2048 cells,  24 layers,  8/8 seqs)\n"
    assert llama_cpp_cache_bytes(started(tmp_path, line)) == 51 * 2**20
    with pytest.raises(ScrapeError, match="-lv 4"):
        llama_cpp_cache_bytes(started(tmp_path, ""))


def test_llama_cpp_offers_counts_and_no_latencies():
    snapshot = parse(text("llama_cpp-0.3.36-under-load.txt"), get_spec("llama_cpp").metrics)
    assert (snapshot.running, snapshot.waiting) == (3, 0)
    assert (snapshot.prompt_tokens, snapshot.generated_tokens) == (27, 0)
    assert (snapshot.drafts, snapshot.acceptance_length) == (0, None)
    for name in ("kv_usage", "ttft", "itl", "tpot", "e2e", "preemptions", "prefix_queries"):
        assert getattr(snapshot, name) is None, name


def test_sglang_names():
    snapshot = parse(SGLANG, get_spec("sglang").metrics)
    assert (snapshot.running, snapshot.waiting, snapshot.kv_usage) == (5, 2, 0.28)
    assert (snapshot.hit_rate, snapshot.generated_tokens) == (0.75, 77)
    assert snapshot.ttft.count == 4
    assert snapshot.ttft.quantile(0.5) == pytest.approx(0.55)
    assert snapshot.preemptions is None


def test_tensorrt_llm_names():
    snapshot = parse(TENSORRT_LLM, get_spec("tensorrt_llm").metrics)
    assert (snapshot.running, snapshot.kv_usage, snapshot.hit_rate) == (1, 0.5, 0.25)
    assert snapshot.waiting is None
    assert snapshot.tpot.mean == 0.03


def test_ranks_add_up_and_shares_are_their_mean():
    names = MetricNames(running="r", kv_usage="k", ttft="t")
    two = """\
r{rank="0"} 3
r{rank="1"} 4
k{rank="0"} 0.2
k{rank="1"} 0.6
t_bucket{rank="0",le="1"} 1
t_bucket{rank="0",le="+Inf"} 2
t_bucket{rank="1",le="1"} 5
t_bucket{rank="1",le="+Inf"} 5
t_sum{rank="0"} 4
t_sum{rank="1"} 2
"""
    snapshot = parse(two, names)
    assert (snapshot.running, snapshot.kv_usage) == (7, pytest.approx(0.4))
    assert snapshot.ttft.cumulative == (6, 7)
    assert snapshot.ttft.sum == 6


def test_a_name_that_begins_like_another_is_not_mixed_up():
    names = MetricNames(running="running")
    assert parse("running_total 9\nrunning 2\n", names).running == 2


def test_nothing_is_none_and_never_zero():
    snapshot = parse("", VLLM)
    assert all(value is None for key, value in snapshot.numbers().items() if key != "time")
    assert Snapshot(time=0, prefix_hits=0, prefix_queries=0).hit_rate is None
    assert Snapshot(time=0, accepted_tokens=0, drafts=0).acceptance_length is None


@pytest.mark.parametrize("bad", ["<html></html>", '[{"iter": 1}]', '{"detail": "Not found"}'])
def test_foreign_metrics_text_is_refused(bad):
    with pytest.raises(ScrapeError, match="no Prometheus text"):
        parse(bad, VLLM)


TTFT = "vllm:time_to_first_token_seconds"


@pytest.mark.parametrize(
    "line",
    [
        f'{TTFT}_bucket{{le="0.1"}} 3',
        f'{TTFT}_bucket{{le="abc"}} 3',
        f'{TTFT}_bucket{{x="1"}} 3',
        f"{TTFT}_bucket 3",
        f'{TTFT}_bucket{{le="-Inf"}} 3',
        f'{TTFT}_bucket{{le="NaN"}} 3\n{TTFT}_bucket{{le="+Inf"}} 3',
    ],
)
def test_a_damaged_histogram_is_refused(line):
    with pytest.raises(ScrapeError, match=TTFT):
        parse(line + "\n", VLLM)


@pytest.mark.parametrize(
    "labels",
    ['{num_gpu_blocks="None",block_size="16",cache_dtype="auto"} 1', '{a="b"} 1', "{", "{} 1"],
)
def test_a_cache_report_without_numbers_is_refused(labels):
    with pytest.raises(ScrapeError, match="lacks the size"):
        parse_cache_report(f"vllm:cache_config_info{labels}\n")
