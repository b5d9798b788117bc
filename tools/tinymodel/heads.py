"""Makes models/heads: python -m tools.tinymodel.heads data | train | evaluate."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import torch

from tools.tinymodel import heads_card
from utils.profiles import MODELS, ROOT
from utils.speculative import dataset, train_config
from utils.speculative.speculation_error import SpeculationError
from utils.speculative.target import Target, load_target

STEPS = {
    "data": "let the tiny model answer prompts; keeps its hidden states in RUN/data",
    "train": "train heads on that (--heads) and write them to models/heads",
    "evaluate": "measure all heads on held-out prompts and write models/heads/README.md",
}


def _data(target: Target, tokenizer: Any, run: Path) -> list[dataset.Recorded]:
    data: list[dataset.Recorded] = []
    for number in range(train_config.ROUNDS):
        prompts = dataset.training_prompts(tokenizer, train_config.PROMPTS, seed=number)
        data += dataset.self_generated(
            target,
            [p.ids for p in prompts],
            [p.answer for p in prompts],
            train_config.AUX_LAYERS,
            folder=run / f"data-{number}",
        )
    return data


def _train(target: Target, data: list[dataset.Recorded], heads: list[str], run: Path) -> None:
    for name in heads:
        log = train_config.train(name, target, data, run, MODELS / "heads" / name)
        lines = [json.dumps({**vars(line)}) for line in log]
        (MODELS / "heads" / name / heads_card.TRAINING).write_text("\n".join(lines) + "\n")
        print(f"wrote {MODELS / 'heads' / name}")


def main() -> int:
    """Run the steps; all of them go on where they were stopped."""
    about = "\n".join(f"  {name:9} {text}" for name, text in STEPS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tools.tinymodel.heads",
        description=f"Make the draft heads of the tiny model. Steps, in this order:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("steps", nargs="+", choices=STEPS, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument(
        "--heads", nargs="+", choices=train_config.HEADS, default=list(train_config.HEADS)
    )
    parser.add_argument("--run", type=Path, default=ROOT / ".train" / "heads")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    target = load_target(str(MODELS / "tiny"), device=device)
    tokenizer = dataset.tokenizer_of(target)
    try:
        if "data" in arguments.steps or "train" in arguments.steps:
            data = _data(target, tokenizer, arguments.run)
        if "train" in arguments.steps:
            _train(target, data, arguments.heads, arguments.run)
        if "evaluate" in arguments.steps:
            heads_card.write(target, tokenizer, MODELS / "heads")
    except SpeculationError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted; the same command goes on from the last checkpoint", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
