"""Comparison of a learner's prediction with the number that came out."""

from __future__ import annotations

from numbers import Real
from typing import Any

import numpy as np

from utils.checks.expect import brief
from utils.checks.failures import show

_GREY, _BLUE = "#6b7280", "#2563eb"
_AS_PREDICTED = 1.005


def compare_prediction(
    predicted: Any, measured: float, *, what: str, unit: str = "", origin: str = "measured"
) -> None:
    """Show a prediction next to the number that came out.

    It never raises for a prediction, because the measurement before it took minutes.

    Args:
        predicted: Learner's number. `None` or `...` if none was made.
        measured: Number that came out, in the same unit.
        what: Quantity, as a noun ("throughput at 32 over throughput at 1").
        unit: Unit that follows both numbers.
        origin: Origin of the second number, such as "measured", "derived" or "simulated".
    """
    unit = f" {unit}" if unit else ""
    if predicted is None or predicted is ...:
        text = f"{what}: {origin} {measured:.4g}{unit}. No prediction was made"
        show("○", f"{text}: next time commit to a number first.", _GREY)
        return
    if isinstance(predicted, np.generic):
        predicted = predicted.item()
    if isinstance(predicted, bool) or not isinstance(predicted, Real):
        text = f"{what}: {origin} {measured:.4g}{unit}. Your prediction {brief(predicted)}"
        show("◇", f"{text} is not a number. Write only the number, without a unit.", _GREY)
        return
    predicted = float(predicted)
    text = f"{what}: predicted {predicted:.4g}{unit}, {origin} {measured:.4g}{unit}"
    show("◆", f"{text}{_ratio(measured, predicted)}.", _BLUE)


def _ratio(measured: float, predicted: float) -> str:
    if measured <= 0 or predicted <= 0:
        return ""
    factor = measured / predicted
    if max(factor, 1 / factor) < _AS_PREDICTED:
        return ": as predicted"
    return f": {factor:.3g} × the prediction"
