"""Requests, and ways to make lists of them. Everything random takes a seed."""

from __future__ import annotations

import itertools
import random
import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from utils.benchmark.prompts import PromptMaker, WorkloadError

Api = Literal["chat", "completions"]
DEFAULT_MAX_TOKENS = 64

__all__ = [
    "Api",
    "Conversation",
    "Request",
    "Source",
    "WorkloadError",
    "fixed",
    "fresh_seed",
    "random_prompts",
    "shared_prefix",
]

_seeds = itertools.count(secrets.randbits(40))


def fresh_seed() -> int:
    """Return a seed that no engine has seen, because engines keep the prompts of earlier runs in a cache.

    Seeds begin at random, because an attached engine may have served an earlier process of ours.
    """
    return next(_seeds)


@dataclass(frozen=True, slots=True)
class Source:
    """Origin of a request, as its builder knows it. Records keep it.

    Attributes:
        dataset: Name of the builder or of the data set.
        prompt_length: Lengths that were asked for, "64 tokens" or "32 to 96 words"; "" if nobody asked.
        output_length: Answer lengths that were asked for; "" if `max_tokens` is the only limit.
        seed: Random seed; None if nothing is random.
        fresh: Promise that no prompt shares a prefix with another, so that no prefix cache can help.
    """

    dataset: str = "custom"
    prompt_length: str = ""
    output_length: str = ""
    seed: int | None = None
    fresh: bool = False


@dataclass(frozen=True, slots=True)
class Request:
    """One request to an OpenAI-compatible server.

    Attributes:
        prompt: Text, or token ids (completions only).
        messages: Chat messages, in place of a prompt (chat only).
        max_tokens: Upper limit of the answer; with `ignore_eos` its exact length.
        temperature: 0 is greedy.
        ignore_eos: Go on past the end-of-sequence token (vLLM, SGLang, llama.cpp), so that
            the answer has exactly `max_tokens`.
        stream: Ask for server-sent events.
        seed: Sampling seed.
        extra_body: Further fields of the JSON body.
        tag: A label that the trace keeps.
        source: Origin of the request.
    """

    prompt: str | tuple[int, ...] | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    max_tokens: int = DEFAULT_MAX_TOKENS
    temperature: float = 0.0
    ignore_eos: bool = False
    stream: bool = True
    seed: int | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    tag: str = ""
    source: Source = Source()

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise WorkloadError("a request needs either prompt= or messages=, not both")
        if self.max_tokens < 1:
            raise WorkloadError(f"max_tokens must be at least 1, not {self.max_tokens}")

    def body(self, model: str, api: Api) -> dict[str, Any]:
        """Return the JSON body for `/v1/chat/completions` ("chat") or `/v1/completions`.

        Raises:
            WorkloadError: If the request cannot be expressed in that API.
        """
        body: dict[str, Any] = {"model": model}
        if api == "chat":
            if isinstance(self.prompt, tuple):
                raise WorkloadError('token ids need api="completions"')
            body["messages"] = (
                [{"role": "user", "content": self.prompt}]
                if self.messages is None
                else [dict(message) for message in self.messages]
            )
        else:
            if self.prompt is None:
                raise WorkloadError('messages need api="chat"')
            body["prompt"] = self.prompt if isinstance(self.prompt, str) else list(self.prompt)
        body |= {"max_tokens": self.max_tokens, "temperature": self.temperature}
        if self.seed is not None:
            body["seed"] = self.seed
        if self.ignore_eos:
            body["ignore_eos"] = True
        if self.stream:
            body |= {"stream": True, "stream_options": {"include_usage": True}}
        return body | dict(self.extra_body)


@dataclass(frozen=True, slots=True)
class Conversation:
    """Several turns of one user, each sent after the last answer and a time to think.

    Attributes:
        turns: The user's messages. Each turn also sends all messages and answers before it.
        think_s: Seconds between an answer and the next turn, one value less than `turns`.
        request: Request without a prompt of its own that gives the other fields, such as `max_tokens`;
            its messages, if any, come before the first turn.
    """

    turns: tuple[str, ...]
    think_s: tuple[float, ...]
    request: Request

    def __post_init__(self) -> None:
        if not self.turns or len(self.think_s) != len(self.turns) - 1:
            raise WorkloadError(
                f"a conversation needs turns, and a time to think between two of them, not "
                f"{len(self.turns)} turns and {len(self.think_s)} times"
            )

    def turn(self, number: int, answers: Sequence[str]) -> Request:
        """Return the request of turn `number`, counted from 0, after the answers to the turns before it."""
        messages = list(self.request.messages or ())
        for said, answer in zip(self.turns, answers, strict=False):
            messages += [
                {"role": "user", "content": said},
                {"role": "assistant", "content": answer},
            ]
        messages.append({"role": "user", "content": self.turns[number]})
        tag = self.request.tag or f"turn {number + 1}"
        return replace(self.request, prompt=None, messages=tuple(messages), tag=tag)


