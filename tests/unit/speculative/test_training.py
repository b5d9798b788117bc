"""Training: the data, what a loss sees, going on after a stop, and refusing what is no number."""

from dataclasses import replace

import pytest
import torch

from utils.speculative import dataset, training
from utils.speculative.dataset import Recorded, batches, self_generated
from utils.speculative.drafters import EagleDrafter, MedusaDrafter, News, PlainDrafter
from utils.speculative.generate import generate
from utils.speculative.heads import MedusaHeads, unroll
from utils.speculative.speculation_error import SpeculationError
from utils.speculative.target import Rotary, Target, TargetShape
from utils.speculative.training import (
    TrainingConfig,
    draft_vocabulary,
    medusa_accuracy,
    medusa_examples,
    medusa_loss,
    train_eagle1,
    train_eagle3,
    train_medusa,
    train_medusa2,
)
from utils.speculative.tree import chain
from utils.speculative.verify import Greedy

SMALL = TargetShape(
    layers=3, hidden=16, ffn=24, heads=4, kv_heads=2, head_dim=4, vocab=20, eps=1e-6, qk_norm=False
)
AUX = (1, 2)


@pytest.fixture
def target():
    torch.set_num_threads(1)
    torch.manual_seed(3)
    built = Target(SMALL, Rotary(torch.tensor([1.0, 0.01]), 128))
    return built.requires_grad_(False)


@pytest.fixture
def data(target):
    prompts = [[1, 2, 3 + i] for i in range(6)]
    return self_generated(target, prompts, [[5]] * 6, AUX, max_new_tokens=20, batch=4)


def test_data_is_kept_and_read_again(target, tmp_path, monkeypatch):
    prompts, answers = [[1, 2], [3, 4], [5, 6]], [[7]] * 3
    built = self_generated(
        target, prompts, answers, AUX, max_new_tokens=5, batch=2, folder=tmp_path
    )
    monkeypatch.setattr(dataset, "record", None)  # all of it is on disk
    again = self_generated(
        target, prompts, answers, AUX, max_new_tokens=5, batch=2, folder=tmp_path
    )
    assert len(again) == 3
    assert all(torch.equal(a.ids, b.ids) and torch.equal(a.hidden, b.hidden)
               for a, b in zip(built, again, strict=True))  # fmt: skip
    assert not list(tmp_path.glob("*.part"))


@pytest.mark.parametrize(
    "change",
    [{"aux_layers": (1,)}, {"max_new_tokens": 6}, {"prompts": [[1, 2], [3, 9]]}],
    ids=lambda change: next(iter(change)),
)
def test_data_of_other_settings_is_refused(target, tmp_path, change):
    given = {"prompts": [[1, 2], [3, 4]], "aux_layers": AUX, "max_new_tokens": 5}

    def make(prompts, aux_layers, max_new_tokens):
        settings = {"max_new_tokens": max_new_tokens, "batch": 2, "folder": tmp_path}
        return self_generated(target, prompts, [[7]] * 2, aux_layers, **settings)

    make(**given)
    with pytest.raises(SpeculationError, match=f"{next(iter(change))} differ.*another folder"):
        make(**given | change)
    (file,) = tmp_path.glob("data-*.pt")
    file.write_bytes(file.read_bytes()[:-200])
    with pytest.raises(SpeculationError, match=r"data-0000\.pt cannot be read"):
        make(**given)
    torch.save([1], file)
    with pytest.raises(SpeculationError, match="does not say what it was made of"):
        make(**given)


def test_a_checkpoint_of_another_training_is_refused(target, data, tmp_path):
    settings = TrainingConfig(2, 1e-3, 4, folder=tmp_path)
    train_medusa(target, data, settings, heads=2)
    train_medusa(target, data, settings, heads=2)  # its own
    with pytest.raises(SpeculationError, match=r"rate differ \(rate: 0\.001 there, 0\.5 here\)"):
        train_medusa(target, data, replace(settings, rate=0.5), heads=2)
    with pytest.raises(SpeculationError, match="weights at the start differ"):
        train_medusa(target, data, settings, heads=3)
    with pytest.raises(SpeculationError, match="data differ"):
        train_medusa(target, data[:-1], settings, heads=2)
    file = tmp_path / "Medusa.checkpoint.pt"
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(SpeculationError, match="cannot be read"):
        train_medusa(target, data, settings, heads=2)


