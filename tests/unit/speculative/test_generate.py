"""The loop: output equal to plain decoding and to transformers, for every drafter, tree and batch."""

import pytest
import torch

from utils.speculative.comparison import same_share
from utils.speculative.dataset import held_out, record, tokenizer_of
from utils.speculative.drafters import (
    Draft,
    EagleDrafter,
    MedusaDrafter,
    NGramDrafter,
    PlainDrafter,
    Reference,
)
from utils.speculative.generate import generate
from utils.speculative.heads import Eagle1Draft, Eagle3Draft, EagleShape, MedusaHeads
from utils.speculative.speculation_error import SpeculationError
from utils.speculative.target import load_target
from utils.speculative.training import draft_layer
from utils.speculative.tree import chain
from utils.speculative.verify import SpeculativeSampling
from utils.tinymodel import hub

LIMIT = 40


@pytest.fixture(scope="module")
def target():
    torch.set_num_threads(1)
    return load_target(str(hub.TINY))


@pytest.fixture(scope="module")
def prompts(target):
    tokenizer = tokenizer_of(target)
    kinds = ("code", "list", "data", "questions", "prose")
    return [p for kind in kinds for p in held_out(tokenizer, kind, 2, seed=9)]


@pytest.fixture(scope="module")
def plain(target, prompts):
    return generate(
        target, [p.ids for p in prompts], PlainDrafter(), max_new_tokens=LIMIT
    ).generations


def untrained(target):
    """Heads that guess badly: equality must not hang on good guesses."""
    torch.manual_seed(0)
    s = target.shape
    medusa = MedusaHeads(3, s.hidden, s.vocab)
    medusa.start_from(target.head.weight)
    torch.nn.init.normal_(medusa.blocks, std=0.05)
    eagle3 = Eagle3Draft(EagleShape(draft_layer(target), 512, (2, 12, 21)))
    eagle1 = Eagle1Draft(EagleShape(draft_layer(target), s.vocab, ()), target.head.weight)
    return medusa, eagle1, eagle3


def drafters(target):
    medusa, eagle1, eagle3 = untrained(target)
    choices = [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1)]
    return {
        "n-gram": NGramDrafter(4),
        "Medusa chain": MedusaDrafter(medusa),
        "Medusa tree": MedusaDrafter(medusa, choices),
        "EAGLE-1 chain": EagleDrafter(eagle1, 3),
        "EAGLE-1 tree": EagleDrafter(eagle1, 3, 2, 5),
        "EAGLE-3 chain": EagleDrafter(eagle3, 4),
        "EAGLE-3 chain, unsure": EagleDrafter(eagle3, 4, threshold=0.5),
        "EAGLE-3 tree": EagleDrafter(eagle3, 4, 3, 9),
    }


def test_plain_decoding_is_what_transformers_writes(target, prompts, plain):
    expected, _ = hub.load(hub.TINY)
    for prompt, actual in zip(prompts[::3], plain[::3], strict=True):
        with torch.inference_mode():
            ids = torch.tensor([prompt.ids])
            built = expected.generate(ids, max_new_tokens=LIMIT, do_sample=False)
        assert built[0, len(prompt.ids) :].tolist() == actual.tokens


def test_every_drafter_writes_the_same_in_a_batch(target, prompts, plain):
    for name, drafter in drafters(target).items():
        run = generate(target, [p.ids for p in prompts], drafter, max_new_tokens=LIMIT)
        assert same_share(plain, run.generations) == 1.0, name
        for answer in run.generations:
            assert 1 + sum(answer.accepted) == len(answer.tokens), name


def test_every_drafter_writes_the_same_alone(target, prompts, plain):
    for name, drafter in drafters(target).items():
        for i in (0, 5, 9):
            run = generate(target, [prompts[i].ids], drafter, max_new_tokens=LIMIT)
            assert run.generations[0].tokens == plain[i].tokens, name


def test_a_good_guess_is_accepted_whole(target, prompts, plain):
    drafter = Reference([answer.tokens for answer in plain])
    run = generate(target, [p.ids for p in prompts], drafter, max_new_tokens=LIMIT)
    assert same_share(plain, run.generations) == 1.0
    assert all(len(answer.accepted) <= 1 for answer in run.generations)


