"""Records as a table, as plots and as one self-contained HTML page."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jinja2
import matplotlib.pyplot as plt
import pandas as pd

from utils.benchmark.condition import differing, load_text, repeats
from utils.benchmark.intervals import repeat_interval
from utils.benchmark.plots import (
    alt_text,
    html_image,
    plot_distributions,
    plot_latency_against_rate,
    plot_throughput,
)
from utils.benchmark.records import Cited, Record, records_dir, save, without_duplicates
from utils.benchmark.stats import METRICS, Latency
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
THROUGHPUTS: Mapping[str, str] = {
    "output tok/s": "output_throughput",
    "requests/s": "request_throughput",
    "goodput requests/s": "request_goodput",
}
# Column of the table -> latency metric and statistic.
LATENCIES: Mapping[str, tuple[str, str]] = {
    "TTFT median ms": ("ttft", "median"),
    "TTFT p95 ms": ("ttft", "p95"),
    "TPOT median ms": ("tpot", "median"),
    "ITL p99 ms": ("itl", "p99"),
    "latency p95 ms": ("e2el", "p95"),
}
# Values of a condition that always have a column, and those that never get one.
_ALWAYS = ("engine", "load", "weights", "origin")
_IN_NOTES = ("handicap", "ended")
_CACHED_SHARE = 0.01


def table(records: Iterable[Record], cited: Iterable[Cited] = ()) -> pd.DataFrame:
    """Return one row per condition; repeats are put together.

    Throughputs are means over the repeats, latencies are computed over the requests of all of them. A
    percentile that the requests are too few for is missing.

    Args:
        records: Measured runs.
        cited: Published rows to show below them.

    Returns:
        A table indexed by label and load. `origin` tells for every row whether it was measured
        here or is cited; `± 95 %` is half the confidence interval of the throughput over the
        repeats, NaN for a single run. Whatever else differs between the rows has a column of its own, and
        `note` holds what to bear in mind about a row's numbers.
    """
    groups = repeats(records)
    columns = [name for name in differing(groups) if name not in _ALWAYS + _IN_NOTES]
    rows = [_row(group, dict(one), columns) for one, group in groups.items()]
    rows += [_cited_row(row) for row in cited]
    if not rows:
        raise ValueError("no records to make a table of: measure first")
    frame = pd.DataFrame(rows).set_index(["engine", "load"])
    frame = frame.dropna(axis="columns", how="all")
    if "note" in frame and not frame["note"].fillna("").any():
        frame = frame.drop(columns="note")
    return frame.fillna({"note": ""}) if "note" in frame else frame


def pooled(records: Sequence[Record], metric: str) -> Latency:
    """Return a latency metric over the requests of several runs, by each run's own clock."""
    return Latency.of(value for record in records for value in _values(record, metric))


def notes(records: Sequence[Record]) -> list[str]:
    """Return what to bear in mind about the numbers of repeats."""
    found = list(dict.fromkeys(f"not ranked: {why}" for r in records for why in r.handicaps))
    found += dict.fromkeys(f"ended early: {why}" for r in records if (why := r.load.get("stopped")))
    if any(record.origin == "rehearsal" for record in records):
        found.append("a rehearsal: no engine")
    completed = _total(records, "completed")
    for metric in METRICS:
        count = sum(not math.isnan(v) for r in records for v in _values(r, metric))
        if metric != "itl" and count != completed:
            found.append(f"{metric.upper()} of {count} requests")
    if lacking := _total(records, "usage_missing"):
        found.append(f"{lacking:g} answers without usage")
    if resends := _total(records, "resends"):
        found.append(f"{resends:g} sent again")
    if cold := sum(record.load.get("warmup_failed") or 0 for record in records):
        found.append(f"{cold} warm-up requests failed")
    most = max((_number(record.summary.get("tokens_per_chunk")) for record in records), default=0.0)
    if most > 1.1:
        found.append(f"{most:.1f} tokens a chunk: ITL is per chunk")
    cached = [r for r in records if r.workload.get("fresh") and _share_cached(r) > _CACHED_SHARE]
    if cached:
        share = max(_share_cached(record) for record in cached)
        found.append(
            f"{share:.0%} of the prompt tokens were in the prefix cache, but none should be"
        )
    return found


