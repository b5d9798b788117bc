import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.kvcache.contiguous import ContiguousPool, OutOfSlots, SlotUse, reservation
from utils.kvcache.scheduler import Job
from utils.labs.lab_3_3_3.fragmentation import run_contiguous, run_paged


@given(
    prompt=st.integers(1, 500),
    output=st.integers(1, 500),
    rule=st.sampled_from(["max", "pow2", "oracle"]),
)
def test_a_reservation_always_holds_the_request(prompt, output, rule):
    slots = reservation(prompt, output, 1000, rule)
    assert prompt + output <= slots <= 1000
    assert reservation(prompt, output, 1000, "oracle") <= slots


def test_pow2_reserves_the_next_power_of_two_of_the_output():
    assert [reservation(10, n, 100, "pow2") for n in (1, 2, 3, 8, 9)] == [11, 12, 14, 18, 26]


def test_bad_reservations_are_refused():
    with pytest.raises(ValueError, match="exceed the longest"):
        reservation(60, 60, 100, "max")
    with pytest.raises(ValueError, match="Known: max, pow2, oracle"):
        reservation(1, 1, 100, "half")


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 40), st.integers(1, 40)), max_size=40))
def test_slots_are_conserved_and_ranges_never_overlap(actions):
    pool = ContiguousPool(128)
    for request, length, used in actions:
        if request in pool.regions:
            pool.release(request)
        elif used <= length:
            try:
                pool.allocate(request, length, used, length)
            except OutOfSlots:
                assert all(gap < length for _, gap in pool.gaps())
        taken = [0] * 128
        for region in pool.regions.values():
            for slot in range(region.start, region.start + region.length):
                taken[slot] += 1
        assert max(taken) <= 1
        assert sum(gap for _, gap in pool.gaps()) == taken.count(0)
        assert pool.slot_use(20).total == 128


def test_the_picture_of_the_paper():
    """Figure 3 in small: two requests, one hole between them that the next cannot use."""
    pool = ContiguousPool(32)
    pool.allocate(0, 10, used=4, final=6)
    pool.allocate(1, 4, used=4, final=4)
    pool.allocate(2, 10, used=2, final=10)
    pool.release(1)
    assert pool.slot_use(8) == SlotUse(used=6, reserved=10, internal=4, external=4, free=8)
    assert pool.slot_use(9) == SlotUse(used=6, reserved=10, internal=4, external=12, free=0)
    assert pool.slot_use(9).effective == 6 / 32
    with pytest.raises(OutOfSlots):
        pool.allocate(3, 9, 1, 9)


def test_misuse_is_refused():
    pool = ContiguousPool(32)
    pool.allocate(0, 10, 4, 6)
    with pytest.raises(ValueError, match="already"):
        pool.allocate(0, 1, 1, 1)
    with pytest.raises(ValueError, match="does not hold"):
        pool.allocate(1, 5, 4, 6)
    pool.grow(0, 2)
    with pytest.raises(ValueError, match="ends at 6"):
        pool.grow(0)
    with pytest.raises(ValueError, match="needs slots"):
        ContiguousPool(0)


JOBS = [Job(i, 0.0, 10 + i % 7, 1 + (i * i) % 50) for i in range(60)]


def test_paging_wastes_less_than_oracle_and_reservation():
    most = run_contiguous(JOBS, 1024, 128, "max")
    oracle = run_contiguous(JOBS, 1024, 128, "oracle")
    paged = run_paged(JOBS, 1024, 8)
    assert most.shares["used"] < oracle.shares["used"] < paged.shares["used"]
    assert most.mean_running < oracle.mean_running < paged.mean_running
    assert paged.shares["external"] == 0
    assert oracle.shares["internal"] == 0
    for run in (most, oracle, paged):
        assert sum(run.shares.values()) == pytest.approx(1)


def test_waste_of_paged_memory_grows_with_the_block():
    waste = [
        sum(run_paged(JOBS, 1024, size).shares[k] for k in ("reserved", "internal"))
        for size in (1, 8, 32)
    ]
    assert waste[0] == 0
    assert waste[0] < waste[1] < waste[2]


def test_a_memory_that_is_too_small_or_never_full_is_refused():
    with pytest.raises(ValueError, match="does not fit"):
        run_contiguous(JOBS, 100, 128, "max")
    with pytest.raises(ValueError, match="does not fit"):
        run_paged([Job(0, 0, 100, 20)], 64, 16)
    with pytest.raises(ValueError, match="fit at once"):
        run_paged(JOBS, 10**6, 16)
