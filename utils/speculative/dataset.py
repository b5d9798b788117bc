"""Training data for draft heads: the target's own answers, and its hidden states while it wrote them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from utils.files import write_file
from utils.speculative.drafters import News, Reference
from utils.speculative.generate import generate
from utils.speculative.resume import digest, resume
from utils.speculative.speculation_error import SpeculationError
from utils.speculative.target import Target
from utils.tinymodel import corpus, tasks
from utils.tinymodel.tokenizer import IM_END

PROSE_CHARACTERS = 300  # of a text to go on with
QUESTIONS = 0.15  # share of questions about engines; the rest are tasks


@dataclass(frozen=True)
class Prompt:
    """Something to ask: token ids of the prompt, and of the answer known to be right."""

    kind: str
    ids: list[int]
    answer: list[int]


@dataclass(frozen=True)
class Recorded:
    """One answered prompt.

    Attributes:
        ids: Prompt and answer, int64 [length].
        prompt: Tokens of the prompt.
        hidden: The target's last hidden states of all tokens but the newest, float16 [length - 1, hidden].
        features: Its auxiliary hidden states of the same, float16 [length - 1, k x hidden].
    """

    ids: Tensor
    prompt: int
    hidden: Tensor
    features: Tensor


def record(
    target: Target,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    aux_layers: tuple[int, ...],
    *,
    max_new_tokens: int,
) -> list[Recorded]:
    """Answer prompts greedily, and keep the values that the target computed on the way.

    Args:
        target: Model that answers.
        prompts: Token ids.
        answers: Its probable texts, to save time; its real texts are kept, the same or not.
        aux_layers: Layers whose hidden states are features, see `Target`.
        max_new_tokens: Largest number of tokens of each answer.

    Returns:
        One sequence per prompt.
    """
    hidden: list[list[Tensor]] = [[] for _ in prompts]
    features: list[list[Tensor]] = [[] for _ in prompts]

    def listen(row: int, news: News) -> None:
        assert news.features is not None
        hidden[row].append(news.hidden.half().cpu())
        features[row].append(news.features.half().cpu())

    drafter = Reference(answers, aux_layers)
    run = generate(target, prompts, drafter, max_new_tokens=max_new_tokens, listen=listen)
    built = []
    for row, answer in enumerate(run.generations):
        count = len(answer.prompt) + len(answer.tokens)
        built.append(
            Recorded(
                torch.tensor(answer.prompt + answer.tokens),
                len(answer.prompt),
                torch.cat(hidden[row])[: count - 1].clone(),
                torch.cat(features[row])[: count - 1].clone(),
            )
        )
    return built


def record_all(
    target: Target,
    prompts: Sequence[Prompt],
    aux_layers: tuple[int, ...],
    *,
    max_new_tokens: int,
    batch: int = 16,
) -> list[Recorded]:
    """`record` in batches; neighbours should be of similar length."""
    data: list[Recorded] = []
    for start in range(0, len(prompts), batch):
        subset = prompts[start : start + batch]
        ids, answers = [p.ids for p in subset], [p.answer for p in subset]
        data += record(target, ids, answers, aux_layers, max_new_tokens=max_new_tokens)
    return data


def self_generated(
    target: Target,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    aux_layers: tuple[int, ...],
    *,
    max_new_tokens: int = 200,
    batch: int = 16,
    folder: Path | None = None,
) -> list[Recorded]:
    """`record` for many prompts, in batches, with a progress bar; goes on where it was stopped.

    Args:
        target: Model that answers.
        prompts: Token ids; neighbours should be of similar length.
        answers: See `record`.
        aux_layers: See `Target`.
        max_new_tokens: Largest number of tokens of each answer.
        batch: Prompts answered together.
        folder: Keeps each finished batch as a file; None keeps nothing.

    Raises:
        SpeculationError: The folder holds a batch that is cut off, or of other prompts, layers or limits.
    """
    data: list[Recorded] = []
    starts = range(0, len(prompts), batch)
    for number, start in enumerate(tqdm(starts, desc="the target writes", unit="batch")):
        file = folder / f"data-{number:04}.pt" if folder else None
        subset = slice(start, start + batch)
        about = {
            "prompts": digest([list(map(list, prompts[subset]))]),
            "target": digest([target.norm, target.shape]),
            "aux_layers": list(aux_layers),
            "max_new_tokens": max_new_tokens,
        }
        if file and file.exists():
            data += [Recorded(*row) for row in resume(file, about)["rows"]]
            continue
        built = record(
            target, prompts[subset], answers[subset], aux_layers, max_new_tokens=max_new_tokens
        )
        data += built
        if file:
            rows = [(s.ids, s.prompt, s.hidden, s.features) for s in built]
            write_file(file, partial(torch.save, {"about": about, "rows": rows}))
    return data


def tokenizer_of(target: Target) -> Any:
    """Return the tokenizer in the folder of a target's weights."""
    return load_tokenizer(target.path)


