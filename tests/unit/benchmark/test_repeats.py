"""One key decides what repeats are; copies, old records and secrets."""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from benchmark_records import PROFILE, engine, record, result, scaled

from utils.benchmark import (
    ClosedLoop,
    OpenLoop,
    Record,
    RequestTrace,
    load_all,
    make_record,
    random_prompts,
    read_record,
    write_record,
)
from utils.benchmark.condition import condition, repeats
from utils.benchmark.load import LoadResult
from utils.benchmark.records import RecordWarning
from utils.benchmark.redact import redact, redact_text
from utils.benchmark.report import alt_text, plot_throughput, table, write_html
from utils.benchmark.tally import Tally


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


def run(tokens: int = 10, count: int = 4, cached: int | None = None, **workload: object) -> Record:
    """A run of `count` answers with `tokens` tokens each, 10 ms apart."""
    times = tuple(0.05 + 0.01 * k for k in range(tokens))
    traces = tuple(
        RequestTrace(
            index=i, scheduled=0.0, sent=0.0, finished=times[-1], first_token=times[0],
            chunk_times=times, prompt_tokens=100, completion_tokens=tokens, cached_tokens=cached,
            status=200, finish_reason="length", max_tokens=tokens,
        )
        for i in range(count)
    )  # fmt: skip
    described = {"max_tokens": [tokens, tokens], **workload}
    done = LoadResult(ClosedLoop(8), traces, 0.0, times[-1], "completions", "m", workload=described)
    return make_record(done, engine(), PROFILE)


@pytest.mark.parametrize(
    ("changed", "column"),
    [
        (lambda r: replace(r, host={**r.host, "cpu": "Grace"}), "machine"),
        (lambda r: replace(r, host={**r.host, "gpu": ["H200"]}), "machine"),
        (lambda r: replace(r, model="meta-llama/Llama-3.1-8B"), "model"),
        (lambda r: replace(r, model_sha256="ab" * 32), "model"),
        (lambda r: replace(r, dtype="float32"), "dtype"),
        (lambda r: replace(r, profile="cuda"), "profile"),
        (lambda r: replace(r, engine_version="0.33.0"), "version"),
        (lambda r: replace(r, load={**r.load, "api": "chat"}), "API"),
        (lambda r: replace(r, load={**r.load, "planned": 99}), "requests"),
        (lambda r: replace(r, workload={**r.workload, "max_tokens": [200, 200]}), "answer"),
        (lambda r: replace(r, workload={**r.workload, "prompt_length": "8 words"}), "prompt"),
        (lambda r: replace(r, workload={**r.workload, "dataset": "ShareGPT"}), "data set"),
        (lambda r: replace(r, workload={**r.workload, "sampling": [{"t": 1}]}), "sampling"),
        (lambda r: replace(r, command=("vllm", "serve", "--enforce-eager")), "settings"),
    ],
)
def test_different_runs_are_rows_with_differing_column(changed, column):
    one = run()
    other = replace(changed(run()), id="other")
    frame = table([one, other])
    assert list(frame["runs"]) == [1, 1]
    assert frame[column].nunique() == 2
    lines = plot_throughput([one, other]).axes[0].get_legend()
    assert lines is not None
    assert len(lines.get_texts()) == (1 if column == "requests" else 2)


def test_repeats_differ_in_seed_port_and_date_only():
    one = replace(run(seeds=[1]), command=("vllm", "serve", "--port", "4001", "--api-key=***"))
    two = replace(run(seeds=[2]), command=("vllm", "serve", "--port", "4002"), date="2026-01-01")
    frame = table([one, two])
    assert list(frame["runs"]) == [2]
    assert not {"machine", "settings", "version", "answer"} & set(frame.columns)
    assert len(repeats([one, two])) == 1


def test_latencies_of_repeats_are_pooled_and_not_averaged():
    slow = run(count=1)
    trace = replace(slow.traces[0], first_token=10.0, chunk_times=(10.0, 11.0), finished=11.0)
    slow = replace(slow, traces=(trace,), load={**slow.load, "num_prompts": 19})
    fast = run(count=19)
    frame = table([fast, slow])
    assert frame["TTFT median ms"].iloc[0] == pytest.approx(50)
    assert frame["TTFT p95 ms"].iloc[0] == pytest.approx(50 + 0.05 * 9950, rel=0.01)


