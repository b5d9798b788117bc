"""Tables, guards and plots of lab 3.3.3 on invented runs, without an engine or a clock."""

from dataclasses import replace
from types import SimpleNamespace

import pytest

from utils.benchmark import ClosedLoop, LoadResult, RequestTrace, engine_run, make_record
from utils.benchmark.engine_run import Run
from utils.engines import EngineError, fleet
from utils.kvcache.blocks import BlockPool, BlockTable
from utils.kvcache.paged_attention import paged_attention, write_pages
from utils.kvcache.scheduler import Job
from utils.kvcache.simulate import StepCost, simulate_continuous, simulate_static
from utils.labs.lab_3_3_3 import experiments, paging, plots, tables
from utils.labs.lab_3_3_3.fragmentation import run_contiguous, run_paged
from utils.model_sizes import blocks_for
from utils.profiles import ROOT, load_profile
from utils.telemetry import Series, Snapshot

CPU = replace(load_profile("cpu"), models={"vllm": "hub/model"})
ENGINE = SimpleNamespace(
    name="vllm", version="0", model_path="hub/model", quantisation="BF16", command=["vllm"]
)


def make_run(level, tpot_s, ttft_s=0.1, tokens=11, text="a", preemptions=(0, 0), usage=0.5):
    traces = tuple(
        RequestTrace(
            index=i,
            scheduled=100.0,
            sent=100.0,
            first_token=100.0 + ttft_s,
            finished=100.0 + ttft_s + (tokens - 1) * tpot_s,
            chunk_times=(100.0 + ttft_s,),
            text=text,
            prompt_tokens=4,
            completion_tokens=tokens,
        )
        for i in range(level)
    )
    duration = ttft_s + (tokens - 1) * tpot_s
    result = LoadResult(ClosedLoop(level), traces, 100.0, duration, "completions", "m")
    readings = tuple(
        Snapshot(time=100.0 + i, running=level, kv_usage=usage, preemptions=count)
        for i, count in enumerate(preemptions)
    )
    record = make_record(result, ENGINE, CPU, label="test")
    return Run(result, Series(readings, (), 100.0, 1.0), record)


def test_sweep_table_has_mean_throughput_and_median_latency():
    runs = [make_run(2, 0.01), make_run(2, 0.03), make_run(4, 0.01)]
    expected = (22 / 0.2 + 22 / 0.4) / 2
    assert experiments.throughput_at(runs, 2).value == pytest.approx(expected)
    assert experiments.throughput_at(runs, 2).count == 2
    assert experiments.latency_at(runs, 2, "median_tpot_ms") == pytest.approx(20)
    table = tables.sweep_table(runs)
    assert list(table.index) == [2, 4]
    assert table.loc[2, "requests"] == 4
    assert table.loc[2, "failed"] == 0
    assert table.loc[4, "TPOT median (ms)"] == 10


def test_speedup_table_has_both_levels_and_their_factor():
    runs = [make_run(1, 0.010, 0.1), make_run(8, 0.020, 0.3)]
    assert experiments.speedup(runs, 1, 8) == pytest.approx(8 * 0.2 / 0.5)
    table = tables.speedup_table(runs, 1, 8)
    assert list(table.loc["TPOT median (ms)"]) == [10, 20, 2]
    assert list(table.loc["TTFT as a share of E2E"]) == [0.5, 0.6, 1.2]
    assert table.loc["output tok/s", "factor"] == 3.2


def test_busy_warning_is_empty_on_quiet_machine():
    assert tables.busy_warning([make_run(1, 0.010), make_run(8, 0.020)], 1, 8) == ""


def test_busy_warning_names_delay_of_late_client():
    late = make_run(8, 0.020, 0.3)
    late = replace(late, result=replace(late.result, client_lag=0.4))
    runs = [make_run(1, 0.010, 0.1), late]
    assert "late by up to 400 ms" in tables.busy_warning(runs, 1, 8)
    assert tables.sweep_table(runs).loc[8, "client late by, worst (ms)"] == 400


def test_waves_table_counts_empty_places():
    slow = make_run(2, 0.010)
    uneven = replace(slow.result.traces[0], finished=100.1)
    wave = replace(slow, result=replace(slow.result, traces=(uneven, slow.result.traces[1])))
    table = tables.waves_table(make_run(4, 0.010), [wave, wave])
    assert list(table.loc["in waves"]) == [4, 0.4, "25%"]
    assert list(table.loc["continuously"]) == [4, 0.2, "0%"]


def test_pressure_table_counts_preemptions_or_says_not_reported():
    roomy, tight = make_run(4, 0.01), make_run(4, 0.03, preemptions=(2, 7), usage=1.0)
    silent = make_run(4, 0.03, preemptions=(None, None), usage=None)
    table = tables.pressure_table(roomy, {"tight": tight, "silent": silent})
    assert list(table.loc["room for all"]) == ["0", "50%", 220, "100%"]
    assert list(table.loc["tight"]) == ["5", "100%", 110, "50%"]
    assert list(table.loc["silent"])[:2] == ["not reported", "not reported"]


def test_modes_table_has_start_and_intervals():
    eager = [make_run(4, 0.020), make_run(4, 0.021), make_run(4, 0.0205)]
    compiled = [make_run(4, 0.010), make_run(4, 0.011), make_run(4, 0.0105)]
    starts = {"eager": 20.0, "compiled": 50.0}
    table = tables.modes_table({"eager": eager, "compiled": compiled}, starts, (4,))
    assert list(table["ready after (s)"]) == [20, 50]
    assert table.loc["eager", "4 in flight (tok/s)"] == str(experiments.throughput_at(eager, 4))


