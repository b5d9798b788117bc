"""Command line: python -m tools.tinymodel train | export | gguf | evaluate | card | check | corpus."""

import argparse
import json
import shutil
import sys
from pathlib import Path

from tools.tinymodel.recipes import RECIPES
from utils.profiles import ROOT
from utils.tinymodel import hub

STEPS = {
    "corpus": "print what the training text consists of",
    "train": "train a recipe in --run; continues where it stopped",
    "export": "write --run's model for transformers into --model",
    "gguf": "write the GGUF files from the model's safetensors",
    "evaluate": "measure the model and write quality.json",
    "card": "write the model card from quality.json and training.jsonl",
    "check": "compare the files with the hashes on the card",
}


def _arguments() -> argparse.Namespace:
    about = "\n".join(f"  {name:9} {text}" for name, text in STEPS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tools.tinymodel",
        description=f"Make and check the tiny model. Steps, done in the order given:\n{about}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("steps", nargs="+", choices=STEPS, metavar="STEP", help=", ".join(STEPS))
    parser.add_argument("--recipe", default="tiny", choices=RECIPES, help="settings in recipes.py")
    parser.add_argument("--run", type=Path, help="training folder (default .train/RECIPE)")
    parser.add_argument(
        "--model", type=Path, help="model folder (default models/tiny; demo: RUN/model)"
    )
    parser.add_argument("-n", type=int, default=50, help="held-out tasks of each kind (default 50)")
    arguments = parser.parse_args()
    arguments.run = arguments.run or ROOT / ".train" / arguments.recipe
    shipped = arguments.recipe == "tiny"
    arguments.model = arguments.model or (hub.TINY if shipped else arguments.run / "model")
    return arguments


def _corpus() -> None:
    from utils.tinymodel import corpus, tasks

    docs = corpus.prose()
    kept = [d for d in docs if corpus.is_heldout(d.source)]
    characters = sum(len(d.text) for d in docs)
    print(f"prose: {len(docs)} files, {characters:,} characters; {len(kept)} files held out")
    topics = corpus.topics()
    asked = sum(len(t.questions) for t in topics)
    print(f"questions: {len(topics)} topics, {asked} phrasings, {sum(len(t.heldout) for t in topics)}"
          f" held out, {sum(len(t.answers) for t in topics)} answers")  # fmt: skip
    print(f"tasks: {len(tasks.KINDS)} kinds, one spec in {tasks.HELDOUT_SHARE} held out")


def _export(run: Path, model: Path, recipe: str) -> None:
    from tools.tinymodel import model_card, train
    from utils.tinymodel import export

    export.export(run, RECIPES[recipe].shape, model)
    export.copy_tokenizer(run, model)
    shutil.copyfile(run / train.LOG, model / model_card.TRAINING)
    print(f"wrote {model}")


def _evaluate(model: Path, n: int) -> None:
    from tools.tinymodel import model_card
    from utils.tinymodel import evaluate

    where = "" if model == hub.TINY else f" --model {model}"
    command = f"python -m tools.tinymodel evaluate -n {n}{where}"
    quality = model_card.record(evaluate.evaluate(model, n), command)
    text = json.dumps(quality, indent=2)
    (model / model_card.QUALITY).write_text(text + "\n")
    print(text)


def _card(model: Path, recipe: str) -> None:
    from tools.tinymodel import model_card

    (model / model_card.CURVE).write_text(model_card.loss_curve(model_card.training_log(model)))
    notes = (model / model_card.NOTES).read_text() if (model / model_card.NOTES).exists() else ""
    (model / "README.md").write_text(model_card.render(model, RECIPES[recipe], notes.strip()))
    print(f"wrote {model / 'README.md'}")


def _check(model: Path) -> int:
    faults = hub.check(model)
    print("\n".join(faults) or f"{model}: all files match their card")
    return 1 if faults else 0


def main() -> int:
    """Run the steps; the exit status is 1 where `check` finds a difference or a model is incomplete."""
    arguments = _arguments()
    for step in arguments.steps:
        try:
            if step == "corpus":
                _corpus()
            elif step == "train":
                from tools.tinymodel.train import train

                train(RECIPES[arguments.recipe], arguments.run)
            elif step == "export":
                _export(arguments.run, arguments.model, arguments.recipe)
            elif step == "gguf":
                from utils.tinymodel import export

                for kind in export.SHIPPED_TYPES:
                    print(f"wrote {export.write_gguf(hub.verify(arguments.model), kind)}")
            elif step == "evaluate":
                _evaluate(arguments.model, arguments.n)
            elif step == "card":
                _card(arguments.model, arguments.recipe)
            elif _check(arguments.model):
                return 1
        except (hub.ModelIncompleteError, FileNotFoundError) as error:
            print(error, file=sys.stderr)
            return 1
        except KeyboardInterrupt:
            again = "; the same command goes on from the last checkpoint" if step == "train" else ""
            print(f"\ninterrupted{again}", file=sys.stderr)
            return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
