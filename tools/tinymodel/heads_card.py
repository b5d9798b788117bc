"""The card of the shipped heads: measurements, training, and the files' hashes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

import torch

from utils.benchmark.host import describe_host
from utils.speculative import train_config
from utils.speculative.comparison import SpeculationResult, compare, loop_free, step_costs
from utils.speculative.dataset import TRAINED, UNLIKE, held_out, prompts_of, record_all
from utils.speculative.drafters import Drafter, EagleDrafter, MedusaDrafter, NGramDrafter
from utils.speculative.pretrained import CALIBRATION, Shipped, load_shipped
from utils.speculative.target import Target
from utils.speculative.training import eagle_accuracy, medusa_accuracy
from utils.speculative.tree import best_choices
from utils.tinymodel.hub import sha256

TRAINING, QUALITY, CARD = "training.jsonl", "quality.json", "README.md"
CALIBRATION_SEED, TEST_SEED = 1, 2
MAX_NEW_TOKENS = 96


def write(target: Target, tokenizer: Any, folder: Path, prompts: int = 2, repeats: int = 3) -> None:
    """Calibrate Medusa's tree, measure all heads, and write the card.

    Args:
        target: The tiny model.
        tokenizer: Its tokenizer.
        folder: Holds the heads; receives README.md and quality.json, and medusa/calibration.json.
        prompts: Held-out prompts of each kind of text.
        repeats: Repeats of the comparison.
    """
    heads = load_shipped(target, folder)
    asked = prompts_of(tokenizer, 16, CALIBRATION_SEED)
    data = record_all(target, asked, train_config.AUX_LAYERS, max_new_tokens=MAX_NEW_TOKENS)
    accuracy = medusa_accuracy(heads.medusa, data)
    calibration = {"accuracy": [[round(p, 4) for p in row] for row in accuracy]}
    (folder / "medusa" / CALIBRATION).write_text(json.dumps(calibration) + "\n")
    tests = [p for kind in TRAINED for p in held_out(tokenizer, kind, prompts, TEST_SEED)]
    tests = loop_free(target, tests, MAX_NEW_TOKENS)
    methods = drafters(heads, accuracy)
    ids = [p.ids for p in tests]
    trained = compare(
        target,
        methods,
        ids,
        label="card: trained kinds",
        max_new_tokens=MAX_NEW_TOKENS,
        repeats=repeats,
    )
    prose = [p.ids for p in held_out(tokenizer, UNLIKE, prompts, TEST_SEED)]
    unlike = compare(
        target, methods, prose, label="card: prose", max_new_tokens=48, repeats=repeats
    )
    costs = step_costs(target, (1, 2, 4, 8, 16, 32))
    quality = {
        "date": date.today().isoformat(),
        "host": describe_host(),
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "prompts": len(ids),
        "step_cost_ratio": {n: round(cost / costs[1], 2) for n, cost in costs.items()},
        "medusa_accuracy": calibration["accuracy"],
        "eagle1_accuracy": _rounded(eagle_accuracy(target, heads.eagle1, data, 4)),
        "eagle3_accuracy": _rounded(eagle_accuracy(target, heads.eagle3, data, 4)),
        "trained_kinds": {name: _row(o) for name, o in trained.items()},
        "prose": {name: _row(o) for name, o in unlike.items()},
    }
    (folder / QUALITY).write_text(json.dumps(quality, indent=2) + "\n")
    (folder / CARD).write_text(render(quality, folder))


def drafters(heads: Shipped, accuracy: list[list[float]]) -> dict[str, Drafter]:
    """Return the methods that the card compares."""
    return {
        "n-gram, 4": NGramDrafter(4),
        "Medusa, chain of 4": MedusaDrafter(heads.medusa),
        "Medusa, tree of 8": MedusaDrafter(heads.medusa, best_choices(accuracy, 8)),
        "EAGLE-1, chain of 4": EagleDrafter(heads.eagle1, 4),
        "EAGLE-3, chain of 4": EagleDrafter(heads.eagle3, 4),
        "EAGLE-3, chain of 6": EagleDrafter(heads.eagle3, 6),
        "EAGLE-3, dynamic tree of 8": EagleDrafter(heads.eagle3, 4, 3, 8),
    }


def _rounded(values: list[float]) -> list[float]:
    return [round(value, 3) for value in values]


def _row(o: SpeculationResult) -> dict[str, float]:
    return {
        "tokens_per_second": round(median(o.speeds), 1),
        "speedup": round(o.speedup, 2),
        "acceptance_length": round(o.acceptance_length, 2),
        "same": round(o.same, 3),
        "repeated_8grams": round(o.repeated, 3),
    }


def render(quality: Mapping[str, Any], folder: Path) -> str:
    """Return the card as Markdown."""
    host = quality["host"]
    steps = ", ".join(f"{n}: {ratio}" for n, ratio in quality["step_cost_ratio"].items())
    files = [
        f"| `{path.relative_to(folder)}` | {path.stat().st_size / 1e6:.2f} MB | `{sha256(path)}` |"
        for path in sorted(folder.glob("*/*"))
        if path.suffix in (".safetensors", ".json")
    ]
    settings = [
        f"| {name} | {s.steps} | {s.rows} | {s.rate} |" for name, s in train_config.CONFIGS.items()
    ]
    firsts = ", ".join(str(row[0]) for row in quality["medusa_accuracy"])
    return f"""# Draft heads of the tiny model

