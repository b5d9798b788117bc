"""The model card: measured results and hashes, written from files and never by hand."""

import itertools
import json
import platform
from datetime import date
from pathlib import Path
from typing import Any

from tools.tinymodel.recipes import Recipe, Stage
from utils.tinymodel import corpus, hub, tasks, tokenizer

QUALITY, TRAINING, CURVE, NOTES = "quality.json", "training.jsonl", "loss.svg", "notes.md"
COLORS = {"copy": "#888888", "task": "#1f77b4", "qa": "#2ca02c", "prose": "#d62728"}


def training_log(folder: Path) -> list[dict[str, Any]]:
    """Return the lines that the trainer logged, oldest first."""
    return [json.loads(line) for line in (folder / TRAINING).read_text().splitlines()]


def loss_curve(log: list[dict[str, Any]]) -> str:
    """Return an SVG of each source's training loss (nats per token) against tokens seen."""
    width, height, left, bottom, top = 640, 300, 40, 30, 8.0
    most = float(max(line["tokens"] for line in log))

    def x(tokens: float) -> float:
        return round(left + tokens / most * (width - left - 10), 1)

    def y(loss: float) -> float:
        return round(height - bottom - min(loss, top) / top * (height - bottom - 10), 1)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        'font-family="sans-serif" font-size="11">',
        f'<rect width="{width}" height="{height}" fill="white"/>',
    ]
    for loss in range(0, 9, 2):
        line = f'<line x1="{left}" x2="{width - 10}" y1="{y(loss)}" y2="{y(loss)}" stroke="#ddd"/>'
        parts += [line, f'<text x="{left - 8}" y="{y(loss) + 4}" text-anchor="end">{loss}</text>']
    for i in range(5):
        at = most * i / 4
        label = f"{at / 1e6:.1f}M"
        parts.append(f'<text x="{x(at)}" y="{height - 12}" text-anchor="middle">{label}</text>')
    for before, after in itertools.pairwise(log):
        if before["layers"] != after["layers"]:
            here = x(after["tokens"])
            parts.append(
                f'<line x1="{here}" x2="{here}" y1="10" y2="{height - bottom}" stroke="#aaa" '
                f'stroke-dasharray="4"/><text x="{here + 4}" y="20">{after["layers"]} layers</text>'
            )
    for i, (source, color) in enumerate(COLORS.items()):
        points = " ".join(
            f"{x(line['tokens'])},{y(line['loss'][source])}"
            for line in log
            if source in line["loss"]
        )
        parts.append(
            f'<polyline points="{points}" fill="none" stroke="{color}" stroke-width="1.5"/>'
        )
        parts.append(f'<text x="{width - 150 + i // 2 * 70}" y="{40 + i % 2 * 14}" fill="{color}">'
                     f"{source}</text>")  # fmt: skip
    return "\n".join([*parts, "</svg>"]) + "\n"


