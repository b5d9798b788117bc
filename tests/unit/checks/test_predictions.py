"""A prediction beside its measurement, or the fact that none was made."""

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


@pytest.mark.parametrize("predicted", ["14", True, [14]])
def test_a_prediction_is_a_number(predicted):
    with pytest.raises(TypeError, match="the prediction of speed-up is a number"):
        compare_prediction(predicted, 1.0, what="speed-up")
