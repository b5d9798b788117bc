"""Circumstances and results of one run: `Record` (measured) and `Cited` (published)."""

from __future__ import annotations

import re
import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from utils.benchmark.host import describe_host, model_hash
from utils.benchmark.load import LoadResult
from utils.benchmark.redact import redact
from utils.benchmark.stats import Slo
from utils.benchmark.trace import METRIC_DEFINITIONS, RequestTrace
from utils.benchmark.vllm_json import to_vllm
from utils.engines import sglang
from utils.files import plain

SCHEMA = 2
# "measured": on an engine that the course started. "attached": on an endpoint that somebody else runs.
# "rehearsal": on stand-ins for engines, so no number counts.
ORIGINS = ("measured", "attached", "rehearsal")


class RecordError(ValueError):
    """A record or report that cannot be written, or a file that is no usable record."""


class EngineLike(Protocol):
    """Engine as a record needs to know it; `utils.engines.launch` gives such a thing.

    An engine may also have `origin`, one of `ORIGINS`, and `handicaps`, the reasons why its numbers say
    nothing about it on other machines.
    """

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def version(self) -> str: ...  # noqa: D102
    @property
    def model_path(self) -> str | Path: ...  # noqa: D102
    @property
    def quantisation(self) -> str: ...  # noqa: D102
    @property
    def command(self) -> Sequence[str]: ...  # noqa: D102


