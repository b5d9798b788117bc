"""Small version of vLLM's iteration-level scheduling with preemption.

*Iteration-level* scheduling decides again before every forward step which requests take part (Yu et
al., "Orca", OSDI 2022, section 3.1). Today it is called "continuous batching". `schedule` follows vLLM
0.32 (`Scheduler.schedule` in `v1/core/sched/scheduler.py`). Running requests come first, oldest first.
If blocks run out, the youngest running request is preempted: it loses its cache and is recomputed later
(PagedAttention, arXiv 2309.06180, section 4.5). Waiting requests are admitted first come, first served,
but only in a step without a preemption, and only if their whole prompt fits.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from utils.kvcache.blocks import BlockTable


@dataclass(frozen=True)
class Job:
    """Request before it is served, with its arrival in seconds and its lengths in tokens."""

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
class SchedulerLimits:
    """Limits of a step (vLLM: `max_num_batched_tokens`, `max_num_seqs`).

    Attributes:
        token_budget: Most tokens computed in one step.
        max_running: Most requests that run at once.
        chunked_prefill: True if a prompt may be computed over several steps.
    """

    token_budget: int = 2048
    max_running: int = 256
    chunked_prefill: bool = True


@dataclass(eq=False)
class Sequence:
    """Request that is being served.

    Attributes:
        job: Job that it serves.
        table: Block table.
        generated: Number of output tokens so far. They survive a preemption, but their cache does not.
        preemptions: Number of times that it lost its cache.
        first_token_at: Predicted time of the first output token, in seconds.
        finished_at: Predicted time of the last output token, in seconds.
    """

    job: Job
    table: BlockTable
    generated: int = 0
    preemptions: int = 0
    first_token_at: float | None = None
    finished_at: float | None = None

    @property
    def remaining(self) -> int:
        """Known tokens whose keys and values are not in the cache, to be computed before the next one."""
        return self.job.prompt_tokens + self.generated - self.table.num_tokens

    def fits(self, tokens: int) -> bool:
        """Return whether the pool has the blocks that `tokens` more tokens need."""
        return self.table.blocks_to_grow(tokens) <= len(self.table.pool.free)

    def take(self, tokens: int) -> None:
        """Take the blocks for `tokens` more tokens."""
        self.table.grow(tokens)

    def preempt(self) -> None:
        """Return all blocks to the pool, so that prompt and output so far are computed again."""
        self.table.release()
        self.preemptions += 1


Schedule = Callable[[deque[Sequence], list[Sequence], SchedulerLimits], dict[int, int]]


def schedule(
    waiting: deque[Sequence], running: list[Sequence], limits: SchedulerLimits
) -> dict[int, int]:
    """Decide one step of iteration-level scheduling.

    Args:
        waiting: Waiting requests in order of arrival, changed in place.
        running: Running requests, oldest first, changed in place.
        limits: Limits of the step.

    Returns:
        Tokens to compute in this step, by job id. Their blocks are taken.
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