def test_copy_of_a_record_is_no_repeat(tmp_path: Path):
    path = write_record(run(), tmp_path)
    shutil.copy(path, tmp_path / f"copy of {path.name}")
    with pytest.warns(RecordWarning, match=rf"copy of .* is a copy of {path.name}"):
        found = load_all(tmp_path)
    assert [record.id for record in found] == [path.stem]
    with pytest.warns(RecordWarning, match="1 records that occur twice"):
        frame = table([*found, *found])
    assert list(frame["runs"]) == [1]
    with pytest.warns(RecordWarning, match="occur twice"):
        assert "100 at 2." in alt_text(plot_throughput([scaled("x", ClosedLoop(2), 1)] * 2))


def test_record_of_schema_1_is_read(tmp_path: Path):
    values = run().to_dict()
    for name in ("workload", "handicaps"):
        del values[name]
    values["schema"] = 1
    values["engine"], values["command"] = (
        "sglang",
        ["sglang", "--attention-backend", "torch_native"],
    )
    (tmp_path / "old.json").write_text(json.dumps(values))
    old = read_record(tmp_path / "old.json")
    assert dict(condition(old))["answer"] == "10 tokens"
    assert dict(condition(old))["prompt"] == "about 100 tokens"
    assert "plain PyTorch" in old.handicaps[0]
    assert "not ranked" in table([old])["note"].iloc[0]


def test_record_with_a_byte_order_mark_is_read(tmp_path: Path):
    one = run()
    (tmp_path / "windows.json").write_text(json.dumps(one.to_dict()), encoding="utf-8-sig")
    assert read_record(tmp_path / "windows.json") == one


def test_odd_record_is_named_and_left_out_and_the_report_is_written(tmp_path: Path):
    good = run()
    write_record(good, tmp_path)
    for name, change in {"host": {}, "summary": {}, "schema": 3, "traces": 5}.items():
        odd = {**good.to_dict(), "id": name, name: change}
        (tmp_path / f"{name}.json").write_text(json.dumps(odd))
    with pytest.warns(RecordWarning) as caught:
        page = write_html(load_all(tmp_path), tmp_path / "report.html")
    assert len(caught) == 4
    assert good.id in page.read_text()


def test_workload_of_a_run_is_in_its_record():
    tally = Tally()
    requests = random_prompts(5, 20, spread=0.5, output_spread=0.25, max_tokens=8, seed=7)
    for request in requests:
        tally.add(request)
    values = tally.describe(result().traces)
    assert values["dataset"] == "random words"
    assert values["prompt_length"] == "10 to 30 words"
    assert values["output_length"] == "6 to 10 tokens"
    assert values["seeds"] == [7]
    assert values["fresh"]
    assert values["sampling"][0]["temperature"] == 0.0
    assert values["prompt_tokens"] == {"mean": 4, "min": 4, "max": 4}
    assert {request.max_tokens for request in requests} <= set(range(6, 11))
    assert len({request.max_tokens for request in requests}) > 1


def test_origin_and_handicaps_come_from_the_engine():
    attached = SimpleNamespace(**vars(engine()), origin="attached", handicaps=("one thread",))
    one = make_record(result(), attached, PROFILE)
    assert one.origin == "attached"
    assert one.handicaps == ("one thread",)
    frame = table([one, record()])
    assert list(frame["origin"]) == ["attached", "measured"]


@pytest.mark.parametrize(
    ("changes", "note"),
    [
        ({"tokens_per_chunk": 4.0}, "4.0 tokens a chunk: ITL is per chunk"),
        ({"resends": 3}, "3 sent again"),
        ({"usage_missing": 2}, "2 answers without usage"),
    ],
)
def test_qualifier_travels_with_its_number(changes: dict, note: str):
    one = run()
    plain = replace(run(), label="other")
    assert "note" not in table([one]).columns
    frame = table([replace(one, summary={**one.summary, **changes}), plain])
    assert note in frame["note"].iloc[0]
    assert frame["note"].iloc[1] == ""


