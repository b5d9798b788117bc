"""The course's scheduler and block pool, step by step against those of the installed vLLM."""

import json
import random
import subprocess
from collections import deque

import pytest

from utils.engines.vllm import PYTHON
from utils.kvcache.blocks import BlockPool, BlockTable
from utils.kvcache.prefix_blocks import PrefixBlockPool, serve_alone
from utils.kvcache.scheduler import Job, SchedulerLimits, Sequence, schedule
from utils.profiles import ROOT

pytestmark = pytest.mark.engine
SAMPLED = 7
SIZES = ("blocks", "block_size", "token_budget", "max_running", "chunked")
SETTINGS = [
    dict(zip(SIZES, values, strict=True))
    for values in (
        (12, 16, 64, 8, True),
        (30, 16, 48, 4, True),
        (16, 16, 2048, 64, True),
        (40, 32, 64, 16, True),
        (12, 16, 128, 8, False),
    )
]


def ask_vllm(workloads):
    """Return vLLM's decisions for each workload (`tests/support/vllm_scheduler.py`)."""
    if not PYTHON.exists():
        pytest.skip("vLLM isn't set up here. Run: make setup STEP=vllm")
    done = subprocess.run(
        [str(PYTHON), "tests/support/vllm_scheduler.py"],
        cwd=ROOT,
        input=json.dumps(workloads),
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


def random_requests(setting, seed, count=20):
    """Return requests of random lengths, as `[step of arrival, prompt, answer's tokens]`."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        # Without chunks a step has to hold the longest request.
        prompt = rng.randint(1, 120 if setting["chunked"] else 60)
        answer = rng.randint(1, 60)
        found.append([rng.randint(0, 40), [rng.randrange(50) for _ in range(prompt)], answer])
    return found


def plans_of_course(workload):
    """Return what the course's scheduler computes at each step, and its preemptions."""
    limits = SchedulerLimits(workload["token_budget"], workload["max_running"], workload["chunked"])
    pool = BlockPool(workload["blocks"], workload["block_size"])
    coming = deque(sorted(enumerate(workload["requests"]), key=lambda one: one[1][0]))
    waiting, running, every, plans = deque(), [], [], []
    while coming or waiting or running:
        while coming and coming[0][1][0] <= len(plans):
            name, (_, prompt, answer) = coming.popleft()
            every.append(Sequence(Job(name, 0, len(prompt), answer), BlockTable(pool)))
            waiting.append(every[-1])
        plan = schedule(waiting, running, limits)
        for sequence in [s for s in running if s.job.job_id in plan and not s.remaining]:
            sequence.generated += 1
            if sequence.generated == sequence.job.output_tokens:
                sequence.table.release()
                running.remove(sequence)
        plans.append({str(name): tokens for name, tokens in plan.items()})
    return plans, sum(sequence.preemptions for sequence in every)


def test_scheduler_decides_each_step_as_vllm_does():
    workloads = [
        {
            **setting,
            "context": 512 if setting["chunked"] else setting["token_budget"],
            "prefix_caching": False,
            "requests": random_requests(setting, seed),
        }
        for setting in SETTINGS
        for seed in range(3)
    ]
    preempted = 0
    for workload, theirs in zip(workloads, ask_vllm(workloads), strict=True):
        ours, preemptions = plans_of_course(workload)
        assert ours == theirs["plans"], {name: workload[name] for name in SIZES}
        preempted += preemptions
    assert preempted > 20  # the small caches were really too small


def test_block_pool_finds_and_forgets_as_vllm_does():
    rng = random.Random(5)
    beginnings = [[rng.randrange(1000) for _ in range(length)] for length in (16, 40, 64)]
    requests = []
    for _ in range(60):  # one after the other, because only one may run
        own = [rng.randrange(1000) for _ in range(rng.randint(1, 50))]
        requests.append([0, [*rng.choice(beginnings), *own], rng.randint(1, 40)])
    for turn in (20, 40):  # a conversation goes on with its own answer in the prompt
        before = requests[turn - 1]
        requests[turn][1] = [*before[1], *[SAMPLED] * before[2], 1, 2, 3]
    workload = {
        **SETTINGS[2],
        "max_running": 1,
        "context": 512,
        "prefix_caching": True,
        "requests": requests,
    }
    (theirs,) = ask_vllm([workload])
    pool = PrefixBlockPool(workload["blocks"], workload["block_size"])
    ours = {
        str(name): serve_alone(pool, prompt, [SAMPLED] * answer)
        for name, (_, prompt, answer) in enumerate(requests)
    }
    assert ours == theirs["cached"]
    assert list(pool.free) == theirs["free"]
    assert len(set(ours.values())) > 3  # hits of several lengths, and misses after evictions
