"""What labs 3.3.4 and 3.3.5 measure with: fair turns, a record of each comparison, options of vLLM."""

import json

import pytest
import torch

from utils.speculative import comparison
from utils.speculative.dataset import TEXTS, Prompt, held_out, tokenizer_of
from utils.speculative.drafters import NGramDrafter
from utils.speculative.generate import Generation
from utils.speculative.speculation_error import SpeculationError
from utils.speculative.target import Rotary, Target, TargetShape
from utils.tinymodel import hub, tasks

SMALL = TargetShape(
    layers=2, hidden=16, ffn=24, heads=4, kv_heads=2, head_dim=4, vocab=20, eps=1e-6, qk_norm=True
)


@pytest.fixture
def target():
    torch.set_num_threads(1)
    torch.manual_seed(1)
    built = Target(SMALL, Rotary(torch.tensor([1.0, 0.01]), 256)).requires_grad_(False)
    built.path = str(hub.TINY)
    return built


def test_a_comparison_is_fair_and_leaves_a_record(target, tmp_path, monkeypatch):
    monkeypatch.setenv("COURSE_RECORDS", str(tmp_path))
    order = []
    real = comparison.generate

    def spy(target, prompts, drafter, **options):
        order.append((tuple(prompts[0]), drafter.name))
        return real(target, prompts, drafter, **options)

    monkeypatch.setattr(comparison, "generate", spy)
    prompts = [[1, 2, 3], [4, 5, 6]]
    found = comparison.compare(
        target, {"lookup": NGramDrafter(3)}, prompts, label="x", max_new_tokens=20, repeats=3
    )
    assert list(found) == ["plain", "lookup"]
    assert found["lookup"].same == 1.0 and found["plain"].speedups == [1.0] * 3
    assert found["plain"].acceptance_length == 1.0 <= found["lookup"].acceptance_length
    measured = order[2:]  # behind the warm-up
    for turn in range(0, len(measured), 2):
        (prompt, first), (same, second) = measured[turn : turn + 2]
        assert prompt == same and first != second, "each prompt goes to both before the next"
    firsts = [name for _, name in measured[::2]]
    assert firsts.count("plain") == firsts.count("n-gram") == 3, "either begins half of the times"
    (file,) = (tmp_path / "speculative").glob("*.json")
    record = json.loads(file.read_text())
    assert (record["origin"], record["label"], record["prompts"]) == ("measured", "x", 2)
    assert record["summary"]["lookup"]["same"] == 1.0 and record["model_sha256"]
    assert len(record["summary"]["lookup"]["speedups"]) == 3
    table = comparison.result_table(found)
    assert table.loc["lookup", "same as plain"] == "100%"
    assert comparison.draft_cost(found["lookup"]) > 0


def test_a_comparison_without_anything_to_decode_is_refused(target):
    with pytest.raises(SpeculationError, match="answers of 2 tokens or more"):
        comparison.compare(target, {}, [[1, 2]], label="x", max_new_tokens=1)


def test_answers_that_differ_are_counted():
    a, b = Generation([1], [2, 3]), Generation([1], [2, 4])
    assert comparison.same_share([a, a], [a, b]) == 0.5


def test_a_looping_answer_is_left_out(target, monkeypatch):
    prompts = [Prompt("x", [1, 2], []), Prompt("x", [3, 4], [])]
    loops = Generation([1, 2], [5, 6] * 40)
    fine = Generation([3, 4], list(range(19)))
    run = type("Run", (), {"generations": [loops, fine]})()
    monkeypatch.setattr(comparison, "generate", lambda *a, **k: run)
    assert comparison.loop_free(target, prompts, 80) == prompts[1:]


def test_every_size_of_a_step_is_timed(target):
    costs = comparison.step_costs(target, (1, 4, 16), context=32, repeats=3)
    assert list(costs) == [1, 4, 16] and min(costs.values()) > 0


def test_speculation_as_vllm_wants_it():
    flag, config = comparison.speculation("eagle3", 3, "/heads")["extra_arguments"]
    assert flag == "--speculative-config"
    assert json.loads(config) == {
        "method": "eagle3",
        "num_speculative_tokens": 3,
        "model": "/heads",
    }
    lookup = json.loads(comparison.speculation("ngram", 4)["extra_arguments"][1])
    assert (lookup["prompt_lookup_min"], lookup["prompt_lookup_max"]) == (2, 4)
    with pytest.raises(SpeculationError, match="medusa needs the folder of its heads"):
        comparison.speculation("medusa", 4)


def test_held_out_prompts_are_of_their_kind_and_never_trained_on(target):
    tokenizer = tokenizer_of(target)
    for text in ("code", "list", "data", "questions", "prose"):
        found = held_out(tokenizer, text, 3)
        assert len(found) == 3 and found == held_out(tokenizer, text, 3)
        assert all(p.ids for p in found) and all(bool(p.answer) == (text != "prose") for p in found)
    assert all(kind in tasks.KINDS for kinds in TEXTS.values() for kind in kinds)
    with pytest.raises(SpeculationError, match="no kind of text 'poems'"):
        held_out(tokenizer, "poems", 1)