def test_medusa_learns_the_token_after_the_next():
    ids = torch.tensor([10, 11, 12, 13, 14])
    row = Recorded(ids, 2, torch.arange(4.0)[:, None], torch.zeros(4, 1))
    hidden, labels = medusa_examples([row], 2)
    assert hidden.flatten().tolist() == [1, 2, 3], "from the prompt's last token on"
    assert labels.tolist() == [[13, 14], [14, -100], [-100, -100]]


def test_a_label_beyond_the_end_counts_for_nothing():
    logits = torch.zeros(1, 2, 5)
    logits[0, 0, 3] = 50.0
    loss, accuracy = medusa_loss(logits, torch.tensor([[3, -100]]))
    assert float(loss) == pytest.approx(0.0, abs=1e-6) and accuracy == [1.0]


def test_accuracy_by_rank_adds_up():
    heads = MedusaHeads(1, 4, 4)
    heads.lm_heads.data[0] = torch.eye(4)
    row = Recorded(
        torch.tensor([0, 0, 3]), 1, torch.tensor([[0.0, 1, 3, 2]] * 2), torch.zeros(2, 1)
    )
    assert medusa_accuracy(heads, [row], ranks=3) == [[0.0, 1.0, 0.0]]


def test_the_draft_vocabulary_is_the_most_frequent_tokens():
    row = Recorded(torch.tensor([9, 9, 5, 5, 7, 7, 7, 3]), 2, torch.zeros(7, 1), torch.zeros(7, 1))
    assert draft_vocabulary([row], 2).tolist() == [5, 7]
    assert draft_vocabulary([row], 5).tolist() == [0, 1, 3, 5, 7], "filled up with others"


def test_batches_hold_everything_once_an_epoch_and_depend_on_the_step(data):
    at = batches(data, 2, seed=4)
    seen = [id(row) for step in range(3) for row in at(step)]
    assert sorted(seen) == sorted(map(id, data))
    assert [id(r) for r in at(7)] == [id(r) for r in batches(data, 2, seed=4)(7)]


def test_drafting_on_is_what_training_time_test_trains(target, data):
    """Row i of step s is what decoding computes that drafts on from token i."""
    eagle, _ = train_eagle3(
        target, data, AUX, TrainingConfig(2, 1e-3, 2), unrolled=1, draft_vocab=SMALL.vocab
    )
    eagle.requires_grad_(False)
    prompt = [1, 2, 3, 4, 5, 6]
    drafter = EagleDrafter(eagle, depth=3)
    run = generate(target, [prompt], drafter, max_new_tokens=2, ignore_end=True)
    ids = prompt + run.generations[0].tokens[:1]
    target.aux_layers = AUX
    cache = target.cache(1, 64)
    seen = target(torch.tensor([prompt]), [chain(len(prompt) - 1)], cache)
    drafter.start(target, 1, 64)
    draft = drafter.draft(0, News(ids, seen.hidden[0], seen.features[0]))
    tables = target.rotary.at(torch.arange(20)[None], torch.float32)
    full = torch.tensor([ids + draft.tokens[1:]])
    features = torch.nn.functional.pad(seen.features, (0, 0, 0, full.shape[1] - len(prompt)))
    outputs = unroll(eagle, target.embed.weight, tables, full, features, 3)
    row = len(prompt) - 1
    guesses = [int(eagle.d2t[eagle.logits(out[0, row]).argmax()]) for out in outputs]
    assert guesses == draft.tokens[1:]


def test_training_lowers_the_loss(target, data):
    settings = TrainingConfig(steps=40, rate=5e-3, rows=3)
    _, log = train_eagle3(target, data, AUX, settings, unrolled=3, draft_vocab=SMALL.vocab)
    assert log[-1].loss < log[0].loss and len(log[-1].accuracy) == 3
    assert log[-1].accuracy[0] > 2 * log[0].accuracy[0]
    _, log = train_eagle1(target, data, settings)
    assert log[-1].loss < log[0].loss
    _, log = train_medusa(target, data, replace(settings, rows=32), heads=2)
    assert log[-1].loss < log[0].loss


