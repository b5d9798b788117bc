"""The words and tables of lab 3.3.4 on made-up runs: no model, no engine, no clock."""

from types import SimpleNamespace

import pytest

from utils.labs.lab_3_3_4 import tables as words
from utils.labs.lab_3_3_4.experiments import KindAcceptance, TransformersBaseline
from utils.speculative.comparison import ServedSpeculation, SpeculationResult
from utils.speculative.generate import Generation
from utils.speculative.lossless import ChiSquare


def answer(tokens, accepted):
    return Generation([1], list(tokens), list(accepted))


def outcome(name, speedups, accepted=(3,), share=0.1):
    return SpeculationResult(
        name, [answer(range(20), accepted)], [100.0] * len(speedups), speedups, 1.0, share
    )


def kind(medusa, ngram, asked=5, good=4):
    return KindAcceptance(asked, good, [0.6, 0.4], medusa, ngram, 0.02)


def test_equal_answers_are_called_equal_and_others_are_named():
    plain = [answer([5, 6, 7], [1, 1]), answer([8, 9], [1])]
    good, bad = plain, [plain[0], answer([8, 4], [2])]
    said = words.explain_same({"plain": plain, "a": good, "b": bad}, "float32")
    assert "a: all 2 answers are plain decoding's" in said
    assert "b: 1 of 2 answers differ; the first (number 2) from token 2 on" in said
    assert "a fault" in said
    assert "to be expected" in words.explain_same({"plain": plain, "b": bad}, "bfloat16")
    table = words.same_table({"plain": plain, "b": bad})
    assert table.loc["b", "same as plain"] == "50.0%" and table.loc["b", "verifications"] == 3


def test_a_rule_that_does_what_it_should_not_is_shouted():
    tests = {"exact": ChiSquare(4.0, 5, 0.5, 100), "other": ChiSquare(90.0, 5, 1e-9, 100)}
    said = words.explain_chi(tests, ["exact"])
    assert "exact: keeps" in said and "other: changes" in said and "THEORY" not in said
    assert words.explain_chi(tests, ["exact", "other"]).count("NOT WHAT THEORY SAYS") == 1
    assert words.chi_table(tests)["the target's distribution"].tolist() == ["yes", "NO"]


def test_typical_acceptance_is_told_by_its_distance_from_both():
    said = words.explain_typical([0.5, 0.5], [0.1, 0.9], [10, 90])
    assert "0.40 away from the target's p and 0.00" in said and "nearer to the drafter's" in said
    assert "nearer to the target's" in words.explain_typical([0.5, 0.5], [0.1, 0.9], [48, 52])


def test_own_heads_are_set_beside_the_shipped_ones():
    said = words.explain_training([0.3], [0.6], 160, 3200)
    assert "50% of it for 5.0% of the data" in said and "data and steps" in said
    assert "would not have helped" in words.explain_training([0.7], [0.6], 160, 3200)
    assert words.heads_table({"yours": [0.25]}).loc["yours", "head 0"] == "25.0%"


def test_kinds_of_text_are_compared_with_the_control():
    kinds = {"code": kind(3.0, 2.0), "list": kind(2.0, 2.5), "prose": kind(1.25, 1.1)}
    said = words.explain_kinds(kinds)
    assert "Most is accepted in code (3.00" in said and "least in prose (1.25)" in said
    assert "as good or better in: list" in said
    assert "a step gives 50% of the mean" in said and "3 prompts were left out" in said
    assert "ahead of n-gram lookup in every kind" in words.explain_kinds({"code": kind(3.0, 2.0)})
    assert words.kinds_table(kinds).loc["code", "head 1 accepted"] == "40%"


def row(nodes, tokens, cost, speedup):
    return {
        "nodes": nodes,
        "tokens": tokens,
        "step_s": cost,
        "plain_s": 0.01,
        "draft_s": 0.001,
        "speedup": speedup,
    }