def test_same_answers_counts_texts():
    first, second = make_run(4, 0.01), make_run(4, 0.01)
    other = replace(second.result.traces[0], text="b")
    changed = replace(second.result, traces=(other, *second.result.traces[1:]))
    assert experiments.same_answers(first, second) == 1
    assert experiments.same_answers(first, replace(second, result=changed)) == 0.75


def test_requests_and_jobs_have_lengths_of_profile():
    even = engine_run.make_requests(CPU, 5, seed=1)
    assert {request.max_tokens for request in even} == {CPU.load.output_tokens}
    mixed = engine_run.make_requests(CPU, 40, seed=1, spread=0.5)
    lengths = [request.max_tokens for request in mixed]
    assert min(lengths) >= 0.5 * CPU.load.output_tokens
    assert max(lengths) <= 1.5 * CPU.load.output_tokens and len(set(lengths)) > 10
    assert len({request.prompt for request in mixed}) == 40
    assert engine_run.make_requests(CPU, 40, seed=1, spread=0.5) == mixed
    jobs = experiments.as_jobs(mixed, CPU)
    assert [job.output_tokens for job in jobs] == lengths
    assert {(job.arrival, job.prompt_tokens) for job in jobs} == {(0, CPU.load.prompt_tokens)}


def test_visits_share_the_beginning_of_their_assistant():
    profile = replace(CPU, models={"vllm": str(ROOT / "models" / "tiny")})
    a, b, again = experiments.make_visits(profile, "ABA", beginning=32, own=5, seed=1)
    assert len(a) == len(b) == 37
    assert a[:32] == again[:32] != b[:32] and a != again


def test_cached_tokens_are_refused_where_engine_does_not_report_them(monkeypatch):
    monkeypatch.setattr(experiments, "measure", lambda *args: make_run(1, 0.01))
    engine = SimpleNamespace(spec=SimpleNamespace(title="vLLM"))
    with pytest.raises(EngineError, match="vLLM doesn't report cached tokens"):
        experiments.cached_tokens(engine, CPU, [(1, 2)], "visitors")


def test_visits_table_has_prediction_next_to_measurement():
    table = tables.visits_table("AB", [0, 32], [0, 16])
    assert table.to_numpy().tolist() == [["A", 0, 0], ["B", 32, 16]]


def test_paged_example_equals_dense_attention():
    query, keys, values = paging.example("One, two, three.")
    pages = [paging.unused_pages(30, 4, like=vectors) for vectors in (keys, values)]
    table = list(range(29, 29 - blocks_for(len(keys), 4), -1))
    for memory, vectors in zip(pages, (keys, values), strict=True):
        write_pages(memory, table, vectors)
    difference = paged_attention(query, *pages, table, len(keys)) - paging.dense_attention(
        query, keys, values
    )
    assert difference.abs().max() < 1e-5


@pytest.mark.parametrize(("shares_gpu", "together"), [(False, 2), (True, 1)])
def test_variants_run_side_by_side_unless_they_share_a_gpu(monkeypatch, shares_gpu, together):
    alive, most, stopped = set(), [], []

    def engine(name):
        def stop():
            alive.discard(name)
            stopped.append(name)

        return SimpleNamespace(name=name, stop=stop, running=lambda: name in alive)

    def launch(name, profile, *, progress, tag):
        if tag == "bad":
            raise EngineError("out of luck")
        alive.add(tag)
        return engine(tag)

    def work(variant, running):
        most.append(len(alive))
        return variant + running.name

    monkeypatch.setattr(fleet, "launch", launch)
    profile = replace(CPU, shares_gpu=shares_gpu)
    variants = {"a": {"tag": "1"}, "b": {"tag": "2"}, "c": {"tag": "bad"}}
    results, reasons = experiments.run_variants(profile, variants, work)
    assert results == {"a": "a1", "b": "b2"} and reasons == {"c": "out of luck"}
    assert max(most) == together and set(stopped) == {"1", "2"} and not alive


def test_compiled_engine_is_left_out_when_too_slow():
    quick, slow = SimpleNamespace(start_seconds=20), SimpleNamespace(start_seconds=60)
    assert experiments.too_slow_to_compile(quick, CPU) == ""
    reason = experiments.too_slow_to_compile(slow, CPU)
    assert "took 60 s to start" in reason and "180 s of the 300 s" in reason
    assert experiments.too_slow_to_compile(slow, load_profile("spark")) == ""


def test_plots_show_their_data():
    pool = BlockPool(6, 4)
    table = BlockTable(pool)
    table.grow(5)
    axes = plots.plot_blocks(pool, {"one": table, "two": table.fork()}).axes[0]
    words = [text.get_text() for text in axes.texts]
    assert "0\n×2" in words and "5" in words
    assert "■ two: 5 tokens in blocks [0, 1]" in words

    jobs = [Job(i, 0, 10, 1 + i % 20) for i in range(40)]
    memory = [run_contiguous(jobs, 256, 64, "max"), run_paged(jobs, 256, 4)]
    axes = plots.plot_memory(memory).axes[0]
    assert sum(bar.get_width() for bar in axes.patches) == pytest.approx(200)
    assert "paged, blocks of 4" in axes.get_yticklabels()[1].get_text()

    cost = StepCost(0.01, 0.001)
    static, continuous = (
        simulate_static(jobs, cost, 256, 64),
        simulate_continuous(jobs, cost, 64, 4),
    )
    panels = plots.plot_schedules([static, continuous]).axes
    assert [panel.get_title().endswith("(predicted)") for panel in panels] == [True, True]

    left, right = plots.plot_sweep([make_run(1, 0.01), make_run(8, 0.02)], {8: 300.0}).axes
    assert [text.get_text() for text in left.get_legend().get_texts()] == [
        "proportional to concurrency",
        "predicted",
        "measured",
    ]
    assert right.get_ylabel() == "milliseconds"
