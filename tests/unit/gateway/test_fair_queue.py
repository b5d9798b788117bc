"""Deficit round robin: turns by tokens, and keys that have nothing to be served."""

from types import SimpleNamespace

from hypothesis import given, settings
from hypothesis import strategies as st

from utils.gateway.fair_queue import FairQueue, Share, Waiter, next_turn


def served(costs, rounds, quantum=10.0):
    """Tokens that each key has got after so many turns, if each always has requests of this cost."""
    ring, tokens = [Share(key) for key in costs], dict.fromkeys(costs, 0.0)
    for _ in range(rounds):
        key, ring = next_turn(ring, costs, quantum)
        tokens[key] += costs[key]
    return tokens


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 100), min_size=2, max_size=5), st.integers(20, 200))
def test_turns_share_tokens_evenly(costs, rounds):
    tokens = served({str(i): float(cost) for i, cost in enumerate(costs)}, rounds).values()
    # The bound of Shreedhar and Varghese, lemma 2: one quantum and one largest request apart, for each.
    assert max(tokens) - min(tokens) <= 10.0 + 2 * max(costs)


def test_turn_of_key_that_cannot_be_served_earns_nothing():
    ring = [Share("a", 5.0), Share("b")]
    key, after = next_turn(ring, {"b": 20.0}, 10.0)
    assert key == "b"
    assert {share.key: share.deficit for share in after} == {"a": 5.0, "b": 0.0}


def waiter(caller, cost=256.0, engine=None):
    return Waiter(caller, cost, "", (engine, frozenset()), SimpleNamespace())


ANY, X = (None, frozenset()), ("x", frozenset())


def order(queue, *servable):
    found = []
    while (chosen := queue.next(servable)) is not None:
        found.append(chosen.caller)
    return "".join(found)


def test_queue_keeps_order_of_one_key():
    queue = FairQueue()
    waiters = [waiter("a") for _ in range(3)]
    for each in waiters:
        queue.add(each)
    assert [queue.next([ANY]) for _ in range(3)] == waiters
    assert len(queue) == 0


def test_queue_alternates_between_keys_and_by_cost():
    queue = FairQueue()
    for each in [waiter("a") for _ in range(4)] + [waiter("b", cost=512.0) for _ in range(2)]:
        queue.add(each)
    assert order(queue, ANY) == "aabaab"


def test_queue_passes_over_requests_that_nothing_free_suits():
    queue = FairQueue()
    for each in (waiter("a", engine="x"), waiter("a"), waiter("b", engine="x")):
        queue.add(each)
    assert order(queue, ANY) == "a"
    assert len(queue) == 2
    assert order(queue, ANY, X) == "ab"


def test_key_that_leaves_loses_its_deficit():
    queue = FairQueue()
    for each in (waiter("a"), waiter("b", cost=4096.0)):
        queue.add(each)
    assert queue.next([ANY]).caller == "a"
    assert [share.key for share in queue._ring] == ["b"]