<!-- Written by `python -m tools.tinymodel.heads evaluate`. Do not edit. -->

Medusa-1 heads, an EAGLE-1 and an EAGLE-3 draft for `models/tiny`, in the layouts that vLLM loads
(`utils/speculative/checkpoints.py`). They were trained on answers of the tiny model itself, to tasks and
questions of the kinds it was trained on, none of them held out.

## Measured
By `python -m tools.tinymodel.heads evaluate` on {quality["date"]}: {host["cpu"]},
{quality["threads"]} thread(s), torch {quality["torch"]}, float32, greedy, batch 1,
{quality["prompts"]} held-out prompts without loops (code, lists, data, questions); speed-up
over plain decoding by the same code, median of alternating repeats.

{_table(quality["trained_kinds"])}

On text unlike the training data (documentation to go on with):

{_table(quality["prose"])}

- Time of a forward pass over n tokens over that of one, this CPU: {steps}.
- Medusa, share of right best guesses by head: {firsts}.
- Right at each step of drafting on: EAGLE-1 {quality["eagle1_accuracy"]},
  EAGLE-3 {quality["eagle3_accuracy"]}.

## Recipe
{train_config.ROUNDS} x {train_config.PROMPTS} prompts;
features of layers {", ".join(map(str, train_config.AUX_LAYERS))};
{train_config.MEDUSA_HEADS} Medusa heads; draft vocabulary {train_config.DRAFT_VOCAB};
{train_config.UNROLLED} steps of training-time test.

| heads | steps | rows of a step | learning rate |
|---|---|---|---|
{chr(10).join(settings)}

Make it again: `python -m tools.tinymodel.heads data train evaluate` (an hour or two on 2 cores; it goes on
where it was stopped). Each `training.jsonl` is the log: step, loss, accuracy by head or step, seconds.

## Files
| file | size | SHA-256 |
|---|---|---|
{chr(10).join(files)}
"""


def _table(rows: Mapping[str, Mapping[str, float]]) -> str:
    lines = ["| | tok/s | speed-up | acceptance length | same as plain | repeated 8-grams |"]
    lines.append("|---|---|---|---|---|---|")
    for name, row in rows.items():
        lines.append(
            f"| {name} | {row['tokens_per_second']} | {row['speedup']} | {row['acceptance_length']} | "
            f"{row['same']:.0%} | {row['repeated_8grams']:.1%} |"
        )
    return "\n".join(lines)