class ProfileLike(Protocol):
    """Fields of a profile that a record needs."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def dtype(self) -> str: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Record:
    """One measured run.

    Attributes:
        id: Name of the file, without ".json".
        label: A name for people; runs with the same label and load are repeats.
        engine, engine_version: Engine that served.
        model: Path or hub id of the model.
        model_sha256: Hash of its weights; None if they are not on this machine.
        dtype: The profile's data type, for computing and for weights whose file does not fix it (GGUF does).
        quantisation: Type of the weights as they were held: "Q8_0"; "BF16" or "FP32" if none.
        profile: The course profile's name.
        host: `describe_host()`.
        command: The engine's command line.
        date: Start of the run, ISO 8601, UTC.
        load: `LoadResult.describe()`.
        duration: s.
        summary: Result keys of `vllm bench serve`, and ours; None where nothing was measured.
        traces: One per request; times are seconds from the start of the run.
        metric_definitions: Definition of each metric.
        telemetry: The engine's own metrics during the run, if sampled.
        extra: Anything else, in plain values.
        workload: Lengths, data set, seeds and sampling of the requests, see `Tally.describe`.
        handicaps: Reasons why the engine isn't ranked, such as a replacement for its kernels.
        origin: One of `ORIGINS`.
        schema: Version of this layout.
    """

    id: str
    label: str
    engine: str
    engine_version: str
    model: str
    model_sha256: str | None
    dtype: str
    quantisation: str
    profile: str
    host: Mapping[str, Any]
    command: tuple[str, ...]
    date: str
    load: Mapping[str, Any]
    duration: float
    summary: Mapping[str, Any]
    traces: tuple[RequestTrace, ...]
    metric_definitions: Mapping[str, str]
    telemetry: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)
    workload: Mapping[str, Any] = field(default_factory=dict)
    handicaps: tuple[str, ...] = ()
    origin: str = "measured"
    schema: int = SCHEMA

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, NaN as None."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        values["traces"] = [trace.to_dict() for trace in self.traces]
        result: dict[str, Any] = plain(values)
        return result

    @classmethod
    def from_dict(cls, values: object) -> Record:
        """Read `to_dict`'s output.

        Raises:
            RecordError: If it is not a complete record of this schema.
        """
        if not isinstance(values, dict):
            raise RecordError("not a JSON object")
        schema = values.get("schema")
        if isinstance(schema, int) and schema > SCHEMA:
            raise RecordError(
                f"schema {schema} is newer than schema {SCHEMA}, which this version of the course reads. "
                "Update the course"
            )
        if schema == 1:
            values = _from_schema_1(values)
        if values.get("schema") != SCHEMA or values.get("origin") not in ORIGINS:
            raise RecordError(
                f"not a measured record of schema 1 or {SCHEMA} (schema {schema!r}, "
                f"origin {values.get('origin')!r})"
            )
        names = [f.name for f in fields(cls)]
        if missing := [name for name in names if name not in values]:
            raise RecordError(f"missing fields: {', '.join(missing)}")
        if unknown := sorted(set(values) - set(names)):
            raise RecordError(f"unknown fields: {', '.join(unknown)}")
        try:
            _check_types(values)
            traces = tuple(RequestTrace.from_dict(trace) for trace in values["traces"])
        except (TypeError, ValueError, AttributeError, OverflowError) as error:
            raise RecordError(str(error)) from error
        lists = {"command": tuple(values["command"]), "handicaps": tuple(values["handicaps"])}
        return cls(**{**values, **lists, "traces": traces})

    def to_vllm(self) -> dict[str, Any]:
        """Return the run in the layout of `vllm bench serve --save-result --save-detailed`."""
        values: dict[str, Any] = plain(
            to_vllm(
                self.traces,
                self.duration,
                self.load,
                backend=self.engine,
                model=self.model,
                label=self.label,
                date=datetime.fromisoformat(self.date),
            )
        )
        return values


@dataclass(frozen=True, slots=True)
class Cited:
    """Published row, shown next to measurements and always with its source.

    Attributes:
        engine: Engine that served.
        model: Which model.
        quantisation: Type of the weights; "" if the source does not say.
        machine: Machine that ran it.
        source: Paper, page or file that gives the numbers.
        url: Address of the source; "" if it has no address.
        batch: Concurrent requests.
        prefill_tok_s: Prompt tokens per second; None if not given.
        decode_tok_s: Generated tokens per second over all requests; None if not given.
        note: Caveat for readers.
        figures: Further results under the keys of a summary.
        origin: "cited".
    """

    engine: str
    model: str
    quantisation: str
    machine: str
    source: str
    url: str = ""
    batch: int = 1
    prefill_tok_s: float | None = None
    decode_tok_s: float | None = None
    note: str = ""
    figures: Mapping[str, float] = field(default_factory=dict)
    origin: str = "cited"


def make_record(
    result: LoadResult,
    engine: EngineLike,
    profile: ProfileLike,
    *,
    label: str = "",
    slo: Slo | None = None,
    telemetry: Mapping[str, Any] | None = None,
    extra: Mapping[str, Any] | None = None,
    date: datetime | None = None,
) -> Record:
    """Put a run and its circumstances together.

    Args:
        result: Result of `run` (or an `EngineDied.result`).
        engine: Engine that served.
        profile: The course profile.
        label: A name for the run; default, the engine's name.
        slo: Objectives, for goodput in the summary.
        telemetry: The engine's own metrics, in plain values.
        extra: Anything else, in plain values.
        date: Start of the run; default, now less the run's length.
    """
    started = date or datetime.fromtimestamp(datetime.now(UTC).timestamp() - result.duration, UTC)
    stamp = started.astimezone(UTC).strftime("%Y%m%dT%H%M%SZ")
    summary = result.summary(slo=slo).to_dict()
    if result.clock == "scheduled":
        summary["from_sent"] = result.summary(slo=slo, clock="sent").to_dict()
    return Record(
        id=f"{stamp}-{_slug(label or engine.name)}-{secrets.token_hex(3)}",
        label=label or engine.name,
        engine=engine.name,
        engine_version=engine.version,
        model=str(engine.model_path),
        model_sha256=model_hash(engine.model_path),
        dtype=profile.dtype,
        quantisation=engine.quantisation,
        profile=profile.name,
        host=describe_host(),
        command=tuple(redact(engine.command)),
        date=started.astimezone(UTC).isoformat(timespec="seconds"),
        load=result.describe(),
        duration=result.duration,
        summary=plain(summary),
        traces=tuple(trace.shifted(result.started) for trace in result.traces),
        metric_definitions=dict(METRIC_DEFINITIONS),
        telemetry=telemetry,
        extra=dict(extra or {}),
        workload=plain(dict(result.workload)),
        handicaps=tuple(getattr(engine, "handicaps", ())),
        origin=getattr(engine, "origin", "measured"),
    )


def _from_schema_1(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of schema 1 in the present layout.

    It lacks a description of the workload, but the traces hold the limits of the answers and the tokens.
    SGLang on a CPU had the same handicap then.
    """
    traces = [t for t in values.get("traces") or () if isinstance(t, Mapping)]
    limits = [t["max_tokens"] for t in traces if isinstance(t.get("max_tokens"), int)]
    prompts = [t["prompt_tokens"] for t in traces if isinstance(t.get("prompt_tokens"), int)]
    workload: dict[str, Any] = {}
    if limits:
        workload["max_tokens"] = [min(limits), max(limits)]
    if prompts:
        mean = sum(prompts) / len(prompts)
        workload["prompt_tokens"] = {"mean": mean, "min": min(prompts), "max": max(prompts)}
    fallback = "torch_native" in (values.get("command") or ())
    handicaps = [sglang.CPU_HANDICAP] if fallback else []
    return {**values, "schema": SCHEMA, "workload": workload, "handicaps": handicaps}


