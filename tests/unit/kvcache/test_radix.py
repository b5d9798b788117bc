"""The radix tree: its invariants on thousands of generated traces, and against brute force."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.kvcache import radix
from utils.kvcache.audit import SEQUENCES, audit, common, machine, total
from utils.kvcache.radix import Node, RadixCache, walk

TestTree = machine(radix.match_prefix, radix.insert, radix.lock, radix.evict).TestCase
TestTree.settings = settings(max_examples=600, stateful_step_count=20, deadline=None)


@given(st.lists(SEQUENCES, max_size=12), SEQUENCES, st.integers(1, 3))
@settings(max_examples=1000, deadline=None)
def test_the_longest_match_equals_brute_force_over_what_was_inserted(sequences, tokens, page_size):
    root = Node([])
    for sequence in sequences:
        radix.insert(root, sequence, page_size)
    pages = [s[: len(s) // page_size * page_size] for s in sequences]
    best = max((common(tokens, s) for s in pages), default=0) // page_size * page_size
    assert radix.match_prefix(root, tokens, page_size) == best
    distinct = {tuple(s[:end]) for s in pages for end in range(page_size, len(s) + 1, page_size)}
    assert total(root) == page_size * len(distinct), "every page is stored once"


@given(st.lists(SEQUENCES, max_size=20), st.integers(8, 20), st.integers(1, 3))
@settings(max_examples=500, deadline=None)
def test_a_cache_never_holds_more_than_its_pool(sequences, capacity, page_size):
    cache = RadixCache(capacity, page_size)
    for sequence in sequences:
        end = len(sequence) // page_size * page_size
        if end > capacity:
            with pytest.raises(ValueError, match="do not fit"):
                cache.insert(sequence)
            continue
        cache.insert(sequence)
        assert cache.size == total(cache.root) <= capacity
        assert radix.match_prefix(cache.root, sequence, page_size) == end
    assert all(node.lock_ref == 0 for node in walk(cache.root))


def test_the_last_token_of_a_prompt_is_always_computed():
    cache = RadixCache()
    cache.insert([1, 2, 3])
    assert cache.match([1, 2, 3]) == 2
    assert cache.match([1, 2, 3, 4]) == 3


def test_a_lock_keeps_the_whole_path_and_an_unlock_frees_it():
    root = Node([])
    held = radix.insert(root, [1, 2, 3, 4])
    radix.insert(root, [1, 2, 9], now=1)
    radix.lock(held)
    assert radix.evict(root, 100) == 1, "only the 9 is free to go"
    radix.lock(held, -1)
    assert radix.evict(root, 100) == 4
    assert list(walk(root)) == [root]


def test_least_recently_used_leaf_goes_first_then_its_parent():
    root = Node([])
    radix.insert(root, [1, 2], now=1)
    radix.insert(root, [1, 3], now=2)
    radix.insert(root, [5], now=3)
    radix.insert(root, [1, 2], now=4)
    assert radix.evict(root, 1) == 1
    assert radix.match_prefix(root, [1, 3]) == 1
    assert radix.evict(root, 1) == 1
    assert radix.match_prefix(root, [5]) == 0
    assert radix.evict(root, 2) == 2
    assert list(walk(root)) == [root]


def test_unlocking_twice_is_an_error():
    root = Node([])
    node = radix.insert(root, [1])
    with pytest.raises(AssertionError, match="more often"):
        radix.lock(node, -1)


def test_a_million_tokens_take_seconds():
    rng = random.Random(0)
    shared = [[rng.randrange(2000) for _ in range(600)] for _ in range(20)]
    cache = RadixCache(50_000)
    began, tokens = time.process_time(), 0
    while tokens < 1_000_000:
        prompt = rng.choice(shared) + [rng.randrange(2000) for _ in range(rng.randint(50, 400))]
        cache.match(prompt)
        cache.insert(prompt)
        tokens += len(prompt)
    assert cache.size == total(cache.root) <= 50_000
    assert time.process_time() - began < 20, "quadratic?"  # takes 0.2 s


SPLIT, MATCH = radix.split, radix.match_prefix


def split_forgetting_locks(node, length, page_size=1):
    upper = SPLIT(node, length, page_size)
    upper.lock_ref = 0
    return upper


def evict_all(root, num_tokens):
    removed = total(root)
    root.children.clear()
    return removed


def match_one_too_many(root, tokens, page_size):
    return min(len(tokens), MATCH(root, tokens, page_size) + page_size)


def lock_the_root_too(node, change):
    while node is not None:
        node.lock_ref += change
        node = node.parent


FAULTS = {
    "locks are lost in a split": ("split", split_forgetting_locks, "lock_ref counts"),
    "locked leaves go": ("evict", evict_all, "locked node was evicted"),
    "matches one too many": (
        "match_prefix",
        match_one_too_many,
        "longest match equals brute force",
    ),
    "the root is locked": ("lock", lock_the_root_too, "lock_ref counts"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_the_audit_finds_a_planted_fault_and_shows_a_short_trace(fault, monkeypatch):
    name, broken, says = FAULTS[fault]
    monkeypatch.setattr(radix, name, broken)
    found = audit(radix.match_prefix, radix.insert, radix.lock, radix.evict)
    assert found.startswith("Broken")
    assert says in found
    assert found.count("state.") <= 16, found


def test_the_audit_says_how_much_it_tried():
    text = audit(radix.match_prefix, radix.insert, radix.lock, radix.evict, traces=20)
    assert text == "20 generated traces, every invariant held after every step."
