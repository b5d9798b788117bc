"""Training batches: documents of several sources, packed into rows with a loss weight per token.

A batch depends only on (seed, step, rank), so a resumed run sees what an uninterrupted one would have.
"""

import random
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from torch import Tensor

from utils.tinymodel import corpus, tasks
from utils.tinymodel.tokenizer import END_OF_TEXT, IM_END, IM_START

SOURCES = ("copy", "task", "qa", "prose")
Piece = tuple[list[int], float]  # token ids and the weight of their loss


@dataclass(frozen=True)
class Batch:
    """Rows of packed documents; all tensors [rows, length].

    Attributes:
        ids: int64, the tokens read.
        targets: int64, the tokens to predict.
        weights: float32, the weight of each target's loss.
        source: int64, index in `SOURCES` of each target.
    """

    ids: Tensor
    targets: Tensor
    weights: Tensor
    source: Tensor


def chat_pieces(messages: list[tasks.Message]) -> list[tuple[str, float]]:
    """Texts and loss weights of a chat: 1 for the assistant's words and its end of turn, else 0."""
    pieces: list[tuple[str, float]] = []
    for message in messages:
        says = float(message["role"] == "assistant")
        pieces.append((f"{IM_START}{message['role']}\n", 0.0))
        pieces.append((message["content"] + IM_END, says))
        pieces.append(("\n", 0.0))
    return [*pieces, (END_OF_TEXT, 0.0)]


class BatchSampler:
    """Draws documents of each source and packs them."""

    def __init__(self, tokenizer: Tokenizer, shares: Mapping[str, float]) -> None:
        self.tokenizer = tokenizer
        self.shares = {k: v for k, v in shares.items() if v > 0}
        self.documents = [d.text for d in corpus.prose() if not corpus.is_heldout(d.source)]
        self.weights = [len(text) for text in self.documents]

    def batch(self, seed: int, step: int, rank: int, rows: int, length: int) -> Batch:
        """Return the batch of this step and rank: `rows` rows of `length` targets."""
        rng = random.Random(f"{seed} {step} {rank}")
        spent = dict.fromkeys(self.shares, 0.0)
        packed = [self._row(rng, length + 1, spent) for _ in range(rows)]
        ids = torch.tensor([row[0] for row in packed])
        weights = torch.tensor([row[1] for row in packed])
        source = torch.tensor([row[2] for row in packed])
        return Batch(ids[:, :-1], ids[:, 1:], weights[:, 1:], source[:, 1:])

    def _row(
        self, rng: random.Random, length: int, spent: dict[str, float]
    ) -> tuple[list[int], list[float], list[int]]:
        ids: list[int] = []
        weights: list[float] = []
        sources: list[int] = []
        while len(ids) < length:
            source = min(spent, key=lambda s: spent[s] / self.shares[s] + rng.random())
            before = len(ids)
            for tokens, weight in self._document(rng, source, length):
                ids += tokens
                weights += [weight] * len(tokens)
            sources += [SOURCES.index(source)] * (len(ids) - before)
            spent[source] += min(len(ids), length) - before
        return ids[:length], weights[:length], sources[:length]

    def _document(self, rng: random.Random, source: str, length: int) -> Iterator[Piece]:
        if source == "copy":
            yield from self._copy(rng, length)
            return
        if source == "prose":
            text = rng.choices(self.documents, self.weights)[0]
            start = rng.randrange(max(1, len(text) - 400))
            start = text.find("\n", start) + 1
            texts = [(text[start : start + min(4 * length, 1600)], 1.0), (END_OF_TEXT, 1.0)]
        elif source == "qa":
            texts = chat_pieces(corpus.question(rng))
        else:
            task = tasks.draw_training(rng)
            answer = {"role": "assistant", "content": task.answer}
            texts = chat_pieces([*task.messages, answer])
        encoded = self.tokenizer.encode_batch([text for text, _ in texts])
        yield from ((e.ids, weight) for e, (_, weight) in zip(encoded, texts, strict=True))

    def _copy(self, rng: random.Random, length: int) -> Iterator[Piece]:
        """Random tokens, then the same again: only induction can predict the second occurrence."""
        size = self.tokenizer.get_vocab_size()
        tokens = [rng.randrange(3, size) for _ in range(rng.randint(4, max(8, length // 8)))]
        yield tokens, 0.0
        for _ in range(rng.randint(1, 2)):
            yield tokens[:1], 0.0
            yield tokens[1:], 1.0
