"""Tables and guards of lab 3.3.4 on invented runs: no model, no engine, no clock."""

from types import SimpleNamespace

import pytest

from utils.labs.lab_3_3_4 import tables
from utils.labs.lab_3_3_4.experiments import OURS, READABLE, Baselines, KindAcceptance
from utils.speculative.comparison import ServedSpeculation, SpeculationResult
from utils.speculative.generate import Generation
from utils.speculative.lossless import ChiSquare


def answer(tokens, accepted):
    return Generation([1], list(tokens), list(accepted))


def result(name, speedups, accepted=(3,), share=0.1):
    return SpeculationResult(
        name, [answer(range(20), accepted)], [100.0] * len(speedups), speedups, 1.0, share
    )


def kind(medusa, ngram, asked=5, good=4):
    return KindAcceptance(asked, good, [0.6, 0.4], medusa, ngram, 0.02)


def test_same_table_counts_equal_answers():
    plain = [answer([5, 6, 7], [1, 1]), answer([8, 9], [1])]
    other = [plain[0], answer([8, 4], [2])]
    table = tables.same_table({"plain": plain, "b": other})
    assert table["same as plain"].tolist() == ["100.0%", "50.0%"]
    assert table["first difference"].tolist() == ["none", "answer 2, token 2"]
    assert table["verifications"].tolist() == [3, 3]


def test_same_table_finds_an_answer_that_ends_early():
    table = tables.same_table({"plain": [answer([8, 9], [1])], "b": [answer([8], [1])]})
    assert table.loc["b", "first difference"] == "answer 1, token 2"


CHI = {"exact": ChiSquare(4.0, 5, 0.5, 100), "other": ChiSquare(90.0, 5, 1e-9, 100)}


def test_chi_table_shows_measurement_and_theory():
    table = tables.chi_table(CHI, ["exact", "other"])
    assert table["the target's distribution"].tolist() == ["yes", "NO"]
    assert table["in theory"].tolist() == ["yes", "yes"]


def test_theory_guard_is_silent_when_tests_agree(capsys):
    tables.warn_against_theory(CHI, ["exact"])
    assert capsys.readouterr().out == ""


def test_theory_guard_names_the_rule_that_contradicts(capsys):
    tables.warn_against_theory(CHI, ["exact", "other"])
    assert "NOT WHAT THEORY SAYS: other" in capsys.readouterr().out


def test_draws_table_shows_distance_to_both_distributions():
    table = tables.draws_table([0.5, 0.5], [0.1, 0.9], {"rule": [10, 90]})
    assert table.loc["rule", "token 1"] == 0.9
    assert table["distance to p"].tolist() == [0.0, 0.4, 0.4]
    assert table["distance to q"].tolist() == [0.4, 0.0, 0.0]


def test_heads_table_shows_data_and_accuracy():
    table = tables.heads_table({"yours": [0.25]}, {"yours": 160})
    assert table.loc["yours"].tolist() == [160, "25.0%"]


def test_kinds_table_shows_heads_and_prompts_without_loops():
    table = tables.kinds_table({"code": kind(3.0, 2.0), "prose": kind(1.25, 1.1)})
    assert table.loc["code", "head 1 accepted"] == "40%"
    assert table.loc["prose", "prompts without loops"] == "4 of 5"


def row(nodes, tokens, cost, speedup):
    return {
        "nodes": nodes,
        "tokens": tokens,
        "step_s": cost,
        "plain_s": 0.01,
        "draft_s": 0.001,
        "speedup": speedup,
    }


PREDICTED = {"small": row(5, 2.0, 0.012, 1.5), "large": row(17, 3.0, 0.03, 1.0)}


def measured():
    return {"small": result("small", [1.4, 1.3, 1.5]), "large": result("large", [1.0, 0.9], (4,))}


def test_prediction_table_shows_costs_in_plain_steps():
    assert tables.prediction_table(PREDICTED).loc["large", "T(n)/T(1)"] == 3.0