def test_tokens_per_chunk_of_a_speculative_run_is_shown():
    one = run(tokens=5)
    traces = tuple(replace(trace, completion_tokens=20) for trace in one.traces)
    done = LoadResult(ClosedLoop(4), traces, 0.0, 1.0, "chat", "m")
    assert "4.0 tokens a chunk" in table([make_record(done, engine(), PROFILE)])["note"].iloc[0]


def test_metric_that_rests_on_fewer_requests_says_so():
    one = run(count=8)
    silent = replace(one.traces[0], first_token=None, chunk_times=(), completion_tokens=0)
    half = tuple(replace(t, first_token=None, chunk_times=()) for t in one.traces[:4])
    done = replace(one, traces=(*half, *one.traces[4:]))
    assert "TTFT of 4 requests" in table([done])["note"].iloc[0]
    assert silent.ok


@pytest.mark.parametrize(
    ("fresh", "cached", "warns"), [(True, 50, True), (True, 1, False), (False, 50, False)]
)
def test_table_warns_if_fresh_prompts_came_from_the_prefix_cache(fresh, cached, warns):
    one = run(cached=cached, fresh=fresh)
    frame = table([one])
    says = "note" in frame and "prefix cache" in frame["note"].iloc[0]
    assert says is warns


def test_failed_warm_up_and_early_end_are_noted():
    one = run()
    load = {**one.load, "warmup_failed": 4, "stopped": "interrupted"}
    note = table([replace(one, load=load)])["note"].iloc[0]
    assert "4 warm-up requests failed" in note
    assert "ended early: interrupted" in note


def test_secrets_of_a_command_reach_neither_record_nor_page(tmp_path: Path):
    command = ["serve", "--api-key", "S3CRET", "--hf-token=S3CRET", "-e", "HF_TOKEN=S3CRET",
               "--x", "sk-S3CRETS3CRET", "http://me:S3CRET@host/?key=S3CRET", "--port", "1"]  # fmt: skip
    secretive = SimpleNamespace(**{**vars(engine()), "command": command})
    one = make_record(result(), secretive, PROFILE)
    path = write_record(one, tmp_path)
    page = write_html([one], tmp_path / "report.html")
    assert "S3CRET" not in path.read_text() + page.read_text()
    assert one.command[:3] == ("serve", "--api-key", "***")
    assert one.command[-2:] == ("--port", "1")


def test_redaction_leaves_other_words_alone():
    command = ["vllm", "serve", "--max-num-batched-tokens", "2048", "--tokenizer", "x", "--key"]
    assert redact(command) == command
    assert redact_text("https://host/v1?api-version=2") == "https://host/v1?api-version=2"


def test_page_names_the_machine_of_each_record(tmp_path: Path):
    one, other = run(), run()
    other = replace(other, host={**other.host, "cpu": "Neoverse <b>"})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        text = write_html([one, other], tmp_path / "report.html").read_text()
    assert text.count("Neoverse &lt;b&gt;") >= 3  # comparison, list of machines, list of records
    assert "<b>" not in text


def test_handicap_is_on_every_surface(tmp_path: Path):
    slow = replace(run(), label="SGLang", handicaps=("plain PyTorch, one thread",))
    fast = replace(run(), label="vLLM")
    assert "not ranked" in table([slow, fast])["note"].iloc[0]
    assert "SGLang, not ranked" in alt_text(plot_throughput([slow, fast]))
    assert "plain PyTorch, one thread" in write_html([slow, fast], tmp_path / "r.html").read_text()


def test_open_loops_of_two_machines_are_two_lines():
    from utils.benchmark.report import plot_latency_against_rate

    one, other = record(OpenLoop(2.0)), record(OpenLoop(2.0))
    other = replace(other, host={**other.host, "cpu": "Grace"})
    legend = plot_latency_against_rate([one, other]).axes[0].get_legend()
    assert legend is not None
    assert len(legend.get_texts()) == 4


def test_cited_rows_keep_their_note():
    from utils.benchmark import Cited

    frame = table([], [Cited("SGLang", "m", "FP8", "", "a file", note="8 in flight at most")])
    assert frame["origin"].iloc[0] == "cited: a file"
    assert frame["note"].iloc[0] == "8 in flight at most"
    assert pd.isna(frame.get("output tok/s", pd.Series([float("nan")])).iloc[0])
