"""The chi-square test passes what is exact, and fails what is not."""

import numpy as np
import pytest
import torch

from utils.speculative import lossless
from utils.speculative.verify import SpeculativeSampling, Typical, residual

P, Q = np.array([0.5, 0.3, 0.15, 0.05]), np.array([0.2, 0.2, 0.3, 0.3])


def own_residual(p, q):
    return residual(torch.tensor(p), torch.tensor(q)).numpy()


def test_the_statistic_is_that_of_a_table_by_hand():
    # (48 - 50)² / 50 + (52 - 50)² / 50 = 0.16; P(chi-square with 1 degree >= 0.16) = 0.6892
    found = lossless.chi_square([48, 52], [0.5, 0.5])
    assert found.statistic == pytest.approx(0.16) and found.degrees == 1
    assert found.p_value == pytest.approx(0.6892, abs=1e-4) and found.draws == 100


def test_rare_bins_are_joined_and_impossible_draws_fail():
    joined = lossless.chi_square([96, 2, 2], [0.96, 0.02, 0.02])
    assert joined.degrees == 1 and joined.statistic == pytest.approx(0)
    assert lossless.chi_square([90, 10], [1.0, 0.0]).p_value == 0.0


def test_speculative_sampling_passes_and_wrong_rules_fail():
    exact = lossless.draw_sampled(P, Q, own_residual, 100_000)
    assert lossless.chi_square(exact, P).p_value > 0.001
    wrong = lossless.draw_sampled(P, Q, lambda p, q: p, 100_000)
    assert lossless.chi_square(wrong, P).p_value < 1e-6
    likely = lossless.draw_accepted(P, Q, lambda p, token: p[token] > 0.1, 100_000)
    assert lossless.chi_square(likely, P).p_value < 1e-6
    assert likely[3] == 0 and likely.sum() == 100_000


def language():
    torch.manual_seed(3)
    return lossless.SmallLanguage([4, 5, 6, 7], torch.randn(4), torch.randn(4, 4))


def test_tree_pairs_keep_distribution_only_with_exact_rule():
    small = language()
    assert small.pairs.sum() == pytest.approx(1) and len(small.pairs) == 16
    exact = lossless.count_pairs(SpeculativeSampling(), small, 2000)
    assert exact.sum() == 2000
    assert lossless.chi_square(exact, small.pairs).p_value > 0.001
    typical = lossless.count_pairs(Typical(), small, 500)
    assert lossless.chi_square(typical, small.pairs).p_value < 1e-6


def test_a_wrong_rule_is_found_out_and_the_right_one_is_not():
    assert 100 <= lossless.draws_to_refuse(P, Q, lambda p, q: p) <= 1600
    assert lossless.draws_to_refuse(P, Q, own_residual) == 0
