"""Our statistics and our JSON, held to the installed vLLM itself."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path

import pytest
from benchmark_records import engine

from utils.benchmark import ClosedLoop, RequestTrace, Slo, make_record, summarise
from utils.benchmark.load import LoadResult
from utils.engines.vllm import PYTHON
from utils.profiles import load_profile

# Runs in vLLM's own environment: its metrics of the same requests, and its tools on our file.
ORACLE = """
import argparse, json, sys
from vllm.benchmarks.lib.endpoint_request_func import RequestFuncOutput
from vllm.benchmarks.serve import calculate_metrics, save_to_pytorch_benchmark_format
given, result_file = json.load(open(sys.argv[1])), sys.argv[2]
outputs = [RequestFuncOutput(**values) for values in given["outputs"]]
metrics, lengths = calculate_metrics(
    [None] * len(outputs), outputs, given["duration"], None, [50, 90, 95, 99], given["goodput"])
values = {k: v for k, v in vars(metrics).items() if not k.startswith("percentiles")}
for name in ("ttft", "tpot", "itl", "e2el"):
    for p, value in getattr(metrics, f"percentiles_{name}_ms"):
        values[f"p{p}_{name}_ms"] = value
results = json.load(open(result_file))
import os
os.environ["SAVE_TO_PYTORCH_BENCHMARK_FORMAT"] = "1"
save_to_pytorch_benchmark_format(argparse.Namespace(model="m"), results, result_file)
print("VALUES" + json.dumps({k: float(v) for k, v in values.items()} | {"lengths": lengths}))
"""


def traces(count: int) -> list[RequestTrace]:
    rng = random.Random(5)
    built = []
    for index in range(count):
        sent = rng.uniform(0, 20)
        times = [sent + rng.expovariate(5)]
        for _ in range(rng.randrange(0, 30)):
            times.append(times[-1] + rng.expovariate(30))
        built.append(
            RequestTrace(
                index=index,
                scheduled=sent,
                sent=sent,
                first_token=times[0],
                chunk_times=tuple(times),
                finished=times[-1],
                prompt_tokens=rng.randrange(1, 90),
                completion_tokens=len(times),
                error="HTTP 500" if index % 9 == 4 else None,
            )
        )
    return built


@pytest.mark.engine
@pytest.mark.skipif(not PYTHON.exists(), reason="vLLM is not installed here (make setup)")
def test_vllm_computes_the_same_from_the_same_requests(tmp_path: Path) -> None:
    actual, duration = traces(200), 25.0
    outputs = [
        {
            "success": t.ok,
            "latency": t.e2el() if t.ok else 0.0,
            "output_tokens": t.completion_tokens,
            "ttft": t.ttft() if t.ok else 0.0,
            "itl": list(t.itls),
            "prompt_len": t.prompt_tokens,
            "error": t.error or "",
            "start_time": t.sent,
        }
        for t in actual
    ]
    goodput = {"ttft": 250, "tpot": 35, "e2el": 900}
    given = {"outputs": outputs, "duration": duration, "goodput": goodput}
    (tmp_path / "given.json").write_text(json.dumps(given))
    result = LoadResult(ClosedLoop(8), tuple(actual), 0.0, duration, "chat", "m")
    ours_file = tmp_path / "ours.json"
    ours_file.write_text(json.dumps(make_record(result, engine(), load_profile("cpu")).to_vllm()))
    command = [str(PYTHON), "-c", ORACLE, str(tmp_path / "given.json"), str(ours_file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240, cwd=tmp_path)
    assert done.returncode == 0, done.stderr[-3000:]
    expected = json.loads(done.stdout.split("VALUES")[1])
    summary = summarise(actual, duration, slo=Slo(ttft_ms=250, tpot_ms=35, e2el_ms=900))
    names = [name for name in expected if name in summary.to_dict()]
    assert {"request_goodput", "output_throughput", "std_itl_ms", "p99_tpot_ms"} <= set(names)
    assert len(names) > 30
    # They count per second of the clock; we count per moment, and in any window of a second.
    ours_differ = {"max_concurrent_requests", "max_output_tokens_per_s"}
    for name in names:
        if name not in ours_differ:
            assert summary[name] == pytest.approx(expected[name]), name
    assert expected["total_output"] == summary.total_output_tokens
    assert len(list(tmp_path.glob("ours*.json"))) == 2
