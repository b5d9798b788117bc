"""Records as a table, as plots and as one self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt
import pandas as pd

from utils.benchmark.intervals import repeat_interval
from utils.benchmark.plots import (
    alt_text,
    html_image,
    load_text,
    plot_distributions,
    plot_latency_against_rate,
    plot_throughput,
)
from utils.benchmark.records import Cited, Record, records_dir, save
from utils.benchmark.trace import METRIC_DEFINITIONS

__all__ = [
    "alt_text",
    "plot_distributions",
    "plot_latency_against_rate",
    "plot_throughput",
    "table",
    "write_html",
]

# Column of the table -> result key.
COLUMNS: Mapping[str, str] = {
    "output tok/s": "output_throughput",
    "requests/s": "request_throughput",
    "goodput requests/s": "request_goodput",
    "TTFT median ms": "median_ttft_ms",
    "TTFT p95 ms": "p95_ttft_ms",
    "TPOT median ms": "median_tpot_ms",
    "ITL p99 ms": "p99_itl_ms",
    "latency p95 ms": "p95_e2el_ms",
}


def table(records: Iterable[Record], cited: Iterable[Cited] = ()) -> pd.DataFrame:
    """One row per engine and load; repeats are averaged.

    Args:
        records: Measured runs.
        cited: Published rows to show below them.

    Returns:
        A table indexed by label and load. `origin` says for every row whether it was measured
        here or is cited; `± 95 %` is half the confidence interval of the throughput over the
        repeats, NaN for a single run.
    """
    groups: dict[tuple[str, ...], list[Record]] = {}
    for record in records:
        key = (record.label, load_text(record), record.quantisation, record.engine_version)
        groups.setdefault(key, []).append(record)
    rows = [_row(group) for group in groups.values()]
    rows += [_cited_row(row) for row in cited]
    if not rows:
        raise ValueError("no records to make a table of: measure first")
    frame = pd.DataFrame(rows).set_index(["engine", "load"])
    return frame.dropna(axis="columns", how="all")


def write_html(
    records: Sequence[Record],
    path: str | Path | None = None,
    *,
    title: str = "Inference engines, measured",
    not_run: Mapping[str, str] | None = None,
    choices: Sequence[Any] = (),
    cited: Sequence[Cited] = (),
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Writes everything known about the records as one page without outside resources.

    Args:
        records: Measured runs.
        path: Where to; default, `report.html` beside the records.
        title: Heading.
        not_run: Engine to the reason why it did not run here.
        choices: Recommendations (dataclasses), shown as a table.
        cited: Published rows, shown beside the measured ones.
        tables: Further tables by heading.

    Returns:
        The page's path.

    Raises:
        ValueError: If there is nothing to report.
        RecordError: If it cannot be written.
    """
    sections = {"Comparison": table(records, cited)}
    if choices:
        sections["Recommendation"] = pd.DataFrame([asdict(choice) for choice in choices])
    sections |= dict(tables or {})
    page = (
        _environment()
        .get_template("page")
        .render(
            title=title,
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            records=records,
            hosts=_unique(dict(record.host) for record in records),
            definitions=METRIC_DEFINITIONS,
            sections={name: _html(frame) for name, frame in sections.items()},
            images=_images(records),
            not_run=dict(not_run or {}),
            load_text=load_text,
        )
    )
    target = Path(path) if path is not None else records_dir() / "report.html"
    return save(target, page)


def _row(group: Sequence[Record]) -> dict[str, Any]:
    first = group[0]
    row: dict[str, Any] = {
        "engine": first.label,
        "load": load_text(first),
        "weights": first.quantisation,
        "runs": len(group),
        "completed": sum(record.summary["completed"] for record in group),
        "failed": sum(record.summary["failed"] for record in group),
    }
    for column, key in COLUMNS.items():
        values = [v for record in group if (v := record.summary.get(key)) is not None]
        row[column] = sum(values) / len(values) if values else math.nan
        if column == "output tok/s":
            interval = repeat_interval(values) if len(values) > 1 else None
            row["± 95 %"] = interval.half_width if interval else math.nan
    return row | {"origin": first.origin}


def _cited_row(row: Cited) -> dict[str, Any]:
    return {
        "engine": f"{row.engine}, {row.model}",
        "load": f"{row.batch} in flight",
        "weights": row.quantisation or "not said",
        "output tok/s": math.nan if row.decode_tok_s is None else row.decode_tok_s,
        "origin": f"cited: {row.source}, {row.machine}",
    }


def _images(records: Sequence[Record]) -> list[str]:
    images = []
    plots = (
        (plot_throughput, records),
        (plot_distributions, _least_loaded(records)),
        (plot_latency_against_rate, records),
    )
    for plot, chosen in plots:
        try:
            figure = plot(chosen)
        except ValueError:  # no records of the kind that this plot shows
            continue
        images.append(html_image(figure))
        plt.close(figure)
    return images


def _least_loaded(records: Sequence[Record]) -> list[Record]:
    """Of each label the closed-loop record with the fewest requests in flight; all if none."""
    found: dict[str, Record] = {}
    for record in records:
        if record.load.get("pattern") == "closed":
            best = found.setdefault(record.label, record)
            if record.load["concurrency"] < best.load["concurrency"]:
                found[record.label] = record
    return list(found.values()) or list(records)


def _html(frame: pd.DataFrame) -> str:
    text: str = frame.to_html(escape=True, na_rep="–", float_format=number, border=0)
    return text


def number(value: float) -> str:
    """A figure with as many digits as it deserves: `1,047`, `12.3`."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def _unique(hosts: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = []
    for host in hosts:
        if host not in found:
            found.append(host)
    return found


def _environment() -> jinja2.Environment:
    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    loader = jinja2.DictLoader({"page": template})
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
