"""A prediction beside its measurement, or the fact that none was made."""

from fractions import Fraction

import numpy as np
import pytest

from utils.checks import compare_prediction


@pytest.mark.parametrize(
    ("predicted", "measured", "says"),
    [
        (14, 17.5, "predicted 14 ×, measured 17.5 ×: 1.25 × the prediction."),
        (20.0, 10.0, "0.5 × the prediction."),
        (10, 10.01, ": as predicted."),
        (0, 10, "predicted 0 ×, measured 10 ×."),
        (None, 17.5, "measured 17.5 ×. No prediction was made"),
        (..., 17.5, "No prediction was made"),
    ],
)
def test_in_words(predicted, measured, says, capsys):
    assert compare_prediction(predicted, measured, what="speed-up", unit="×") is None
    text = capsys.readouterr().out
    assert says in text
    assert "speed-up: " in text


def test_compare_prediction_names_other_origin(capsys):
    compare_prediction(2, 4, what="requests", origin="derived")
    assert "predicted 2, derived 4: 2 × the prediction." in capsys.readouterr().out


@pytest.mark.parametrize("predicted", ["14", "14x", True, [14], float, np.array([1, 2])])
def test_prediction_that_is_no_number_costs_no_measurement(predicted, capsys):
    compare_prediction(predicted, 14.2, what="speed-up", unit="×")
    text = capsys.readouterr().out
    assert text.startswith("◇ speed-up: measured 14.2 ×.")
    assert "is not a number" in text


@pytest.mark.parametrize("predicted", [np.int64(2), np.float32(2), Fraction(2), 2.0])
def test_every_kind_of_number_is_compared(predicted, capsys):
    compare_prediction(predicted, 4, what="failures")
    assert "predicted 2, measured 4: 2 × the prediction." in capsys.readouterr().out
