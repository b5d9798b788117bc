from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.kvcache.blocks import BlockPool, BlockTable
from utils.kvcache.scheduler import Job, SchedulerLimits, Sequence, schedule
from utils.kvcache.simulate import StepCost, fit_step_cost, simulate_continuous, simulate_static

COST = StepCost(0.002, 0.00004)
JOB = st.tuples(st.floats(0, 2), st.integers(1, 60), st.integers(1, 40))
JOBS = st.lists(JOB, min_size=1, max_size=25).map(
    lambda rows: [Job(i, *row) for i, row in enumerate(rows)]
)
LIMITS = st.builds(
    SchedulerLimits, st.integers(1, 200), st.integers(1, 30), st.just(True)
) | st.builds(SchedulerLimits, st.integers(100, 200), st.integers(1, 30), st.just(False))


def sequences(pool, *lengths):
    return [Sequence(Job(i, 0, n, 50), BlockTable(pool)) for i, n in enumerate(lengths)]


@settings(max_examples=150, deadline=None)
@given(jobs=JOBS, limits=LIMITS, blocks=st.integers(7, 40))
def test_every_request_finishes_within_its_limits(jobs, limits, blocks):
    run = simulate_continuous(jobs, COST, blocks, block_size=16, limits=limits)
    assert [outcome.job for outcome in run.outcomes] == jobs
    for outcome in run.outcomes:
        assert outcome.job.arrival < outcome.first_token_at <= outcome.finished_at
    for step in run.steps:
        assert 0 < step.tokens <= limits.token_budget
        assert step.running <= limits.max_running
        assert 0 <= step.kv_usage <= 1
    computed = sum(step.tokens for step in run.steps)
    needed = sum(job.total_tokens - 1 for job in jobs)
    assert computed == needed if run.preemptions == 0 else computed > needed
    assert run.preemptions == sum(step.preempted for step in run.steps)


@settings(max_examples=100, deadline=None)
@given(jobs=JOBS, blocks=st.integers(7, 40))
def test_first_come_first_served(jobs, blocks):
    """With equal outputs nobody overtakes: first tokens come in the order of arrival."""
    jobs = [Job(j.job_id, j.arrival, j.prompt_tokens, 20) for j in jobs]
    run = simulate_continuous(jobs, COST, blocks)
    order = sorted(run.outcomes, key=lambda o: (o.job.arrival, o.job.job_id))
    firsts = [outcome.first_token_at for outcome in order]
    assert firsts == sorted(firsts)


@settings(max_examples=60, deadline=None)
@given(jobs=JOBS)
def test_with_equal_room_continuous_is_never_slower_than_static(jobs):
    jobs = [Job(j.job_id, 0.0, j.prompt_tokens, j.output_tokens) for j in jobs]
    static = simulate_static(jobs, COST, num_slots=800, max_length=100)
    continuous = simulate_continuous(jobs, COST, 60, limits=SchedulerLimits(max_running=8))
    assert continuous.preemptions == 0
    assert continuous.makespan_s <= static.makespan_s + 1e-9
    assert static.origin == continuous.origin == "predicted"


def test_static_batch_waits_for_its_longest_member():
    jobs = [Job(0, 0, 10, 2), Job(1, 0, 10, 100), Job(2, 0, 10, 2)]
    run = simulate_static(jobs, StepCost(1, 0), num_slots=400, max_length=200)
    assert [outcome.finished_at for outcome in run.outcomes] == [100, 100, 102]
    assert run.makespan_s == 102
    assert run.output_throughput == 104 / 102
    assert run.steps[0].tokens == 20
    assert run.steps[-1].tokens == 1


def test_without_padding_a_static_batch_computes_only_what_is_asked_for():
    jobs = [Job(0, 0, 10, 2), Job(1, 0, 4, 5)]
    padded = simulate_static(jobs, COST, num_slots=400, max_length=200)
    bare = simulate_static(jobs, COST, num_slots=400, max_length=200, padding=False)
    assert [step.tokens for step in padded.steps] == [20, 2, 2, 2, 2]
    assert [step.tokens for step in bare.steps] == [14, 2, 1, 1, 1]


def test_continuous_batching_fills_the_place_at_once():
    jobs = [Job(0, 0, 10, 2), Job(1, 0, 10, 100), Job(2, 0, 10, 2)]
    run = simulate_continuous(jobs, StepCost(1, 0), 100, limits=SchedulerLimits(max_running=2))
    assert [outcome.finished_at for outcome in run.outcomes] == [2, 100, 4]


def test_the_youngest_running_request_is_preempted_and_keeps_its_output():
    pool = BlockPool(3, 4)
    old, young = sequences(pool, 4, 4)
    old.take(4), young.take(4)
    old.generated, young.generated = 1, 3
    old.take(1)
    old.table.num_tokens, old.generated = 8, 5
    waiting, running = deque(), [old, young]
    plan = schedule(waiting, running, SchedulerLimits())
    assert plan == {0: 1}
    assert list(waiting) == [young]
    assert running == [old]
    assert young.preemptions == 1
    assert young.generated == 3
    assert young.remaining == 7


