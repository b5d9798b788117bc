"""Records for the tests, made without an engine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

from utils.benchmark import ClosedLoop, OpenLoop, Record, RequestTrace, Slo, make_record
from utils.benchmark.load import LoadResult

PROFILE = SimpleNamespace(name="cpu", dtype="bfloat16")


def engine(model_path: str | Path = "org/model") -> SimpleNamespace:
    return SimpleNamespace(
        name="vllm",
        version="0.32.0",
        model_path=model_path,
        quantisation="BF16",
        command=["vllm", "serve", "x"],
    )


def result(load: ClosedLoop | OpenLoop | None = None, count: int = 3) -> LoadResult:
    traces = [
        RequestTrace(
            index=i,
            scheduled=100.0 + i,
            sent=100.1 + i,
            first_token=100.2 + i,
            chunk_times=(100.2 + i, 100.4 + i),
            finished=100.4 + i,
            text="naïve <b>",
            prompt_tokens=4,
            completion_tokens=3,
            engine_timings={"decode_s": 0.2, "decode_tokens": 3.0},
        )
        for i in range(count)
    ]
    traces.append(
        RequestTrace(index=count, scheduled=104, sent=104, finished=104.5, error="HTTP 500")
    )
    return LoadResult(load or ClosedLoop(2), tuple(traces), 100.0, 5.0, "chat", "m", 1, 0.001)


def record(load: ClosedLoop | OpenLoop | None = None) -> Record:
    return make_record(result(load), engine(), PROFILE, label="a run", slo=Slo(ttft_ms=150))


def scaled(label: str, load: ClosedLoop | OpenLoop, factor: float) -> Record:
    one = record(load)
    summary = {**one.summary, "output_throughput": 100 * factor}
    return replace(one, label=label, summary=summary)
