"""Results of other tools as cited rows: vllm bench serve, SGLang, llama-bench, guidellm and aiperf.

Layouts: vLLM 0.32.0 `vllm/benchmarks/serve.py`; SGLang 0.5.23 `bench_serving.py`; llama.cpp
`tools/llama-bench/README.md`; guidellm 0.8.1 (`benchmarks` with `metrics`); aiperf 0.13.0
(`profile_export_aiperf.json`).
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from utils.benchmark.record import Cited, RecordError
from utils.benchmark.records import RecordWarning, records_dir

Values = Mapping[str, Any]


def others_dir() -> Path:
    """Return the folder for results of other tools: `others` among the records."""
    return records_dir() / "others"


def load_foreign(directory: str | Path | None = None) -> list[Cited]:
    """Read every result of another tool in a folder; an absent folder has none.

    Files of an unknown layout are left out with a `RecordWarning` that names them.
    """
    folder = others_dir() if directory is None else Path(directory)
    found: list[Cited] = []
    for path in sorted([*folder.glob("[!.]*.json"), *folder.glob("[!.]*.jsonl")]):
        try:
            found += read_foreign(path)
        except RecordError as error:
            warnings.warn(f"left out: {error}", RecordWarning, stacklevel=2)
    return found


def read_foreign(path: str | Path) -> list[Cited]:
    """Read one result file of another tool.

    Raises:
        RecordError: The file can't be read, or no known tool writes such a file; names the file.
    """
    file = Path(path)
    objects = _objects(file)
    for tool, fits, read in _TOOLS:
        if objects and all(isinstance(one, dict) and fits(one) for one in objects):
            try:
                rows = [row for one in objects for row in read(one, f"{file.name} ({tool})")]
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                raise RecordError(
                    f"{file} looks like a result of {tool}, but {type(error).__name__}: {error}"
                ) from error
            if rows:
                return rows
    names = ", ".join(tool for tool, _, _ in _TOOLS)
    raise RecordError(f"{file} isn't a result of a known tool ({names})")


def _objects(file: Path) -> list[Any]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeError) as error:
        raise RecordError(f"cannot read {file}: {error}") from error
    try:
        whole = json.loads(text)
        return whole if isinstance(whole, list) else [whole]
    except (ValueError, RecursionError):
        pass
    try:
        return [json.loads(line) for line in text.split("\n") if line.strip()]
    except (ValueError, RecursionError) as error:
        raise RecordError(f"{file} isn't valid JSON: {error}") from error


def _cited(
    engine: object,
    model: object,
    source: str,
    batch: object,
    decode: object,
    *,
    prefill: object = None,
    quantisation: str = "",
    machine: object = "",
    note: str = "",
    figures: Mapping[str, Any] | None = None,
) -> Cited:
    lanes = _number(batch)
    return Cited(
        engine=str(engine or "an unnamed engine"),
        model=str(model or "an unnamed model"),
        quantisation=quantisation,
        machine=str(machine or ""),
        source=source,
        batch=max(1, round(lanes)) if lanes is not None else 1,
        prefill_tok_s=_number(prefill),
        decode_tok_s=_number(decode),
        note=note
        if lanes is not None
        else "; ".join(filter(None, [note, "requests in flight unknown"])),
        figures={k: v for k, value in (figures or {}).items() if (v := _number(value)) is not None},
    )


def _vllm(one: Values, source: str) -> Iterable[Cited]:
    rate = one.get("request_rate")
    note = "" if rate in (None, "inf") else f"{rate} requests/s"
    batch = one.get("max_concurrency") or one.get("max_concurrent_requests")
    keys = ("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_itl_ms", "request_throughput")
    figures = {key: one.get(key) for key in keys}
    yield _cited(
        one.get("backend"), one["model_id"], source, batch, one["output_throughput"],
        note=note, figures=figures,
    )  # fmt: skip


def _sglang(one: Values, source: str) -> Iterable[Cited]:
    info = one.get("server_info")
    model = info.get("model_path") if isinstance(info, dict) else None
    latency, rate = _number(one.get("mean_e2e_latency_ms")), one.get("request_rate")
    per_second = _number(one.get("request_throughput"))
    if per_second is None and one.get("completed") and one.get("duration"):
        per_second = one["completed"] / one["duration"]
    mean = latency * per_second / 1000 if latency and per_second else None  # Little's law
    limit = one.get("max_concurrency")
    batch = one.get("concurrency") or mean or limit
    keys = ("median_ttft_ms", "p99_ttft_ms", "median_tpot_ms", "p99_itl_ms", "request_throughput")
    yield _cited(
        one.get("backend"), model, source, batch, one["output_throughput"],
        note="" if rate in (None, "inf") or rate == math.inf else f"{rate} requests/s, mean in flight",
        figures={key: one.get(key) for key in keys},
    )  # fmt: skip


def _llama_bench(one: Values, source: str) -> Iterable[Cited]:
    prompt, answer, depth = one["n_prompt"], one["n_gen"], one.get("n_depth") or 0
    if prompt and answer:
        return  # one rate over both phases fits neither ceiling
    what = f"prompt of {prompt} tokens" if prompt else f"{answer} tokens"
    machine = one.get("gpu_info") if one.get("backends") != "CPU" else one.get("cpu_info")
    yield _cited(
        "llama.cpp", one.get("model_filename"), source, 1, None if prompt else one["avg_ts"],
        prefill=one["avg_ts"] if prompt else None,
        quantisation=_gguf_type(str(one.get("model_type", ""))),
        machine=machine or one.get("cpu_info"),
        note=what + (f" after {depth}" if depth else ""),
    )  # fmt: skip


def _guidellm(one: Values, source: str) -> Iterable[Cited]:
    arguments = one.get("args") if isinstance(one.get("args"), dict) else {}
    for benchmark in one["benchmarks"]:
        metrics = benchmark["metrics"]

        def successful(name: str, statistic: str, metrics: Values = metrics) -> Any:
            found = metrics.get(name, {}).get("successful") or {}
            return found.get(statistic, (found.get("percentiles") or {}).get(statistic))

        config = benchmark.get("config") or benchmark.get("args") or {}
        backend = config.get("backend") or benchmark.get("backend") or {}
        strategy = config.get("strategy") or {}
        kind = strategy.get("type_", "")
        streams = strategy.get("streams") or strategy.get("max_concurrency")
        batch = streams if kind == "concurrent" else successful("request_concurrency", "mean")
        yield _cited(
            "openai", backend.get("model") or (arguments or {}).get("model"),
            source, batch or streams, successful("output_tokens_per_second", "mean"),
            note=str(kind),
            figures={
                "median_ttft_ms": successful("time_to_first_token_ms", "median"),
                "p99_ttft_ms": successful("time_to_first_token_ms", "p99"),
                "median_tpot_ms": successful("time_per_output_token_ms", "median"),
                "request_throughput": successful("requests_per_second", "mean"),
            },
        )  # fmt: skip


def _aiperf(one: Values, source: str) -> Iterable[Cited]:
    config = one.get("input_config") or {}
    phases = [phase for phase in config.get("phases") or () if phase.get("kind") == "profiling"]
    endpoint, load = config.get("endpoint") or {}, (phases or [config.get("loadgen") or {}])[-1]
    models = endpoint.get("model_names") or config.get("models") or []
    if isinstance(models, dict):
        models = [model.get("name") for model in models.get("items", ())]

    def statistic(name: str, which: str) -> Any:
        return (one.get(name) or {}).get(which)

    latency, rate = statistic("request_latency", "avg"), statistic("request_throughput", "avg")
    mean = latency * rate / 1000 if latency and rate else None  # Little's law
    # It counts with a tokenizer, so its rates are off by as much as that differs from the model's.
    counted, reported = (
        statistic(name, "avg") for name in ("total_osl", "total_usage_completion_tokens")
    )
    yield _cited(
        "openai", models[0] if models else "", source,
        load.get("concurrency") or mean, one["output_token_throughput"]["avg"],
        note=f"counted {counted:.0f} tokens, but the server reported {reported:.0f}"
        if counted and reported and counted != reported else "",
        figures={
            "median_ttft_ms": statistic("time_to_first_token", "p50"),
            "p99_ttft_ms": statistic("time_to_first_token", "p99"),
            "median_tpot_ms": statistic("inter_token_latency", "p50"),
            "request_throughput": rate,
        },
    )  # fmt: skip


def _has(*keys: str) -> Callable[[Values], bool]:
    return lambda one: all(key in one for key in keys)


_TOOLS: Sequence[tuple[str, Callable[[Values], bool], Callable[[Values, str], Iterable[Cited]]]] = (
    ("llama-bench", _has("avg_ts", "n_prompt", "n_gen"), _llama_bench),
    ("vllm bench serve", _has("model_id", "output_throughput", "num_prompts"), _vllm),
    ("SGLang bench_serving", _has("output_throughput", "total_output_tokens_retokenized"), _sglang),
    ("guidellm", _has("benchmarks"), _guidellm),
    ("aiperf", _has("output_token_throughput", "time_to_first_token"), _aiperf),
)


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _gguf_type(model_type: str) -> str:
    """Return "Q4_K_M" for "qwen2 7B Q4_K - Medium"."""
    match = re.search(r"\b((?:I?Q\d\w*)|BF16|F16|F32)(?: - (Small|Medium|Large))?", model_type)
    if match is None:
        return ""
    return match[1] + (f"_{match[2][0]}" if match[2] else "")
