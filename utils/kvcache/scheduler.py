"""Iteration-level scheduling with preemption, as vLLM does it, in small.

*Iteration-level* scheduling (Yu et al., "Orca", OSDI 2022, section 3.1; "continuous batching"
today) decides anew at every forward step who takes part. :func:`schedule` follows vLLM 0.32
(``Scheduler.schedule`` in ``v1/core/sched/scheduler.py``): running requests first, oldest first;
where blocks run out the youngest running request is preempted, loses its cache and is recomputed
later (PagedAttention, arXiv 2309.06180, section 4.5); the waiting are admitted, first come first
served, only in a step that preempted nobody, and only if their whole prompt fits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from utils.kvcache.blocks import BlockTable


@dataclass(frozen=True)
class Job:
    """A request before anybody serves it: arrival in seconds, lengths in tokens."""

    job_id: int
    arrival: float
    prompt_tokens: int
    output_tokens: int

    def __post_init__(self) -> None:
        if self.prompt_tokens < 1 or self.output_tokens < 1 or self.arrival < 0:
            raise ValueError(f"A job has tokens to read and to write, from time 0 on: {self}.")

    @property
    def total_tokens(self) -> int:
        """Prompt and output."""
        return self.prompt_tokens + self.output_tokens


@dataclass(frozen=True)
class Limits:
    """What a step may hold (vLLM: ``max_num_batched_tokens``, ``max_num_seqs``).

    Attributes:
        token_budget: Tokens computed in one step, at most.
        max_running: Requests that run at once, at most.
        chunked_prefill: Whether a prompt may be computed over several steps.
    """

    token_budget: int = 2048
    max_running: int = 256
    chunked_prefill: bool = True


@dataclass(eq=False)
class Sequence:
    """A request being served.

    Attributes:
        job: What was asked for.
        table: Its blocks.
        generated: Output tokens so far; they survive a preemption, their cache does not.
        preemptions: How often it lost its cache.
        first_token_at: Predicted time of the first output token, in seconds.
        finished_at: Predicted time of the last one.
    """

    job: Job
    table: BlockTable
    generated: int = 0
    preemptions: int = 0
    first_token_at: float | None = None
    finished_at: float | None = None

    @property
    def remaining(self) -> int:
        """Known tokens whose key and value are not in the cache: the work before the next one."""
        return self.job.prompt_tokens + self.generated - self.table.num_tokens

    def fits(self, tokens: int) -> bool:
        """Whether the pool has the blocks that ``tokens`` more tokens need."""
        return self.table.blocks_to_grow(tokens) <= len(self.table.pool.free)

    def take(self, tokens: int) -> None:
        """Takes the blocks for ``tokens`` more tokens."""
        self.table.grow(tokens)

    def preempt(self) -> None:
        """Gives all blocks back; prompt and output so far have to be computed again."""
        self.table.release()
        self.preemptions += 1


Schedule = Callable[[deque[Sequence], list[Sequence], Limits], dict[int, int]]


def schedule(waiting: deque[Sequence], running: list[Sequence], limits: Limits) -> dict[int, int]:
    """Decides one step of iteration-level scheduling.

    Args:
        waiting: First come first; changed in place.
        running: Oldest first; changed in place.
        limits: What a step may hold.

    Returns:
        Tokens to compute in this step, by job id; their blocks are taken.
    """
    plan: dict[int, int] = {}
    budget, preempted = limits.token_budget, False
    position = 0
    while position < len(running) and budget > 0:
        sequence = running[position]
        tokens = min(sequence.remaining, budget)
        while not sequence.fits(tokens) and sequence in running:
            victim = running.pop()
            victim.preempt()
            waiting.appendleft(victim)
            preempted = True
        if sequence not in running:
            break
        sequence.take(tokens)
        plan[sequence.job.job_id] = tokens
        budget -= tokens
        position += 1
    while not preempted and waiting and budget > 0 and len(running) < limits.max_running:
        sequence = waiting[0]
        tokens = min(sequence.remaining, budget)
        too_long = tokens < sequence.remaining and not limits.chunked_prefill
        if too_long or not sequence.fits(sequence.remaining):
            break
        running.append(waiting.popleft())
        sequence.take(tokens)
        plan[sequence.job.job_id] = tokens
        budget -= tokens
    return plan