def test_medusa2_trains_the_backbone_too_and_leaves_the_old_one(target, data):
    before = {name: value.clone() for name, value in target.state_dict().items()}
    heads, _ = train_medusa(target, data, TrainingConfig(10, 5e-3, 32), heads=2)
    tuned, more, log = train_medusa2(target, heads, data, TrainingConfig(30, 2e-3, 3))
    assert log[-1].loss < log[0].loss and len(log[0].accuracy) == 3
    assert not torch.equal(tuned.norm, target.norm)
    assert not torch.equal(more.lm_heads, heads.lm_heads)
    assert all(torch.equal(before[name], value) for name, value in target.state_dict().items())
    plain = generate(tuned, [[1, 2, 3]], PlainDrafter(), max_new_tokens=12, ignore_end=True)
    drafted = generate(tuned, [[1, 2, 3]], MedusaDrafter(more), max_new_tokens=12, ignore_end=True)
    assert drafted.generations[0].tokens == plain.generations[0].tokens


def test_states_without_a_cache_are_those_with_one(target):
    ids = torch.tensor([[1, 2, 3, 4, 5]])
    with torch.inference_mode():
        cached = target(ids, [chain(4)], target.cache(1, 64)).hidden
        torch.testing.assert_close(target.causal(ids), cached, atol=1e-5, rtol=1e-4)


def test_a_stopped_training_goes_on_to_the_same_end(target, data, tmp_path, monkeypatch):
    whole, _ = train_eagle3(
        target, data, AUX, TrainingConfig(12, 1e-3, 2), unrolled=2, draft_vocab=10
    )
    kept = TrainingConfig(12, 1e-3, 2, folder=tmp_path)

    class Stop(Exception):
        pass

    save = training.TrainingState.save

    def save_and_stop(state):
        save(state)
        raise Stop

    monkeypatch.setattr(training, "SAVE_SECONDS", 0)
    monkeypatch.setattr(training.TrainingState, "save", save_and_stop)
    with pytest.raises(Stop):
        train_eagle3(target, data, AUX, kept, unrolled=2, draft_vocab=10)
    monkeypatch.setattr(training.TrainingState, "save", save)
    resumed, log = train_eagle3(target, data, AUX, kept, unrolled=2, draft_vocab=10)
    assert log[-1].step == 12
    for name, value in whole.state_dict().items():
        assert torch.allclose(value, resumed.state_dict()[name], atol=1e-6), name


def test_data_that_cannot_teach_is_refused_in_words(target, data):
    settings = TrainingConfig(2, 1e-3, 4)
    short = [replace(s, ids=s.ids[: s.prompt + 1]) for s in data]
    for rows in ([], short):
        with pytest.raises(SpeculationError, match=f"Of {len(rows)} answers none has 3 tokens"):
            train_medusa(target, rows, settings, heads=2)
    with pytest.raises(SpeculationError, match="none has 3 tokens"):
        medusa_accuracy(MedusaHeads(2, SMALL.hidden, SMALL.vocab), short)
    with pytest.raises(SpeculationError, match="Of 0 answers none has 1 tokens"):
        train_eagle1(target, [], settings)
    with pytest.raises(SpeculationError, match="width 32; these auxiliary layers need 16"):
        train_eagle3(target, data, (1,), settings, draft_vocab=10)
    with pytest.raises(SpeculationError, match="21 tokens: the target has 20"):
        train_eagle3(target, data, AUX, settings, draft_vocab=21)


def test_a_head_without_labels_adds_nothing():
    loss, accuracy = medusa_loss(torch.zeros(2, 1, 4), torch.tensor([[1], [-100]]))
    assert float(loss) == pytest.approx(1.3863, abs=1e-3) and accuracy == [0.0, 0.0]


def test_a_loss_that_is_no_number_stops_the_training(target, data):
    broken = [replace(row, hidden=row.hidden * float("nan")) for row in data]
    with pytest.raises(SpeculationError, match=r"loss of EAGLE-1 is nan at step 0"):
        train_eagle1(target, broken, TrainingConfig(3, 1e-3, 2))


def test_trained_heads_change_nothing_in_the_output(target, data):
    eagle, _ = train_eagle3(
        target, data, AUX, TrainingConfig(30, 5e-3, 3), unrolled=2, draft_vocab=20
    )
    prompts = [[1, 2, 3], [4, 5]]
    plain = generate(target, prompts, PlainDrafter(), max_new_tokens=30, rule=Greedy())
    for drafter in (EagleDrafter(eagle, 3), EagleDrafter(eagle, 3, 2, 5)):
        run = generate(target, prompts, drafter, max_new_tokens=30)
        assert [g.tokens for g in run.generations] == [g.tokens for g in plain.generations]