def test_recorded_features_are_those_of_target(target, prompts, plain):
    subset = prompts[:3]
    rows = record(
        target,
        [p.ids for p in subset],
        [p.answer for p in subset],
        (2, 12, 21),
        max_new_tokens=LIMIT,
    )
    for row, answer, prompt in zip(rows, plain, subset, strict=False):
        assert row.ids.tolist() == prompt.ids + answer.tokens
        assert len(row.hidden) == len(row.features) == len(row.ids) - 1
        with torch.inference_mode():
            best = target.head(row.hidden[len(prompt.ids) - 1 :].float()).argmax(-1)
        assert best.tolist() == answer.tokens


def test_sampled_output_depends_on_the_seed_alone(target, prompts):
    def sampled(seed):
        rule = SpeculativeSampling(1.0, torch.Generator().manual_seed(seed))
        return generate(target, [prompts[-1].ids], NGramDrafter(3), max_new_tokens=30, rule=rule)

    first, again = sampled(1).generations[0].tokens, sampled(1).generations[0].tokens
    assert first == again
    assert any(sampled(seed).generations[0].tokens != first for seed in (2, 3, 4))


def test_bad_input_is_refused_before_anything_is_written(target):
    for wrong in ([], [[]]):
        with pytest.raises(SpeculationError, match="Every prompt needs a token"):
            generate(target, wrong, PlainDrafter(), max_new_tokens=4)
    with pytest.raises(SpeculationError, match="token 9999; the target knows 0 to 2047"):
        generate(target, [[1, 9999]], PlainDrafter(), max_new_tokens=4)
    with pytest.raises(SpeculationError, match="need 2052 positions; the model has 2048"):
        generate(target, [[1] * 2000], NGramDrafter(1), max_new_tokens=50)
    with pytest.raises(SpeculationError, match="5 deep and there are 3 Medusa heads"):
        MedusaDrafter(untrained(target)[0], [(0,) * n for n in range(1, 6)])
    narrow = MedusaDrafter(MedusaHeads(2, 64, 2048))
    with pytest.raises(SpeculationError, match="hidden size 64 and 2048 tokens"):
        generate(target, [[1, 2]], narrow, max_new_tokens=4)


def test_drafters_that_cannot_draft_are_refused(target):
    medusa, _, eagle3 = untrained(target)
    for choices, message in (
        ([], "guesses nothing"),
        ([(-1,)], "whole ranks"),
        ([(0.5,)], "whole ranks"),
        ([(2048,)], "ranks 0 to 2047"),
    ):
        with pytest.raises(SpeculationError, match=message):
            MedusaDrafter(medusa, choices)
    for nodes in (0, -1):
        with pytest.raises(SpeculationError, match=f"tree of {nodes} nodes guesses nothing"):
            EagleDrafter(eagle3, 3, 3, nodes)
    with pytest.raises(SpeculationError, match="more than the 512 tokens"):
        EagleDrafter(eagle3, 3, 513)
    for drafter in (MedusaDrafter(medusa.double()), EagleDrafter(eagle3.double(), 3)):
        with pytest.raises(SpeculationError, match=r"heads are torch\.float64 .*load_heads"):
            generate(target, [[1, 2]], drafter, max_new_tokens=4)


def test_a_deep_draft_near_the_last_position_is_refused(target):
    """What is kept of a tree fits, what is expanded of it would not."""
    deep = EagleDrafter(untrained(target)[2], 40, 2, nodes=2)
    with pytest.raises(SpeculationError, match="a draft 40 deep need 2077 positions"):
        generate(target, [[1] * 2033], deep, max_new_tokens=4)


class Known:
    """Guesses eight tokens: the right ones in row 0, wrong ones in all others."""

    name, aux_layers, nodes = "known", (), 9

    def __init__(self, answer, prompt):
        self.answer, self.prompt = answer, prompt

    def start(self, target, rows, slots):
        pass

    def draft(self, row, news):
        done = len(news.tokens) - self.prompt
        right = self.answer[done : done + 8]
        guesses = right if row == 0 else [token + 1 for token in right]
        return Draft(chain(8), [news.tokens[-1], *guesses])


def test_a_row_that_ends_in_the_middle_of_a_draft_leaves_the_others_room(target, prompts):
    prompt = prompts[-1].ids[:44]  # with 11 tokens and 9 nodes: all 64 slots of the cache
    run = generate(target, [prompt], PlainDrafter(), max_new_tokens=40, ignore_end=True)
    answer = run.generations[0].tokens
    drafter = Known(answer, len(prompt))
    three = generate(target, [prompt] * 3, drafter, max_new_tokens=11, ignore_end=True)
    assert [g.tokens for g in three.generations] == [answer[:11]] * 3