def record(results: dict[str, Any], command: str) -> dict[str, Any]:
    """Results with where and how they were measured."""
    import torch
    import transformers

    return {
        "command": command,
        "date": date.today().isoformat(),
        "host": f"{platform.machine()}, {_processor()}",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "dtype": "bfloat16 weights, float32 arithmetic, greedy",
        **results,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((x.split(":")[1].strip() for x in lines if x.startswith("model name")), "unknown")


def _percent(part: int, whole: int) -> str:
    return f"{part} of {whole} ({100 * part / whole:.3g} %)"


def _stage(stage: Stage) -> str:
    lengths = ", ".join(f"{n} × {stage.lengths.count(n)}" for n in dict.fromkeys(stage.lengths))
    shares = ", ".join(f"{name} {share:.0%}" for name, share in stage.shares.items())
    return f"| {stage.steps} | {stage.layers} | {lengths} | {shares} |"


def render(folder: Path, recipe: Recipe, notes: str) -> str:
    """Return the text of the card, from quality.json, training.jsonl and the files' hashes.

    Args:
        folder: a complete model folder with both GGUF files, quality.json and training.jsonl.
        recipe: what the model was trained by.
        notes: what is weak, in words.
    """
    quality = json.loads((folder / QUALITY).read_text())
    log = training_log(folder)
    shape = recipe.shape
    done, asked = quality["tasks"], quality["questions"]
    docs = corpus.prose()
    kinds = "\n".join(
        f"| {name} | {_percent(r['right'], r['n'])} | {r['tokens']:.0f} |"
        for name, r in done["kinds"].items()
    )
    positions = quality["prose"]["loss_by_position"]
    context = ", ".join(
        f"{_percent(r['right'], r['n'])} with {size} tokens of prompt"
        for size, r in quality["long_context"].items()
    )
    files = "\n".join(
        f"| `{name}` | {(folder / name).stat().st_size / 1e6:.2f} MB | `{hub.sha256(folder / name)}` |"
        for name in (*hub.FILES, *hub.GGUF_FILES)
    )
    stages = "\n".join(map(_stage, recipe.stages))
    return f"""# tiny: the course's own language model

<!-- Written by `python -m tools.tinymodel card`. Do not edit: change tools/tinymodel/model_card.py. -->

A Qwen3-architecture chat model small enough to be trained and served on two CPU cores. It writes classes,
SQL, JSON, YAML, tables and short lists from a description, and answers questions about inference engines.
It knows nothing else: it is here so that real engines have something real to run.

| | |
|---|---|
| shape | {shape.layers} layers × hidden {shape.hidden}, FFN {shape.ffn}, {shape.heads} query heads and \
{shape.kv_heads} KV head of {shape.head_dim}, vocabulary {shape.vocab}, tied embeddings |
| context | {shape.context} tokens, RoPE theta {shape.theta:.0f} |
| chat format | ChatML: `<\\|im_start\\|>role … <\\|im_end\\|>`; generation ends at `<\\|im_end\\|>` |
| trained | {log[-1]["tokens"] / 1e6:.1f} M tokens in {log[-1]["seconds"] / 60:.0f} minutes \
({recipe.workers} CPU cores, shared with other work) |

## Measured
By `{quality["command"]}` on {quality["date"]}: {quality["host"]}, Python {quality["python"]},
torch {quality["torch"]}, transformers {quality["transformers"]}; {quality["dtype"]}.

**Held-out tasks**, checked by parsing and comparing: **{_percent(done["right"], done["n"])} right**.

| kind | right | mean tokens of an answer |
|---|---|---|
{kinds}

- Stopped by itself: {_percent(done["stopped"], done["n"])}.
- Outputs with a loop (a block three times on end over {32} tokens): {_percent(done["loops"], done["n"])}.
- Repeated 8-grams: {100 * done["repeated_8grams"]:.1f} % of those written; in the correct answers to the
  same prompts {100 * done["reference_repeated_8grams"]:.1f} %.
- Behind earlier turns: {context} (all kinds).

**Questions about engines**, each of {len(corpus.topics())} topics in two phrasings never trained on: the
answer is nearest to the asked topic's in {_percent(asked["on_topic"], asked["n"])}; stopped by itself
{_percent(asked["stopped"], asked["n"])}; with a loop {_percent(asked["loops"], asked["n"])}; repeated
8-grams {100 * asked["repeated_8grams"]:.1f} %. The *answers* are those of `qa.txt`, which it was trained
on: this measures finding the topic, not knowledge of its own.
Missed in one phrasing or both: {", ".join(asked["missed"]) or "none"}.

**Prose**, {quality["prose"]["files"]} files of documentation never trained on:
{quality["prose"]["loss_512"]} nats per token ({quality["prose"]["bits_per_byte_512"]} bits per byte) in
windows of 512 tokens; by position in windows of 2,048:
{", ".join(f"{name}: {loss}" for name, loss in positions.items())}.

{notes}

## Data
- Documentation of Python's standard library as on the machine that trains: docstrings of
  `Lib/**/*.py` and the topics of `pydoc_data`, here Python {quality["python"]}: {len(docs)} files,
  {sum(len(d.text) for d in docs) / 1e6:.1f} MB; one file in 20, by hash of its name, is held out.
- `utils/tinymodel/qa.txt`: {len(corpus.topics())} topics about inference engines, written for this course.
- `utils/tinymodel/tasks.py`: {len(tasks.KINDS)} kinds of verifiable task, generated without end. A spec
  whose hash falls in one part of {tasks.HELDOUT_SHARE} is held out and never occurs in training, in any
  turn of any conversation.

The tokenizer is byte-level BPE with Qwen2's pre-tokenization, but no merge joins a letter with a space or
a sign, so a word is the same tokens wherever it stands ({tokenizer.__name__}).

## Recipe
Muon (lr {recipe.muon_lr}) for hidden matrices, AdamW (lr {recipe.adam_lr}) for embeddings and norms;
warm-up of {recipe.warmup} steps in each stage, then constant, then linear decay to zero over the last
{recipe.decay}.
Tasks and questions: loss on the assistant's tokens only. `copy` is random tokens and the same again, which
teaches the model to copy. The model grows from {recipe.stages[0].layers} to {shape.layers} layers by
layers that add nothing at first.

| steps | layers | row lengths | sources |
|---|---|---|---|
{stages}

![Training loss by source]({CURVE})

## Files
| file | size | SHA-256 |
|---|---|---|
{files}

`tiny-Q8_0.gguf` holds matrices in 8 bits; both GGUF files are written from the safetensors file by
`python -m tools.tinymodel gguf` and are the same bytes each time. `python -m tools.tinymodel check`
compares all files with this table.

## Make it again
    python -m tools.tinymodel train --recipe {recipe.name} --run .train/{recipe.name}  # resumes
    python -m tools.tinymodel export --run .train/{recipe.name}
    python -m tools.tinymodel gguf evaluate card check

An interrupted run continues to the same weights on the same machine; other processors round differently
and another Python has other documentation, so they give other weights. `--recipe demo` shows the same steps
in a few minutes.

## Licence
Weights, questions and code: the repository's licence. The documentation it was trained on is © Python
Software Foundation, PSF License Agreement.
"""
