"""Every setting of the shipped heads' training, in one place."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from utils.speculative.checkpoints import save_heads
from utils.speculative.dataset import Recorded
from utils.speculative.heads import Eagle1Draft, Eagle3Draft, MedusaHeads
from utils.speculative.target import Target
from utils.speculative.training import (
    LogLine,
    TrainingConfig,
    train_eagle1,
    train_eagle3,
    train_medusa,
)

PROMPTS = 3200  # of a round
ROUNDS = 2  # each with prompts of its own
AUX_LAYERS = (2, 12, 21)  # EAGLE-3's choice of 24 layers: state 2, the middle, the last but three
MEDUSA_HEADS = 4
DRAFT_VOCAB = 1024
UNROLLED = 4
CONFIGS = {
    "medusa": TrainingConfig(steps=2000, rate=2e-3, rows=512),
    "eagle1": TrainingConfig(steps=600, rate=4e-3, rows=12),
    "eagle3": TrainingConfig(steps=1100, rate=4e-3, rows=12),
}
HEADS = tuple(CONFIGS)


def train(
    name: str, target: Target, data: Sequence[Recorded], run: Path, folder: Path
) -> list[LogLine]:
    """Train one kind of heads and write them.

    Args:
        name: One of `HEADS`.
        target: The tiny model.
        data: Its answers.
        run: Keeps checkpoints.
        folder: Receives the heads.

    Returns:
        The log.
    """
    config = replace(CONFIGS[name], folder=run)
    heads: MedusaHeads | Eagle1Draft | Eagle3Draft
    if name == "medusa":
        heads, log = train_medusa(target, data, config, MEDUSA_HEADS)
    elif name == "eagle1":
        heads, log = train_eagle1(target, data, config)
    else:
        heads, log = train_eagle3(
            target, data, AUX_LAYERS, config, unrolled=UNROLLED, draft_vocab=DRAFT_VOCAB
        )
    save_heads(heads, target, folder)
    return log
