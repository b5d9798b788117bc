"""Records: whole or not at all, read with validation, damaged ones named; host and model hash."""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest
from benchmark_records import PROFILE, engine, record, result

from utils.benchmark import (
    ClosedLoop,
    OpenLoop,
    RecordError,
    load_all,
    make_record,
    read_record,
    records_dir,
    write_record,
)
from utils.benchmark.host import describe_host, model_hash
from utils.benchmark.records import RecordWarning
from utils.benchmark.report import plot_throughput, write_html
from utils.files import write_whole
from utils.profiles import ROOT


def test_round_trip(tmp_path: Path) -> None:
    for load in (ClosedLoop(2), OpenLoop(4.0), OpenLoop(4.0, math.inf, max_concurrency=8)):
        one = record(load)
        path = write_record(one, tmp_path)
        assert path.name == f"{one.id}.json"
        assert read_record(path) == one
        json.loads(path.read_text(), parse_constant=pytest.fail)


def test_record_describes_its_run() -> None:
    one = record()
    assert one.origin == "measured"
    assert one.engine_version == "0.32.0"
    assert one.command == ("vllm", "serve", "x")
    assert one.model_sha256 is None
    assert one.host["cores"] == os.cpu_count()
    assert one.host["memory_bytes"] > 1e8
    assert datetime.fromisoformat(one.date).tzinfo is not None
    assert one.load["pattern"] == "closed"
    assert one.load["num_prompts"] == 4
    assert one.summary["completed"] == 3
    assert one.summary["failed"] == 1
    assert one.summary["request_goodput"] == pytest.approx(3 / 5)
    assert one.metric_definitions["version"]
    assert "tokens" in one.metric_definitions
    assert one.traces[0].sent == pytest.approx(0.1)
    assert one.traces[0].text == "naïve <b>"
    assert one.id.startswith(datetime.now(UTC).strftime("%Y%m%dT"))
    assert "a-run" in one.id


def test_an_open_loop_record_holds_both_clocks() -> None:
    summary = record(OpenLoop(4.0)).summary
    assert summary["clock"] == "scheduled"
    assert summary["from_sent"]["clock"] == "sent"
    assert summary["mean_ttft_ms"] == pytest.approx(200)
    assert summary["from_sent"]["mean_ttft_ms"] == pytest.approx(100)


def test_vllm_layout() -> None:
    values = record(OpenLoop(4.0)).to_vllm()
    assert values["backend"] == "vllm"
    assert values["num_prompts"] == 4
    assert values["request_rate"] == 4.0
    assert values["burstiness"] == 1.0
    assert values["ttfts"] == pytest.approx([0.1, 0.1, 0.1, 0.0])
    assert values["itls"][0] == pytest.approx([0.2])
    assert values["itls"][3] == []
    assert values["output_lens"] == [3, 3, 3, 0]
    assert values["errors"][3] == "HTTP 500"
    assert values["mean_ttft_ms"] == pytest.approx(100)
    assert values["mean_e2el_including_client_queue_ms"] == pytest.approx(400)
    datetime.strptime(values["date"], "%Y%m%d-%H%M%S")
    closed = record(ClosedLoop(2)).to_vllm()
    assert closed["request_rate"] == "inf"
    assert closed["max_concurrency"] == 2
    lengths = {len(closed[key]) for key in ("ttfts", "itls", "input_lens", "generated_texts")}
    assert lengths == {4}


def test_load_all_names_what_it_leaves_out(tmp_path: Path) -> None:
    good = write_record(record(), tmp_path)
    (tmp_path / "half.json").write_text(good.read_text()[:500])
    (tmp_path / "other.json").write_text('{"schema": 99}')
    (tmp_path / "list.json").write_text("[]")
    (tmp_path / ".hidden.json").write_text("x")
    (tmp_path / "note.txt").write_text("x")
    with pytest.warns(RecordWarning) as caught:
        records = load_all(tmp_path)
    assert len(records) == 1
    text = " ".join(str(warning.message) for warning in caught)
    assert len(caught) == 3
    assert all(n in text for n in ("half.json", "other.json", "list.json"))


