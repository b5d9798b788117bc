"""The radix tree: its invariants on thousands of generated traces, and against brute force."""

import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from utils.kvcache import radix
from utils.kvcache.radix import Node, RadixCache, walk

# Few different tokens, so that prefixes are shared, end inside nodes, and split them.
SEQUENCES = st.lists(st.integers(0, 2), max_size=12)


def common(a, b):
    return next(
        (i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b))
    )


def spelled(node):
    """All tokens from the root to the end of a node."""
    parts = []
    while node.parent is not None:
        parts.append(node.key)
        node = node.parent
    return [token for part in reversed(parts) for token in part]


def total(root):
    return sum(len(node.key) for node in walk(root))


def evicted_by_hand(root, num_tokens):
    """The nodes that must go: looked up anew for every single one."""
    alive, gone = set(walk(root)) - {root}, set()
    while sum(len(node.key) for node in gone) < num_tokens:
        leaves = [n for n in alive if not n.lock_ref and not alive & set(n.children.values())]
        if not leaves:
            break
        oldest = min(leaves, key=lambda node: node.last_used)
        alive.remove(oldest)
        gone.add(oldest)
    return gone


def check_shape(root, page_size):
    for node in walk(root):
        assert (
            node.lock_ref >= sum(child.lock_ref for child in node.children.values())
            or not node.parent
        )
        for page, child in node.children.items():
            assert child.parent is node
            assert child.key and len(child.key) % page_size == 0
            assert page == tuple(child.key[:page_size])


class Tree(RuleBasedStateMachine):
    """Random use of the tree beside a plain set of all prefixes that it must hold."""

    @initialize(page_size=st.integers(1, 3))
    def begin(self, page_size):
        self.page_size = page_size
        self.root = Node([])
        self.stored = []  # every sequence that must still be found, whole pages of it
        self.locked = []
        self.now = 0

    @rule(tokens=SEQUENCES)
    def insert(self, tokens):
        self.now += 1
        pages = tokens[: len(tokens) // self.page_size * self.page_size]
        before, known = total(self.root), self.longest(tokens)
        node = radix.insert(self.root, tokens, self.page_size, self.now)
        assert spelled(node) == pages
        assert total(self.root) == before + len(pages) - known, "tokens are conserved"
        self.stored.append(pages)

    @rule(tokens=SEQUENCES)
    def lock(self, tokens):
        self.now += 1
        node = radix.insert(self.root, tokens, self.page_size, self.now)
        radix.lock(node)
        self.stored.append(spelled(node))
        self.locked.append((node, spelled(node)))

    @precondition(lambda self: self.locked)
    @rule(data=st.data())
    def unlock(self, data):
        node, tokens = self.locked.pop(data.draw(st.integers(0, len(self.locked) - 1)))
        assert spelled(node) == tokens, "a split leaves a locked node the end of its sequence"
        radix.lock(node, -1)

    @rule(num_tokens=st.integers(0, 20))
    def evict(self, num_tokens):
        before, expected = total(self.root), evicted_by_hand(self.root, num_tokens)
        nodes = set(walk(self.root))
        removed = radix.evict(self.root, num_tokens)
        gone = nodes - set(walk(self.root))
        assert gone == expected, "the least recently used leaf first, and only until it is enough"
        assert not any(node.lock_ref for node in gone), "a locked node was evicted"
        assert removed == sum(len(node.key) for node in gone) == before - total(self.root)
        self.stored = [tokens[: self.longest(tokens)] for tokens in self.stored]

    @rule(tokens=SEQUENCES)
    def match(self, tokens):
        assert radix.match_prefix(self.root, tokens, self.page_size) == self.longest(tokens)

    def longest(self, tokens):
        """Brute force: over every path of the tree, and over everything that was stored."""
        paths = [spelled(node) for node in walk(self.root)]
        found = max(common(tokens, path) for path in paths)
        return found // self.page_size * self.page_size

    @invariant()
    def holds(self):
        check_shape(self.root, self.page_size)
        for tokens in self.stored:
            assert radix.match_prefix(self.root, tokens, self.page_size) == len(tokens)
        for node, tokens in self.locked:
            assert spelled(node) == tokens
        locked = sum(1 for n in walk(self.root) if n.lock_ref)
        assert bool(locked) == any(tokens for _, tokens in self.locked)


TestTree = Tree.TestCase
TestTree.settings = settings(max_examples=400, stateful_step_count=30, deadline=None)


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


def test_the_least_recently_used_leaf_goes_first_and_its_parent_may_follow():
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