def _check_types(values: Mapping[str, Any]) -> None:
    kinds: Mapping[str, type | tuple[type, ...]] = {
        "id": str,
        "label": str,
        "engine": str,
        "engine_version": str,
        "model": str,
        "dtype": str,
        "quantisation": str,
        "profile": str,
        "host": dict,
        "command": list,
        "date": str,
        "load": dict,
        "duration": (int, float),
        "summary": dict,
        "traces": list,
        "metric_definitions": dict,
        "extra": dict,
        "workload": dict,
        "handicaps": list,
    }
    for name, kind in kinds.items():
        if not isinstance(values[name], kind):
            raise TypeError(f"field {name!r} is a {type(values[name]).__name__}")
    if not isinstance(values["model_sha256"], str | None):
        raise TypeError(f"field 'model_sha256' is a {type(values['model_sha256']).__name__}")
    for name in ("command", "handicaps"):
        if not all(isinstance(word, str) for word in values[name]):
            raise TypeError(f"field {name!r} holds something else than texts")
    datetime.fromisoformat(values["date"])
    _check_host(values["host"])
    _check_workload(values["workload"])
    _check_summary(values["summary"])
    _check_load(values["load"])


def _check_host(host: Mapping[str, Any]) -> None:
    kinds: Mapping[str, type | tuple[type, ...]] = {
        "cpu": str,
        "cores": int,
        "memory_bytes": (int, float),
        "gpu": list,
        "os": str,
        "python": str,
    }
    for name, kind in kinds.items():
        if not isinstance(host.get(name), kind):
            raise ValueError(f"the host's {name!r} is {host.get(name)!r:.40}")
    if not all(isinstance(gpu, str) for gpu in host["gpu"]):
        raise ValueError("the host's 'gpu' holds something else than names")


def _check_workload(workload: Mapping[str, Any]) -> None:
    limits = workload.get("max_tokens") or []
    if not isinstance(limits, list) or not all(_is_number(limit) for limit in limits):
        raise TypeError("the workload's 'max_tokens' isn't a list of numbers")
    for name in ("prompt_tokens", "output_tokens"):
        lengths = workload.get(name)
        if lengths is not None and not (
            isinstance(lengths, dict) and _is_number(lengths.get("mean"))
        ):
            raise TypeError(f"the workload's {name!r} has no mean")


def _check_summary(summary: Mapping[str, Any]) -> None:
    for key in ("completed", "failed", "request_throughput", "mean_ttft_ms"):
        if key not in summary:
            raise ValueError(f"the summary lacks {key!r}")
    if not (_is_number(summary["completed"]) and _is_number(summary["failed"])):
        raise TypeError("the summary's 'completed' and 'failed' have to be numbers")
    for key, value in summary.items():
        figure = key.endswith(("_ms", "_throughput", "_goodput"))
        if figure and value is not None and not _is_number(value):
            raise TypeError(f"the summary's {key!r} is a {type(value).__name__}, not a number")
    if isinstance(summary.get("from_sent"), Mapping):
        _check_summary(summary["from_sent"])


def _check_load(load: Mapping[str, Any]) -> None:
    key = {"closed": "concurrency", "open": "request_rate"}.get(str(load.get("pattern")))
    if key is None:
        raise ValueError(f"the load's pattern is {load.get('pattern')!r}, not 'closed' or 'open'")
    if not _is_number(load.get(key)) or not load[key] > 0:
        raise ValueError(f"the load's {key!r} is {load.get(key)!r}, not a positive number")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40] or "run"
