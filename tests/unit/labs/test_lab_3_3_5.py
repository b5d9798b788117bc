"""Lab 3.3.5's tables and guards on invented runs; its mask, probe and data on the tiny model."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from utils.labs.lab_3_3_5 import experiments, tables
from utils.labs.lab_3_3_5.experiments import Expansion, Level
from utils.labs.lab_3_3_5.hidden_state_probe import probe
from utils.profiles import PROFILES, gpu_models
from utils.speculative.comparison import ServedSpeculation, SpeculationResult
from utils.speculative.dataset import Prompt, Recorded, tokenizer_of
from utils.speculative.drafters import EagleDrafter
from utils.speculative.generate import Generation
from utils.speculative.heads import Eagle3Draft, EagleShape
from utils.speculative.target import load_target
from utils.speculative.training import draft_layer
from utils.speculative.tree import rerank
from utils.speculative.ttt import attention_gap, ttt_mask
from utils.tinymodel import hub


@pytest.fixture(scope="module")
def target():
    torch.set_num_threads(1)
    return load_target(str(hub.TINY))


@pytest.fixture(scope="module")
def eagle(target):
    torch.manual_seed(0)
    return Eagle3Draft(EagleShape(draft_layer(target), 256, (2, 12, 21))).eval()


def result(name, accepted, drafted, speedup, draft_share=0.1):
    tokens = list(range(1 + sum(accepted)))
    generation = Generation([1], tokens, accepted, drafted)
    return SpeculationResult(name, [generation], [100 * speedup], [speedup], 1.0, draft_share)


def results(eagle=2.0, lookup=1.2):
    return {
        "plain": result("plain", [1] * 8, [0] * 8, 1.0, 0.0),
        "n-gram": result("n-gram", [2, 2], [4, 4], lookup, 0.0),
        "EAGLE-3, chain of 3": result("EAGLE-3", [4, 2], [3, 3], eagle),
    }


def served(texts, throughput, drafts=None, accepted=None):
    run = SimpleNamespace(
        throughput=throughput,
        result=SimpleNamespace(traces=[SimpleNamespace(text=text) for text in texts]),
    )
    return ServedSpeculation(run, drafts, drafts and 3 * drafts, accepted)


@pytest.mark.parametrize("step", [0, 1, 2, 3])
def test_the_mask_is_that_of_the_training(step):
    assert attention_gap(ttt_mask, rows=7, step=step) < 1e-6
    if step:
        everything = lambda rows, step: [[True] * (rows * (step + 1))] * rows  # noqa: E731
        assert attention_gap(everything, rows=7, step=step) > 0.01


def test_the_probe_finds_what_is_in_the_inputs(target):
    torch.manual_seed(0)
    data = []
    for _ in range(30):  # the hidden state of token i spells token i + 2, tokens are drawn evenly
        ids = torch.randint(0, 12, (14,))
        spelled = target.embed.weight[ids].half()
        hidden = torch.cat((spelled[2:], spelled[:1]))
        data.append(Recorded(ids, 2, hidden, torch.cat((hidden, hidden), 1)))
    alone, last, several = probe(target, data[:24], data[24:]).values()
    assert alone < 0.4 and last > 0.95 and several > 0.95


def test_all_hidden_states_are_those_that_a_draft_is_given(target):
    states = experiments.hidden_states(target, [5, 6, 7])
    assert states.shape == (target.shape.layers + 1, 3, target.shape.hidden)
    torch.testing.assert_close(states[0], target.embed.weight[[5, 6, 7]].float())


def test_acceptance_counts_the_guesses_that_were_looked_at():
    """The last verification ends the answer: what it cut off was not found wrong."""
    one = Generation([1], [], accepted=[4, 2, 1, 2], drafted=[3, 3, 3, 3])
    assert experiments.acceptance_rate([one]) == (3 + 1) / (3 + 2 + 1)
    assert experiments.acceptance_rate([]) == 0.0


def test_probe_table_shows_the_gain_over_the_token_alone():
    table = tables.probe_table({"token": 0.25, "states": 0.5})
    assert table["right"].tolist() == ["25.0%", "50.0%"]
    assert table["gain (points)"].tolist() == ["+0.0", "+25.0"]


def test_targets_table_marks_missed_targets():
    table = tables.targets_table(results())
    assert table["measured"].tolist() == [2.0, 3.0, 1.67]
    assert table["reached"].tolist() == ["NO", "yes", "yes"]


def test_targets_table_takes_the_best_method_of_each_target():
    found = results() | {"EAGLE-3, chain of 5": result("EAGLE-3", [5, 2], [5, 5], 1.0)}
    table = tables.targets_table(found)
    assert table.loc["speed-up", "best method"] == "EAGLE-3, chain of 3"
    assert table.loc["acceptance length", "best method"] == "EAGLE-3, chain of 5"


def test_costs_are_read_between_the_sizes_measured():
    costs = {1: 0.01, 4: 0.02, 5: 0.03}
    drafting = {"n-gram": 0.0, "EAGLE-3, chain of 3": 0.005}
    table = tables.cost_table(results(), costs, drafting)
    assert table.loc["n-gram", "verification / T(1)"] == 3.0
    row = table.loc["EAGLE-3, chain of 3"]
    assert (row["verification / T(1)"], row["draft / T(1)"], row["speed-up, derived"]) == (
        2.0,
        0.5,
        1.2,
    )
    assert tables._interpolated(costs, 2) == pytest.approx(0.01 + 0.01 / 3)
    assert tables._interpolated(costs, 9) == 0.03


def test_cost_table_tells_the_distance_to_the_target():
    table = tables.cost_table(
        results(), {1: 0.01, 4: 0.02}, {"n-gram": 0, "EAGLE-3, chain of 3": 0.005}
    )
    row = table.loc["EAGLE-3, chain of 3"]
    assert row["acceptance length for 2.5"] == 6.25
    assert row["cycle for 2.5"] == 1.2


def test_position_table_has_a_column_per_guess():
    table = tables.position_table({"ours": [0.8, 0.5]})
    assert table.loc["ours"].tolist() == ["80.0%", "50.0%"]


def test_same_table_shows_equal_and_all_answers():
    table = tables.same_table({"a": (100, 100), "b": (99, 100)})
    assert table["share"].tolist() == ["100.0%", "99.0%"]


def test_agreement_table_shows_both_programs():
    own = results()["EAGLE-3, chain of 3"]
    table = tables.agreement_table(own, served(["x"], 1.0, 2.0, 4.0))
    assert table.loc["our own loop"].tolist() == [2, 4, 3.0]
    assert table.loc["vLLM's counters"].tolist() == [2, 4, 3.0]


def test_served_answers_are_compared():
    found = {"plain": served(["a", "b"], 100.0), "EAGLE-3": served(["a", "c"], 150.0, 10.0, 15.0)}
    table = tables.served_table(found)
    assert table.loc["EAGLE-3", "times plain"] == 1.5
    assert table.loc["EAGLE-3", "acceptance length"] == 2.5
    assert table.loc["EAGLE-3", "same answers as plain"] == "1 of 2"


def levels(ratios):
    plain = [Level(1, t, (10.0, 30.0), 1.0) for t in (0.0, 1.0)]
    own = [Level(1, t, (20.0 * r,), 2.5) for t, r in zip((0.0, 1.0), ratios, strict=True)]
    return {"plain": plain, "E": own}


def test_crossover_table_shows_the_ratio_by_level_and_temperature():
    found = levels((1.5, 0.8))
    assert tables.ratios(found, 0.0, "E") == {1: 1.5}
    found["plain"] += [Level(8, 0.0, (50.0,), 1.0)]
    found["E"] += [Level(8, 0.0, (40.0,), 2.0)]
    assert list(tables.crossover_table(found)["ratio"]) == [1.5, 0.8, 0.8]


def test_guess_table_shows_the_change_from_first_to_last():
    table = tables.guess_table({"a": [0.8, 0.4], "b": [0.4, 0.6]})
    assert table["guess 2"].tolist() == ["40%", "60%"]
    assert table["first to last (points)"].tolist() == ["-40", "+20"]


def test_the_accepted_path_follows_the_answer():
    tree = Expansion([-1, 0, 0, 1], [1.0, 0.6, 0.3, 0.5], [7, 8, 9, 8], [7, 8, 8])
    assert tree.accepted([0, 1, 2, 3]) == [0, 1, 3]
    assert tree.accepted([0, 1, 2]) == [0, 1]
    assert rerank(tree.parents, [0.0, -0.5, -1.2, -1.2], 2) == [0, 1, 2]


def test_an_expanded_tree_holds_the_drafts_probabilities(target, eagle):
    prompt = tokenizer_of(target)("def f(x):")["input_ids"]
    tree = experiments.expand(target, eagle, prompt, depth=3, width=2, behind=[1, 4])
    assert len(tree.parents) == len(tree.probabilities) == len(tree.tokens) == 1 + 2 + 4 + 4
    assert tree.tokens[0] == tree.answer[0] and len(tree.answer) == 4
    siblings = [n for n, parent in enumerate(tree.parents) if parent == 0]
    assert 0 < sum(tree.probabilities[n] for n in siblings) < 1
    assert not eagle.lm_head._forward_hooks, "the hook is taken off again"


def test_lossless_is_counted_and_a_lie_found(target, eagle):
    profile = SimpleNamespace(
        load=SimpleNamespace(speculation=SimpleNamespace(same=5, answer_tokens=16))
    )
    tokenizer = tokenizer_of(target)
    found = experiments.check_same(
        target, {"chain": EagleDrafter(eagle, 2)}, tokenizer, profile, batch=3
    )
    assert found == {"chain": (5, 5)}


def test_the_small_data_is_split(target):
    sizes = SimpleNamespace(training_prompts=5, training_steps=1, answer_tokens=6)
    profile = SimpleNamespace(load=SimpleNamespace(speculation=sizes))
    data = experiments.make_data(target, tokenizer_of(target), profile, (2, 12, 21))
    assert [len(part) for part in data] == [4, 1]
    trained = experiments.train_small(target, data, profile, unrolled=2, looked_at=3)
    assert len(trained.accuracy) == 3 and len(trained.log[-1].accuracy) == 2


def test_prompts_are_planned_by_the_cost_of_a_step_the_kinds_in_turn():
    sizes = SimpleNamespace(repeats=5, answer_tokens=96)
    profile = SimpleNamespace(load=SimpleNamespace(speculation=sizes), time_budget_s=300.0)
    asked = [Prompt(kind, [i], []) for kind in ("a", "b", "c", "d") for i in range(6)]
    fewest = experiments.fit_prompts(asked, 0.1, profile)
    assert fewest == [[0]] * 4 + [[1]] * 4, "two of each kind at least"
    assert len(experiments.fit_prompts(asked, 0.003, profile)) == 14  # 90 s / (5 x 64 x 3 ms x 6.6)
    assert len(experiments.fit_prompts(asked, 1e-6, profile)) == 24
    uneven = [Prompt("a", [0], []), Prompt("b", [1], []), Prompt("a", [2], [])]
    assert experiments.fit_prompts(uneven, 0.1, profile) == [[0], [1], [2]]


def test_acceptance_by_temperature_is_that_of_exact_sampling(target, eagle):
    profile = SimpleNamespace(load=SimpleNamespace(speculation=SimpleNamespace(answer_tokens=12)))
    prompt = tokenizer_of(target)("def f(x):")["input_ids"]
    found = experiments.by_temperature(target, eagle, [prompt], profile, (0.0, 1.0))
    assert list(found) == [0.0, 1.0] and all(1 <= length <= 4 for length in found.values())


def test_temperature_table_shows_the_change_from_the_first():
    table = tables.temperature_table({0.0: 3.0, 1.0: 2.0})
    assert table["change"].tolist() == ["+0.00", "-1.00"]


def test_sampling_guard_warns_below_half_of_the_accepted_guesses(capsys):
    tables.warn_other_sampling(1.02, 2.9)
    assert "SAMPLING IS NOT THE TARGET'S" in capsys.readouterr().out


def test_sampling_guard_is_silent_when_both_accept_alike(capsys):
    tables.warn_other_sampling(2.8, 2.9)
    assert capsys.readouterr().out == ""


def test_eagle3_is_left_out_with_its_reason_where_no_heads_are_public(capsys):
    small = replace(PROFILES["cuda"], models=gpu_models("0.6B"))
    assert list(experiments.vllm_variants(small)) == ["plain", "n-gram"]
    assert "no EAGLE-3 heads are public" in capsys.readouterr().out
    assert "no EAGLE-3 heads are public" in experiments.try_sglang(small)
    for profile in (PROFILES["cpu"], PROFILES["cuda"]):
        assert list(experiments.vllm_variants(profile)) == ["plain", "EAGLE-3", "n-gram"]
    assert not capsys.readouterr().out
