"""Guards of the speculative labs: silent if a result can be trusted."""

import pytest

from utils.speculative import result_guards


def test_lossless_guard_is_silent_when_answers_are_equal(capsys):
    result_guards.warn_not_lossless({"plain": 1.0, "a": 1.0})
    assert capsys.readouterr().out == ""


def test_lossless_guard_names_the_method_that_differs(capsys):
    result_guards.warn_not_lossless({"a": 1.0, "b": 0.99})
    assert capsys.readouterr().out.startswith("NOT LOSSLESS: b.")


def test_lossless_guard_is_silent_in_16_bit_types(capsys):
    result_guards.warn_not_lossless({"b": 0.99}, "bfloat16")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("counted", "warns"), [(2.71, False), (3.29, False), (2.6, True), (3.4, True)]
)
def test_disagreement_guard_warns_beyond_ten_percent(capsys, counted, warns):
    result_guards.warn_disagreement(counted, 3.0)
    assert ("ACCEPTANCE LENGTHS DIFFER" in capsys.readouterr().out) is warns