def test_measured_table_compares_prediction_and_measurement():
    table = tables.measured_table(PREDICTED, measured())
    assert table["difference"].tolist() == ["-7%", "-5%"]
    assert table["acceptance length measured"].tolist() == [3.0, 4.0]


def test_speedup_series_holds_the_four_series_of_the_plot():
    nodes, predicted, speedups, tokens = tables.speedup_series(PREDICTED, measured())
    assert nodes == {"small": 5, "large": 17}
    assert predicted == {"small": 1.5, "large": 1.0}
    assert speedups["large"] == [1.0, 0.9]
    assert tokens["large"] == 4.0


def test_targets_table_marks_missed_targets():
    table = tables.targets_table(result("m", [1.4], (3,)), result("n-gram", [1.5], (2,)))
    assert table["reached"].tolist() == ["NO", "yes"]
    assert table["ahead of n-gram"].tolist() == ["NO", "yes"]


def baselines(ours, **others):
    speeds = {OURS: ours, READABLE: [1.0] * len(ours), **others}
    return Baselines(speeds, dict.fromkeys(speeds, 1.0))


def test_baseline_guard_is_silent_when_the_loop_is_fast(capsys):
    found = baselines([140.0, 150.0], transformers=[20.0, 20.0], vLLM=[100.0, 100.0])
    assert found.fastest_other == "vLLM"
    assert found.ratio("vLLM") == pytest.approx(1.45)
    tables.warn_slow_baseline(found)
    assert capsys.readouterr().out == ""


def test_baseline_guard_names_the_fastest_other_program(capsys):
    tables.warn_slow_baseline(baselines([50.0], transformers=[20.0], other=[100.0]))
    assert "TOO SLOW: it reaches 0.50 of the speed of other." in capsys.readouterr().out


def test_baseline_guard_ignores_the_readable_twin(capsys):
    only_own = baselines([50.0])
    only_own.speeds[READABLE] = [100.0]
    tables.warn_slow_baseline(only_own)
    assert capsys.readouterr().out == ""


def test_baseline_table_has_a_row_per_program():
    table = tables.baseline_table(baselines([50.0, 60.0], vLLM=[100.0, 100.0]))
    assert table.loc["vLLM", "ours / this"] == 0.55
    assert table.loc["vLLM", "least ... most"] == "0.50 ... 0.60"


def test_identical_table_marks_lengths_that_differ():
    table = tables.identical_table({"compiled": {2: True, 3: True}, "PyTorch": {2: True, 3: False}})
    assert table["3 tokens"].tolist() == ["yes", "NO"]


def served(texts, seconds, drafts=None, accepted=None):
    traces = [
        SimpleNamespace(text=text, completion_tokens=11, first_token=0.0, finished=seconds)
        for text in texts
    ]
    run = SimpleNamespace(result=SimpleNamespace(traces=traces))
    return ServedSpeculation(run, drafts, None, accepted)


def test_served_table_compares_engines_with_plain():
    found = {
        "plain": [served(["a", "b"], 1.0), served(["a", "b"], 2.0)],
        "Medusa": [served(["a", "b"], 0.5, 10, 20), served(["a", "x"], 1.0, 10, 20)],
    }
    table = tables.served_table(found)
    assert table.loc["Medusa", "speed-up"] == 2.0
    assert table.loc["Medusa", "1 + accepted/drafts"] == 3.0
    assert table.loc["Medusa", "same answers as plain"] == "1 of 2"
    assert tables.served_speedup(found, "Medusa") == 2.0


def test_served_table_stays_without_a_plain_engine():
    table = tables.served_table({"n-gram": [served(["a"], 1.0, 10, 5)]})
    assert table.loc["n-gram", "same answers as plain"] == ""
    assert table.loc["n-gram", "1 + accepted/drafts"] == 1.5
