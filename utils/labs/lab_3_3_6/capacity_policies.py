"""Capacity policies of TensorRT-LLM on the course's own scheduler: who may start when blocks are scarce.

`MAX_UTILIZATION` admits a request as soon as its prompt fits, and pauses the youngest one if blocks run out
later. That is the course's `schedule`. `GUARANTEED_NO_EVICT` admits a request only if its longest answer fits
with those of all that run, so nobody is ever paused. Source: NVIDIA/TensorRT-LLM, CapacitySchedulerPolicy.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Mapping

import pandas as pd

from utils.kvcache.scheduler import Job, Schedule, SchedulerLimits, Sequence, schedule
from utils.kvcache.simulate import Prediction, StepCost, simulate_continuous
from utils.model_sizes import blocks_for

BLOCK = 32  # tokens, TensorRT-LLM's default
POOL = 120  # blocks
PROMPT = 64  # tokens
LONGEST = 448  # tokens of an answer that a request may ask for
REQUESTS = 40


def requests_for(seed: int = 3) -> list[Job]:
    """Return requests that all arrive at once. Few of them use the answer's whole length."""
    draw = random.Random(seed)
    lengths = [min(LONGEST, 16 + int(draw.expovariate(1 / 120))) for _ in range(REQUESTS)]
    return [Job(i, 0.0, PROMPT, length) for i, length in enumerate(lengths)]


def no_evict(longest: int) -> Schedule:
    """Return the scheduler of GUARANTEED_NO_EVICT.

    Args:
        longest: Tokens of an answer for which each request gets a guarantee.
    """

    def decide(
        waiting: deque[Sequence], running: list[Sequence], limits: SchedulerLimits
    ) -> dict[int, int]:
        def guaranteed(sequence: Sequence) -> int:
            return blocks_for(sequence.job.prompt_tokens + longest, sequence.table.pool.block_size)

        plan: dict[int, int] = {}
        budget = limits.token_budget
        for sequence in running:
            tokens = min(sequence.remaining, budget)
            if tokens:
                sequence.take(tokens)
                plan[sequence.job.job_id] = tokens
                budget -= tokens
        while waiting and budget > 0 and len(running) < limits.max_running:
            sequence = waiting[0]
            tokens = min(sequence.remaining, budget)
            promised = sum(guaranteed(other) for other in running)
            if promised + guaranteed(sequence) > sequence.table.pool.num_blocks:
                break
            running.append(waiting.popleft())
            sequence.take(tokens)
            plan[sequence.job.job_id] = tokens
            budget -= tokens
        return plan

    return decide


def run_policies(cost: StepCost, jobs: list[Job] | None = None) -> dict[str, Prediction]:
    """Run the same requests under both policies, with the same blocks."""
    jobs = jobs or requests_for()
    policies = {"GUARANTEED_NO_EVICT": no_evict(LONGEST), "MAX_UTILIZATION": schedule}
    return {
        name: simulate_continuous(jobs, cost, POOL, BLOCK, decide=decide)
        for name, decide in policies.items()
    }


def most_running(run: Prediction) -> int:
    """Return the most requests that ran in one step."""
    return max(step.running for step in run.steps)


def policies_table(runs: Mapping[str, Prediction]) -> pd.DataFrame:
    """Return a row per policy. The counts are exact, and the time is predicted from a step's cost."""
    rows = {
        name: {
            "most requests at once": most_running(run),
            "requests paused": run.preemptions,
            "steps": len(run.steps),
            "tokens computed": sum(step.tokens for step in run.steps),
            "mean use of the blocks": f"{sum(s.kv_usage for s in run.steps) / len(run.steps):.0%}",
            "time (s, predicted)": round(run.makespan_s, 2),
        }
        for name, run in runs.items()
    }
    return pd.DataFrame.from_dict(rows, orient="index")
