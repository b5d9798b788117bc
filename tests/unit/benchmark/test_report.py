"""The table, the plots and the page: labelled, escaped, self-contained."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
import pytest
from benchmark_records import record, scaled

from utils.benchmark import Cited, ClosedLoop, OpenLoop, Record, RecordError
from utils.benchmark.plot_style import MARKERS
from utils.benchmark.report import (
    alt_text,
    plot_distributions,
    plot_latency_against_rate,
    plot_throughput,
    table,
    write_html,
)

matplotlib.use("agg")
CITED = Cited("SGLang", "Llama", "FP8", "DGX Spark", "LMSYS", batch=32, decode_tok_s=368.0)


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture
def records() -> list[Record]:
    return [
        scaled("vLLM", ClosedLoop(1), 1),
        scaled("vLLM", ClosedLoop(8), 5),
        scaled("vLLM", ClosedLoop(8), 7),
        scaled("<script>alert(1)</script>", ClosedLoop(1), 2),
        record(OpenLoop(2.0)),
        record(OpenLoop(8.0)),
    ]


def test_table(records: list[Record]) -> None:
    frame = table(records, [CITED])
    row = frame.loc[("vLLM", "8 in flight")]
    assert row["runs"] == 2
    assert row["output tok/s"] == 600
    assert row["failed"] == 2
    assert row["± 95 %"] == pytest.approx(12.7062 * 141.42 / 2**0.5, rel=1e-3)
    assert pd.isna(frame.loc[("vLLM", "1 in flight")]["± 95 %"])
    assert frame.loc[("a run", "2 requests/s")]["origin"] == "measured"
    cited = frame.loc[("SGLang, Llama", "32 in flight")]
    assert cited["output tok/s"] == 368
    assert cited["origin"] == "cited: LMSYS, DGX Spark"
    assert frame["origin"].str.match("measured|cited: ").all()
    with pytest.raises(ValueError, match="measure first"):
        table([])


def test_missing_figure_is_not_a_number(records: list[Record]) -> None:
    unknown = replace(records[0], summary={**records[0].summary, "output_throughput": None})
    assert pd.isna(table([unknown, records[1]]).loc[("vLLM", "1 in flight")]["output tok/s"])
    assert "1" in alt_text(plot_throughput([unknown, *records[1:]]))


def test_plots_have_units_and_say_what_they_show(records: list[Record]) -> None:
    figure = plot_throughput(records)
    axes = figure.axes[0]
    assert "tok/s" in axes.get_ylabel()
    assert "in flight" in axes.get_xlabel()
    assert "vLLM: 100 at 1, 600 at 8" in alt_text(figure)
    figure = plot_distributions(records[:2])
    assert all("milliseconds" in axes.get_xlabel() for axes in figure.axes)
    assert "median TTFT 100.0 ms" in alt_text(figure)
    assert "median ITL 200.00" in alt_text(figure)
    figure = plot_latency_against_rate(records)
    assert "(ms)" in figure.axes[0].get_ylabel()
    assert "at 8/s" in alt_text(figure)
    labels = [text.get_text() for text in figure.axes[0].get_legend().get_texts()]
    assert any("due" in label for label in labels)
    assert any("sent" in label for label in labels)


def test_lines_differ_in_more_than_colour(records: list[Record]) -> None:
    lines = plot_throughput(records).axes[0].get_lines()
    markers = {str(line.get_marker()) for line in lines} & set(MARKERS)
    assert len(markers) >= 2


def test_plots_refuse_what_they_cannot_show(records: list[Record]) -> None:
    with pytest.raises(ValueError, match="closed-loop"):
        plot_throughput(records[-2:])
    with pytest.raises(ValueError, match="open-loop"):
        plot_latency_against_rate(records[:2])
    with pytest.raises(ValueError, match="streamed"):
        plot_distributions([replace(records[0], traces=())])


class Outline(HTMLParser):
    """Collects elements and their attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))


def test_the_page_is_self_contained_and_escaped(records: list[Record], tmp_path: Path) -> None:
    page = write_html(
        records,
        tmp_path / "deep" / "report.html",
        title="A & B <i>",
        not_run={"SGLang": "needs <GPU> & more"},
        cited=[CITED],
        tables={"Roofline": pd.DataFrame({"x": ["<b>bold</b>"]})},
    )
    text = page.read_text(encoding="utf-8")
    outline = Outline()
    outline.feed(text)
    tags = [tag for tag, _ in outline.elements]
    assert "script" not in tags
    assert "link" not in tags
    assert "iframe" not in tags
    images = [attributes for tag, attributes in outline.elements if tag == "img"]
    assert len(images) == 3
    for image in images:
        assert str(image["src"]).startswith("data:image/png;base64,")
        assert len(image["alt"] or "") > 40
    assert not re.search(r'(?:src|href)="(?!data:)', text)
    assert "&lt;script&gt;alert(1)" in text
    assert "<script>" not in text
    assert "A &amp; B &lt;i&gt;" in text
    assert "&lt;GPU&gt; &amp; more" in text
    assert "&lt;b&gt;bold" in text
    assert "cited: LMSYS" in text
    assert records[0].id in text
    assert records[0].host["cpu"] in text
    assert not plt.get_fignums()


def test_the_page_lies_beside_the_records(
    records: list[Record], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COURSE_RECORDS", str(tmp_path))
    assert write_html(records) == tmp_path / "report.html"
    assert [path.name for path in tmp_path.iterdir()] == ["report.html"]
    with pytest.raises(ValueError, match="measure first"):
        write_html([])
    (tmp_path / "file").write_text("x")
    with pytest.raises(RecordError):
        write_html(records, tmp_path / "file" / "x.html")