def test_the_optimum_is_told_and_why_the_largest_tree_is_not_it():
    predicted = {"small": row(5, 2.0, 0.012, 1.5), "large": row(17, 3.0, 0.03, 1.0)}
    measured = {
        "small": outcome("small", [1.4, 1.3, 1.5]),
        "large": outcome("large", [1.0, 0.9], (4,)),
    }
    said = words.explain_optimum(predicted, measured)
    assert "The model says small; measured, small is fastest: 1.40 times" in said
    assert "from large (4.00)" in said and "3.00 times" in said
    assert "same tree" not in said
    twins = {"small": predicted["small"], "large": row(5, 2.0, 0.012, 1.5)}
    assert "are the same tree here" in words.explain_optimum(twins, measured)
    table = words.measured_table(predicted, measured)
    assert table.loc["small", "difference"] == "-7%"
    assert words.prediction_table(predicted).loc["large", "T(n)/T(1)"] == 3.0
    nodes, said_, seen, tokens = words.speedup_series(predicted, measured)
    assert nodes == {"small": 5, "large": 17} and said_["small"] == 1.5
    assert seen["large"] == [1.0, 0.9] and tokens["large"] == 4.0


def test_a_missed_target_is_said_with_its_arithmetic():
    ngram = outcome("n-gram", [1.1], (2,))
    said = words.explain_targets(outcome("m", [1.4], (3,)), ngram, {1: 0.01, 9: 0.02}, 9, "float32")
    assert "speed-up: 1.40 (measured), target 2.0: MISSED." in said
    assert "acceptance length: 3.00 (measured), target 2.5: reached." in said
    assert "2.0 x 2.00 = 4.00 accepted tokens a step, and 3.00 came" in said
    assert "m is ahead in speed, ahead in acceptance" in said
    good = words.explain_targets(outcome("m", [2.4]), ngram, {1: 0.01, 9: 0.012}, 9, "bfloat16")
    assert "Why" not in good and "target 2.0: reached" in good
    near = words.explain_targets(outcome("m", [1.9]), ngram, {1: 0.01, 9: 0.014}, 9, "float32")
    assert "would allow 3.00 / 1.40 = 2.14; drafting took 10%" in near
    free = words.explain_targets(
        outcome("m", [1.9], (2,)), ngram, {1: 0.01, 9: 0.011}, 9, "bfloat16"
    )
    assert "guess better" in free


def test_a_slow_baseline_is_not_passed_over():
    good = TransformersBaseline([100.0, 100.0], [140.0, 150.0], 1.0, 1)
    assert good.ratio == pytest.approx(1.45)
    assert "1.45 of it" in words.explain_baseline(good)
    assert "No speed-up here comes" in words.explain_baseline(good)
    assert "TOO SLOW" in words.explain_baseline(TransformersBaseline([100.0], [50.0], 1.0, 1))


def served(texts, seconds, drafts=None, accepted=None):
    traces = [
        SimpleNamespace(text=text, completion_tokens=11, first_token=0.0, finished=seconds)
        for text in texts
    ]
    run = SimpleNamespace(result=SimpleNamespace(traces=traces))
    return ServedSpeculation(run, drafts, None, accepted)


def test_an_engine_is_compared_with_plain_and_its_counters_with_ours():
    found = {
        "plain": [served(["a", "b"], 1.0), served(["a", "b"], 2.0)],
        "Medusa": [served(["a", "b"], 0.5, 10, 20), served(["a", "x"], 1.0, 10, 20)],
    }
    assert words.served_speedup(found, "Medusa") == 2.0
    table = words.served_table(found)
    assert table.loc["Medusa", "speed-up"] == 2.0
    assert table.loc["Medusa", "1 + accepted/drafts"] == 3.0
    ours = [answer(range(30), [3, 3])]
    said = words.explain_served(found, ours)
    assert "Medusa: 1 of 2 answers" in said and "they agree within 10%" in said
    assert "do NOT agree" in words.explain_served(found, [answer(range(30), [2, 2])])


def test_differences_between_implementations_have_a_reason():
    assert "another order" in words.explain_own_and_served(0.5, 8, "bfloat16")
    assert "another order" not in words.explain_own_and_served(1.0, 8, "float32")
