"""Simulated runs that compare iteration-level scheduling with static batching on the same arrivals.

Times are **predicted**. A step costs `base_s + per_token_s x tokens`, and the caller gives both
constants. The model has no term for context length, sampling or the network.

*Static batching* keeps a batch together until its longest member is done; *iteration-level*
scheduling fills a place as soon as it is free (Yu et al., "Orca", OSDI 2022, sections 2 and 3.1).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from utils.kvcache.blocks import BlockPool, BlockTable
from utils.kvcache.scheduler import Job, Schedule, SchedulerLimits, Sequence, schedule
from utils.model_sizes import blocks_for


@dataclass(frozen=True)
class StepCost:
    """Predicted seconds of a forward step: `base_s + per_token_s x tokens`."""

    base_s: float
    per_token_s: float

    def __post_init__(self) -> None:
        if self.base_s < 0 or self.per_token_s < 0 or self.base_s + self.per_token_s == 0:
            raise ValueError(f"A step takes time: {self}.")

    def seconds(self, tokens: int) -> float:
        """Return the seconds of a step that computes `tokens` tokens."""
        return self.base_s + self.per_token_s * tokens


def fit_step_cost(tpot_s: Mapping[int, float]) -> StepCost:
    """Return the step cost that measured decode steps imply: the line through two batch sizes.

    Args:
        tpot_s: Seconds per output token of one request, by the number of requests in the batch.
            Exactly two batch sizes.

    Returns:
        Cost of a step. If noise would make a constant negative, it is 0.
    """
    (low, fast), (high, slow) = sorted(tpot_s.items())
    per_token = max(0.0, (slow - fast) / (high - low))
    base = fast - per_token * low
    return StepCost(base, per_token) if base >= 0 else StepCost(0.0, slow / high)


@dataclass(frozen=True)
class SimulatedStep:
    """Predicted forward step."""

    start_s: float
    seconds: float
    tokens: int
    running: int
    waiting: int
    kv_usage: float
    preempted: int


@dataclass(frozen=True)
class SimulationOutcome:
    """Predicted result of one job, with times in seconds from the start."""

    job: Job
    first_token_at: float
    finished_at: float
    preemptions: int


@dataclass(frozen=True)
class Prediction:
    """Simulated run. Every figure in it is predicted, and none is measured.

    Attributes:
        policy: `static` or `continuous`.
        cost: Step-cost model that gives the times.
        outcomes: Outcomes of the jobs, in the order of their ids.
        steps: Steps in order of time.
    """

    policy: str
    cost: StepCost
    outcomes: tuple[SimulationOutcome, ...]
    steps: tuple[SimulatedStep, ...] = field(repr=False)
    origin: str = "predicted"

    @property
    def makespan_s(self) -> float:
        """Seconds until the last job is done."""
        return max(outcome.finished_at for outcome in self.outcomes)

    @property
    def output_throughput(self) -> float:
        """Output tokens per second over the makespan."""
        return sum(o.job.output_tokens for o in self.outcomes) / self.makespan_s

    @property
    def mean_ttft_s(self) -> float:
        """Mean seconds from arrival to the first output token."""
        return sum(o.first_token_at - o.job.arrival for o in self.outcomes) / len(self.outcomes)

    @property
    def preemptions(self) -> int:
        """Number of times that a request lost its cache."""
        return sum(outcome.preemptions for outcome in self.outcomes)


def simulate_continuous(
    jobs: Iterable[Job],
    cost: StepCost,
    num_blocks: int,
    block_size: int = 16,
    limits: SchedulerLimits | None = None,
    decide: Schedule = schedule,
) -> Prediction:
    """Predict a run under iteration-level scheduling with paged memory.

    Args:
        jobs: Jobs in any order. They are served in order of arrival.
        cost: Cost of a step.
        num_blocks: Number of KV blocks in the pool.
        block_size: Tokens per block.
        limits: Limits of a step.
        decide: Scheduler, which is `schedule` or a learner's.

    Returns:
        Predicted run.

    Raises:
        ValueError: If there are no jobs, if a job can never fit, or if the scheduler gets stuck, exceeds
            the budget or computes tokens that it didn't take blocks for.
    """
    limits = limits or SchedulerLimits()
    pool = BlockPool(num_blocks, block_size)
    todo = _in_order(jobs)
    for job in todo:
        _refuse_impossible(job, num_blocks * block_size, pool, limits)
    waiting: deque[Sequence] = deque()
    running: list[Sequence] = []
    done: list[SimulationOutcome] = []
    steps: list[SimulatedStep] = []
    now = 0.0
    patience = 1000 + 10 * sum(job.total_tokens for job in todo)
    while todo or waiting or running:
        if len(steps) > patience:
            raise ValueError(f"After {patience} steps requests are still unfinished: no progress.")
        if not waiting and not running:
            now = max(now, todo[0].arrival)
        while todo and todo[0].arrival <= now:
            waiting.append(Sequence(todo.popleft(), BlockTable(pool)))
        lost = sum(s.preemptions for s in (*waiting, *running))
        stored = {s.job.job_id: s.table.num_tokens for s in (*waiting, *running)}
        plan = decide(waiting, running, limits)
        lost = sum(s.preemptions for s in (*waiting, *running)) - lost
        _audit(plan, waiting, running, stored, limits)
        seconds = cost.seconds(sum(plan.values()))
        steps.append(
            SimulatedStep(
                now, seconds, sum(plan.values()), len(running), len(waiting), pool.usage, lost
            )
        )
        now += seconds
        done += _advance(running, plan, now)
    return Prediction("continuous", cost, _by_id(done), tuple(steps))


def simulate_static(
    jobs: Iterable[Job],
    cost: StepCost,
    num_slots: int,
    max_length: int,
    max_batch: int = 256,
    padding: bool = True,
) -> Prediction:
    """Predict a run under static batching with contiguous memory.

    Whenever the server is idle, it takes the jobs that have arrived, as many as the memory holds at
    `max_length` slots each. Prompts are padded to the longest one. A finished request keeps its place
    as padding, and all answers return when the batch is done (Orca, section 2).

    Args:
        jobs: Jobs in any order. They are served in order of arrival.
        cost: Cost of a step.
        num_slots: Number of tokens that the KV memory holds.
        max_length: Slots reserved per request.
        max_batch: Most requests in a batch.
        padding: True if padding is computed. Without it, only the wait for the longest is left.

    Returns:
        Predicted run.

    Raises:
        ValueError: If there are no jobs, or if the memory doesn't hold one reservation.
    """
    batch_limit = min(max_batch, num_slots // max_length)
    if batch_limit < 1:
        raise ValueError(f"{num_slots} slots do not hold one reservation of {max_length}.")
    todo = _in_order(jobs)
    for job in todo:
        if job.total_tokens > max_length:
            raise ValueError(f"{job} is longer than the reservation of {max_length} slots.")
    done: list[SimulationOutcome] = []
    steps: list[SimulatedStep] = []
    now = 0.0
    while todo:
        now = max(now, todo[0].arrival)
        batch: list[Job] = []
        while todo and todo[0].arrival <= now and len(batch) < batch_limit:
            batch.append(todo.popleft())
        waiting = sum(job.arrival <= now for job in todo)
        usage = len(batch) * max_length / num_slots
        first = 0.0
        for index in range(max(job.output_tokens for job in batch)):
            tokens = _static_tokens(batch, index, padding)
            seconds = cost.seconds(tokens)
            steps.append(SimulatedStep(now, seconds, tokens, len(batch), waiting, usage, 0))
            now += seconds
            first = first or now
        done += [SimulationOutcome(job, first, now, 0) for job in batch]
    return Prediction("static", cost, _by_id(done), tuple(steps))


def _static_tokens(batch: list[Job], index: int, padding: bool) -> int:
    if padding:
        return len(batch) * (max(job.prompt_tokens for job in batch) if index == 0 else 1)
    if index == 0:
        return sum(job.prompt_tokens for job in batch)
    return sum(job.output_tokens > index for job in batch)


def _in_order(jobs: Iterable[Job]) -> deque[Job]:
    todo = deque(sorted(jobs, key=lambda job: (job.arrival, job.job_id)))
    if not todo:
        raise ValueError("No jobs to serve.")
    if len({job.job_id for job in todo}) < len(todo):
        raise ValueError("Two jobs have the same id.")
    return todo


def _refuse_impossible(job: Job, slots: int, pool: BlockPool, limits: SchedulerLimits) -> None:
    if blocks_for(job.total_tokens, pool.block_size) > pool.num_blocks:
        raise ValueError(f"{job} can never fit: the pool holds {slots} tokens in all.")
    if not limits.chunked_prefill and job.total_tokens > limits.token_budget:
        raise ValueError(f"{job} can exceed the budget of {limits.token_budget} tokens in a step.")


def _audit(
    plan: dict[int, int],
    waiting: deque[Sequence],
    running: list[Sequence],
    stored: dict[int, int],
    limits: SchedulerLimits,
) -> None:
    if not plan:
        raise ValueError("The scheduler is stuck: nothing runs, although requests are left.")
    if sum(plan.values()) > limits.token_budget:
        raise ValueError(f"{sum(plan.values())} tokens exceed the budget {limits.token_budget}.")
    if len(running) > limits.max_running:
        raise ValueError(f"{len(running)} requests run; the limit is {limits.max_running}.")
    known = {*running, *waiting}
    if len(known) < len(running) + len(waiting) or len(known) != len(stored):
        raise ValueError("A request was lost, or is in a queue twice.")
    by_id = {sequence.job.job_id: sequence for sequence in running}
    for job_id, tokens in plan.items():
        if job_id not in by_id:
            raise ValueError(f"Request {job_id} is in the plan and not running.")
        before = by_id[job_id].table.num_tokens - tokens
        if tokens < 1 or before not in (stored[job_id], 0):
            raise ValueError(f"Request {job_id}: {tokens} tokens planned, other blocks taken.")
    for sequence in waiting:
        if sequence.table.num_tokens:
            raise ValueError(f"Request {sequence.job.job_id} waits and still holds blocks.")


def _advance(running: list[Sequence], plan: dict[int, int], now: float) -> list[SimulationOutcome]:
    finished = []
    for sequence in list(running):
        if sequence.job.job_id not in plan or sequence.remaining:
            continue
        sequence.generated += 1
        if sequence.first_token_at is None:
            sequence.first_token_at = now
        if sequence.generated == sequence.job.output_tokens:
            sequence.finished_at = now
            sequence.table.release()
            running.remove(sequence)
            finished.append(
                SimulationOutcome(sequence.job, sequence.first_token_at, now, sequence.preemptions)
            )
    return finished


def _by_id(outcomes: list[SimulationOutcome]) -> tuple[SimulationOutcome, ...]:
    return tuple(sorted(outcomes, key=lambda outcome: outcome.job.job_id))