def test_an_absent_folder_has_no_records(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert load_all(tmp_path / "none") == []


def damage(values: dict[str, object], key: str, value: object) -> None:
    if value is None:
        del values[key]
    else:
        values[key] = value


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("host", None, "missing fields: host"),
        ("origin", "cited", "not a measured record"),
        ("schema", 3, "newer than schema 2.*Update the course"),
        ("schema", 0, "not a measured record of schema 1 or 2"),
        ("workload", {"prompt_tokens": 5}, "'prompt_tokens' has no mean"),
        ("handicaps", [1], "'handicaps' holds something else than texts"),
        ("host", {}, "the host's 'cpu' is None"),
        ("host", {**record().host, "gpu": "A100"}, "the host's 'gpu' is 'A100'"),
        ("summary", {}, "the summary lacks 'completed'"),
        ("traces", [{"index": 1}], "incomplete trace"),
        ("traces", [{"colour": 1}], "unknown trace fields: colour"),
        ("traces", "x", "'traces' is a str"),
        ("date", "yesterday", "yesterday"),
        ("surprise", 1, "unknown fields: surprise"),
    ],
)
def test_a_damaged_record_says_what_is_wrong(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    values = record().to_dict()
    damage(values, key, value)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(values))
    with pytest.raises(RecordError, match=message) as caught:
        read_record(path)
    assert "bad.json" in str(caught.value)


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(RecordError, match=r"cannot read .*none\.json"):
        read_record(tmp_path / "none.json")
    (tmp_path / "bytes.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RecordError, match=r"bytes\.json"):
        read_record(tmp_path / "bytes.json")


def test_nothing_half_written_stays_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(RecordError, match=r"No space left on device.*COURSE_RECORDS"):
        write_record(record(), tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecordError, match="cannot write"):
        write_record(record(), tmp_path / "file" / "records")


def test_records_go_to_chosen_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COURSE_RECORDS", str(tmp_path / "mine"))
    assert records_dir() == tmp_path / "mine"
    assert write_record(record()).parent == tmp_path / "mine"
    assert len(load_all()) == 1
    monkeypatch.delenv("COURSE_RECORDS")
    assert records_dir() == ROOT / "records"


def test_model_hash(tmp_path: Path) -> None:
    one = tmp_path / "model.safetensors"
    one.write_bytes(b"weights")
    expected = hashlib.sha256(b"weights").hexdigest()
    assert model_hash(one) == model_hash(tmp_path) == expected
    one.write_bytes(b"other weights")
    assert model_hash(tmp_path) == hashlib.sha256(b"other weights").hexdigest()
    (tmp_path / "second.safetensors").write_bytes(b"more")
    both = model_hash(tmp_path)
    assert both not in (expected, None)
    assert both == model_hash(str(tmp_path))
    assert model_hash(tmp_path / "none.gguf") is None


def test_model_hash_of_a_hub_model_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    folder = tmp_path / "hub" / "models--org--name"
    blob = folder / "blobs" / ("ab" * 32)
    snapshot = folder / "snapshots" / "c0ffee"
    for path in (blob.parent, snapshot, folder / "refs"):
        path.mkdir(parents=True)
    blob.write_bytes(b"not read: the name is the hash")
    (folder / "refs" / "main").write_text("c0ffee")
    (snapshot / "model.safetensors").symlink_to(blob)
    assert model_hash("org/name") == "ab" * 32
    assert model_hash("org/other") is None


def test_host() -> None:
    host = describe_host()
    assert host["cpu"]
    assert host["python"]
    assert host["cores_usable"] <= host["cores"]
    assert isinstance(host["gpu"], list)
    host["cpu"] = "changed"
    assert describe_host()["cpu"] != "changed"


def test_half_a_surrogate_pair_does_not_stop_a_record(tmp_path: Path) -> None:
    whole = result()
    odd = replace(whole.traces[0], text="a\ud83d", error="\udfff")
    one = make_record(
        replace(whole, traces=(odd, *whole.traces[1:])),
        engine(),
        PROFILE,
        extra={"\ud800": "\ud83d"},
    )
    back = read_record(write_record(one, tmp_path))
    mark = "\N{REPLACEMENT CHARACTER}"
    assert back.traces[0].text == f"a{mark}"
    assert back.extra == {mark: mark}
    assert write_whole(tmp_path / "page.html", "a\ud83d").read_text() == "a?"
    path = tmp_path / "label.json"
    path.write_text(json.dumps({**one.to_dict(), "label": "\ud83d"}))
    assert read_record(path).label == mark


def test_an_interrupt_leaves_no_half_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: int) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(KeyboardInterrupt):
        write_record(record(), tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["../evil", "a/b", "", "a\0b", "a" * 300, ".hidden", "a b"])
def test_an_id_is_a_file_name(tmp_path: Path, name: str) -> None:
    with pytest.raises(RecordError, match="a record's id is the name of its file"):
        write_record(replace(record(), id=name), tmp_path / "records")
    assert list(tmp_path.iterdir()) == []


def test_files_that_break_the_parser_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "deep.json").write_text("[" * 200_000)
    (tmp_path / "digits.json").write_text('{"schema":' + "9" * 5000 + "}")
    with pytest.warns(RecordWarning) as caught:
        assert load_all(tmp_path) == []
    assert len(caught) == 2


TIMES = {"index": 0, "scheduled": 0.0, "sent": 0.0, "finished": 1.0}
BAD_TIMES = ({"sent": None}, {"sent": "x"}, {"chunk_times": "abc"}, {"completion_tokens": "x"})
SUMMARY = {"completed": 1, "failed": 0, "request_throughput": 1.0, "mean_ttft_ms": 1.0}


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("load", {}, "the load's pattern is None"),
        ("load", {"pattern": "closed"}, "'concurrency' is None, not a positive number"),
        ("load", {"pattern": "closed", "concurrency": "x"}, "'concurrency' is 'x'"),
        ("load", {"pattern": "open", "request_rate": 0}, "'request_rate' is 0"),
        ("summary", {**SUMMARY, "output_throughput": "fast"}, "'output_throughput' is a str"),
        ("summary", {**SUMMARY, "completed": None}, "have to be numbers"),
        ("engine_version", 5, "'engine_version' is a int"),
        ("extra", [1], "'extra' is a list"),
        ("model_sha256", 5, "'model_sha256' is a int"),
        *[("traces", [{**TIMES, **bad}], "aren't numbers") for bad in BAD_TIMES],
    ],
)
def test_a_record_without_usable_figures_is_refused(
    tmp_path: Path, key: str, value: object, message: str
) -> None:
    path = tmp_path / "bad.json"
    path.write_text(json.dumps({**record().to_dict(), key: value}))
    with pytest.raises(RecordError, match=message):
        read_record(path)


def test_labels_are_shown_as_they_are(tmp_path: Path) -> None:
    labels = [r"$\frac$", "$x", "a $b$ c", "_hidden", "_"]
    records = [replace(record(), label=label) for label in labels]
    open_loops = [replace(record(OpenLoop(4.0)), engine=label) for label in labels]
    write_html([*records, *open_loops], tmp_path / "report.html")  # one page: drawing takes seconds
    for shown in (records, records[-1:]):
        legend = plot_throughput(shown).axes[0].get_legend()
        assert legend is not None
        assert len(legend.get_texts()) == len(shown)
