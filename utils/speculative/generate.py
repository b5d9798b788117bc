"""The loop: draft, verify, keep. Plain decoding is the same loop with drafts of no guesses."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from utils.speculative.drafters import Draft, Drafter, News
from utils.speculative.speculation_error import SpeculationError
from utils.speculative.target import Target
from utils.speculative.tree import chain
from utils.speculative.verify import Greedy, Rule


@dataclass
class Generation:
    """One answer and how it came about.

    Attributes:
        prompt: Tokens asked.
        tokens: Tokens answered; the end-of-text token, if it came, is the last.
        accepted: Tokens that each verification added to the answer, the target's own included; their mean is
            the acceptance length.
        drafted: Tokens that each draft proposed.
    """

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    accepted: list[int] = field(default_factory=list)
    drafted: list[int] = field(default_factory=list)


@dataclass
class GenerationRun:
    """A batch of answers with the time they took.

    Attributes:
        generations: In the order of the prompts.
        prefill_seconds: For the prompts and the first token.
        decode_seconds: For all after that.
        draft_seconds: The part of it that drafting took.
    """

    generations: list[Generation]
    prefill_seconds: float = 0.0
    decode_seconds: float = 0.0
    draft_seconds: float = 0.0

    @property
    def decoded(self) -> int:
        """Tokens written while decoding: all but the first of each answer."""
        return sum(max(0, len(g.tokens) - 1) for g in self.generations)

    @property
    def tokens_per_second(self) -> float:
        """Decoding speed."""
        return self.decoded / self.decode_seconds if self.decode_seconds else 0.0

    @property
    def acceptance_length(self) -> float:
        """Mean tokens per verification over all answers."""
        return acceptance_length(self.generations)


def acceptance_length(answers: Sequence[Generation]) -> float:
    """Mean tokens per verification over several answers, 1 for plain decoding; 0 without any verification."""
    steps = [n for g in answers for n in g.accepted]
    return sum(steps) / max(1, len(steps))


@torch.inference_mode()
def generate(
    target: Target,
    prompts: Sequence[Sequence[int]],
    drafter: Drafter,
    *,
    max_new_tokens: int,
    rule: Rule | None = None,
    ignore_end: bool = False,
    listen: Callable[[int, News], None] | None = None,
) -> GenerationRun:
    """Answer a batch of prompts.

    Args:
        target: The model whose answers these are.
        prompts: Token ids.
        drafter: Guesses.
        max_new_tokens: Largest number of tokens of each answer.
        rule: Rule of acceptance; None is greedy.
        ignore_end: True to go on after an end-of-text token.
        listen: Called with a row and the target's values for it, for prompts and after each step.

    Returns:
        Answers and times.

    Raises:
        SpeculationError: An empty prompt, an unknown token, heads that do not fit, or a sequence too long.
    """
    loop = _Loop(target, prompts, drafter, max_new_tokens, rule or Greedy(), ignore_end, listen)
    began = time.perf_counter()
    loop.prefill()
    loop.run.prefill_seconds = time.perf_counter() - began
    began = time.perf_counter()
    while loop.news:
        loop.step()
    loop.run.decode_seconds = time.perf_counter() - began
    return loop.run


class _Loop:
    """The state of one call of `generate`; `news` holds the rows that are not done."""

    def __init__(
        self,
        target: Target,
        prompts: Sequence[Sequence[int]],
        drafter: Drafter,
        limit: int,
        rule: Rule,
        ignore_end: bool,
        listen: Callable[[int, News], None] | None,
    ) -> None:
        _refuse(target, prompts, limit)
        self.target, self.drafter, self.limit, self.rule = target, drafter, limit, rule
        self.ends: frozenset[int] = frozenset() if ignore_end else target.end_of_text
        self.listen = listen
        slots = max(map(len, prompts)) + limit + drafter.nodes
        self.cache = target.cache(len(prompts), slots)
        drafter.start(target, len(prompts), slots)
        target.aux_layers = drafter.aux_layers
        self.run = GenerationRun([Generation(list(prompt)) for prompt in prompts])
        self.texts = [list(prompt) for prompt in prompts]
        self.news: dict[int, News] = {}
        self.rows = list(range(len(prompts)))  # which answer each row of the cache belongs to

    def prefill(self) -> None:
        """Compute the prompts, and the first token of each answer."""
        trees = [chain(len(text) - 1) for text in self.texts]
        seen = self.target(self._ids(self.texts), trees, self.cache)
        for row, text in enumerate(self.texts):
            count = len(text)
            self.cache.lengths[row] = count
            logits = self.target.logits(seen.hidden[row, count - 1 : count])
            verdict = self.rule(chain(0), text[-1:], logits)
            self._absorb(row, [verdict.token], seen.of(row, slice(count)))
            self.run.generations[row].accepted.clear()

    def step(self) -> None:
        """Draft for the rows that are not done, verify all at once, and keep the accepted tokens."""
        if 2 * len(self.news) <= len(self.rows):
            left = [i for i, row in enumerate(self.rows) if row in self.news]
            self.cache.select(left)
            self.rows = [self.rows[i] for i in left]
        began = time.perf_counter()
        drafts = [
            self.drafter.draft(row, self.news[row])
            if row in self.news
            else Draft(chain(0), self.texts[row][-1:])
            for row in self.rows
        ]
        ids = self._ids([draft.tokens for draft in drafts])
        self.run.draft_seconds += time.perf_counter() - began
        seen = self.target(ids, [draft.tree for draft in drafts], self.cache)
        logits = self.target.logits(seen.hidden)
        for i, (row, draft) in enumerate(zip(self.rows, drafts, strict=True)):
            if row not in self.news:
                continue
            self.run.generations[row].drafted.append(draft.tree.size - 1)
            verdict = self.rule(draft.tree, draft.tokens, logits[i, : draft.tree.size])
            self.cache.keep(i, verdict.path)
            gained = [*(draft.tokens[node] for node in verdict.path[1:]), verdict.token]
            self._absorb(row, gained, seen.of(i, verdict.path))
            if row not in self.news:  # done: it may have grown beyond its end, and needs no room
                self.cache.lengths[i] = 0

    def _absorb(self, row: int, gained: list[int], states: tuple[Tensor, Tensor | None]) -> None:
        """Add tokens to an answer, up to its end; `states` are those of the tokens before each."""
        answer = self.run.generations[row]
        gained = gained[: self.limit - len(answer.tokens)]
        ends = [i for i, token in enumerate(gained) if token in self.ends]
        if ends:
            gained = gained[: ends[0] + 1]
        answer.tokens += gained
        answer.accepted.append(len(gained))
        self.texts[row] += gained
        news = News(self.texts[row], *states)
        if self.listen:
            self.listen(row, news)
        if ends or len(answer.tokens) == self.limit:
            self.news.pop(row, None)
        else:
            self.news[row] = news

    def _ids(self, rows: list[list[int]]) -> Tensor:
        longest = max(map(len, rows))
        padded = [row + [0] * (longest - len(row)) for row in rows]
        return torch.tensor(padded, device=self.target.device)


def _refuse(target: Target, prompts: Sequence[Sequence[int]], limit: int) -> None:
    if not prompts or not all(prompts) or limit < 1:
        raise SpeculationError("Every prompt needs a token, and max_new_tokens is at least 1.")
    highest, lowest = max(map(max, prompts)), min(map(min, prompts))
    if lowest < 0 or highest >= target.shape.vocab:
        raise SpeculationError(
            f"A prompt holds token {lowest if lowest < 0 else highest}; the target knows 0 to "
            f"{target.shape.vocab - 1}. Is this another model's tokenizer?"
        )