class RequestOptions(TypedDict, total=False):
    """Options that every builder passes on to `Request`."""

    max_tokens: int
    temperature: float
    ignore_eos: bool
    stream: bool
    extra_body: Mapping[str, Any]
    tag: str


def fixed(
    prompts: Iterable[str], *, count: int | None = None, **options: Unpack[RequestOptions]
) -> list[Request]:
    """Return one request per prompt, or `count` requests that go round the prompts.

    Args:
        prompts: Texts.
        count: Number of requests; default, as many as prompts.
        options: Further fields of `Request`.
    """
    texts = list(prompts)
    if not texts:
        raise WorkloadError("no prompts given")
    total = len(texts) if count is None else count
    source = Source("fixed")
    return [Request(prompt=texts[i % len(texts)], source=source, **options) for i in range(total)]


def random_prompts(
    count: int,
    length: int,
    *,
    tokenizer: str | Path | None = None,
    token_ids: bool = False,
    words: Sequence[str] | None = None,
    spread: float = 0.0,
    output_spread: float = 0.0,
    seed: int | None = None,
    **options: Unpack[RequestOptions],
) -> list[Request]:
    """Return requests with random prompts, no two alike, so that no prefix cache can help.

    Args:
        count: Number of requests.
        length: Prompt length: in tokens if a tokenizer is given (exact; a chat template adds
            its own), else in words.
        tokenizer: A `tokenizer.json`, or a folder that holds one.
        token_ids: Send token ids in place of text (completions only).
        words: The vocabulary to draw from.
        spread: Prompt lengths vary evenly in `length * (1 ± spread)`.
        output_spread: Limits of the answers vary evenly in `max_tokens * (1 ± output_spread)`.
        seed: Random seed; None takes one that no engine has seen.
        options: Further fields of `Request`.

    Raises:
        WorkloadError: If the length cannot be met.
    """
    seed = fresh_seed() if seed is None else seed
    rng = random.Random(seed)
    maker = PromptMaker(tokenizer, words)
    low, high = _span(length, spread)
    mean_output = options.get("max_tokens", DEFAULT_MAX_TOKENS)
    shortest, longest = _span(mean_output, output_spread)
    source = Source(
        "random words",
        _length_text(low, high, "words" if tokenizer is None else "tokens"),
        _length_text(shortest, longest, "tokens"),
        seed,
        fresh=True,
    )
    requests = []
    for _ in range(count):
        options["max_tokens"] = rng.randint(shortest, longest) if output_spread else mean_output
        prompt = maker.prompt(rng, rng.randint(low, high), token_ids)
        requests.append(Request(prompt=prompt, source=source, **options))
    return requests


def shared_prefix(
    groups: int,
    per_group: int,
    prefix_length: int,
    suffix_length: int,
    *,
    tokenizer: str | Path | None = None,
    words: Sequence[str] | None = None,
    interleave: bool = False,
    seed: int | None = None,
    **options: Unpack[RequestOptions],
) -> list[Request]:
    """Return requests in groups, each group with a prefix of its own and a suffix per request.

    The first request of a group is tagged "cold", the others "warm".

    Args:
        groups: Number of different prefixes.
        per_group: Requests that share each.
        prefix_length: Length of the shared part (words, or tokens if a tokenizer is given).
        suffix_length: Length of each request's own part.
        tokenizer: A `tokenizer.json`, or a folder that holds one.
        words: The vocabulary to draw from.
        interleave: Go round the groups in place of one group after another.
        seed: Random seed; None takes one that no engine has seen.
        options: Further fields of `Request`.
    """
    seed = fresh_seed() if seed is None else seed
    rng = random.Random(seed)
    maker = PromptMaker(tokenizer, words)
    prefixes = [maker.text(rng, prefix_length) for _ in range(groups)]
    order = [(group, member) for member in range(per_group) for group in range(groups)]
    if not interleave:
        order.sort()
    unit = "words" if tokenizer is None else "tokens"
    source = Source("shared prefix", f"{prefix_length} shared + {suffix_length} {unit}", "", seed)
    return [
        Request(
            prompt=f"{prefixes[group]}\n\n{maker.text(rng, suffix_length)}",
            source=source,
            **(options | {"tag": options.get("tag") or ("warm" if member else "cold")}),
        )
        for group, member in order
    ]


def _span(length: int, spread: float) -> tuple[int, int]:
    """Return the shortest and the longest of lengths that vary evenly around `length`."""
    if not 0 <= spread < 1:
        raise WorkloadError(f"a spread is at least 0 and less than 1, not {spread}")
    return max(min(1, length), round(length * (1 - spread))), round(length * (1 + spread))


def _length_text(low: int, high: int, unit: str) -> str:
    return f"{low} {unit}" if low == high else f"{low} to {high} {unit}"
