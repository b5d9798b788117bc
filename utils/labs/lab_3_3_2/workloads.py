"""Prompts that share prefixes in the ways that applications do, as token ids, so that every token is known.

The patterns are those of the SGLang paper (arXiv 2312.07104, section 3, figure 9): a system prompt, few-shot
examples, a chat of several turns, a tree of thoughts; and none at all for comparison. All sizes are multiples
of a *unit*, the profile's prompt length.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence

from utils.benchmark import Request
from utils.benchmark.prompts import PromptMaker
from utils.kvcache.radix import Tokens
from utils.model_sizes import tokenizer_file
from utils.profiles import Profile

Prompts = list[Tokens]
_seeds = itertools.count()


def fresh_seed() -> int:
    """Return a new seed, because an engine finds prompts that it has seen before in its cache."""
    return next(_seeds)


class Maker:
    """Maker of random words as token ids. No two calls return the same tokens.

    Args:
        profile: Profile with the unit and the SGLang model, whose tokenizer is used.
        seed: Seed. The same seed gives the same tokens.
    """

    def __init__(self, profile: Profile, seed: int) -> None:
        self.unit = profile.load.prompt_tokens
        self._rng = random.Random(seed)
        self._maker = PromptMaker(tokenizer_of(profile))

    def tokens(self, units: float) -> Tokens:
        """Return about `units` times the unit in tokens. Lengths are uneven, as in real texts."""
        return self.exactly(round(units * self.unit * self._rng.uniform(0.9, 1.1)))

    def exactly(self, count: int) -> Tokens:
        """Return `count` tokens."""
        prompt = self._maker.prompt(self._rng, count, token_ids=True)
        assert not isinstance(prompt, str)
        return list(prompt)


def tokenizer_of(profile: Profile) -> str:
    """Return the `tokenizer.json` of the profile's SGLang model."""
    return str(tokenizer_file(profile.models["sglang"]))


def workloads(profile: Profile, seed: int = 0) -> Mapping[str, Prompts]:
    """Return five lists of prompts, each in the order in which they are sent."""
    make = Maker(profile, seed).tokens
    return {
        "system prompt": system_prompt(make(8), [make(1) for _ in range(7)]),
        "few-shot": few_shot([make(5), make(5)], [make(1) for _ in range(8)]),
        "chat": chat([make(2), make(2)], [[make(1) for _ in range(5)] for _ in range(2)]),
        "tree of thoughts": tree_of_thoughts(make(4), [make(1) for _ in range(6)]),
        "no sharing": [make(4) for _ in range(4)],
    }


def system_prompt(system: Tokens, questions: Sequence[Tokens]) -> Prompts:
    """Return the questions, each after the same instructions."""
    return [system + question for question in questions]


def few_shot(examples: Sequence[Tokens], questions: Sequence[Tokens]) -> Prompts:
    """Return the questions of several tasks in turn, each after the examples of its task."""
    return [examples[i % len(examples)] + question for i, question in enumerate(questions)]


def chat(systems: Sequence[Tokens], turns: Sequence[Sequence[Tokens]]) -> Prompts:
    """Return the prompts of conversations in turn. Each repeats the conversation and adds a message.

    The answers in the history are given instead of the engine's own, as in a chat that is continued
    on another engine.

    Args:
        systems: System prompt of each conversation.
        turns: Messages and answers of each conversation in turn. The last one is a message.
    """
    prompts = []
    for end in range(1, max(map(len, turns)) + 1, 2):
        for system, messages in zip(systems, turns, strict=True):
            prompts.append(system + [token for part in messages[:end] for token in part])
    return prompts


def tree_of_thoughts(problem: Tokens, thoughts: Sequence[Tokens]) -> Prompts:
    """Return a problem, then every node of a binary tree of thoughts below it, breadth first."""
    prompts = [problem]
    for index, thought in enumerate(thoughts):
        prompts.append(prompts[index // 2] + thought)
    return prompts


def partly_shared(make: Maker, length: int, fraction: float, count: int) -> tuple[Tokens, Prompts]:
    """Return a prefix of `fraction` x `length` tokens, and prompts of `length` tokens that begin with it."""
    prefix = make.exactly(round(length * fraction))
    return prefix, [prefix + make.exactly(length - len(prefix)) for _ in range(count)]


def as_requests(prompts: Sequence[Tokens], max_tokens: int, tag: str = "") -> list[Request]:
    """Return requests for `/v1/completions` whose answers have exactly `max_tokens`."""
    return [
        Request(prompt=tuple(prompt), max_tokens=max_tokens, ignore_eos=True, tag=tag)
        for prompt in prompts
    ]
