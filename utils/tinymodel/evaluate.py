"""The model's abilities: tasks by kind, questions, stopping, loops, held-out prose, long context."""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from tqdm import tqdm

from utils.tinymodel import corpus, hub, tasks

LOOP_NGRAM = 8
LOOP_SPAN = 32  # tokens that a repeated block must cover to be a loop
MAX_NEW_TOKENS = 320  # the longest correct answer of any kind has fewer
SPARE_TOKENS = 64  # what a task's answer may run over the longest correct one of its kind
Messages = list[tasks.Message]


@dataclass(frozen=True)
class Output:
    """A greedy answer: its text, its tokens, and whether the model ended it by itself."""

    text: str
    tokens: list[int]
    stopped: bool


def repeated_share(tokens: Sequence[int], n: int = LOOP_NGRAM) -> float:
    """Share of the n-grams of `tokens` that occurred before in it; 0 where it is shorter than n."""
    grams = [tuple(tokens[i : i + n]) for i in range(len(tokens) - n + 1)]
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def has_loop(tokens: Sequence[int], span: int = LOOP_SPAN) -> bool:
    """Return whether some block is written at least three times on end, over at least `span` tokens."""
    for period in range(1, len(tokens) // 3 + 1):
        run = 0
        for i in range(period, len(tokens)):
            run = run + 1 if tokens[i] == tokens[i - period] else 0
            if run >= max(2 * period, span - period):
                return True
    return False


def generate(
    model: Any,
    tokenizer: Any,
    chats: Sequence[Messages],
    *,
    batch: int = 25,
    max_new_tokens: int = MAX_NEW_TOKENS,
    progress: Callable[[Iterable[int]], Iterable[int]] = lambda x: x,
) -> list[Output]:
    """Greedy answers of a transformers model to chats, in batches of similar prompt length."""
    prompts = [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)[
            "input_ids"
        ]
        for chat in chats
    ]
    order = sorted(range(len(chats)), key=lambda i: len(prompts[i]))
    answers: dict[int, Output] = {}
    for start in progress(range(0, len(order), batch)):
        chosen = order[start : start + batch]
        padded = tokenizer.pad(
            {"input_ids": [prompts[i] for i in chosen]}, padding_side="left", return_tensors="pt"
        )
        with torch.inference_mode():
            built = model.generate(**padded, max_new_tokens=max_new_tokens, do_sample=False)
        end = model.generation_config.eos_token_id
        for i, row in zip(chosen, built[:, padded["input_ids"].shape[1] :].tolist(), strict=True):
            stopped = end in row
            tokens = row[: row.index(end)] if stopped else row
            answers[i] = Output(tokenizer.decode(tokens), tokens, stopped)
    return [answers[i] for i in range(len(chats))]


@dataclass(frozen=True)
class KindResult:
    """Held-out tasks of one kind: how many, how many right, mean tokens of an answer."""

    n: int
    right: int
    tokens: float


def tasks_quality(model: Any, tokenizer: Any, n: int, seed: int = 0) -> dict[str, Any]:
    """`n` held-out tasks of each kind: right answers, stops, repeated 8-grams and loops."""
    kinds: dict[str, dict[str, float]] = {}
    asked: list[tasks.Task] = []
    outputs: list[Output] = []
    for kind in tqdm(tasks.KINDS, desc="tasks"):
        actual = tasks.heldout(n, kind, seed)
        longest = max(len(tokenizer(t.answer)["input_ids"]) for t in actual)
        chats = [t.messages for t in actual]
        built = generate(model, tokenizer, chats, batch=n, max_new_tokens=longest + SPARE_TOKENS)
        right = sum(tasks.check(t, o.text) for t, o in zip(actual, built, strict=True))
        mean = sum(len(o.tokens) for o in built) / n
        kinds[kind] = asdict(KindResult(n, right, round(mean, 1)))
        asked += actual
        outputs += built
    references = [tokenizer(t.answer)["input_ids"] for t in asked]
    return {
        "n": len(asked),
        "right": sum(kind["right"] for kind in kinds.values()),
        "kinds": kinds,
        **_habits(outputs),
        "reference_repeated_8grams": round(repeats(references), 4),
    }


def repeats(texts: Sequence[Sequence[int]]) -> float:
    """Repeated share of all 8-grams of all texts together, 0 to 1, each text by itself."""
    counts = [max(0, len(t) - LOOP_NGRAM + 1) for t in texts]
    repeated = sum(c * repeated_share(t) for c, t in zip(counts, texts, strict=True))
    return repeated / max(1, sum(counts))


def _habits(outputs: Sequence[Output]) -> dict[str, Any]:
    return {
        "stopped": sum(o.stopped for o in outputs),
        "loops": sum(has_loop(o.tokens) for o in outputs),
        "repeated_8grams": round(repeats([o.tokens for o in outputs]), 4),
        "tokens": sum(len(o.tokens) for o in outputs),
    }


