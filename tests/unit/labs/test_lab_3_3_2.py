"""Tables, sums and plots of lab 3.3.2 on invented runs, without an engine or a clock."""

from types import SimpleNamespace

import pytest

from utils.benchmark import ClosedLoop, LoadResult, RequestTrace
from utils.benchmark.engine_run import Run
from utils.engines import EngineError
from utils.kvcache import radix
from utils.kvcache.radix import Node
from utils.kvcache.replay import DrainedQueue
from utils.labs.lab_3_3_2 import experiments, plots, tables
from utils.labs.lab_3_3_2.experiments import Hits, Point, Routed, Structured
from utils.telemetry import Series, Snapshot

TINY = {
    "model_type": "qwen3",
    "hidden_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 2,
    "dtype": "float32",
}


def trace(index=0, prompt=100, cached=0, ttft=0.1, tokens=2, tpot=0.01, **options):
    return RequestTrace(
        index=index,
        scheduled=5.0,
        sent=5.0,
        first_token=5.0 + ttft,
        finished=5.0 + ttft + (tokens - 1) * tpot,
        chunk_times=(5.0 + ttft,),
        prompt_tokens=prompt,
        completion_tokens=tokens,
        cached_tokens=cached,
        **options,
    )


def load(*traces):
    return LoadResult(ClosedLoop(1), traces, 5.0, 1.0, "completions", "m")


def run_of(*traces, hits=(None, 40.0), queries=(0.0, 200.0)):
    readings = tuple(
        Snapshot(float(i), prefix_hits=h, prefix_queries=q)
        for i, (h, q) in enumerate(zip(hits, queries, strict=True))
    )
    record = SimpleNamespace(summary={"output_throughput": 20.0})
    return Run(load(*traces), Series(readings, (), 0.0, 1.0), record)


def test_hits_have_rates_of_usage_and_of_engine_counters():
    hits = experiments.hits_of(run_of(trace(cached=0), trace(cached=60)))
    assert hits.rate == 60 / 200
    assert hits.counted == 40 / 200
    assert experiments.hits_of(run_of(trace(), hits=(None, None))).counted is None


def test_hits_refuse_failed_request():
    with pytest.raises(EngineError, match="1 requests failed, the first with: HTTP 400: too long"):
        experiments.hits_of(run_of(trace(), trace(error="HTTP 400: too long")))


def hits_at(rate):
    return Hits(run_of(trace()), (round(1000 * rate),), (1000,))


@pytest.mark.parametrize(("rate", "points"), [(0.5, 0.0), (0.507, 0.7), (0.4, -10.0)])
def test_hits_table_has_difference_in_points(rate, points):
    table = tables.hits_table({"E": {"w": 0.5}}, {"E": {"w": hits_at(rate)}})
    assert table.loc[("E", "w"), "difference, points"] == points


def test_prefill_and_rest_are_the_line_through_two_points():
    cold, warm = Point(0.0, (1.0, 1.0, 9.0)), Point(0.9, (0.28,))
    prefill_s, rest_s = experiments.fit_prefill(cold, warm)
    assert (prefill_s, rest_s) == (pytest.approx(0.8), pytest.approx(0.2))
    assert experiments.fit_prefill(Point(0.0, (0.1,)), Point(0.5, (0.01,)))[1] == 0.0


def test_prefill_work_equals_count_by_hand():
    # 10 weights, 2 layers, 4 heads of 2: of 4 tokens the last 2 are new, and see 3 and 4 tokens.
    assert experiments.prefill_work(TINY, 10, 4, 2) == 2 * 10 * 2 + 4 * 2 * 4 * 2 * (3 + 4)
    model = SimpleNamespace(config=TINY, weights=SimpleNamespace(prefill_parameters=10))
    assert experiments.roofline_speedup(model, 4, 0.0) == 1.0
    assert experiments.roofline_speedup(model, 4, 0.5) == (80 + 64 * 10) / (40 + 64 * 7)
    assert experiments.roofline_speedup(model, 4, 1.0) == (80 + 64 * 10) / (20 + 64 * 4), (
        "the last is new"
    )


