"""Training of draft heads on the target's own texts: resumable, with a progress bar, refusing NaN."""

from __future__ import annotations

import copy
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from utils.files import write_file
from utils.speculative.dataset import Recorded, batches
from utils.speculative.heads import Eagle1Draft, Eagle3Draft, EagleShape, MedusaHeads, unroll
from utils.speculative.muon import Muon
from utils.speculative.resume import digest, resume
from utils.speculative.speculation_error import SpeculationError
from utils.speculative.target import Target, TargetShape

DECAY = 0.8  # weight of each later guess in a loss (Medusa, section 2.2; EAGLE-3's code)
LOG_EVERY = 10
SAVE_SECONDS = 60  # between checkpoints


@dataclass(frozen=True)
class LogLine:
    """One line of a training's log.

    Attributes:
        step: Optimizer step.
        loss: Mean since the line before.
        accuracy: Share of right best guesses by head or step, mean since the line before.
        seconds: Since the beginning.
    """

    step: int
    loss: float
    accuracy: list[float]
    seconds: float


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training.

    Attributes:
        steps: Optimizer steps.
        rate: Highest learning rate: warm-up over a twentieth, then a cosine to zero.
        rows: Sequences (EAGLE) or positions (Medusa) of a step.
        seed: Seed of initial weights and batches.
        folder: Keeps a checkpoint once a minute, from which the same call goes on; None keeps none.
    """

    steps: int
    rate: float
    rows: int
    seed: int = 0
    folder: Path | None = None


Loss = Callable[[int], tuple[Tensor, list[float]]]


def make_optimizers(module: nn.Module, rate: float) -> list[torch.optim.Optimizer]:
    """Return AdamW for vectors and language-model heads, and Muon for the other matrices if there are any."""
    matrices = [p for n, p in module.named_parameters() if p.ndim == 2 and "lm_head" not in n]
    others = [p for n, p in module.named_parameters() if p.ndim != 2 or "lm_head" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    ]
    if matrices:
        optimizers.append(Muon(matrices, lr=rate, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def lr_factor(step: int, steps: int) -> float:
    """Return the share of the highest learning rate: warm-up over a twentieth, then a cosine to zero."""
    warm_up = min(1.0, (step + 1) / max(1, steps // 20))
    return warm_up * (0.5 + 0.5 * math.cos(math.pi * step / steps))


@dataclass
class TrainingState:
    """All that a stopped training needs to resume.

    Attributes:
        module: Module that is trained.
        optimizers: Its optimizers.
        file: Checkpoint, or None to keep none.
        about: Description of the training. A checkpoint of another training is refused.
        step: Optimizer steps done.
        log: Log so far.
        seconds: Time spent before this process.
    """

    module: nn.Module
    optimizers: list[torch.optim.Optimizer]
    file: Path | None
    about: dict[str, int | float | str]
    step: int = 0
    log: list[LogLine] = field(default_factory=list)
    seconds: float = 0.0

    @classmethod
    def begin(
        cls, module: nn.Module, config: TrainingConfig, name: str, data: Sequence[Recorded]
    ) -> TrainingState:
        """Return the state of a new training, or that of its checkpoint if there is one."""
        file = config.folder / f"{name}.checkpoint.pt" if config.folder else None
        about = _about(module, config, data) if file else {}
        state = cls(module, make_optimizers(module, config.rate), file, about)
        if file and file.exists():
            state.load(resume(file, about))
        return state

    def load(self, saved: Mapping[str, Any]) -> None:
        """Take over a checkpoint."""
        self.module.load_state_dict(saved["module"])
        for optimizer, values in zip(self.optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(values)
        self.step, self.seconds = saved["step"], saved["seconds"]
        self.log = [LogLine(**line) for line in saved["log"]]

    def save(self) -> None:
        """Write the checkpoint, if one is kept."""
        if self.file is None:
            return
        values = {
            "about": dict(self.about),
            "module": self.module.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "step": self.step,
            "seconds": self.log[-1].seconds,
            "log": [vars(line) for line in self.log],
        }
        write_file(self.file, partial(torch.save, values))

    def update(self, loss: Tensor, rate: float) -> None:
        """Do one optimizer step."""
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.module.parameters(), 1.0)
        for optimizer in self.optimizers:
            optimizer.param_groups[0]["lr"] = rate
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self.step += 1


def fit(
    module: nn.Module, loss_at: Loss, config: TrainingConfig, name: str, data: Sequence[Recorded]
) -> list[LogLine]:
    """Minimize a loss.

    Args:
        module: Module to train.
        loss_at: Loss and accuracies of a step.
        config: Steps, rate and checkpoints.
        name: Name for the progress bar and the checkpoint.
        data: Data that `loss_at` reads. A checkpoint of other data is refused.

    Returns:
        The log.

    Raises:
        SpeculationError: The loss is NaN or infinite (the last checkpoint is kept), or the checkpoint is
            incomplete or another training's.
    """
    state = TrainingState.begin(module, config, name, data)
    began = saved_at = time.monotonic()
    losses: list[float] = []
    accuracies: list[list[float]] = []
    with tqdm(total=config.steps, initial=state.step, desc=name) as bar:
        while state.step < config.steps:
            loss, accuracy = loss_at(state.step)
            losses.append(_finite(loss, name, state.step, config.rate))
            accuracies.append(accuracy)
            state.update(loss, config.rate * lr_factor(state.step, config.steps))
            bar.update()
            if state.step % LOG_EVERY and state.step < config.steps:
                continue
            seconds = state.seconds + time.monotonic() - began
            line = LogLine(state.step, sum(losses) / len(losses), _means(accuracies), seconds)
            state.log.append(line)
            right = " ".join(f"{mean:.2f}" for mean in line.accuracy)
            bar.set_postfix(loss=f"{line.loss:.3f}", right=right)
            losses, accuracies = [], []
            if time.monotonic() - saved_at > SAVE_SECONDS:
                state.save()
                saved_at = time.monotonic()
    state.save()
    return state.log


def _finite(loss: Tensor, name: str, step: int, rate: float) -> float:
    """Return the loss as a number, or raise an error if it is NaN or infinite."""
    value = float(loss.detach())
    if not math.isfinite(value):
        raise SpeculationError(
            f"The loss of {name} is {value} at step {step}. Lower the learning rate {rate}, or check the "
            "hidden states in the data for NaN."
        )
    return value


def _means(accuracies: Sequence[Sequence[float]]) -> list[float]:
    """Return the mean of each column, as many as the shortest row has."""
    count = min(map(len, accuracies))
    return [sum(row[i] for row in accuracies) / len(accuracies) for i in range(count)]


def _about(
    module: nn.Module, config: TrainingConfig, data: Sequence[Recorded]
) -> dict[str, int | float | str]:
    """Describe a training: its settings, its data, and the module as it begins."""
    shape = getattr(module, "shape", None)
    return {
        "steps": config.steps,
        "rate": config.rate,
        "rows": config.rows,
        "seed": config.seed,
        "data": digest(s.ids for s in data),
        "weights at the start": digest([shape, *module.state_dict().values()]),
    }


def _usable(
    data: Sequence[Recorded], answer: int, *, length: int = 0, width: int | None = None
) -> list[Recorded]:
    """Return the sequences that have something to learn from.

    Args:
        data: Answers of the target.
        answer: Tokens that an answer has to have.
        length: Tokens that prompt and answer have to have.
        width: Width of the features; None if they are not read.

    Raises:
        SpeculationError: None has, or the features are those of other layers.
    """
    found = [s for s in data if len(s.ids) - s.prompt >= answer and len(s.ids) >= length]
    if not found:
        raise SpeculationError(
            f"Of {len(data)} answers none has {answer} tokens (with its prompt {max(length, answer + 1)}), "
            "as is needed here. Answer more prompts, or let the answers be longer."
        )
    if width is not None and (other := {s.features.shape[-1] for s in found} - {width}):
        raise SpeculationError(
            f"The data holds features of width {min(other)}; these auxiliary layers need {width}. Record the "
            "answers again with the same aux_layers."
        )
    return found


def train_medusa(
    target: Target, data: Sequence[Recorded], config: TrainingConfig, heads: int = 4
) -> tuple[MedusaHeads, list[LogLine]]:
    """Medusa-1: the backbone stays as it is; cross-entropy of each head, later ones weighing less.

    Returns:
        Heads and log.

    Raises:
        SpeculationError: No answer is long enough for the last head.
    """
    data = _usable(data, heads + 1)
    torch.manual_seed(config.seed)
    module = MedusaHeads(heads, target.shape.hidden, target.shape.vocab)
    module.start_from(target.head.weight.float().cpu())
    module.to(target.device)
    hidden, labels = medusa_examples(data, heads)

    def loss_at(step: int) -> tuple[Tensor, list[float]]:
        rng = random.Random(f"{config.seed} {step}")
        picked = torch.tensor([rng.randrange(len(hidden)) for _ in range(config.rows)])
        logits = module(hidden[picked].float().to(target.device))
        return medusa_loss(logits, labels[picked].t().to(target.device))

    return module, fit(module, loss_at, config, "Medusa", data)


def train_medusa2(
    target: Target,
    heads: MedusaHeads,
    data: Sequence[Recorded],
    config: TrainingConfig,
    weight: float = 0.2,
) -> tuple[Target, MedusaHeads, list[LogLine]]:
    """Medusa-2: heads and backbone learn together, from heads that Medusa-1 has trained.

    The loss is the backbone's own cross-entropy plus `weight` times that of the heads (Medusa, section
    2.2.2). The backbone changes, so the output does: compare with this target, not with the old one.

    Args:
        target: Is copied.
        heads: Are copied; start of the training.
        data: The target's own answers, which keep it what it was (section 2.3.2).
        config: Steps, rate and checkpoints; `rows` are sequences.
        weight: Weight of the heads' loss.

    Returns:
        The new target, its heads, and the log; accuracy is the backbone's, then the heads'.
    """
    data = _usable(data, 1)
    both = nn.ModuleDict({"target": copy.deepcopy(target), "heads": copy.deepcopy(heads)})
    both.requires_grad_(True)
    tuned, tuned_heads = both["target"], both["heads"]
    assert isinstance(tuned, Target)
    assert isinstance(tuned_heads, MedusaHeads)
    batch_at = batches(data, config.rows, config.seed)

    def loss_at(step: int) -> tuple[Tensor, list[float]]:
        rows = batch_at(step)
        longest = max(len(s.ids) for s in rows)
        ids = torch.stack([F.pad(s.ids, (0, longest - len(s.ids))) for s in rows])
        hidden = tuned.causal(ids.to(target.device))
        states, labels = [], []
        for row, s in enumerate(rows):
            states.append(hidden[row, s.prompt - 1 : len(s.ids) - 1])
            labels.append(_tokens_ahead(s, tuned_heads.count + 1))
        flat, wanted = torch.cat(states), torch.cat(labels).t().to(target.device)
        logits = tuned.head(flat)
        own = F.cross_entropy(logits, wanted[0])
        of_heads, accuracy = medusa_loss(tuned_heads(flat), wanted[1:])
        own_accuracy = float((logits.argmax(-1) == wanted[0]).float().mean())
        return own + weight * of_heads, [own_accuracy, *accuracy]

    log = fit(both, loss_at, config, "Medusa-2", data)
    both.requires_grad_(False)
    return tuned, tuned_heads, log


def medusa_examples(data: Sequence[Recorded], heads: int) -> tuple[Tensor, Tensor]:
    """Positions to learn from: hidden states [n, hidden], and the tokens 2 ... heads + 1 on, [n, heads].

    Tokens beyond the answer's end are -100, which cross-entropy leaves out.
    """
    hidden, labels = [], []
    for s in data:
        hidden.append(s.hidden[s.prompt - 1 :])
        labels.append(
            _tokens_ahead(s, heads + 1)[:, 1:]
        )  # the next one is the target's own business
    return torch.cat(hidden), torch.cat(labels)


def _tokens_ahead(s: Recorded, count: int) -> Tensor:
    """The next `count` tokens from each place of an answer on, [answer, count]; -100 beyond its end."""
    return F.pad(s.ids, (0, count), value=-100).unfold(0, count, 1)[s.prompt : len(s.ids)]


def medusa_loss(logits: Tensor, labels: Tensor) -> tuple[Tensor, list[float]]:
    """Loss and each head's accuracy; logits [heads, n, vocab], labels [heads, n] with -100 for none.

    A head without any label adds nothing, and has accuracy 0.
    """
    total = logits.new_zeros(())
    accuracy = []
    for k, (own, wanted) in enumerate(zip(logits, labels, strict=True)):
        known = max(1, int((wanted >= 0).sum()))
        total = total + DECAY**k * F.cross_entropy(own, wanted, reduction="sum") / known
        accuracy.append(float((own.argmax(-1) == wanted).sum()) / known)
    return total, accuracy


@torch.no_grad()
def medusa_accuracy(
    heads: MedusaHeads, data: Sequence[Recorded], ranks: int = 8
) -> list[list[float]]:
    """Return the share of right guesses by head and rank, 0 to 1, [head][rank].

    Args:
        heads: Heads that guess.
        data: Answers of the target, for choosing a tree not those that the heads were trained on.
        ranks: Number of a head's guesses that are looked at.

    Raises:
        SpeculationError: No answer is long enough for the last head.
    """
    data = _usable(data, heads.count + 1)
    hidden, labels = medusa_examples(data, heads.count)
    logits = heads(hidden.to(heads.lm_heads))
    top = logits.topk(ranks, -1).indices  # [heads, n, ranks]
    wanted = labels.t().to(top.device)
    found = top == wanted[..., None]
    known = (wanted >= 0).sum(1, keepdim=True)
    shares: list[list[float]] = (found.sum(1) / known).tolist()
    return shares


@torch.no_grad()
def eagle_accuracy(
    target: Target, eagle: Eagle3Draft | Eagle1Draft, data: Sequence[Recorded], steps: int
) -> list[float]:
    """Return the share of right best guesses of an EAGLE draft at each step of drafting on, 0 to 1."""
    width = len(eagle.shape.aux_layers) * target.shape.hidden or None
    data = _usable(data, 1, length=steps + 2, width=width)
    rows = batches(data, len(data), seed=0)(0)
    return [
        _accuracy(eagle, eagle.logits(step.outputs), step.tokens)
        for step in eagle_steps(target, eagle, rows, steps)
    ]


def draft_vocabulary(data: Sequence[Recorded], size: int) -> Tensor:
    """Return the `size` most frequent tokens of the answers, ascending: the map `d2t`, int64 [size]."""
    counts: Counter[int] = Counter()
    for s in data:
        counts.update(s.ids[s.prompt :].tolist())
    kept = [token for token, _ in counts.most_common(size)]
    spare = (token for token in range(10**9) if token not in counts)
    while len(kept) < size:
        kept.append(next(spare))
    return torch.tensor(sorted(kept))


def train_eagle3(
    target: Target,
    data: Sequence[Recorded],
    aux_layers: tuple[int, ...],
    config: TrainingConfig,
    *,
    unrolled: int = 4,
    draft_vocab: int = 1024,
) -> tuple[Eagle3Draft, list[LogLine]]:
    """EAGLE-3: cross-entropy against the target's distribution, over several steps of drafting on.

    Args:
        target: Whose draft this becomes.
        data: Its answers, with features of `aux_layers`.
        aux_layers: See `Target`.
        config: Steps, rate and checkpoints.
        unrolled: Steps of training-time test; 1 leaves it out.
        draft_vocab: Tokens that can be guessed, at most the target's.

    Returns:
        Draft and log.

    Raises:
        SpeculationError: Too large a draft vocabulary, features of other layers, or answers too short.
    """
    data = _usable(data, 1, length=unrolled + 2, width=len(aux_layers) * target.shape.hidden)
    if not 1 <= draft_vocab <= target.shape.vocab:
        raise SpeculationError(
            f"A draft vocabulary of {draft_vocab} tokens: the target has {target.shape.vocab}."
        )
    torch.manual_seed(config.seed)
    shape = EagleShape(draft_layer(target), draft_vocab, aux_layers)
    eagle = Eagle3Draft(shape)
    eagle.d2t.copy_(draft_vocabulary(data, draft_vocab))
    with torch.no_grad():
        eagle.lm_head.weight.copy_(target.head.weight.float().cpu()[eagle.d2t])
    eagle.to(target.device)
    head = target.head.weight.float()[eagle.d2t]
    batch_at = batches(data, config.rows, config.seed)

    def loss_at(step: int) -> tuple[Tensor, list[float]]:
        return eagle3_loss(eagle, eagle_steps(target, eagle, batch_at(step), unrolled), head)

    return eagle, fit(eagle, loss_at, config, f"EAGLE-3 ({unrolled} steps)", data)


def train_eagle1(
    target: Target, data: Sequence[Recorded], config: TrainingConfig
) -> tuple[Eagle1Draft, list[LogLine]]:
    """EAGLE-1: regression of the next feature (smooth L1) plus 0.1 of the cross-entropy, one step.

    Returns:
        Draft and log.
    """
    data = _usable(data, 1, length=3)
    torch.manual_seed(config.seed)
    head = target.head.weight.float()
    shape = EagleShape(draft_layer(target), target.shape.vocab, ())
    eagle = Eagle1Draft(shape, head.cpu()).to(target.device)
    batch_at = batches(data, config.rows, config.seed)

    def loss_at(step: int) -> tuple[Tensor, list[float]]:
        return eagle1_loss(eagle, eagle_steps(target, eagle, batch_at(step), 1), head)

    return eagle, fit(eagle, loss_at, config, "EAGLE-1", data)


def draft_layer(target: Target) -> TargetShape:
    """Sizes of an EAGLE draft's layer: the target's, without norms of queries and keys."""
    return replace(target.shape, layers=1, qk_norm=False)


@dataclass(frozen=True)
class EagleStep:
    """One step of drafting on, at the places of the answers.

    Attributes:
        outputs: Outputs of the draft [n, hidden].
        states: The target's hidden states that they stand for [n, hidden].
        tokens: Tokens that came next [n].
    """

    outputs: Tensor
    states: Tensor
    tokens: Tensor


def eagle_steps(
    target: Target, eagle: Eagle3Draft | Eagle1Draft, rows: Sequence[Recorded], unrolled: int
) -> Iterator[EagleStep]:
    """Let a draft draft on from every position of some answers, and yield each step."""
    device, longest = target.device, max(len(s.ids) for s in rows)
    embed = target.embed.weight.float()
    ids = torch.stack([F.pad(s.ids, (0, longest - len(s.ids))) for s in rows]).to(device)
    hidden = _stacked([s.hidden for s in rows], longest - 1).to(device)
    features = hidden
    if isinstance(eagle, Eagle3Draft):
        features = _stacked([s.features for s in rows], longest - 1).to(device)
    answer = torch.zeros(len(rows), longest, dtype=torch.bool, device=device)
    for row, s in enumerate(rows):
        answer[row, s.prompt : len(s.ids)] = True
    tables = target.rotary.at(torch.arange(longest + unrolled, device=device)[None], embed.dtype)
    outputs = unroll(eagle, embed, tables, ids, F.pad(features, (0, 0, 0, 1)), unrolled)
    for ahead, output in enumerate(outputs):
        count = output.shape[1] - 1  # the last row's guess is beyond the data
        wanted = answer[:, 2 + ahead : 2 + ahead + count]
        yield EagleStep(
            output[:, :count][wanted],
            hidden[:, 1 + ahead : 1 + ahead + count][wanted],
            ids[:, 2 + ahead : 2 + ahead + count][wanted],
        )


def eagle3_loss(
    eagle: Eagle3Draft, steps: Iterable[EagleStep], head: Tensor
) -> tuple[Tensor, list[float]]:
    """Return the cross-entropy over all steps, later ones weighing less, and each step's accuracy.

    Args:
        eagle: The draft.
        steps: Steps of drafting on.
        head: Rows of the target's head for the draft's tokens [draft vocab, hidden].
    """
    total, accuracy = head.new_zeros(()), []
    for ahead, step in enumerate(steps):
        logits = eagle.logits(step.outputs)
        total = total + DECAY**ahead * _cross_entropy(logits, step.states, head)
        accuracy.append(_accuracy(eagle, logits, step.tokens))
    return total, accuracy


def eagle1_loss(
    eagle: Eagle1Draft, steps: Iterable[EagleStep], head: Tensor
) -> tuple[Tensor, list[float]]:
    """Return the regression of the next feature plus 0.1 of the cross-entropy, and the accuracy.

    Args:
        eagle: The draft.
        steps: Steps of drafting on.
        head: The target's head [vocab, hidden].
    """
    total, accuracy = head.new_zeros(()), []
    for step in steps:
        logits = eagle.logits(step.outputs)
        cross = _cross_entropy(logits, step.states, head)
        total = total + F.smooth_l1_loss(step.outputs, step.states) + 0.1 * cross
        accuracy.append(_accuracy(eagle, logits, step.tokens))
    return total, accuracy


def _cross_entropy(logits: Tensor, states: Tensor, head: Tensor) -> Tensor:
    """Return the cross-entropy against the distribution that the target gives at some states."""
    with torch.no_grad():
        expected = torch.softmax(F.linear(states, head), -1)
    return -(expected * torch.log_softmax(logits, -1)).sum(-1).mean()


def _accuracy(eagle: Eagle3Draft | Eagle1Draft, logits: Tensor, tokens: Tensor) -> float:
    """Return the share of best guesses that came."""
    return float((eagle.d2t[logits.argmax(-1)] == tokens).float().mean())


def _stacked(tensors: Sequence[Tensor], length: int) -> Tensor:
    return torch.stack([F.pad(t.float(), (0, 0, 0, length - len(t))) for t in tensors])
