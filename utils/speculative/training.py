"""Training of draft heads on what the target wrote: resumable, with a progress bar, refusing NaN."""

from __future__ import annotations

import copy
import math
import random
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from utils.files import write_file
from utils.speculative.dataset import Recorded, batches
from utils.speculative.heads import Eagle1, Eagle3, EagleShape, MedusaHeads, unroll
from utils.speculative.muon import Muon
from utils.speculative.resume import digest, go_on
from utils.speculative.speculation_error import SpeculationError
from utils.speculative.target import Shape, Target

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
class Settings:
    """How to train.

    Attributes:
        steps: Optimizer steps.
        rate: Highest learning rate: warm-up over a twentieth, then a cosine to zero.
        rows: Sequences (EAGLE) or positions (Medusa) of a step.
        seed: Of initial weights and batches.
        folder: Keeps a checkpoint once a minute, from which the same call goes on; None keeps none.
    """

    steps: int
    rate: float
    rows: int
    seed: int = 0
    folder: Path | None = None


Loss = Callable[[int], tuple[Tensor, list[float]]]


def fit(
    module: nn.Module, loss_at: Loss, settings: Settings, name: str, data: Sequence[Recorded]
) -> list[LogLine]:
    """Minimizes a loss.

    Args:
        module: What is trained.
        loss_at: Loss and accuracies of a step.
        settings: How.
        name: For the progress bar and the checkpoint.
        data: What `loss_at` reads; a checkpoint of other data is refused.

    Returns:
        The log.

    Raises:
        SpeculationError: The loss is no number any more (the last checkpoint is kept); or the checkpoint is
            cut off, or another training's.
    """
    matrices = [p for n, p in module.named_parameters() if p.ndim == 2 and "lm_head" not in n]
    others = [p for n, p in module.named_parameters() if p.ndim != 2 or "lm_head" in n]
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(others, lr=settings.rate, betas=(0.9, 0.95), weight_decay=0.0)
    ]
    if matrices:
        optimizers.append(Muon(matrices, lr=settings.rate, adjust_lr_fn="match_rms_adamw"))
    step, log, spent = 0, [], 0.0
    file = settings.folder / f"{name}.checkpoint.pt" if settings.folder else None
    about = _about(module, settings, data) if file else {}
    if file and file.exists():
        saved = go_on(file, about)
        module.load_state_dict(saved["module"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        step, spent = saved["step"], saved["seconds"]
        log = [LogLine(**line) for line in saved["log"]]
    began = saved_at = time.monotonic()
    losses: list[float] = []
    right: list[list[float]] = []
    bar = tqdm(total=settings.steps, initial=step, desc=name)
    while step < settings.steps:
        factor = min(1.0, (step + 1) / max(1, settings.steps // 20))
        factor *= 0.5 + 0.5 * math.cos(math.pi * step / settings.steps)
        loss, accuracy = loss_at(step)
        value = float(loss.detach())
        if not math.isfinite(value):
            raise SpeculationError(
                f"The loss of {name} is {value} at step {step}: the learning rate "
                f"{settings.rate} is too high, or the data holds hidden states that are no numbers."
            )
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(module.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.param_groups[0]["lr"] = settings.rate * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        step += 1
        losses.append(value)
        right.append(accuracy)
        bar.update()
        if step % LOG_EVERY == 0 or step == settings.steps:
            count = min(map(len, right))
            means = [sum(row[i] for row in right) / len(right) for i in range(count)]
            seconds = spent + time.monotonic() - began
            log.append(LogLine(step, sum(losses) / len(losses), means, seconds))
            bar.set_postfix(loss=f"{log[-1].loss:.3f}", right=" ".join(f"{m:.2f}" for m in means))
            losses, right = [], []
            if file and time.monotonic() - saved_at > SAVE_SECONDS:
                _save(file, module, optimizers, step, log, about)
                saved_at = time.monotonic()
    bar.close()
    if file:
        _save(file, module, optimizers, step, log, about)
    return log


def _about(
    module: nn.Module, settings: Settings, data: Sequence[Recorded]
) -> dict[str, int | float | str]:
    """What a training is made of: its settings, its data, and the module as it begins."""
    shape = getattr(module, "shape", None)
    return {
        "steps": settings.steps,
        "rate": settings.rate,
        "rows": settings.rows,
        "seed": settings.seed,
        "data": digest(s.ids for s in data),
        "weights at the start": digest([shape, *module.state_dict().values()]),
    }


def _save(
    file: Path,
    module: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    step: int,
    log: Sequence[LogLine],
    about: Mapping[str, object],
) -> None:
    state = {
        "about": dict(about),
        "module": module.state_dict(),
        "optimizers": [optimizer.state_dict() for optimizer in optimizers],
        "step": step,
        "seconds": log[-1].seconds,
        "log": [vars(line) for line in log],
    }
    write_file(file, partial(torch.save, state))


def _usable(
    data: Sequence[Recorded], answer: int, *, length: int = 0, width: int | None = None
) -> list[Recorded]:
    """The sequences that have something to learn from.

    Args:
        data: Answers of the target.
        answer: Tokens that an answer has to have.
        length: Tokens that prompt and answer have to have.
        width: Of the features; None if they are not read.

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
    target: Target, data: Sequence[Recorded], settings: Settings, heads: int = 4
) -> tuple[MedusaHeads, list[LogLine]]:
    """Medusa-1: the backbone stays as it is; cross-entropy of each head, later ones weighing less.

    Returns:
        Heads and log.

    Raises:
        SpeculationError: No answer is long enough for the last head.
    """
    data = _usable(data, heads + 1)
    torch.manual_seed(settings.seed)
    module = MedusaHeads(heads, target.shape.hidden, target.shape.vocab)
    module.start_from(target.head.weight.float().cpu())
    module.to(target.device)
    hidden, labels = medusa_examples(data, heads)

    def loss_at(step: int) -> tuple[Tensor, list[float]]:
        rng = random.Random(f"{settings.seed} {step}")
        picked = torch.tensor([rng.randrange(len(hidden)) for _ in range(settings.rows)])
        logits = module(hidden[picked].float().to(target.device))
        return medusa_loss(logits, labels[picked].t().to(target.device))

    return module, fit(module, loss_at, settings, "Medusa", data)


def train_medusa2(
    target: Target,
    heads: MedusaHeads,
    data: Sequence[Recorded],
    settings: Settings,
    weight: float = 0.2,
) -> tuple[Target, MedusaHeads, list[LogLine]]:
    """Medusa-2: heads and backbone learn together, from heads that Medusa-1 has trained.

    The loss is the backbone's own cross-entropy plus `weight` times that of the heads (Medusa, section
    2.2.2). The backbone changes, so the output does: compare with this target, not with the old one.

    Args:
        target: Is copied.
        heads: Are copied; start of the training.
        data: The target's own answers, which keep it what it was (section 2.3.2).
        settings: How; `rows` are sequences.
        weight: Of the heads' loss.

    Returns:
        The new target, its heads, and the log; accuracy is the backbone's, then the heads'.
    """
    data = _usable(data, 1)
    both = nn.ModuleDict({"target": copy.deepcopy(target), "heads": copy.deepcopy(heads)})
    both.requires_grad_(True)
    tuned, mine = both["target"], both["heads"]
    assert isinstance(tuned, Target)
    assert isinstance(mine, MedusaHeads)
    batch_at = batches(data, settings.rows, settings.seed)

    def loss_at(step: int) -> tuple[Tensor, list[float]]:
        rows = batch_at(step)
        longest = max(len(s.ids) for s in rows)
        ids = torch.stack([F.pad(s.ids, (0, longest - len(s.ids))) for s in rows])
        hidden = tuned.causal(ids.to(target.device))
        states, labels = [], []
        for row, s in enumerate(rows):
            states.append(hidden[row, s.prompt - 1 : len(s.ids) - 1])
            labels.append(_tokens_ahead(s, mine.count + 1))
        flat, wanted = torch.cat(states), torch.cat(labels).t().to(target.device)
        logits = tuned.head(flat)
        own = F.cross_entropy(logits, wanted[0])
        theirs, accuracy = medusa_loss(mine(flat), wanted[1:])
        right = float((logits.argmax(-1) == wanted[0]).float().mean())
        return own + weight * theirs, [right, *accuracy]

    log = fit(both, loss_at, settings, "Medusa-2", data)
    both.requires_grad_(False)
    return tuned, mine, log


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
    for k, (mine, wanted) in enumerate(zip(logits, labels, strict=True)):
        known = max(1, int((wanted >= 0).sum()))
        total = total + DECAY**k * F.cross_entropy(mine, wanted, reduction="sum") / known
        accuracy.append(float((mine.argmax(-1) == wanted).sum()) / known)
    return total, accuracy


@torch.no_grad()
def medusa_accuracy(
    heads: MedusaHeads, data: Sequence[Recorded], ranks: int = 8
) -> list[list[float]]:
    """How often each head's guess of each rank is right, 0 to 1, [head][rank].

    Args:
        heads: What guesses.
        data: Answers of the target, for choosing a tree not those that the heads were trained on.
        ranks: How many guesses of a head are looked at.

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
    target: Target, eagle: Eagle3 | Eagle1, data: Sequence[Recorded], steps: int
) -> list[float]:
    """How often an EAGLE draft's best guess is right at each step of drafting on, 0 to 1."""
    width = len(eagle.shape.aux_layers) * target.shape.hidden or None
    data = _usable(data, 1, length=steps + 2, width=width)
    settings = Settings(steps=1, rate=0.0, rows=len(data))
    head = target.head.weight.float()[eagle.d2t]
    return _eagle_loss(target, eagle, data, settings, steps, head, 0.0)(0)[1]


def draft_vocabulary(data: Sequence[Recorded], size: int) -> Tensor:
    """The `size` most frequent tokens of the answers, ascending: the map `d2t`, int64 [size]."""
    counts: Counter[int] = Counter()
    for s in data:
        counts.update(s.ids[s.prompt :].tolist())
    most = [token for token, _ in counts.most_common(size)]
    spare = (token for token in range(10**9) if token not in counts)
    while len(most) < size:
        most.append(next(spare))
    return torch.tensor(sorted(most))


def train_eagle3(
    target: Target,
    data: Sequence[Recorded],
    aux_layers: tuple[int, ...],
    settings: Settings,
    *,
    unrolled: int = 4,
    draft_vocab: int = 1024,
) -> tuple[Eagle3, list[LogLine]]:
    """EAGLE-3: cross-entropy against the target's distribution, over several steps of drafting on.

    Args:
        target: Whose draft this becomes.
        data: Its answers, with features of `aux_layers`.
        aux_layers: See `Target`.
        settings: How.
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
    torch.manual_seed(settings.seed)
    shape = EagleShape(draft_layer(target), draft_vocab, aux_layers)
    eagle = Eagle3(shape)
    eagle.d2t.copy_(draft_vocabulary(data, draft_vocab))
    with torch.no_grad():
        eagle.lm_head.weight.copy_(target.head.weight.float().cpu()[eagle.d2t])
    eagle.to(target.device)
    head = target.head.weight.float()[eagle.d2t]
    loss_at = _eagle_loss(target, eagle, data, settings, unrolled, head, 0.0)
    return eagle, fit(eagle, loss_at, settings, f"EAGLE-3 ({unrolled} steps)", data)


def train_eagle1(
    target: Target, data: Sequence[Recorded], settings: Settings
) -> tuple[Eagle1, list[LogLine]]:
    """EAGLE-1: regression of the next feature (smooth L1) plus 0.1 of the cross-entropy, one step.

    Returns:
        Draft and log.
    """
    data = _usable(data, 1, length=3)
    torch.manual_seed(settings.seed)
    head = target.head.weight.float()
    shape = EagleShape(draft_layer(target), target.shape.vocab, ())
    eagle = Eagle1(shape, head.cpu()).to(target.device)
    loss_at = _eagle_loss(target, eagle, data, settings, 1, head, 1.0)
    return eagle, fit(eagle, loss_at, settings, "EAGLE-1", data)


def draft_layer(target: Target) -> Shape:
    """Sizes of an EAGLE draft's layer: the target's, without norms of queries and keys."""
    return replace(target.shape, layers=1, qk_norm=False)


def _eagle_loss(
    target: Target,
    eagle: Eagle3 | Eagle1,
    data: Sequence[Recorded],
    settings: Settings,
    unrolled: int,
    head: Tensor,
    regression: float,
) -> Loss:
    """The loss of a step; `head` [draft vocab, hidden] gives the target's distribution over those tokens."""
    batch_at = batches(data, settings.rows, settings.seed)
    embed = target.embed.weight.float()
    device = target.device

    def loss_at(step: int) -> tuple[Tensor, list[float]]:
        rows = batch_at(step)
        longest = max(len(s.ids) for s in rows)
        ids = torch.stack([F.pad(s.ids, (0, longest - len(s.ids))) for s in rows]).to(device)
        hidden = _stacked([s.hidden for s in rows], longest - 1).to(device)
        features = (
            _stacked([s.features for s in rows], longest - 1).to(device)
            if isinstance(eagle, Eagle3)
            else hidden
        )
        answer = torch.zeros(len(rows), longest, dtype=torch.bool, device=device)
        for row, s in enumerate(rows):
            answer[row, s.prompt : len(s.ids)] = True
        tables = target.rotary.at(
            torch.arange(longest + unrolled, device=device)[None], embed.dtype
        )
        features = F.pad(features, (0, 0, 0, 1))
        outputs = unroll(eagle, embed, tables, ids, features, unrolled)
        total = hidden.new_zeros(())
        accuracy = []
        for ahead, output in enumerate(outputs):
            count = output.shape[1] - 1  # the last row's guess lies beyond the data
            wanted = answer[:, 2 + ahead : 2 + ahead + count]
            mine = output[:, :count][wanted]
            states = hidden[:, 1 + ahead : 1 + ahead + count][wanted]
            with torch.no_grad():
                theirs = F.linear(states, head)
                right = torch.softmax(theirs, -1)
            logits = eagle.logits(mine)
            cross = -(right * torch.log_softmax(logits, -1)).sum(-1).mean()
            if regression:
                total = total + regression * F.smooth_l1_loss(mine, states) + 0.1 * cross
            else:
                total = total + DECAY**ahead * cross
            best = eagle.d2t[logits.argmax(-1)]
            token = ids[:, 2 + ahead : 2 + ahead + count][wanted]
            accuracy.append(float((best == token).float().mean()))
        return total, accuracy

    return loss_at


def _stacked(tensors: Sequence[Tensor], length: int) -> Tensor:
    return torch.stack([F.pad(t.float(), (0, 0, 0, length - len(t))) for t in tensors])
