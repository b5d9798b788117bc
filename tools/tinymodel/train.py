"""Training: data-parallel workers of one thread each, resumable at any step.

On a CPU that others use too, one process with several threads waits at every operation for the slowest;
workers that meet once a step lose much less. Hidden matrices learn by Muon, the rest by AdamW.
"""

import json
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.multiprocessing.spawn import spawn
from tqdm import tqdm

from tools.tinymodel.data import SOURCES, BatchSampler
from tools.tinymodel.recipes import Recipe
from utils.files import fill_folder, write_file
from utils.tinymodel import corpus
from utils.tinymodel import tokenizer as tok
from utils.tinymodel.export import CHECKPOINT
from utils.tinymodel.model import TinyQwen3, grow

LOG = "log.jsonl"


class Trainer:
    """One worker's model, optimizers and data.

    Args:
        recipe: what to train.
        folder: holds the tokenizer, and receives the checkpoint and the log.
        rank: this worker's number; worker 0 writes.
    """

    def __init__(self, recipe: Recipe, folder: Path, rank: int = 0) -> None:
        self.recipe, self.folder, self.rank = recipe, folder, rank
        self.tokenizer = tok.load(folder)
        self.step, self.tokens, self.seconds = 0, 0, 0.0
        self._build(recipe.stages[0].layers, None)
        if (folder / CHECKPOINT).exists():
            self._resume()

    def _build(self, layers: int, state: dict[str, Tensor] | None) -> None:
        torch.manual_seed(self.recipe.seed)
        shape = self.recipe.shape
        self.model = TinyQwen3(type(shape)(**{**vars(shape), "layers": layers}))
        if state is not None:
            self.model.load_state_dict(state)
        if self.recipe.accelerate:
            for layer in self.model.model.layers:
                layer.compile(dynamic=False)
        hidden = [p for n, p in self.model.named_parameters() if p.ndim == 2 and "embed" not in n]
        rest = [p for n, p in self.model.named_parameters() if p.ndim == 1 or "embed" in n]
        decay = self.recipe.weight_decay
        self.optimizers: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
                hidden, lr=self.recipe.muon_lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(rest, lr=self.recipe.adam_lr, betas=(0.9, 0.95), weight_decay=0.0),
        ]
        self.rates = [self.recipe.muon_lr, self.recipe.adam_lr]
        self.layers = layers
        self.sampler: tuple[Any, BatchSampler] | None = None

    def _resume(self) -> None:
        saved = torch.load(self.folder / CHECKPOINT, weights_only=True)
        self._build(saved["layers"], saved["model"])
        for optimizer, state in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self.step, self.tokens, self.seconds = saved["step"], saved["tokens"], saved["seconds"]

    def save(self) -> None:
        """Write the checkpoint next to the old one, then put it in its place."""
        state = {
            "model": self.model.state_dict(),
            "optimizers": [o.state_dict() for o in self.optimizers],
            "layers": self.layers,
            "step": self.step,
            "tokens": self.tokens,
            "seconds": self.seconds,
        }
        write_file(self.folder / CHECKPOINT, partial(torch.save, state))

    def train_step(self) -> dict[str, float]:
        """Take one optimizer step, and return the mean loss of each source present."""
        started = time.perf_counter()
        within, stage = self.recipe.stage(self.step)
        length = stage.lengths[within % len(stage.lengths)]
        if stage.layers > self.layers:
            self._build(stage.layers, grow(self.model.state_dict(), self.layers, stage.layers))
        if self.sampler is None or self.sampler[0] != stage.shares:
            self.sampler = (stage.shares, BatchSampler(self.tokenizer, stage.shares))
        batch = self.sampler[1].batch(
            self.recipe.seed, self.step, self.rank, stage.tokens // length, length
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=self.recipe.accelerate):
            losses = self.model(batch.ids, batch.targets)
        ((losses * batch.weights).sum() / batch.weights.sum().clamp(min=1)).backward()
        self._share_gradients()
        factor = self.recipe.rate(self.step)
        for optimizer, rate in zip(self.optimizers, self.rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self.tokens += stage.tokens * self.recipe.workers
        self.seconds += time.perf_counter() - started
        kept = batch.weights > 0
        return {
            name: losses.detach()[kept & (batch.source == i)].mean().item()
            for i, name in enumerate(SOURCES)
            if (kept & (batch.source == i)).any()
        }

    def _share_gradients(self) -> None:
        """Average the gradients of all workers, in one message, and clip their norm to 1."""
        parameters = [p for p in self.model.parameters() if p.grad is not None]
        if self.recipe.workers > 1:
            flat = torch.cat([p.grad.flatten() for p in parameters if p.grad is not None])
            dist.all_reduce(flat)
            flat /= self.recipe.workers
            parts = torch.split(flat, [p.numel() for p in parameters])
            for p, g in zip(parameters, parts, strict=True):
                p.grad = g.view_as(p)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)


def run(trainer: Trainer, stop: Callable[[], bool] = lambda: False) -> None:
    """Train to the recipe's end, with a progress bar, a log line every 20 steps and checkpoints."""
    recipe, first = trainer.recipe, trainer.rank == 0
    saved = time.monotonic()
    recent: dict[str, float] = {}
    bar = tqdm(total=recipe.steps, initial=trainer.step, disable=not first, desc=recipe.name)
    while trainer.step < recipe.steps and not stop():
        for name, loss in trainer.train_step().items():
            recent[name] = 0.9 * recent.get(name, loss) + 0.1 * loss
        bar.update()
        if first and trainer.step % 20 == 0:
            shown = {name: round(loss, 4) for name, loss in recent.items()}
            bar.set_postfix(shown)
            line = {
                "step": trainer.step,
                "tokens": trainer.tokens,
                "layers": trainer.layers,
                "seconds": round(trainer.seconds, 1),
                "loss": shown,
            }
            with (trainer.folder / LOG).open("a") as log:
                log.write(json.dumps(line) + "\n")
        if first and time.monotonic() - saved > recipe.checkpoint_seconds:
            trainer.save()
            saved = time.monotonic()
    if first:
        trainer.save()


def _worker(rank: int, recipe: Recipe, folder: Path) -> None:
    parent = os.getppid()
    torch.set_num_threads(1)
    if recipe.workers > 1:
        rendezvous = f"file://{folder.absolute()}/rendezvous"
        dist.init_process_group(
            "gloo", init_method=rendezvous, rank=rank, world_size=recipe.workers
        )
    orphaned = lambda: recipe.workers > 1 and os.getppid() != parent  # noqa: E731
    run(Trainer(recipe, folder, rank), orphaned)


def train(recipe: Recipe, folder: Path) -> None:
    """Train `recipe` in `folder`; continues from a checkpoint found there.

    The folder receives the tokenizer, the checkpoint and the log. Only its first call makes the tokenizer.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if not (folder / "tokenizer.json").exists():
        texts = corpus.vocabulary_texts(recipe.vocab_repeats)
        built = tok.train(texts, recipe.shape.vocab)
        fill_folder(folder, lambda part: tok.save(built, part, recipe.shape.context))
    (folder / "rendezvous").unlink(missing_ok=True)
    os.environ["OMP_NUM_THREADS"] = "1"
    if recipe.workers == 1:
        _worker(0, recipe, folder)
    else:
        spawn(_worker, args=(recipe, folder), nprocs=recipe.workers)  # type: ignore[no-untyped-call]
