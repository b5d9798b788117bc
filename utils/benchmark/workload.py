"""Requests, and ways to make lists of them. Everything random takes a seed."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

from utils.benchmark.prompts import PromptMaker, WorkloadError

Api = Literal["chat", "completions"]

__all__ = ["Api", "Request", "WorkloadError", "fixed", "random_prompts", "shared_prefix"]


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
    """

    prompt: str | tuple[int, ...] | None = None
    messages: tuple[Mapping[str, Any], ...] | None = None
    max_tokens: int = 64
    temperature: float = 0.0
    ignore_eos: bool = False
    stream: bool = True
    seed: int | None = None
    extra_body: Mapping[str, Any] = field(default_factory=dict)
    tag: str = ""

    def __post_init__(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise WorkloadError("a request needs either prompt= or messages=, not both")
        if self.max_tokens < 1:
            raise WorkloadError(f"max_tokens must be at least 1, not {self.max_tokens}")

    def body(self, model: str, api: Api) -> dict[str, Any]:
        """The JSON body for `/v1/chat/completions` ("chat") or `/v1/completions`.

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


class RequestOptions(TypedDict, total=False):
    """What every builder passes on to `Request`."""

    max_tokens: int
    temperature: float
    ignore_eos: bool
    stream: bool
    extra_body: Mapping[str, Any]
    tag: str


def fixed(
    prompts: Iterable[str], *, count: int | None = None, **options: Unpack[RequestOptions]
) -> list[Request]:
    """One request per prompt, or `count` requests that go round the prompts.

    Args:
        prompts: Texts.
        count: How many requests; default, as many as prompts.
        options: Further fields of `Request`.
    """
    texts = list(prompts)
    if not texts:
        raise WorkloadError("no prompts given")
    total = len(texts) if count is None else count
    return [Request(prompt=texts[i % len(texts)], **options) for i in range(total)]


def random_prompts(
    count: int,
    length: int,
    *,
    tokenizer: str | Path | None = None,
    token_ids: bool = False,
    words: Sequence[str] | None = None,
    spread: float = 0.0,
    seed: int = 0,
    **options: Unpack[RequestOptions],
) -> list[Request]:
    """Requests with random prompts, no two alike, so that no prefix cache can help.

    Args:
        count: How many.
        length: Prompt length: in tokens if a tokenizer is given (exact; a chat template adds
            its own), else in words.
        tokenizer: A `tokenizer.json`, or a folder that holds one.
        token_ids: Send token ids in place of text (completions only).
        words: The vocabulary to draw from.
        spread: Lengths vary evenly in `length * (1 ± spread)`.
        seed: Random seed.
        options: Further fields of `Request`.

    Raises:
        WorkloadError: If the length cannot be met.
    """
    rng = random.Random(seed)
    maker = PromptMaker(tokenizer, words)
    low, high = round(length * (1 - spread)), round(length * (1 + spread))
    return [
        Request(prompt=maker.prompt(rng, rng.randint(low, high), token_ids), **options)
        for _ in range(count)
    ]


def shared_prefix(
    groups: int,
    per_group: int,
    prefix_length: int,
    suffix_length: int,
    *,
    tokenizer: str | Path | None = None,
    words: Sequence[str] | None = None,
    interleave: bool = False,
    seed: int = 0,
    **options: Unpack[RequestOptions],
) -> list[Request]:
    """Requests in groups, each group with a prefix of its own and a suffix per request.

    The first request of a group is tagged "cold", the others "warm".

    Args:
        groups: How many different prefixes.
        per_group: Requests that share each.
        prefix_length: Length of the shared part (words, or tokens if a tokenizer is given).
        suffix_length: Length of each request's own part.
        tokenizer: A `tokenizer.json`, or a folder that holds one.
        words: The vocabulary to draw from.
        interleave: Go round the groups in place of one group after another.
        seed: Random seed.
        options: Further fields of `Request`.
    """
    rng = random.Random(seed)
    maker = PromptMaker(tokenizer, words)
    prefixes = [maker.text(rng, prefix_length) for _ in range(groups)]
    order = [(group, member) for member in range(per_group) for group in range(groups)]
    if not interleave:
        order.sort()
    return [
        Request(
            prompt=f"{prefixes[group]}\n\n{maker.text(rng, suffix_length)}",
            **(options | {"tag": options.get("tag") or ("warm" if member else "cold")}),
        )
        for group, member in order
    ]
