"""Guards of the speculative labs: each prints a warning if a result can't be trusted, and else nothing."""

from __future__ import annotations

from collections.abc import Mapping

AGREEMENT = 0.10  # largest relative difference of two acceptance lengths that count as equal


def warn_not_lossless(same: Mapping[str, float], dtype: str = "float32") -> None:
    """Warn about methods whose greedy answers aren't plain decoding's.

    Args:
        same: Share of answers equal to plain decoding's, 0 to 1, by method.
        dtype: Data type of the target. Only float32 promises equal answers.
    """
    different = [name for name, share in same.items() if share < 1]
    if different and dtype == "float32":
        print(
            f"NOT LOSSLESS: {', '.join(different)}. In float32 every answer must equal plain decoding's. "
            "Check the verification, the mask and the positions."
        )


def warn_disagreement(counted: float, own: float) -> None:
    """Warn if an engine's counters and the own verification give different acceptance lengths."""
    if abs(counted / own - 1) > AGREEMENT:
        print(
            f"ACCEPTANCE LENGTHS DIFFER BY MORE THAN {AGREEMENT:.0%}: {counted:.2f} by the engine's counters "
            f"and {own:.2f} by our own verification. Check that both draft with the same heads."
        )
