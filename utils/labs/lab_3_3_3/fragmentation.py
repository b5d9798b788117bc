"""Share of a KV cache that holds tokens, with paged and with contiguous memory.

This repeats figure 2 of the PagedAttention paper (arXiv 2309.06180) without a model. Requests wait in a
queue, each running request grows by a token per step, and every slot is accounted for. A slot is room
for one token. The results are *derived* from the given lengths.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence as List
from dataclasses import dataclass

from utils.kvcache.blocks import BlockPool, BlockTable
from utils.kvcache.contiguous import (
    ContiguousPool,
    OutOfSlots,
    Reservation,
    SlotUse,
    reservation,
)
from utils.kvcache.scheduler import Job, SchedulerLimits, Sequence, schedule


@dataclass(frozen=True)
class MemoryRun:
    """Result of one way of managing memory, over a whole run.

    Attributes:
        name: Name in tables and figures.
        steps: Number of decode steps until every request is done.
        mean_running: Mean number of requests in memory over the steps while others wait.
        shares: Mean share of all slots per kind, while others wait: `used`, `reserved`,
            `internal`, `external` and `free`. They add up to 1.
        preemptions: Number of times that a request lost its cache (paged memory only).
    """

    name: str
    steps: int
    mean_running: float
    shares: dict[str, float]
    preemptions: int = 0


def run_contiguous(
    jobs: List[Job], num_slots: int, max_length: int, rule: Reservation
) -> MemoryRun:
    """Serve jobs first come, first served, each in an unbroken range.

    Args:
        jobs: Jobs, all of which wait from the start. Their arrival times are ignored.
        num_slots: Number of tokens that the memory holds.
        max_length: Longest sequence that the server admits.
        rule: Rule for the reserved length (see `utils.kvcache.contiguous.reservation`).

    Raises:
        ValueError: If a reservation exceeds the memory.
    """
    pool, waiting = ContiguousPool(num_slots), deque(jobs)
    left: dict[int, int] = {}
    samples: list[tuple[int, SlotUse]] = []
    steps = 0

    def reserved(job: Job) -> int:
        return reservation(job.prompt_tokens, job.output_tokens, max_length, rule)

    while waiting or left:
        while waiting:
            job = waiting[0]
            try:
                pool.allocate(job.job_id, reserved(job), job.prompt_tokens, job.total_tokens)
            except OutOfSlots as error:
                if not left:
                    raise ValueError(f"{job} does not fit in {num_slots} slots.") from error
                break
            left[job.job_id] = waiting.popleft().output_tokens
        if waiting:
            samples.append((len(left), pool.slot_use(reserved(waiting[0]))))
        for job_id in list(left):
            pool.grow(job_id)
            left[job_id] -= 1
            if left[job_id] == 0:
                pool.release(job_id)
                del left[job_id]
        steps += 1
    return _summary(f"contiguous, {rule}", steps, samples, num_slots)


def run_paged(jobs: List[Job], num_slots: int, block_size: int) -> MemoryRun:
    """Serve the same jobs from blocks, with preemption if the blocks run out.

    Args:
        jobs: Jobs, all of which wait from the start. Their arrival times are ignored.
        num_slots: Number of tokens that the memory holds, in `num_slots // block_size` blocks.
        block_size: Tokens per block.
    """
    pool = BlockPool(num_slots // block_size, block_size)
    waiting = deque(Sequence(job, BlockTable(pool)) for job in jobs)
    running: list[Sequence] = []
    everyone = list(waiting)
    limits = SchedulerLimits(token_budget=10**9, max_running=len(jobs))
    samples: list[tuple[int, SlotUse]] = []
    steps = 0
    while waiting or running:
        schedule(waiting, running, limits)
        if not running:
            raise ValueError(f"{waiting[0].job} does not fit in {num_slots} slots.")
        if waiting:
            samples.append((len(running), _paged_use(pool, running, num_slots)))
        for sequence in list(running):
            sequence.generated += 1
            if sequence.generated == sequence.job.output_tokens:
                sequence.table.release()
                running.remove(sequence)
        steps += 1
    preemptions = sum(sequence.preemptions for sequence in everyone)
    return _summary(f"paged, blocks of {block_size}", steps, samples, num_slots, preemptions)


def _paged_use(pool: BlockPool, running: list[Sequence], num_slots: int) -> SlotUse:
    used = sum(sequence.table.num_tokens for sequence in running)
    held = pool.used * pool.block_size
    will_be_used = sum(
        min(len(s.table.blocks) * pool.block_size, s.job.total_tokens) for s in running
    )
    return SlotUse(used, will_be_used - used, held - will_be_used, 0, num_slots - held)


def _summary(
    name: str,
    steps: int,
    samples: list[tuple[int, SlotUse]],
    num_slots: int,
    preemptions: int = 0,
) -> MemoryRun:
    if not samples:
        raise ValueError("All requests fit at once: send more, or shrink the memory.")
    kinds = ("used", "reserved", "internal", "external", "free")
    shares = {
        kind: sum(getattr(use, kind) for _, use in samples) / (num_slots * len(samples))
        for kind in kinds
    }
    mean_running = sum(running for running, _ in samples) / len(samples)
    return MemoryRun(name, steps, mean_running, shares, preemptions)