def write_html(
    records: Iterable[Record],
    path: str | Path | None = None,
    *,
    title: str = "Inference engines, measured",
    not_run: Mapping[str, str] | None = None,
    cited: Sequence[Cited] = (),
    tables: Mapping[str, pd.DataFrame] | None = None,
) -> Path:
    """Write everything known about the records as one page without outside resources.

    Args:
        records: Measured runs.
        path: File to write; default, `report.html` in the records' folder.
        title: Heading.
        not_run: Engine to the reason why it did not run here.
        cited: Published rows, shown next to the measured ones.
        tables: Further tables by heading.

    Returns:
        The page's path.

    Raises:
        ValueError: If there is nothing to report.
        RecordError: If it cannot be written.
    """
    records = without_duplicates(records)
    sections = {"Comparison": table(records, cited)}
    sections |= dict(tables or {})
    page = (
        _environment()
        .get_template("page")
        .render(
            title=title,
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            records=records,
            hosts=dict.fromkeys(host_text(record.host) for record in records),
            definitions=METRIC_DEFINITIONS,
            sections={name: _html(frame) for name, frame in sections.items()},
            images=_images(records),
            not_run=dict(not_run or {}),
            load_text=load_text,
            notes=notes,
            host_text=host_text,
        )
    )
    target = Path(path) if path is not None else records_dir() / "report.html"
    return save(target, page)


def _row(
    group: Sequence[Record], condition: Mapping[str, str], columns: Sequence[str]
) -> dict[str, Any]:
    row: dict[str, Any] = {name: condition[name] for name in _ALWAYS[:-1]}
    row |= {name: condition[name] or "–" for name in columns}
    row |= {
        "runs": len(group),
        "completed": _total(group, "completed"),
        "failed": _total(group, "failed"),
    }
    for column, key in THROUGHPUTS.items():
        values = [v for record in group if (v := record.summary.get(key)) is not None]
        row[column] = sum(values) / len(values) if values else math.nan
        if key == "output_throughput":
            interval = repeat_interval(values) if len(values) > 1 else None
            row["± 95 %"] = interval.half_width if interval else math.nan
    for column, (metric, statistic) in LATENCIES.items():
        row[column] = pooled(group, metric).statistic(statistic)
    return row | {"origin": group[0].origin, "note": "; ".join(notes(group))}


def _values(record: Record, metric: str) -> Iterable[float]:
    clock = record.load.get("clock", "sent")
    for trace in record.traces:
        if not trace.ok:
            continue
        if metric == "itl":
            yield from trace.itls
        elif metric == "tpot":
            yield trace.tpot
        else:
            yield trace.ttft(clock) if metric == "ttft" else trace.e2el(clock)


def _total(records: Sequence[Record], key: str) -> int:
    return sum(record.summary.get(key) or 0 for record in records)


def _number(value: object) -> float:
    return float(value) if isinstance(value, int | float) else 0.0


def _share_cached(record: Record) -> float:
    cached, prompts = record.summary.get("cached_tokens"), record.summary.get("total_input_tokens")
    return cached / prompts if cached and prompts else 0.0


def _cited_row(row: Cited) -> dict[str, Any]:
    return {
        "engine": f"{row.engine}, {row.model}",
        "load": f"{row.batch} in flight",
        "weights": row.quantisation or "not said",
        "output tok/s": math.nan if row.decode_tok_s is None else row.decode_tok_s,
        **{
            column: row.figures.get(f"{statistic}_{metric}_ms", math.nan)
            for column, (metric, statistic) in LATENCIES.items()
        },
        "origin": ", ".join(text for text in (f"cited: {row.source}", row.machine) if text),
        "note": row.note,
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
    """Return the closed-loop records of each label with the fewest requests in flight; all if none."""
    closed = [record for record in records if record.load.get("pattern") == "closed"]
    least: dict[str, float] = {}
    for record in closed:
        level = record.load["concurrency"]
        least[record.label] = min(level, least.get(record.label, level))
    chosen = [record for record in closed if record.load["concurrency"] == least[record.label]]
    return chosen or list(records)


def _html(frame: pd.DataFrame) -> str:
    text: str = frame.to_html(escape=True, na_rep="–", float_format=number, border=0)
    return text


def number(value: float) -> str:
    """Return a figure with as many digits as it deserves: `1,047`, `12.3`."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def host_text(host: Mapping[str, Any]) -> str:
    """Return a machine in words."""
    gpu = ", ".join(host["gpu"]) or "no GPU"
    return (
        f"{host['cpu']}, {host['cores']} cores, {host['memory_bytes'] / 2**30:.0f} GiB of memory, {gpu}; "
        f"{host['os']}, Python {host['python']}"
    )


def _environment() -> jinja2.Environment:
    template = Path(__file__).with_name("report.html.j2").read_text(encoding="utf-8")
    loader = jinja2.DictLoader({"page": template})
    return jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )
