"""Predictions: what a learner said before a measurement, set beside what came out."""

from __future__ import annotations

from typing import Any

from utils.checks.failures import show

_GREY, _BLUE = "#6b7280", "#2563eb"
_AS_PREDICTED = 1.005


def compare_prediction(predicted: Any, measured: float, *, what: str, unit: str = "") -> None:
    """Show a prediction beside the measurement; says so when none was made.

    Args:
        predicted: the learner's number; `None` or `...` when none was made.
        measured: the number measured, in the same unit.
        what: the quantity, as a noun ("throughput at 32 over throughput at 1").
        unit: unit shown behind both numbers.

    Raises:
        TypeError: the prediction is not a number.
    """
    unit = f" {unit}" if unit else ""
    if predicted is None or predicted is ...:
        text = f"{what}: measured {measured:.4g}{unit}. No prediction was made"
        show("○", f"{text}: next time commit to a number first.", _GREY)
        return
    if isinstance(predicted, bool) or not isinstance(predicted, (int, float)):
        raise TypeError(f"the prediction of {what} is a number, not {predicted!r}")
    text = f"{what}: predicted {predicted:.4g}{unit}, measured {measured:.4g}{unit}"
    show("◆", f"{text}{_ratio(measured, predicted)}.", _BLUE)


def _ratio(measured: float, predicted: float) -> str:
    if measured <= 0 or predicted <= 0:
        return ""
    factor = measured / predicted
    if max(factor, 1 / factor) < _AS_PREDICTED:
        return ": as predicted"
    return f": {factor:.3g} × the prediction"
