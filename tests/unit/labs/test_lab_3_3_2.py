"""The words, tables, sums and pictures of lab 3.3.2 on made-up runs: no engine, no clock."""

from types import SimpleNamespace

import pytest

from utils.benchmark import ClosedLoop, LoadResult, RequestTrace
from utils.benchmark.engine_run import Run
from utils.engines import EngineError
from utils.kvcache import radix
from utils.kvcache.radix import Node
from utils.kvcache.replay import Served
from utils.labs.lab_3_3_2 import experiments, plots
from utils.labs.lab_3_3_2 import tables as words
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


def test_hit_rates_are_those_of_usage_and_of_the_engines_counters():
    hits = experiments.hits_of(run_of(trace(cached=0), trace(cached=60)))
    assert hits.rate == 60 / 200 and hits.counted == 40 / 200
    assert experiments.hits_of(run_of(trace(), hits=(None, None))).counted is None


def test_a_failed_request_is_no_hit_rate():
    with pytest.raises(EngineError, match="1 requests failed, the first with: HTTP 400: too long"):
        experiments.hits_of(run_of(trace(), trace(error="HTTP 400: too long")))


def made_hits(rate):
    return Hits(run_of(trace()), (round(1000 * rate),), (1000,))


@pytest.mark.parametrize(
    ("rate", "says"),
    [(0.5, "0.0 points"), (0.507, "begin with the same word"), (0.4, "found less"), (0.6, "more")],
)
def test_a_difference_from_the_prediction_is_explained(rate, says):
    said = words.explain_hits({"E": {"w": 0.5}}, {"E": {"w": made_hits(rate)}})
    assert said.startswith("E: at most") and says in said
    table = words.hits_table({"E": {"w": 0.5}}, {"E": {"w": made_hits(rate)}})
    assert table.loc[("E", "w"), "difference, points"] == round(100 * (rate - 0.5), 1)


def test_prefill_and_rest_are_the_line_through_two_points():
    cold, warm = Point(0.0, (1.0, 1.0, 9.0)), Point(0.9, (0.28,))
    prefill_s, rest_s = experiments.fit_prefill(cold, warm)
    assert (prefill_s, rest_s) == (pytest.approx(0.8), pytest.approx(0.2))
    assert "90% cached: 280 ms, 0.28 of it" in words.explain_cold(cold, warm)
    assert experiments.fit_prefill(Point(0.0, (0.1,)), Point(0.5, (0.01,)))[1] == 0.0


def test_work_of_a_prompt_is_counted_by_hand():
    # 10 weights, 2 layers, 4 heads of 2: of 4 tokens the last 2 are new, and see 3 and 4 tokens.
    assert experiments.prefill_work(TINY, 10, 4, 2) == 2 * 10 * 2 + 4 * 2 * 4 * 2 * (3 + 4)
    model = SimpleNamespace(config=TINY, weights=SimpleNamespace(prefill_parameters=10))
    assert experiments.roofline_speedup(model, 4, 0.0) == 1.0
    assert experiments.roofline_speedup(model, 4, 0.5) == (80 + 64 * 10) / (40 + 64 * 7)
    assert experiments.roofline_speedup(model, 4, 1.0) == (80 + 64 * 10) / (20 + 64 * 4), (
        "the last is new"
    )


def test_turns_of_a_curve_are_put_together():
    (point,) = experiments.merge_turns([[Point(0.4, (0.1, 0.2))], [Point(0.6, (0.3,))]])
    assert point == Point(0.5, (0.1, 0.2, 0.3)) and point.median == 0.2
    table = words.curve_table({"E": [Point(0.0, (0.4,)), point]})
    assert table.loc[("E", "50%"), "times as fast as cold"] == 2.0


def test_valid_answers_and_the_pace_are_counted():
    free = Structured("free", load(trace(tokens=11, tpot=0.01)), ())
    slow = Structured(
        "regex", load(trace(tokens=11, tpot=0.02), trace(1, tokens=11, tpot=0.02)), ("x",)
    )
    table = words.structured_table({"E": [free, slow]})
    assert table.loc[("E", "regex"), "valid"] == "1 of 2"
    assert table.loc[("E", "regex"), "of free"] == "50%"
    assert words.pace_left([free, slow], "regex") == pytest.approx(0.5)


def test_orders_name_the_one_who_waited():
    served = Served((0, 2, 1), 0.25, 1)
    said = words.explain_orders({"r": (made_hits(0.3), (0, 2, 1))}, {"r": served}, [0, -1, 0])
    assert "30.0% (measured), 25.0% (your tree)" in said
    assert "came as number 2 and was served as number 3 (measured), 3 (your tree)" in said


def test_a_router_is_told_by_rate_and_balance_and_a_death_by_its_victims():
    whole = Routed("round_robin", load(trace(cached=50), trace(1, cached=0)), (150.0, 50.0))
    assert whole.rate == 0.25 and whole.failed == 0
    assert "hit rate 25.0%, prompt tokens 75% : 25%" in words.explain_routes([whole])
    lost = trace(1, error="RemoteProtocolError: closed")
    dead = Routed("cache_aware", load(trace(), lost), (100.0, float("nan")))
    said = words.explain_death(dead)
    assert "worker 2 died: 1 of 2 requests were answered, 1 not" in said
    assert "after 1 chunks of the answer: RemoteProtocolError" in said
    assert "No worker died" in words.explain_death(whole)


def test_crowds_are_compared():
    runs = {"SGLang": [run_of(trace())], "SGLang, no radix cache": [run_of(trace())]}
    assert "The radix cache makes 1.00 times the throughput here." in words.explain_crowds(runs)


def test_pictures_show_what_they_are_given():
    root = Node([])
    radix.lock(radix.insert(root, [1, 2, 3]))
    radix.insert(root, [1, 2, 4])
    texts = [text.get_text() for text in plots.plot_tree(root).axes[0].texts]
    assert "[1, 2]  [locked by 1]" in texts and "[4]" in texts and texts.count("2") == 1
    assert plots.plot_tree(Node([])).axes
    hits = {"A": {"w": made_hits(0.5)}, "B": {"w": made_hits(0.2)}}
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
