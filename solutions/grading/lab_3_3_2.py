"""How lab 3.3.2, SGLang and its radix tree, is graded. Never released; tools/lab/judge/hidden_tests.py explains."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable, Sequence
from functools import reduce
from itertools import takewhile
from typing import Any

from utils.checks import CheckFailed, expect, expect_close, expect_equal
from utils.checks import lab_3_3_2 as lab
from tools.lab.judge.hidden_tests import Grading, Wrong
from utils.engines.grammar import compile_pattern
from utils.kvcache import radix
from utils.kvcache.audit import damage, spelled
from utils.kvcache.radix import Node, RadixCache, Tokens, walk
from utils.kvcache.replay import hit_rate

_speedup = lab.predict_speedup.reference
_next = lab.next_request.reference
_hits = lab.predict_hit_rate.reference
_schema = lab.ORDER_SCHEMA
_mask = lab.token_mask.reference


def _from_the_start(key: Tokens, tokens: Tokens, start: int, page_size: int) -> int:
    return radix.shared_length(key, tokens, 0, page_size)


def _counts_all_equal(key: Tokens, tokens: Tokens, start: int, page_size: int) -> int:
    same = sum(a == b for a, b in zip(key, tokens[start:], strict=False))
    return same // page_size * page_size


def _no_pages(key: Tokens, tokens: Tokens, start: int, page_size: int) -> int:
    return radix.shared_length(key, tokens, start, 1)


def _counts_pages(key: Tokens, tokens: Tokens, start: int, page_size: int) -> int:
    return radix.shared_length(key, tokens, start, 1) // page_size


def _runs_over(key: Tokens, tokens: Tokens, start: int, page_size: int) -> int:
    length = 0
    while key[length] == tokens[start + length]:
        length += 1
    return length // page_size * page_size


def _page_by_page(key: Tokens, tokens: Tokens, start: int, page_size: int) -> int:
    length = 0
    while length + page_size <= len(key):
        page = list(key[length : length + page_size])
        if list(tokens[start + length : start + length + page_size]) != page:
            break
        length += page_size
    return length


def _with_takewhile(key: Tokens, tokens: Tokens, start: int, page_size: int) -> int:
    same = takewhile(lambda pair: pair[0] == pair[1], zip(key, tokens[start:], strict=False))
    return (count := len(list(same))) - count % page_size


shared_length = Grading(
    lab.shared_length,
    right={"page by page": _page_by_page, "with takewhile": _with_takewhile},
    wrong={
        "compares with the beginning of tokens": Wrong(_from_the_start, says="start"),
        "counts all that is equal": Wrong(_counts_all_equal, says="first that differs"),
        "knows no pages": Wrong(_no_pages, says="whole pages"),
        "returns pages": Wrong(_counts_pages, says="whole pages"),
        "runs over the end": Wrong(_runs_over, says="IndexError"),
    },
    twins=(
        "utils.kvcache.radix.match_prefix",
        "utils.kvcache.radix.insert",
        "utils.kvcache.audit.common",
    ),
)


def _pair(rng: random.Random) -> tuple[Tokens, Tokens, int]:
    start, common = rng.randint(0, 6), rng.randint(0, 12)
    shared = [rng.randrange(5) for _ in range(common)]
    key = shared + [rng.randrange(5) for _ in range(rng.randint(0, 6))]
    before = [rng.randrange(5) for _ in range(start)]
    return key, before + shared + [rng.randrange(5) for _ in range(rng.randint(0, 6))], start


def _same_lengths(attempt: Callable[..., int], rng: random.Random, page_sizes: list[int]) -> None:
    for _ in range(40):
        key, tokens, start = _pair(rng)
        page_size = rng.choice(page_sizes)
        what = f"{key} with {tokens} from {start} on, pages of {page_size}"
        wanted = radix.shared_length(key, tokens, start, page_size)
        expect_equal(attempt(key, tokens, start, page_size), wanted, what=what)


@shared_length.part("pages of one token", points=1)
def _(attempt: Callable[..., int], rng: random.Random) -> None:
    _same_lengths(attempt, rng, [1])


@shared_length.part("longer pages", points=1)
def _(attempt: Callable[..., int], rng: random.Random) -> None:
    _same_lengths(attempt, rng, [2, 3, 4])


def _first_node_only(root: Node, tokens: Tokens, page_size: int) -> int:
    child = root.children.get(tuple(tokens[:page_size]))
    return radix.shared_length(child.key, tokens, 0, page_size) if child else 0


def _whole_nodes(root: Node, tokens: Tokens, page_size: int) -> int:
    node, matched = root, 0
    while child := node.children.get(tuple(tokens[matched : matched + page_size])):
        if child.key != tokens[matched : matched + len(child.key)]:
            break
        matched += len(child.key)
        node = child
    return matched


def _goes_on_behind_a_part(root: Node, tokens: Tokens, page_size: int) -> int:
    node, matched = root, 0
    while child := node.children.get(tuple(tokens[matched : matched + page_size])):
        matched += radix.shared_length(child.key, tokens, matched, page_size)
        node = child
    return matched


def _matches_and_stores(root: Node, tokens: Tokens, page_size: int) -> int:
    matched = radix.match_prefix(root, tokens, page_size)
    radix.insert(root, tokens, page_size, 99)
    return matched


def _first_token_is_the_page(root: Node, tokens: Tokens, page_size: int) -> int:
    return radix.match_prefix(root, tokens, page_size) if page_size == 1 else 0


def _by_recursion_down(root: Node, tokens: Tokens, page_size: int, done: int = 0) -> int:
    child = root.children.get(tuple(tokens[done : done + page_size]))
    if child is None:
        return done
    length = radix.shared_length(child.key, tokens, done, page_size)
    if length == len(child.key):
        return _by_recursion_down(child, tokens, page_size, done + length)
    return done + length


def _tries_each_child(root: Node, tokens: Tokens, page_size: int) -> int:
    node, done = root, 0
    while True:
        lengths = [
            (radix.shared_length(child.key, tokens, done, page_size), child)
            for child in node.children.values()
        ]
        length, best = max(lengths, key=lambda pair: pair[0], default=(0, None))
        done += length
        if best is None or length < len(best.key):
            return done
        node = best


match_prefix = Grading(
    lab.match_prefix,
    right={"by recursion": _by_recursion_down, "tries each child": _tries_each_child},
    wrong={
        "looks at one node": Wrong(_first_node_only, says="Add up"),
        "takes whole nodes only": Wrong(_whole_nodes, says="inside a node"),
        "goes on behind a node that matches in part": Wrong(_goes_on_behind_a_part, says="in part"),
        "stores what it looks up": Wrong(_matches_and_stores, says="changes nothing"),
        "finds no longer pages": Wrong(_first_token_is_the_page, says="first page"),
    },
    twins=("utils.kvcache.radix.insert",),
)


def _some(rng: random.Random, count: int, longest: int, letters: int = 3) -> list[Tokens]:
    return [[rng.randrange(letters) for _ in range(rng.randint(0, longest))] for _ in range(count)]


def _same_matches(attempt: Callable[..., int], rng: random.Random, page_sizes: list[int]) -> None:
    for _ in range(40):
        page_size, stored = rng.choice(page_sizes), _some(rng, 6, 12)
        root = lab.tree_of(*stored, page_size=page_size)
        before = lab.drawn(root)
        (tokens,) = _some(rng, 1, 12)
        if rng.random() < 0.5:
            tokens = rng.choice(stored)[: rng.randint(0, 12)] + tokens
        else:  # leaves a node early, for what begins one of its children
            shared = [rng.randrange(5, 9) for _ in range(page_size * rng.randint(2, 4))]
            for first in (0, 1):
                stored.append(shared + [first] * page_size)
                radix.insert(root, stored[-1], page_size)
            before = lab.drawn(root)
            tokens = shared[:-page_size] + [1] * page_size
        what = f"{tokens} in pages of {page_size} where {stored} were stored"
        wanted = radix.match_prefix(root, tokens, page_size)
        expect_equal(attempt(root, tokens, page_size), wanted, what=what)
        expect_equal(lab.drawn(root), before, what=f"the tree after looking up {what}")


@match_prefix.part("pages of one token", points=2)
def _(attempt: Callable[..., int], rng: random.Random) -> None:
    _same_matches(attempt, rng, [1])


@match_prefix.part("longer pages", points=1)
def _(attempt: Callable[..., int], rng: random.Random) -> None:
    _same_matches(attempt, rng, [2, 3])


def _never_cuts(root: Node, tokens: Tokens, page_size: int, now: int) -> Node:
    node, done = root, 0
    end = len(tokens) // page_size * page_size
    root.last_used = now
    while done < end:
        page = tuple(tokens[done : done + page_size])
        child = node.children.get(page)
        if child is None or child.key != tokens[done : done + len(child.key)]:
            child = node.children[page] = Node(tokens[done:end], node)
        child.last_used = now
        done += len(child.key)
        node = child
    return node


def _changed(change: Callable[[Node, Node, int], Node]) -> Callable[..., Node]:
    """The reference, and afterwards something that it would not do."""

    def wrong(root: Node, tokens: Tokens, page_size: int, now: int) -> Node:
        return change(root, radix.insert(root, tokens, page_size, now), page_size)

    return wrong


def _forget_locks(root: Node, end: Node, page_size: int) -> Node:
    if end.parent is not None and len(end.parent.children) > 1:
        end.parent.lock_ref = 0
    return end


def _return_root(root: Node, end: Node, page_size: int) -> Node:
    return root


def _touch_end_only(root: Node, tokens: Tokens, page_size: int, now: int) -> Node:
    ages = {id(node): node.last_used for node in walk(root)}
    end = radix.insert(root, tokens, page_size, now)
    for node in walk(root):
        if node is not end:
            node.last_used = ages.get(id(node), now)
    return end


def _stores_part_of_a_page(root: Node, tokens: Tokens, page_size: int, now: int) -> Node:
    missing = -len(tokens) % page_size
    return radix.insert(root, tokens + [0] * missing, page_size, now)


def _cuts_within_a_page(root: Node, tokens: Tokens, page_size: int, now: int) -> Node:
    return radix.insert(root, tokens, 1, now)


def _new_lower_half(root: Node, tokens: Tokens, page_size: int, now: int) -> Node:
    """Cuts right, but leaves the old node object as the upper half."""
    known = {id(node): node for node in walk(root)}
    end = radix.insert(root, tokens, page_size, now)
    fresh = [n for n in walk(root) if id(n) not in known and n.parent and n.children]
    for upper in fresh:
        lower = next((child for child in upper.children.values() if id(child) in known), None)
        if lower is None or upper.parent is None:
            continue
        swap = Node(lower.key, lower, lower.children, lower.lock_ref, lower.last_used)
        for child in swap.children.values():
            child.parent = swap
        others = {page: child for page, child in upper.children.items() if child is not lower}
        lower.key, lower.parent, lower.last_used = upper.key, upper.parent, upper.last_used
        lower.children = {tuple(swap.key[:page_size]): swap, **others}
        for child in others.values():
            child.parent = lower
        upper.parent.children[tuple(lower.key[:page_size])] = lower
        end = lower if end is upper else end
    return end


def _uses_up_the_tokens(root: Node, tokens: Tokens, page_size: int, now: int) -> Node:
    end = radix.insert(root, list(tokens), page_size, now)
    tokens.clear()
    return end


def _with_the_rest(root: Node, tokens: Tokens, page_size: int, now: int) -> Node:
    rest, node = list(tokens[: len(tokens) // page_size * page_size]), root
    while rest:
        page = tuple(rest[:page_size])
        if page not in node.children:
            node.children[page] = Node(rest, node, {}, 0, now)
            return node.children[page]
        child = node.children[page]
        common = radix.shared_length(child.key, rest, 0, page_size)
        head, tail = child.key[:common], child.key[common:]
        if tail:
            upper = Node(head, node, {tuple(tail[:page_size]): child}, child.lock_ref, child.last_used)
            child.key, child.parent, node.children[page] = tail, upper, upper
            child = upper
        child.last_used, node, rest = now, child, rest[common:]
    return node


def _by_recursion_from(root: Node, tokens: Tokens, page_size: int, now: int, done: int = 0) -> Node:
    end = len(tokens) - len(tokens) % page_size
    if done >= end:
        return root
    page = tuple(tokens[done : done + page_size])
    child = root.children.setdefault(page, Node(list(tokens[done:end]), root, {}, 0, now))
    length = radix.shared_length(child.key, tokens, done, page_size)
    if length < len(child.key):
        upper = Node(child.key[:length], root, {}, child.lock_ref, child.last_used)
        root.children[page], child.parent, child.key = upper, upper, child.key[length:]
        upper.children = {tuple(child.key[:page_size]): child}
        child = upper
    child.last_used = now
    return _by_recursion_from(child, tokens, page_size, now, done + length)


insert = Grading(
    lab.insert,
    right={"by recursion": _by_recursion_from, "with the rest of the tokens": _with_the_rest},
    wrong={
        "uses up the tokens": Wrong(_uses_up_the_tokens, says="handed in"),
        "never cuts a node": Wrong(_never_cuts, says="Cut"),
        "loses the locks of a node that it cuts": Wrong(_changed(_forget_locks), says="locks"),
        "returns the root": Wrong(_changed(_return_root), says="returned"),
        "marks only the end as used": Wrong(_touch_end_only, says="used now"),
        "stores a part of a page": Wrong(_stores_part_of_a_page, says="whole pages"),
        "cuts within a page": Wrong(_cuts_within_a_page, says="whole pages"),
        "makes the old node the upper half": Wrong(_new_lower_half, says="unlock"),
    },
    twins=("utils.kvcache.radix.split",),
)


def _same_trees(attempt: Callable[..., Node], rng: random.Random, page_sizes: list[int], locks: bool) -> None:
    for _ in range(15):
        page_size, stored = rng.choice(page_sizes), _some(rng, 7, 12)
        actual, expected = Node([]), Node([])
        held: list[tuple[Node, Tokens]] = []
        for now, tokens in enumerate(stored, 1):
            given = list(tokens)
            end = attempt(actual, given, page_size, now)
            expect_equal(given, tokens, what="the tokens that were handed in, afterwards")
            wanted = radix.insert(expected, tokens, page_size, now)
            case = f"{stored[:now]} in pages of {page_size}"
            what = f"the tree, as (tokens from the root, lock_ref, last_used), after {case}"
            expect_equal(lab.drawn(actual), lab.drawn(expected), what=what)
            if broken := damage(actual, page_size):
                raise CheckFailed(f"{broken}, after {case}.")
            expect(isinstance(end, Node), f"no Node is returned for the last of {case}")
            what = f"the tokens up to the node that is returned for the last of {case}"
            expect_equal(spelled(end), spelled(wanted), what=what)
            if locks and rng.random() < 0.5:
                radix.lock(end)
                radix.lock(wanted)
                held.append((end, spelled(end)))
            for node, its in held:
                what = f"the tokens up to a node that was locked before, after {case}"
                expect_equal(spelled(node), its, what=what)


@insert.part("pages of one token", points=2)
def _(attempt: Callable[..., Node], rng: random.Random) -> None:
    _same_trees(attempt, rng, [1], locks=False)


@insert.part("longer pages", points=1)
def _(attempt: Callable[..., Node], rng: random.Random) -> None:
    _same_trees(attempt, rng, [2, 3], locks=False)


@insert.part("nodes that are locked", points=2)
def _(attempt: Callable[..., Node], rng: random.Random) -> None:
    _same_trees(attempt, rng, [1, 2], locks=True)


def _locks_one(node: Node, change: int) -> None:
    node.lock_ref += change


def _locks_the_root(node: Node, change: int) -> None:
    radix.lock(node, change)
    while node.parent is not None:
        node = node.parent
    node.lock_ref += change


def _locks_a_given_root(node: Node, change: int) -> None:
    radix.lock(node, change)
    if node.parent is None:
        node.lock_ref += change


def _sets_the_lock(node: Node, change: int) -> None:
    while node.parent is not None:
        node.lock_ref = max(0, change)
        node = node.parent


def _locks_the_subtree(node: Node, change: int) -> None:
    while node.parent is not None and node.parent.parent is not None:
        node = node.parent
    for below in walk(node):
        below.lock_ref += change


def _by_recursion_up(node: Node, change: int) -> None:
    if node.parent:
        node.lock_ref = node.lock_ref + change
        _by_recursion_up(node.parent, change)


def _collects_first(node: Node, change: int) -> None:
    path = [node]
    while path[-1].parent is not None:
        path.append(path[-1].parent)
    for each in path[:-1]:
        each.lock_ref += change


lock = Grading(
    lab.lock,
    right={"by recursion": _by_recursion_up, "collects the path first": _collects_first},
    wrong={
        "locks one node": Wrong(_locks_one, says="as well"),
        "locks the root": Wrong(_locks_the_root, says="root"),
        "locks the root when it is given": Wrong(_locks_a_given_root, says="Leave it alone"),
        "sets in place of counting": Wrong(_sets_the_lock, says="count"),
        "locks all that begins alike": Wrong(_locks_the_subtree, says="somebody else"),
    },
)


@lock.part("a path is locked and unlocked", points=2)
def _(attempt: Callable[..., None], rng: random.Random) -> None:
    for _ in range(15):
        stored = [[], *_some(rng, 6, 9)]
        actual, expected = lab.tree_of(*stored), lab.tree_of(*stored)
        held: list[Tokens] = []
        for _ in range(8):
            change = -1 if held and rng.random() < 0.4 else 1
            tokens = held.pop(rng.randrange(len(held))) if change < 0 else rng.choice(stored)
            held += [tokens] if change > 0 else []
            attempt(radix.insert(actual, tokens, 1, 9), change)
            radix.lock(radix.insert(expected, tokens, 1, 9), change)
            what = f"(tokens, lock_ref, last_used) of {stored} after {tokens} was changed by {change}"
            expect_equal(lab.drawn(actual), lab.drawn(expected), what=what)
            expect_equal(actual.lock_ref, 0, what="lock_ref of the root")


def _leaves(root: Node) -> list[Node]:
    return [n for n in walk(root) if n.parent and not n.children and not n.lock_ref]


def _remove(leaf: Node) -> int:
    assert leaf.parent is not None
    leaf.parent.children = {p: c for p, c in leaf.parent.children.items() if c is not leaf}
    return len(leaf.key)


def _evict_by(
    order: Callable[[Node], Any], leaves: Callable[[Node], list[Node]], again: bool = True
) -> Callable[[Node, int], int]:
    def wrong(root: Node, num_tokens: int) -> int:
        removed, first = 0, leaves(root)
        while removed < num_tokens and (found := leaves(root) if again else first):
            victim = min(found, key=order)
            removed += _remove(victim)
            if not again:
                first.remove(victim)
        return removed

    return wrong


def _ignores_locks(root: Node) -> list[Node]:
    return [n for n in walk(root) if n.parent and not n.children]


def _inner_nodes_too(root: Node) -> list[Node]:
    return [n for n in walk(root) if n.parent and not n.lock_ref]


def _cuts_the_last_leaf(root: Node, num_tokens: int) -> int:
    """Removes exactly what was asked for: the last leaf keeps its first tokens."""
    removed = 0
    while removed < num_tokens and (found := _leaves(root)):
        victim = min(found, key=lambda node: node.last_used)
        if len(victim.key) > num_tokens - removed:
            victim.key = victim.key[: len(victim.key) - (num_tokens - removed)]
            return num_tokens
        removed += _remove(victim)
    return removed


def _one_more(root: Node, num_tokens: int) -> int:
    removed = radix.evict(root, num_tokens)
    return removed + radix.evict(root, 1)


def _returns_the_wish(root: Node, num_tokens: int) -> int:
    radix.evict(root, num_tokens)
    return num_tokens


def _parent_without_a_look(root: Node, num_tokens: int) -> int:
    """Take a parent as a candidate once its last leaf is gone, whoever locked it."""
    candidates, removed = _leaves(root), 0
    while candidates and removed < num_tokens:
        victim = min(candidates, key=lambda node: node.last_used)
        candidates.remove(victim)
        parent = victim.parent
        removed += _remove(victim)
        if parent is not None and parent.parent and not parent.children:
            candidates.append(parent)
    return removed


def _with_a_heap(root: Node, num_tokens: int) -> int:
    leaves = [n for n in walk(root) if n.parent and not n.children and not n.lock_ref]
    heap, removed = [(leaf.last_used, id(leaf), leaf) for leaf in leaves], 0
    heapq.heapify(heap)
    while heap and removed < num_tokens:
        _, _, leaf = heapq.heappop(heap)
        parent = leaf.parent
        parent.children = {page: n for page, n in parent.children.items() if n is not leaf}
        removed += len(leaf.key)
        if parent.parent and not parent.children and not parent.lock_ref:
            heapq.heappush(heap, (parent.last_used, id(parent), parent))
    return removed


def _evicts_one_by_recursion(root: Node, num_tokens: int) -> int:
    if num_tokens <= 0:
        return 0
    leaves = [n for n in walk(root) if n is not root and not n.children and n.lock_ref == 0]
    if not leaves:
        return 0
    oldest = sorted(leaves, key=lambda n: n.last_used)[0]
    for page, node in list(oldest.parent.children.items()):
        if node is oldest:
            oldest.parent.children.pop(page)
    return len(oldest.key) + _evicts_one_by_recursion(root, num_tokens - len(oldest.key))


evict = Grading(
    lab.evict,
    right={"with a heap": _with_a_heap, "by recursion": _evicts_one_by_recursion},
    wrong={
        "a parent that is locked": Wrong(_parent_without_a_look, says="lock_ref there, too"),
        "the most recently used first": Wrong(_evict_by(lambda n: -n.last_used, _leaves), says="first"),
        "evicts what is locked": Wrong(_evict_by(lambda n: n.last_used, _ignores_locks), says="in use"),
        "evicts nodes with children": Wrong(_evict_by(lambda n: n.last_used, _inner_nodes_too), says="leaf"),
        "never looks at new leaves": Wrong(
            _evict_by(lambda n: n.last_used, _leaves, again=False), says="is a leaf"
        ),
        "goes by length": Wrong(_evict_by(lambda n: len(n.key), _leaves), says="used first"),
        "cuts a leaf": Wrong(_cuts_the_last_leaf, says="whole"),
        "takes one leaf more": Wrong(_one_more, says="evicting 1 token"),
        "returns what was asked for": Wrong(_returns_the_wish, says="removed"),
    },
    twins=("utils.kvcache.radix.RadixCache.insert", "utils.kvcache.audit.evicted_by_hand"),
)


def _same_evictions(attempt: Callable[..., int], rng: random.Random, locks: int) -> None:
    for _ in range(25):
        page_size = rng.choice([1, 1, 2])
        stored = _some(rng, 8, 10)
        actual, expected = (lab.tree_of(*stored, page_size=page_size) for _ in range(2))
        for tokens in rng.sample(stored, locks):
            inner = rng.random() < 0.5  # a request that uses a part, with leaves below that nobody uses
            used = tokens[: max(1, len(tokens) // 2)] if inner else tokens
            for root in (actual, expected):
                radix.lock(radix.insert(root, used, page_size, 0))  # the oldest of all
        for num_tokens in (rng.randint(0, 6), rng.randint(1, 9), 100 if locks else 1):
            case = f"{num_tokens} tokens where {stored} were stored, pages of {page_size}, {locks} locked"
            wanted = radix.evict(expected, num_tokens)
            expect_equal(attempt(actual, num_tokens), wanted, what=f"tokens removed of {case}")
            what = f"the tree, as (tokens from the root, lock_ref, last_used), after evicting {case}"
            expect_equal(lab.drawn(actual), lab.drawn(expected), what=what)


@evict.part("leaves go, the least recently used first", points=2)
def _(attempt: Callable[..., int], rng: random.Random) -> None:
    _same_evictions(attempt, rng, locks=0)


@evict.part("what is locked stays", points=2)
def _(attempt: Callable[..., int], rng: random.Random) -> None:
    _same_evictions(attempt, rng, locks=2)


def _stores_first(prompts: list[Tokens], cache: RadixCache) -> float:
    cached = []
    for prompt in prompts:
        cache.insert(prompt)
        cached.append(cache.match(prompt))
    return hit_rate(cached, prompts)


def _mean_of_shares(prompts: list[Tokens], cache: RadixCache) -> float:
    shares = []
    for prompt in prompts:
        shares.append(cache.match(prompt) / len(prompt))
        cache.insert(prompt)
    return sum(shares) / len(shares)


def _whole_prompt(prompts: list[Tokens], cache: RadixCache) -> float:
    cached = []
    for prompt in prompts:
        cached.append(cache.match([*prompt, -1]))
        cache.insert(prompt)
    return hit_rate(cached, prompts)


def _own_cache(prompts: list[Tokens], cache: RadixCache) -> float:
    return _hits(prompts, RadixCache())


def _tokens_not_share(prompts: list[Tokens], cache: RadixCache) -> float:
    return _hits(prompts, cache) * sum(map(len, prompts))


def _never_stores(prompts: list[Tokens], cache: RadixCache) -> float:
    return hit_rate([cache.match(prompt) for prompt in prompts], prompts)


def _forgets_the_capacity(prompts: list[Tokens], cache: RadixCache) -> float:
    return _hits(prompts, RadixCache(page_size=cache.page_size))


def _as_a_sum(prompts: list[Tokens], cache: RadixCache) -> float:
    def found(prompt: Tokens) -> int:
        matched = cache.match(prompt)
        cache.insert(prompt)
        return matched

    return sum(map(found, prompts)) / sum(map(len, prompts))


def _counts_what_is_new(prompts: list[Tokens], cache: RadixCache) -> float:
    new = total = 0
    for prompt in prompts:
        new, total = new + len(prompt) - cache.match(prompt), total + len(prompt)
        cache.insert(prompt)
    return 1 - new / total


predict_hit_rate = Grading(
    lab.predict_hit_rate,
    right={"as a sum": _as_a_sum, "counts the new tokens": _counts_what_is_new},
    wrong={
        "forgets the capacity": Wrong(_forgets_the_capacity, says="took its room"),
        "stores before it looks up": Wrong(_stores_first, says="before you store"),
        "the mean of the prompts' shares": Wrong(_mean_of_shares, says="mean"),
        "finds the last token too": Wrong(_whole_prompt, says="all but the last"),
        "a cache of its own": Wrong(_own_cache, says="cache that you are given"),
        "tokens in place of a share": Wrong(_tokens_not_share, says="2 of 8"),
        "never stores": Wrong(_never_stores, says="2 of 8"),
    },
    twins=("utils.kvcache.replay.serve_in_order", "utils.kvcache.replay.hit_rate"),
)


def _same_rates(attempt: Callable[..., float], rng: random.Random, capacity: int | None) -> None:
    for _ in range(8):
        page_size = rng.choice([1, 2, 4])
        prefixes = [[rng.randrange(50) for _ in range(rng.randint(5, 20))] for _ in range(3)]
        prompts = [rng.choice(prefixes) + _some(rng, 1, 6)[0] + [rng.randrange(50)] for _ in range(9)]
        what = f"{prompts} in pages of {page_size}, a pool of {capacity or 'any size'}"
        wanted = _hits(prompts, RadixCache(capacity, page_size))
        expect_close(attempt(prompts, RadixCache(capacity, page_size)), wanted, what=what)


@predict_hit_rate.part("a cache with room for all", points=1)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    _same_rates(attempt, rng, None)
    prompt = [rng.randrange(50) for _ in range(rng.randint(4, 7))]
    wanted = (len(prompt) - 1) / (2 * len(prompt))
    expect_close(attempt([prompt, prompt], RadixCache()), wanted, what=f"{prompt}, twice")


@predict_hit_rate.part("a cache that is too small", points=1)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    _same_rates(attempt, rng, 40)


predict_speedup = Grading(
    lab.predict_speedup,
    right={
        "1 over the share that is left": lambda fraction, prefill_s, rest_s: (
            1 / (1 - fraction * prefill_s / (prefill_s + rest_s))
        ),
        "the saved time first": lambda fraction, prefill_s, rest_s: (
            (prefill_s + rest_s) / (prefill_s + rest_s - fraction * prefill_s)
        ),
    },
    wrong={
        "forgets the rest": Wrong(
            lambda fraction, prefill_s, rest_s: 1 / max(1e-9, 1 - fraction), says="stay"
        ),
        "saves the rest as well": Wrong(
            lambda fraction, prefill_s, rest_s: 1 / max(1e-9, 1 - fraction * 0.999), says="0.1 s"
        ),
        "warm over cold": Wrong(
            lambda fraction, prefill_s, rest_s: 1 / _speedup(fraction, prefill_s, rest_s)
        ),
        "takes the fraction for what is left": Wrong(
            lambda fraction, prefill_s, rest_s: _speedup(1 - fraction, prefill_s, rest_s)
        ),
        "returns seconds": Wrong(lambda fraction, prefill_s, rest_s: (1 - fraction) * prefill_s + rest_s),
        "cold without the rest": Wrong(
            lambda fraction, prefill_s, rest_s: prefill_s / ((1 - fraction) * prefill_s + rest_s)
        ),
    },
)


@predict_speedup.part("any share, any times", points=2)
def _(attempt: Callable[..., float], rng: random.Random) -> None:
    for _ in range(20):
        fraction, prefill_s, rest_s = rng.random(), rng.uniform(0.05, 2.0), rng.uniform(0.01, 0.5)
        what = f"a share of {fraction}, {prefill_s} s of prefill and {rest_s} s of the rest"
        wanted = _speedup(fraction, prefill_s, rest_s)
        expect_close(attempt(fraction, prefill_s, rest_s), wanted, what=what)


def _last_of_equals(cached: list[int], passed_over: list[int], limit: int) -> int:
    if max(passed_over) >= limit:
        return _next(cached, passed_over, limit)
    return len(cached) - 1 - cached[::-1].index(max(cached))


def _most_passed_over(cached: list[int], passed_over: list[int], limit: int) -> int:
    if max(passed_over) >= limit:
        return passed_over.index(max(passed_over))
    return cached.index(max(cached))


def _starving_first(cached: list[int], passed_over: list[int], limit: int) -> int:
    starving = [place for place, times in enumerate(passed_over) if times >= limit]
    return (starving or sorted(range(len(cached)), key=lambda place: -cached[place]))[0]


def _by_key(cached: list[int], passed_over: list[int], limit: int) -> int:
    def rank(place: int) -> tuple[bool, int, int]:
        waits = passed_over[place] >= limit
        return not waits, 0 if waits else -cached[place], place

    return min(range(len(cached)), key=rank)


next_request = Grading(
    lab.next_request,
    right={"those that starve first": _starving_first, "one key for all": _by_key},
    wrong={
        "first come, first served": Wrong(lambda cached, passed_over, limit: 0, says="position 1"),
        "lets requests starve": Wrong(
            lambda cached, passed_over, limit: cached.index(max(cached)), says="limit"
        ),
        "the last of equals": Wrong(_last_of_equals, says="came first"),
        "one time too late": Wrong(
            lambda cached, passed_over, limit: _next(cached, passed_over, limit + 1), says="limit"
        ),
        "one time too early": Wrong(
            lambda cached, passed_over, limit: _next(cached, passed_over, limit - 1), says="below"
        ),
        "whoever was passed over most": Wrong(_most_passed_over, says="came first"),
    },
    twins=("utils.kvcache.replay.longest_prefix",),
)


def _queue(rng: random.Random, limit: int, at_limit: bool) -> tuple[list[int], list[int]]:
    length = rng.randint(2, 8)
    cached = [rng.choice([0, 16, 64, 64, 128]) for _ in range(length)]
    passed = [rng.randint(0, limit - 1) for _ in range(length)]
    for position in rng.sample(range(length), rng.randint(1, 2)) if at_limit else []:
        passed[position] = limit + rng.randint(0, 3)
    return cached, passed


def _same_choice(attempt: Callable[..., int], rng: random.Random, at_limit: bool) -> None:
    for _ in range(40):
        limit = rng.randint(2, 9)
        cached, passed = _queue(rng, limit, at_limit)
        what = f"cached {cached}, passed over {passed}, limit {limit}"
        expect_equal(attempt(cached, passed, limit), _next(cached, passed, limit), what=what)


@next_request.part("the longest prefix goes first", points=1)
def _(attempt: Callable[..., int], rng: random.Random) -> None:
    _same_choice(attempt, rng, at_limit=False)


@next_request.part("nobody waits for ever", points=2)
def _(attempt: Callable[..., int], rng: random.Random) -> None:
    _same_choice(attempt, rng, at_limit=True)


def _without(*keys: str, **changes: Any) -> dict[str, Any]:
    kept = {key: value for key, value in _schema.items() if key not in keys}
    return kept | changes


def _with_property(name: str, value: Any) -> dict[str, Any]:
    return {**_schema, "properties": {**_schema["properties"], name: value}}


order_schema = Grading(
    lab.order_schema,
    right={
        "const and oneOf": {
            **_schema,
            "properties": {
                **_schema["properties"],
                "drink": {"oneOf": [{"const": name} for name in ("espresso", "latte", "tea")]},
            },
        },
        "other order, more keywords": {
            "additionalProperties": False,
            "required": ["to_go", "drink", "count"],
            "title": "Order",
            "properties": dict(reversed(_schema["properties"].items())),
            "type": "object",
        },
    },
    wrong={
        "any object": Wrong({"type": "object"}, says="beer"),
        "lets fields be missing": Wrong(_without("required"), says="missing"),
        "lets fields be added": Wrong(_without("additionalProperties"), says="no field"),
        "any count": Wrong(_with_property("count", {"type": "integer"}), says="0"),
        "a count without an end": Wrong(
            _with_property("count", {"type": "integer", "minimum": 1}), says="bound"
        ),
        "a count with a fraction": Wrong(
            _with_property("count", {"type": "number", "minimum": 1, "maximum": 9}),
            says="whole number",
        ),
        "any drink": Wrong(_with_property("drink", {"type": "string"}), says="beer"),
        "a drink by a part of it": Wrong(
            _with_property("drink", {"type": "string", "pattern": "espresso|latte|tea"}),
            says="part",
        ),
        "a drink of any type": Wrong(
            _with_property("drink", {"pattern": "^(espresso|latte|tea)$"}), says="a text"
        ),
        "to_go as text": Wrong(_with_property("to_go", {"type": "string"}), says="refuses"),
        "no schema": Wrong({"type": "nonsense"}, says="a JSON schema"),
        "a list of fields": Wrong(["drink", "count", "to_go"], says="dictionary"),
    },
)


def _orders(rng: random.Random, count: int) -> list[dict[str, Any]]:
    drinks = ["espresso", "latte", "tea"]
    return [
        {"drink": rng.choice(drinks), "count": rng.randint(1, 9), "to_go": rng.random() < 0.5}
        for _ in range(count)
    ]


@order_schema.part("good orders are accepted, wrong values refused", points=2)
def _(attempt: object, rng: random.Random) -> None:
    good = _orders(rng, 20)
    drinks = ["water", "Tea", "", "espresso ", "iced tea", "latte, tea", None, 5, ["tea"]]
    bad: list[tuple[object, str]] = [({**rng.choice(good), "drink": drink}, "") for drink in drinks]
    counts = [0, -rng.randint(1, 9), rng.randint(10, 999), rng.randint(1, 8) + 0.5, "3", None, [1]]
    bad += [({**rng.choice(good), "count": count}, "") for count in counts]
    bad += [({**rng.choice(good), "to_go": value}, "") for value in ("no", 1, None)]
    lab.judge_schema(attempt, good, bad)


@order_schema.part("no field is missing, none is added", points=1)
def _(attempt: object, rng: random.Random) -> None:
    good = _orders(rng, 5)
    bad: list[tuple[object, str]] = []
    for missing in ("drink", "count", "to_go"):
        bad.append(({k: v for k, v in rng.choice(good).items() if k != missing}, ""))
    for added in ("note", "name", "sugar"):
        bad.append(({**rng.choice(good), added: rng.choice(["x", 1, None])}, ""))
    lab.judge_schema(attempt, good, [*bad, ([], ""), ("tea", ""), (None, "")])


def _walk(moves: lab.Moves, state: int | None, text: bytes) -> int | None:
    for byte in text:
        state = None if state is None else moves[state].get(byte)
    return state


def _by_recursion(moves: lab.Moves, state: int, tokens: Sequence[bytes]) -> list[int]:
    def fits(at: int | None, text: bytes) -> bool:
        return at is not None and (not text or fits(moves[at].get(text[0]), text[1:]))

    return [token for token, text in enumerate(tokens) if text and fits(state, text)]


def _by_exception(moves: lab.Moves, state: int, tokens: Sequence[bytes]) -> list[int]:
    allowed = []
    for token, text in enumerate(tokens):
        try:
            reduce(lambda at, byte: moves[at][byte], text, state)
        except KeyError:
            continue
        if text:
            allowed.append(token)
    return allowed


def _by_prefixes(moves: lab.Moves, state: int, tokens: Sequence[bytes]) -> list[int]:
    """Remember the state after each prefix, so that tokens share the moves of their beginnings."""
    states: dict[bytes, int | None] = {b"": state}
    allowed = []
    for token, text in enumerate(tokens):
        for end in range(1, len(text) + 1):
            states[text[:end]] = _walk(moves, states[text[: end - 1]], text[end - 1 : end])
        if text and states[text] is not None:
            allowed.append(token)
    return allowed


def _special_tokens_too(moves: lab.Moves, state: int, tokens: Sequence[bytes]) -> list[int]:
    return [t for t, text in enumerate(tokens) if _walk(moves, state, text) is not None]


def _first_byte(moves: lab.Moves, state: int, tokens: Sequence[bytes]) -> list[int]:
    return [t for t, text in enumerate(tokens) if text[:1] and text[0] in moves[state]]


def _each_byte_alone(moves: lab.Moves, state: int, tokens: Sequence[bytes]) -> list[int]:
    return [t for t, text in enumerate(tokens) if text and set(text) <= set(moves[state])]


def _whole_answers(moves: lab.Moves, state: int, tokens: Sequence[bytes]) -> list[int]:
    allowed = _mask(moves, state, tokens)
    return [token for token in allowed if not moves[_walk(moves, state, tokens[token]) or 0]]


def _one_bit_each(moves: lab.Moves, state: int, tokens: Sequence[bytes]) -> list[bool]:
    allowed = _mask(moves, state, tokens)
    return [token in allowed for token in range(len(tokens))]


def _from_the_first_state(moves: lab.Moves, state: int, tokens: Sequence[bytes]) -> list[int]:
    return _mask(moves, 0, tokens)


token_mask = Grading(
    lab.token_mask,
    wrong={
        "special tokens too": Wrong(_special_tokens_too, says="without bytes"),
        "only the first byte": Wrong(_first_byte, says="after the end of true"),
        "each byte from the same state": Wrong(_each_byte_alone, says="begin true or false"),
        "only tokens that end the answer": Wrong(_whole_answers, says="begin true or false"),
        "a bit for each token": Wrong(_one_bit_each, says="begin true or false"),
        "always from the first state": Wrong(_from_the_first_state, says="that you are given"),
    },
    right={
        "by recursion": _by_recursion,
        "with an exception": _by_exception,
        "with the states of prefixes": _by_prefixes,
    },
    twins=("utils.engines.grammar.Automaton.after",),
)

_PATTERNS = (
    "(left|right|lift)( [0-9]{2})?",
    "[a-c]+d?",
    "20[2-3][0-9]-(0[1-9]|1[0-2])",
    "(caf\u00e9|cake)s*",
)


def _same_masks(attempt: Callable[..., list[int]], rng: random.Random, steps: int) -> None:
    for pattern in _PATTERNS:
        moves = compile_pattern(pattern).moves
        state = 0
        for _ in range(steps):
            state = rng.choice([*moves[state].values()] or [state])
        # Walks through the automaton, half of them with a byte at their end that may be wrong.
        bytes_used = sorted({byte for by_byte in moves for byte in by_byte})
        tokens = [b""]
        for _ in range(60):
            text, at = b"", state
            for _ in range(rng.randint(1, 4)):
                if moves[at]:
                    byte = rng.choice([*moves[at]])
                    text, at = text + bytes([byte]), moves[at][byte]
            tokens.append(text + bytes(rng.choices(bytes_used, k=rng.randint(0, 1))))
        rng.shuffle(tokens)
        what = f"the allowed tokens of {tokens} in state {state} of {pattern}"
        expect_equal(attempt(moves, state, tokens), _mask(moves, state, tokens), what=what)


@token_mask.part("tokens that may begin an answer", points=2)
def _(attempt: Callable[..., list[int]], rng: random.Random) -> None:
    for _ in range(5):
        _same_masks(attempt, rng, steps=0)


@token_mask.part("tokens that may go on in the middle", points=1)
def _(attempt: Callable[..., list[int]], rng: random.Random) -> None:
    for _ in range(5):
        _same_masks(attempt, rng, steps=2)