_COMMON = frozenset(
    re.findall(
        r"\w+",
        """
    a an and are as at be by for from how i in is it its of on or that the this to what with
""",
    )
)


def _content(text: str) -> set[str]:
    return {w for w in re.findall(r"[a-z0-9]+", text.lower()) if w not in _COMMON}


def nearest_topic(text: str) -> str:
    """Return the topic of qa.txt one of whose answers shares most words with `text` (Jaccard)."""
    words = _content(text)

    def likeness(topic: corpus.Topic) -> float:
        answers = [_content(a) for a in topic.answers]
        return max(len(words & a) / max(1, len(words | a)) for a in answers)

    return max(corpus.topics(), key=likeness).name


def questions_quality(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Every topic, asked in a phrasing never trained on: is the answer nearest to that topic's?"""
    asked = [(topic.name, question) for topic in corpus.topics() for question in topic.heldout]
    chats = [[{"role": "user", "content": question}] for _, question in asked]
    outputs = generate(
        model,
        tokenizer,
        chats,
        batch=50,
        max_new_tokens=192,
        progress=lambda x: tqdm(x, desc="questions"),
    )
    on_topic = [nearest_topic(o.text) == name for (name, _), o in zip(asked, outputs, strict=True)]
    missed = sorted({name for (name, _), ok in zip(asked, on_topic, strict=True) if not ok})
    return {"n": len(asked), "on_topic": sum(on_topic), "missed": missed, **_habits(outputs)}


def _losses(model: Any, tokenizer: Any, texts: Sequence[str], length: int) -> torch.Tensor:
    """Loss in nats at each position, mean over windows of `length` tokens of the joined texts."""
    ids = tokenizer("\n\n".join(texts))["input_ids"]
    rows = [ids[i : i + length + 1] for i in range(0, len(ids) - length, length)]
    total = torch.zeros(length)
    for row in rows:
        window = torch.tensor([row])
        with torch.inference_mode():
            logits = model(window[:, :-1]).logits[0].float()
        total += F.cross_entropy(logits, window[0, 1:], reduction="none")
    return total / len(rows)


def prose_quality(model: Any, tokenizer: Any) -> dict[str, Any]:
    """Loss on documentation of files never trained on, and by position in windows of 2,048 tokens."""
    kept = [d for d in corpus.prose() if corpus.is_heldout(d.source)]
    short = _losses(model, tokenizer, [d.text for d in kept], 512).mean().item()
    long = _losses(model, tokenizer, [d.text for d in kept], 2048)
    text = "\n\n".join(d.text for d in kept)
    per_byte = len(tokenizer(text)["input_ids"]) / len(text.encode())
    parts = {"0-255": long[:256], "256-1023": long[256:1024], "1024-2047": long[1024:]}
    return {
        "files": len(kept),
        "loss_512": round(short, 3),
        "bits_per_byte_512": round(short / math.log(2) * per_byte, 3),
        "loss_by_position": {name: round(part.mean().item(), 3) for name, part in parts.items()},
    }


def long_context(model: Any, tokenizer: Any, sizes: Sequence[int], n: int = 20) -> dict[str, Any]:
    """Held-out tasks at the end of a chat filled with earlier turns: right answers by prompt tokens."""
    found = {}
    for size in tqdm(sizes, desc="long context"):
        chats, asked = [], tasks.heldout(n, seed=size)
        for i, task in enumerate(asked):
            chats.append(filled(tokenizer, task.messages, size, seed=i))
        outputs = generate(model, tokenizer, chats, batch=n, max_new_tokens=200)
        right = sum(tasks.check(t, o.text) for t, o in zip(asked, outputs, strict=True))
        found[str(size)] = {"n": n, "right": right}
    return found


def filled(tokenizer: Any, messages: Messages, size: int, seed: int) -> Messages:
    """Return the chat with held-out turns put before it until it has about `size` tokens (never more)."""
    chat = list(messages)
    for before in tasks.heldout(200, seed=1000 + seed):
        turns = [m for m in before.messages if m["role"] != "system"]
        longer = [*turns, {"role": "assistant", "content": before.answer}, *chat]
        if messages[0]["role"] == "system":
            longer = [messages[0], *[m for m in longer if m["role"] != "system"]]
        ids = tokenizer.apply_chat_template(longer, return_dict=True)["input_ids"]
        if len(ids) > size:
            break
        chat = longer
    return chat


def evaluate(folder: Path, n: int = 50) -> dict[str, Any]:
    """Return all measurements of the model in `folder` (bf16 weights computed in float32, greedy)."""
    torch.set_num_threads(1)  # so small a model is faster on one
    model, tokenizer = hub.load(folder)
    return {
        "tasks": tasks_quality(model, tokenizer, n),
        "questions": questions_quality(model, tokenizer),
        "prose": prose_quality(model, tokenizer),
        "long_context": long_context(model, tokenizer, (1024, 1800)),
    }
