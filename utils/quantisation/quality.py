"""Quality of an engine's prediction of a text, token by token, from the probabilities that it gives.

The engine is handed the text so far and asked for one token, with the probabilities of the likeliest: teacher
forcing, so that every variant judges the same text. Its KV cache holds the earlier tokens, in its own type.
Source of the fields: llama.cpp tools/server/README.md, `/tokenize` and `/completion` (`n_probs`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from utils import loopback
from utils.engines import EngineError, RunningEngine

LIKELIEST = 2048  # probabilities asked for at each place: all of the tiny model's
FLOOR = 1e-9  # probability of a token that is not among them

Distribution = dict[int, float]


@dataclass(frozen=True)
class Judged:
    """Probabilities that an engine gave to some texts.

    Attributes:
        tokens: True token at each judged place.
        distributions: Probabilities by token, at each place.
    """

    tokens: tuple[int, ...]
    distributions: tuple[Distribution, ...]

    @property
    def perplexity(self) -> float:
        """The exponential of the mean of -log p(token)."""
        pairs = zip(self.tokens, self.distributions, strict=True)
        losses = [-math.log(max(FLOOR, p.get(token, 0.0))) for token, p in pairs]
        return math.exp(sum(losses) / len(losses))

    @property
    def best(self) -> list[int]:
        """The likeliest token at each place."""
        return [max(p, key=lambda token: p[token]) for p in self.distributions]


def judge_texts(
    engine: RunningEngine, texts: Sequence[tuple[str, str]], tokens: int, timeout_s: float = 120.0
) -> Judged:
    """Let a running llama.cpp judge texts.

    Args:
        engine: Engine that serves.
        texts: Beginnings, which are only read, and continuations, which are judged.
        tokens: Number of first tokens of each continuation.
        timeout_s: For one answer.

    Raises:
        EngineError: It gave no probabilities.
    """
    seen: list[int] = []
    found: list[Distribution] = []
    with loopback.client(base_url=engine.base_url, timeout=timeout_s) as client:
        for beginning, continuation in texts:
            start = _tokenize(client, beginning)
            ids = start + _tokenize(client, continuation)[:tokens]
            for place in range(len(start), len(ids)):
                found.append(_next(client, ids[:place]))
                seen.append(ids[place])
    return Judged(tuple(seen), tuple(found))


def _tokenize(client: httpx.Client, text: str) -> list[int]:
    answer = client.post("/tokenize", json={"content": text, "parse_special": True}).json()
    return [int(token) for token in answer["tokens"]]


def _next(client: httpx.Client, ids: list[int]) -> Distribution:
    body = {
        "prompt": ids,
        "n_predict": 1,
        "n_probs": LIKELIEST,
        "temperature": 0,
        "cache_prompt": True,
        "id_slot": 0,
    }
    return read_distribution(client.post("/completion", json=body).json())


def read_distribution(answer: dict[str, Any]) -> Distribution:
    """Probabilities of the next token from llama.cpp's answer.

    Raises:
        EngineError: There are none in it.
    """
    try:
        likeliest = answer["completion_probabilities"][0]["top_logprobs"]
        return {int(one["id"]): math.exp(one["logprob"]) for one in likeliest}
    except (KeyError, IndexError, TypeError) as error:
        raise EngineError(f"The engine gave no probabilities: {str(answer)[:200]}") from error


def agreement(one: Judged, other: Judged) -> float:
    """Share of the places where both hold the same token to be likeliest, 0 to 1."""
    return float(np.mean([a == b for a, b in zip(one.best, other.best, strict=True)]))


def divergence(reference: Judged, other: Judged) -> float:
    """Mean Kullback-Leibler divergence of the reference's probabilities from the other's, nats."""
    total = 0.0
    for p, q in zip(reference.distributions, other.distributions, strict=True):
        total += sum(v * math.log(v / max(FLOOR, q.get(t, 0.0))) for t, v in p.items() if v > FLOOR)
    return total / len(reference.distributions)