def load_tokenizer(model: str) -> Any:
    """Return the tokenizer of a model folder or hub id."""
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(model)


def training_prompts(tokenizer: Any, count: int, seed: int = 0) -> list[Prompt]:
    """Prompts of the kinds that the tiny model was trained on, none of them held out, sorted by length."""
    rng = random.Random(f"heads {seed}")
    prompts = []
    for _ in range(count):
        if rng.random() < QUESTIONS:
            *asked, answer = corpus.question(rng)
            prompts.append(_prompt(tokenizer, "question", asked, answer["content"]))
        else:
            task = tasks.draw_training(rng)
            prompts.append(_prompt(tokenizer, task.kind, task.messages, task.answer))
    return sorted(prompts, key=lambda p: len(p.ids) + len(p.answer))


TEXTS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "code": ("class", "dataclass", "function", "argparse", "sql_create", "sql_select"),
        "list": ("bullets", "range", "reverse", "sort", "repeat"),
        "data": ("json_object", "json_list", "yaml", "markdown", "csv", "sql_insert"),
    }
)


TRAINED = (*TEXTS, "questions")  # kinds of text that the model and its heads know
UNLIKE = "prose"  # a kind that the heads were not trained on


def held_out(tokenizer: Any, text: str, count: int, seed: int = 0) -> list[Prompt]:
    """Prompts that neither the tiny model nor any head was trained on.

    Args:
        tokenizer: The target's.
        text: A kind of text: "code", "list", "data", "questions" (about engines), or "prose": documentation
            to go on with, which is *unlike* what the heads were trained on and has no known answer.
        count: Number of prompts.
        seed: Same seed, same prompts.

    Raises:
        SpeculationError: No such kind of text.
    """
    rng = random.Random(f"held out {text} {seed}")
    if text == UNLIKE:
        texts = [d.text for d in corpus.prose() if corpus.is_heldout(d.source)]
        texts = [t for t in texts if len(t) > PROSE_CHARACTERS + 100]
        cut = []
        for t in rng.choices(texts, k=count):
            start = rng.randrange(len(t) - PROSE_CHARACTERS)
            cut.append(t[start : start + PROSE_CHARACTERS])
        return [Prompt(text, tokenizer(t)["input_ids"], []) for t in cut]
    if text == "questions":
        asked = [(q, t.answers[0]) for t in corpus.topics() for q in t.heldout]
        chosen = rng.sample(asked, min(count, len(asked)))
        return [
            _prompt(tokenizer, text, [{"role": "user", "content": question}], answer)
            for question, answer in chosen
        ]
    if text not in TEXTS:
        raise SpeculationError(
            f"There is no kind of text {text!r}: {', '.join(TRAINED)}, {UNLIKE}."
        )
    tasks_ = [tasks.draw_task(rng, rng.choice(TEXTS[text]), heldout=True) for _ in range(count)]
    return [_prompt(tokenizer, text, t.messages, t.answer) for t in tasks_]


def prompts_of(tokenizer: Any, each: int, seed: int = 0) -> list[Prompt]:
    """Held-out prompts of the kinds that the heads were trained on, `each` of every kind, by length."""
    found = [p for kind in TRAINED for p in held_out(tokenizer, kind, each, seed)]
    return sorted(found, key=lambda p: len(p.ids))


def _prompt(tokenizer: Any, kind: str, messages: Sequence[Any], answer: str) -> Prompt:
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True)
    return Prompt(kind, ids["input_ids"], tokenizer(answer + IM_END)["input_ids"])


def batches(data: Sequence[Recorded], rows: int, seed: int) -> Callable[[int], list[Recorded]]:
    """Batches of sequences of similar length; batch i depends on seed and i alone.

    Returns:
        A function of the step.
    """
    order = sorted(range(len(data)), key=lambda i: len(data[i].ids))
    groups = [order[i : i + rows] for i in range(0, len(order), rows)]

    def at(step: int) -> list[Recorded]:
        epoch, within = divmod(step, len(groups))
        shuffled = list(range(len(groups)))
        random.Random(f"{seed} {epoch}").shuffle(shuffled)
        return [data[i] for i in groups[shuffled[within]]]

    return at
