"""Acceptance: greedy, exact sampling against a chi-square test, typical acceptance."""

import pytest
import torch

from utils.speculative.speculation_error import SpeculationError
from utils.speculative.tree import DraftTree, chain
from utils.speculative.verify import (
    Greedy,
    SpeculativeSampling,
    Typical,
    Verdict,
    accept_greedy,
    residual,
)

FORK = DraftTree([-1, 0, 0, 1, 2, 2])
CRITICAL = 24.32  # chi-square, 7 degrees of freedom, p = 0.001


def logits_for(best, vocab=8):
    rows = torch.zeros(len(best), vocab)
    rows[range(len(best)), best] = 9.0
    return rows


def test_greedy_takes_the_path_that_the_target_would_have_written():
    tokens = [0, 4, 5, 6, 1, 2]
    assert accept_greedy(FORK, tokens, [5, 7, 2, 0, 0, 3]) == [0, 2, 5]
    assert Greedy()(FORK, tokens, logits_for([5, 7, 2, 0, 0, 3])) == Verdict([0, 2, 5], 3)
    assert Greedy()(FORK, tokens, logits_for([3, 7, 2, 0, 0, 3])) == Verdict([0], 3)


def test_a_right_node_behind_a_wrong_one_counts_for_nothing():
    assert accept_greedy(chain(3), [0, 1, 2, 3], [9, 2, 3, 4]) == [0]


def test_the_residual_is_what_p_has_more_than_q():
    p, q = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.6, 0.2])
    assert residual(p, q).tolist() == pytest.approx([1.0, 0.0, 0.0])
    assert torch.equal(residual(p, p), p)


def chi_square(counts, p):
    wanted = p * counts.sum()
    return float(((counts - wanted) ** 2 / wanted).sum())


def first_tokens(rule, tree, draw, draws=8_000):
    """Counts of the first token behind the root; `draw` gives tokens and their distribution."""
    logits = torch.linspace(0, 2.5, 8).repeat(tree.size, 1)
    counts = torch.zeros(8)
    for _ in range(draws):
        tokens, q = draw()
        verdict = rule(tree, tokens, logits, q)
        first = tokens[verdict.path[1]] if len(verdict.path) > 1 else verdict.token
        counts[first] += 1
    return counts, torch.softmax(logits[0] / getattr(rule, "temperature", 1.0), -1)


def generator():
    return torch.Generator().manual_seed(5)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_sampling_from_a_chosen_tree_keeps_the_distribution(temperature):
    rule = SpeculativeSampling(temperature, generator())
    counts, p = first_tokens(rule, FORK, lambda: ([0, 7, 3, 1, 2, 4], None))
    assert chi_square(counts, p) < CRITICAL


def test_sampling_from_drawn_children_keeps_the_distribution():
    source = generator()
    q = torch.softmax(torch.linspace(1.5, 0, 8), -1)

    def draw():
        a, b = torch.multinomial(q, 2, replacement=True, generator=source).tolist()
        return [0, a, b], q.repeat(3, 1)

    rule = SpeculativeSampling(1.0, generator())
    counts, p = first_tokens(rule, DraftTree([-1, 0, 0]), draw)
    assert chi_square(counts, p) < CRITICAL


class Naive(SpeculativeSampling):
    """A wrong rule: after a rejection it draws from p itself, not from what is left of it."""

    def __call__(self, tree, tokens, logits, draft=None):
        p = torch.softmax(logits[0] / self.temperature, -1)
        if self._chance(p.device) < float(p[tokens[1]]):
            return Verdict([0, 1], 0)
        return Verdict([0], int(torch.multinomial(p, 1, generator=self.generator)))


def test_wrong_rules_fail_the_same_test():
    counts, p = first_tokens(Naive(1.0, generator()), chain(1), lambda: ([0, 7], None))
    assert chi_square(counts, p) > CRITICAL
    counts, p = first_tokens(Typical(1.0), FORK, lambda: ([0, 7, 3, 1, 2, 4], None), draws=2000)
    assert chi_square(counts, p) > CRITICAL
    assert SpeculativeSampling.lossless and Greedy.lossless and not Typical.lossless


def test_typical_acceptance_takes_what_is_likely_enough():
    flat = torch.zeros(4, 8)
    sure = logits_for([1, 2, 3, 4])
    assert Typical()(chain(3), [0, 1, 2, 3], sure).path == [0, 1, 2, 3]
    assert Typical()(chain(3), [0, 5, 2, 3], sure).path == [0]
    assert Typical()(chain(3), [0, 5, 5, 5], flat).path == [0, 1, 2, 3], "unsure: all 1/8 will do"


def test_typical_acceptance_keeps_likeliest_of_equal_paths():
    logits = torch.zeros(3, 8)
    logits[0, 4], logits[0, 5] = 1.0, 2.0
    tree = DraftTree([-1, 0, 0])
    assert Typical()(tree, [0, 4, 5], logits).path == [0, 2]
    assert Typical()(tree, [0, 5, 4], logits).path == [0, 1]


@pytest.mark.parametrize("rule", [SpeculativeSampling, Typical])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf"), 1e-38])
def test_temperatures_that_cannot_be_sampled_at_are_refused(rule, temperature):
    with pytest.raises(SpeculationError, match="use Greedy"):
        rule(temperature)


@pytest.mark.parametrize("settings", [{"epsilon": -1.0}, {"epsilon": 1.5}, {"alpha": 0.0}])
def test_thresholds_that_accept_anything_are_refused(settings):
    with pytest.raises(SpeculationError, match="epsilon above 0 to 1"):
        Typical(**settings)


def test_chance_comes_from_where_the_probabilities_are(monkeypatch):
    """A generator of a GPU draws on that GPU alone: torch.rand without a device fails with it."""
    asked, real = [], torch.rand

    def rand(*size, device=None, **options):
        asked.append(device)
        return real(*size, device=device, **options)

    monkeypatch.setattr(torch, "rand", rand)
    logits = logits_for([1, 2])
    SpeculativeSampling(1.0, generator())(chain(1), [0, 1], logits)
    assert asked == [logits.device]
