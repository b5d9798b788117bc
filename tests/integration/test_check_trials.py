"""Every check of every lab, tried on the right, the empty and the wrong solutions of its exercise."""

import pytest

from tools.authoring import check_selftest
from tools.lab.judge.hidden_tests import load_gradings
from utils.profiles import ROOT


@pytest.fixture(scope="module")
def gradings():
    return load_gradings(ROOT)


@pytest.mark.parametrize("lab", [f"3.3.{number}" for number in range(1, 8)])
def test_every_check_of_the_course(lab, gradings):
    trials = list(check_selftest.try_module(lab, check_selftest.modules()[lab], gradings[lab]))
    assert trials
    assert [f"{t.exercise}, {t.solution}: {t.fault}" for t in trials if t.fault] == []


def test_every_exercise_of_the_course_is_checked_and_graded(gradings):
    assert set(check_selftest.modules()) == set(gradings)
    assert list(check_selftest.unmatched(ROOT, gradings)) == []
