"""The heads that ship with the tiny model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from utils.profiles import MODELS
from utils.speculative.checkpoints import load_heads
from utils.speculative.heads import Eagle1Draft, Eagle3Draft, MedusaHeads
from utils.speculative.speculation_error import SpeculationError
from utils.speculative.target import Target

FOLDER = MODELS / "heads"
CALIBRATION = "calibration.json"  # beside Medusa's heads


@dataclass(frozen=True)
class Shipped:
    """Heads of each kind."""

    medusa: MedusaHeads
    eagle1: Eagle1Draft
    eagle3: Eagle3Draft


def load_shipped(target: Target, folder: Path = FOLDER) -> Shipped:
    """Read all of them.

    Raises:
        SpeculationError: They are not there, or are another model's.
    """
    eagle1, eagle3 = (load_heads(folder / name, target) for name in ("eagle1", "eagle3"))
    if not isinstance(eagle1, Eagle1Draft) or not isinstance(eagle3, Eagle3Draft):
        raise SpeculationError(f"{folder} holds other heads than EAGLE-1's and EAGLE-3's.")
    return Shipped(load_medusa(target, folder), eagle1, eagle3)


def load_medusa(target: Target, folder: Path = FOLDER) -> MedusaHeads:
    """Read Medusa's heads alone.

    Raises:
        SpeculationError: They are not there, or are another model's.
    """
    heads = load_heads(folder / "medusa", target)
    if not isinstance(heads, MedusaHeads):
        raise SpeculationError(f"{folder / 'medusa'} holds no Medusa heads.")
    return heads


def calibration(folder: Path = FOLDER) -> list[list[float]]:
    """Return the share of right guesses of Medusa's heads on prompts kept for this, [head][rank]."""
    accuracy: list[list[float]] = json.loads((folder / "medusa" / CALIBRATION).read_text())[
        "accuracy"
    ]
    return accuracy