def test_curve_merges_its_turns():
    (point,) = experiments.merge_turns([[Point(0.4, (0.1, 0.2))], [Point(0.6, (0.3,))]])
    assert point == Point(0.5, (0.1, 0.2, 0.3))
    assert point.median == 0.2
    table = tables.curve_table({"E": [Point(0.0, (0.4,)), point]})
    assert table.loc[("E", "50%"), "times as fast as cold"] == 2.0


def test_structured_table_counts_valid_answers_and_pace():
    free = Structured("free", load(trace(tokens=11, tpot=0.01)), ())
    slow = Structured(
        "regex", load(trace(tokens=11, tpot=0.02), trace(1, tokens=11, tpot=0.02)), ("x",)
    )
    table = tables.structured_table({"E": [free, slow]})
    assert table.loc[("E", "regex"), "valid"] == "1 of 2"
    assert table.loc[("E", "regex"), "of free"] == "50%"
    assert tables.pace_left([free, slow], "regex") == pytest.approx(0.5)


def test_orders_table_shows_when_stranger_was_served():
    drained = DrainedQueue((0, 1, 2), 0.25, 1)
    table = tables.orders_table({"r": (hits_at(0.3), (0, 2, 1))}, {"r": drained}, [0, -1, 0])
    assert list(table.loc["r"]) == ["30.0%", "25.0%", 2, 3, 2]


def test_routes_table_shows_rate_and_balance():
    whole = Routed("round_robin", load(trace(cached=50), trace(1, cached=0)), (150.0, 50.0))
    assert whole.rate == 0.25
    table = tables.routes_table([whole])
    assert list(table.loc["round_robin"]) == ["25.0%", "75%", "25%", 100, "0 of 2"]
    idle = Routed("round_robin", load(trace()), (0.0, 0.0))
    assert tables.routes_table([idle]).loc["round_robin", "prompt tokens, worker 1"] == "unknown"


def test_lost_table_lists_requests_without_whole_answer():
    lost = trace(1, error="RemoteProtocolError: closed")
    routed = Routed("cache_aware", load(trace(), lost), (100.0, float("nan")))
    assert tables.dead_workers(routed) == "worker 2"
    assert routed.failed == 1
    assert list(tables.lost_table(routed).loc[1]) == [1, "RemoteProtocolError: closed"]


def test_lost_table_is_empty_when_all_are_answered():
    routed = Routed("cache_aware", load(trace()), (100.0, 50.0))
    assert tables.dead_workers(routed) == "none"
    assert tables.lost_table(routed).empty


def test_crowd_table_has_turns_and_mean():
    table = tables.crowd_table({"SGLang": [run_of(trace()), run_of(trace())]})
    assert list(table.loc["SGLang"]) == [20.0, 20.0, 20.0]
    assert tables.crowd_table({}).empty


def test_plots_show_their_data():
    root = Node([])
    radix.lock(radix.insert(root, [1, 2, 3]))
    radix.insert(root, [1, 2, 4])
    texts = [text.get_text() for text in plots.plot_tree(root).axes[0].texts]
    assert "[1, 2]  [locked by 1]" in texts and "[4]" in texts and texts.count("2") == 1
    assert plots.plot_tree(Node([])).axes
    hits = {"A": {"w": hits_at(0.5)}, "B": {"w": hits_at(0.2)}}
    bars = plots.plot_hits({"A": {"w": 0.5}, "B": {"w": 0.2}}, hits).axes[0]
    assert sorted(round(bar.get_height()) for bar in bars.patches) == [20, 50]
    curves = {"A": [Point(0.0, (0.4,)), Point(0.5, (0.2,))]}
    figure = plots.plot_speedup(curves, lambda f: 1 + f, lambda f: 1 / (1 - f))
    assert figure.axes[0].get_yscale() == "log"
    orders = plots.plot_orders({"r": (0, 2, 1)}, [0, -1, 0]).axes[0]
    assert [text.get_text() for text in orders.texts] == ["0", "2", "1"]
    routed = Routed("p", load(trace(cached=50)), (75.0, 25.0))
    left, right = plots.plot_routes([routed]).axes
    assert [bar.get_width() for bar in left.patches] == [50]
    assert [bar.get_width() for bar in right.patches] == [75, 25]