def test_no_admission_in_a_step_that_preempted():
    pool = BlockPool(4, 4)
    old, young, newcomer = sequences(pool, 4, 4, 1)
    for sequence in (old, young):
        sequence.take(4)
        sequence.generated = 1
    pool.allocate()
    pool.allocate()
    waiting, running = deque([newcomer]), [old, young]
    assert schedule(waiting, running, SchedulerLimits()) == {0: 1}
    assert list(waiting) == [young, newcomer]


def test_a_prompt_is_chunked_only_where_allowed():
    pool = BlockPool(10, 4)
    first, second = sequences(pool, 6, 6)
    waiting, running = deque([first, second]), []
    assert schedule(waiting, running, SchedulerLimits(token_budget=8)) == {0: 6, 1: 2}
    assert second.remaining == 4
    first, second = sequences(BlockPool(10, 4), 6, 6)
    waiting, running = deque([first, second]), []
    assert schedule(waiting, running, SchedulerLimits(8, 8, chunked_prefill=False)) == {0: 6}
    assert list(waiting) == [second]


def test_head_of_the_line_blocks_smaller_requests_behind_it():
    pool = BlockPool(2, 4)
    big, small = sequences(pool, 12, 1)
    waiting, running = deque([big, small]), []
    assert schedule(waiting, running, SchedulerLimits()) == {}


def test_small_memory_preempts_and_still_finishes():
    jobs = [Job(i, 0, 8, 40) for i in range(6)]
    roomy = simulate_continuous(jobs, COST, 100, block_size=4)
    tight = simulate_continuous(jobs, COST, 24, block_size=4)
    assert roomy.preemptions == 0 < tight.preemptions
    assert tight.makespan_s > roomy.makespan_s


@pytest.mark.parametrize(
    ("decide", "words"),
    [
        (lambda waiting, running, limits: {}, "stuck"),
        (lambda waiting, running, limits: {99: 1}, "not running"),
        (lambda waiting, running, limits: {0: 10**6}, "exceed the budget"),
    ],
)
def test_a_bad_scheduler_is_told_what_is_wrong(decide, words):
    with pytest.raises(ValueError, match=words):
        simulate_continuous([Job(0, 0, 4, 4)], COST, 10, decide=decide)


def test_losing_a_request_or_making_no_progress_is_noticed():
    def loses(waiting, running, limits):
        waiting.clear()
        return {0: 1}

    def preempts_all(waiting, running, limits):
        while running:
            running[-1].preempt()
            waiting.appendleft(running.pop())
        sequence = waiting.popleft()
        sequence.take(1)
        running.append(sequence)
        return {sequence.job.job_id: 1}

    with pytest.raises(ValueError, match="lost"):
        simulate_continuous([Job(0, 0, 4, 4)], COST, 10, decide=loses)
    with pytest.raises(ValueError, match="no progress"):
        simulate_continuous([Job(0, 0, 4, 4)], COST, 10, decide=preempts_all)


def test_impossible_work_is_refused_before_it_starts():
    with pytest.raises(ValueError, match="never fit"):
        simulate_continuous([Job(0, 0, 400, 4)], COST, 10)
    with pytest.raises(ValueError, match="No jobs"):
        simulate_continuous([], COST, 10)
    with pytest.raises(ValueError, match="same id"):
        simulate_continuous([Job(0, 0, 1, 1), Job(0, 0, 1, 1)], COST, 10)
    with pytest.raises(ValueError, match="budget"):
        limits = SchedulerLimits(token_budget=8, chunked_prefill=False)
        simulate_continuous([Job(0, 0, 9, 1)], COST, 10, limits=limits)
    with pytest.raises(ValueError, match="one reservation"):
        simulate_static([Job(0, 0, 1, 1)], COST, 10, 20)
    with pytest.raises(ValueError, match="longer than"):
        simulate_static([Job(0, 0, 10, 20)], COST, 100, 20)
    with pytest.raises(ValueError, match="takes time"):
        StepCost(0, 0)
    with pytest.raises(ValueError, match="tokens to read"):
        Job(0, 0, 0, 1)


def test_step_cost_is_the_line_through_two_measurements():
    def fitted(tpot_s):
        cost = fit_step_cost(tpot_s)
        return cost.base_s, cost.per_token_s

    assert fitted({5: 0.018, 1: 0.010}) == pytest.approx((0.008, 0.002))
    assert fitted({1: 0.010, 5: 0.009}) == (0.010, 0)
    assert fitted({1: 0.010, 5: 0.060}) == pytest.approx((0, 0.012))
