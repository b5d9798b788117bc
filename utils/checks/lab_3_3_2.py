"""Checks of lab 3.3.2, SGLang and the radix tree over its KV cache."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jsonschema

from utils.checks import CheckFailed, check, expect, expect_close, expect_equal, expect_type
from utils.engines.grammar import compile_pattern
from utils.kvcache import radix
from utils.kvcache.audit import damage, spelled
from utils.kvcache.radix import Node, RadixCache, Tokens, walk
from utils.kvcache.replay import drain_queue, hit_rate

Json = Mapping[str, Any]
Moves = Sequence[Mapping[int, int]]  # next state by byte, for each state


def tree_of(*sequences: Tokens, page_size: int = 1) -> Node:
    """Return a tree that holds these sequences; the first was used first."""
    root = Node([])
    for now, sequence in enumerate(sequences, 1):
        radix.insert(root, sequence, page_size, now)
    return root


def drawn(root: Node) -> list[tuple[Tokens, int, int]]:
    """Every node as (tokens from the root on, lock_ref, last_used), sorted: to compare two trees."""
    return sorted((spelled(n), n.lock_ref, n.last_used) for n in walk(root) if n.parent)


@check(reference=radix.shared_length)
def shared_length(attempt: Callable[..., int]) -> None:
    """Examine the learner's `shared_length(key, tokens, start, page_size)`."""
    hint = "1 and 2 agree, 3 and 9 do not."
    expect_equal(attempt([1, 2, 3], [1, 2, 9], 0, 1), 2, what="[1, 2, 3] with [1, 2, 9]", hint=hint)
    hint = "Compare with what follows position `start` of tokens."
    got = attempt([1, 2, 3], [7, 7, 1, 2, 3, 4], 2, 1)
    expect_equal(got, 3, what="[1, 2, 3] with [7, 7, 1, 2, 3, 4] from 2 on", hint=hint)
    hint = "One may end before the other; what is left agrees with nothing."
    expect_equal(attempt([1, 2, 3], [1], 0, 1), 1, what="[1, 2, 3] with [1]", hint=hint)
    expect_equal(attempt([1], [1, 2, 3], 0, 1), 1, what="[1] with [1, 2, 3]", hint=hint)
    expect_equal(attempt([1, 2], [1, 2], 2, 1), 0, what="[1, 2] with nothing", hint=hint)
    hint = "Only whole pages count: 5 tokens that agree are 2 pages of 2, so 4."
    got = attempt([1, 2, 3, 4, 5, 6], [1, 2, 3, 4, 5, 9], 0, 2)
    expect_equal(got, 4, what="5 tokens that agree, pages of 2", hint=hint)
    hint = "After the first that differs nothing counts any more."
    expect_equal(attempt([1, 2, 3], [1, 9, 3], 0, 1), 1, what="[1, 2, 3] with [1, 9, 3]", hint=hint)


@check(reference=radix.match_prefix, copy_inputs=False)
def match_prefix(attempt: Callable[..., int]) -> None:
    """Examine the learner's `match_prefix(root, tokens, page_size)`."""
    root = tree_of([1, 2, 3, 4], [1, 2, 5], [8, 9])
    before = drawn(root)
    held = "[1, 2, 3, 4], [1, 2, 5] and [8, 9] are stored"
    hint = "Nothing begins with 7."
    expect_equal(attempt(root, [7, 1], 1), 0, what=f"[7, 1] where {held}", hint=hint)
    hint = "Add up what each node on the way gives."
    expect_equal(attempt(root, [1, 2, 5, 6], 1), 3, what=f"[1, 2, 5, 6] where {held}", hint=hint)
    hint = "The match may end inside a node: [1, 2], then the 3 of [3, 4]."
    expect_equal(attempt(root, [1, 2, 3, 9], 1), 3, what=f"[1, 2, 3, 9] where {held}", hint=hint)
    hint = "A node that matches only in part is the end, even if its children would fit."
    deep = tree_of([1, 2, 3, 4], [1, 2, 3, 5])
    expect_equal(attempt(deep, [1, 2, 4], 1), 2, what="[1, 2, 4] behind [1, 2, 3]", hint=hint)
    hint = "The prompt may end before the tree does, or be empty."
    expect_equal(attempt(root, [8], 1), 1, what=f"[8] where {held}", hint=hint)
    expect_equal(attempt(root, [], 1), 0, what=f"no tokens where {held}", hint=hint)
    hint = "Looking something up changes nothing."
    expect_equal(drawn(root), before, what="the tree after all that", hint=hint)
    pages = tree_of([1, 2, 3, 4, 5, 6], [1, 2, 9, 9], page_size=2)
    hint = "Children are found by their first page, a tuple: (3, 4), not 3."
    got = attempt(pages, [1, 2, 3, 4, 5], 2)
    expect_equal(got, 4, what="[1, 2, 3, 4, 5] in pages of 2", hint=hint)
    rng = random.Random(1)
    for _ in range(60):
        page_size = rng.choice([1, 1, 2, 3])
        stored = [[rng.randrange(3) for _ in range(rng.randrange(9))] for _ in range(6)]
        tokens = [rng.randrange(3) for _ in range(rng.randrange(9))]
        root = tree_of(*stored, page_size=page_size)
        what = f"{tokens} in pages of {page_size} where {stored} were stored"
        wanted = radix.match_prefix(root, tokens, page_size)
        expect_equal(attempt(root, tokens, page_size), wanted, what=what)


@check(reference=radix.insert, copy_inputs=False)
def insert(attempt: Callable[..., Node]) -> None:
    """Examine the learner's `insert(root, tokens, page_size, now)`."""
    root = Node([])
    end = attempt(root, [1, 2, 3, 4], 1, 1)
    hint = "Nothing was there, so the root gets one child that holds all four tokens."
    expect_equal(drawn(root), [([1, 2, 3, 4], 0, 1)], what="the tree after [1, 2, 3, 4]", hint=hint)
    expect_type(end, Node, what="what insert returns")
    expect_equal(spelled(end), [1, 2, 3, 4], what="the tokens up to the node that is returned")
    attempt(root, [1, 2, 3, 4, 5, 6], 1, 2)
    wanted = [([1, 2, 3, 4], 0, 2), ([1, 2, 3, 4, 5, 6], 0, 2)]
    hint = "What is new goes into a child of the node that matched; all on the way were used now."
    expect_equal(drawn(root), wanted, what="then [1, 2, 3, 4, 5, 6]", hint=hint)
    old = next(node for node in walk(root) if node.key == [1, 2, 3, 4])
    old.lock_ref = 2
    end = attempt(root, [1, 2, 9], 1, 3)
    wanted = [
        ([1, 2], 2, 3),
        ([1, 2, 3, 4], 2, 2),
        ([1, 2, 3, 4, 5, 6], 0, 2),
        ([1, 2, 9], 0, 3),
    ]
    hint = (
        "Cut [1, 2, 3, 4] in two. Both halves keep its locks; the lower one its children and its "
    )
    hint += "last_used, the upper one was used now. 9 becomes the upper one's second child."
    what = "then [1, 2, 9], as (tokens from the root, lock_ref, last_used)"
    expect_equal(drawn(root), wanted, what=what, hint=hint)
    if broken := damage(root, 1):
        raise CheckFailed(f"after cutting a node: {broken}.")
    hint = (
        "The node that was there stays the end of its sequence: whoever locked it will unlock it."
    )
    expect_equal(
        spelled(old), [1, 2, 3, 4], what="the tokens up to the node that was cut", hint=hint
    )
    end = attempt(root, [1, 2], 1, 4)
    hint = "All of it is there: return the node that it ends with, add nothing."
    expect_equal(spelled(end), [1, 2], what="what is returned for [1, 2]", hint=hint)
    expect_equal(len(list(walk(root))), 5, what="nodes with the root after [1, 2] again", hint=hint)
    end = attempt(root, [1, 2, 3], 1, 5)
    hint = "A sequence may end inside a node: cut it there, so that its end can be locked."
    expect_equal(spelled(end), [1, 2, 3], what="what is returned for [1, 2, 3]", hint=hint)
    hint = "Nothing to store: the root itself."
    expect(attempt(root, [], 1, 6) is root, f"for no tokens another node is returned. {hint}")
    _pages(attempt)
    _grows_alike(attempt, random.Random(2), 40)


def _pages(attempt: Callable[..., Node]) -> None:
    root = Node([])
    attempt(root, [1, 2, 3, 4, 5], 2, 1)
    hint = "Only whole pages are stored: the fifth token is left out."
    expect_equal(
        drawn(root), [([1, 2, 3, 4], 0, 1)], what="[1, 2, 3, 4, 5] in pages of 2", hint=hint
    )
    attempt(root, [1, 2, 3, 9], 2, 2)
    wanted = [([1, 2], 0, 2), ([1, 2, 3, 4], 0, 1), ([1, 2, 3, 9], 0, 2)]
    hint = "A node is cut between pages: 3 stands in both lower halves."
    expect_equal(drawn(root), wanted, what="then [1, 2, 3, 9]", hint=hint)
    if broken := damage(root, 2):
        raise CheckFailed(f"in pages of 2: {broken}.")


def _grows_alike(attempt: Callable[..., Node], rng: random.Random, trees: int) -> None:
    """Random sequences into the learner's tree and into the reference's."""
    for _ in range(trees):
        page_size = rng.choice([1, 1, 2, 3])
        actual, expected = Node([]), Node([])
        stored: list[Tokens] = []
        for now in range(1, 6):
            tokens = [rng.randrange(3) for _ in range(rng.randrange(10))]
            stored.append(tokens)
            given = list(tokens)
            end = attempt(actual, given, page_size, now)
            expect_equal(given, tokens, what="the tokens that were handed in, afterwards")
            wanted = radix.insert(expected, tokens, page_size, now)
            case = f"{stored} in pages of {page_size}, one after the other"
            what = f"the tree, as (tokens from the root, lock_ref, last_used), after {case}"
            expect_equal(drawn(actual), drawn(expected), what=what)
            if broken := damage(actual, page_size):
                raise CheckFailed(f"{broken}, after {case}.")
            expect_type(end, Node, what=f"what is returned for the last of {case}")
            what = f"the tokens up to the node that is returned for the last of {case}"
            expect_equal(spelled(end), spelled(wanted), what=what)


@check(reference=radix.lock, copy_inputs=False)
def lock(attempt: Callable[..., None]) -> None:
    """Examine the learner's `lock(node, change)`."""
    root = tree_of([1, 2, 3], [1, 2, 4])
    leaf = next(node for node in walk(root) if node.key == [3])
    attempt(leaf, 1)
    wanted = [([1, 2], 1), ([1, 2, 3], 1), ([1, 2, 4], 0)]
    hint = "Who uses [1, 2, 3] uses [1, 2] as well; [1, 2, 4] is somebody else's."
    what = "lock_ref of each node after locking [1, 2, 3]"
    expect_equal([(key, refs) for key, refs, _ in drawn(root)], wanted, what=what, hint=hint)
    expect_equal(root.lock_ref, 0, what="lock_ref of the root", hint="The root is never evicted.")
    attempt(root, 1)
    expect_equal(
        root.lock_ref, 0, what="lock_ref of the root, locked itself", hint="Leave it alone."
    )
    attempt(leaf, 1)
    hint = "Two requests may use the same node: count them."
    expect_equal(leaf.lock_ref, 2, what="lock_ref after locking twice", hint=hint)
    attempt(leaf, -1)
    attempt(leaf, -1)
    hint = "change is added, and -1 unlocks."
    refs = [refs for _, refs, _ in drawn(root)]
    expect_equal(refs, [0, 0, 0], what="lock_ref after unlocking twice", hint=hint)


@check(reference=radix.evict, copy_inputs=False)
def evict(attempt: Callable[..., int]) -> None:
    """Examine the learner's `evict(root, num_tokens)`."""
    root = tree_of([1, 2, 3, 4], [1, 2, 5], [8, 9])
    removed = attempt(root, 1)
    hint = "[1, 2, 3, 4] was used first. Its leaf [3, 4] goes, whole; [1, 2] has another child."
    what = "what is left of [1, 2, 3, 4], [1, 2, 5], [8, 9] after evicting 1 token"
    expect_equal(
        [key for key, *_ in drawn(root)], [[1, 2], [1, 2, 5], [8, 9]], what=what, hint=hint
    )
    hint = "A leaf goes as a whole, so more may be removed than was asked for."
    expect_equal(removed, 2, what="tokens removed by that", hint=hint)
    removed = attempt(root, 3)
    hint = "When [5] is gone, [1, 2] is a leaf and as old: it may go next, before [8, 9]."
    expect_equal([key for key, *_ in drawn(root)], [[8, 9]], what="3 tokens later", hint=hint)
    expect_equal(removed, 3, what="tokens removed by that")
    root = tree_of([1, 2, 3, 4], [1, 2, 5], [8, 9])
    radix.lock(next(node for node in walk(root) if node.key == [3, 4]))
    removed = attempt(root, 100)
    hint = "[1, 2] and [3, 4] are in use (lock_ref above 0) and stay, whatever is asked for."
    what = "what is left of the three when [3, 4] is locked and 100 tokens were asked for"
    expect_equal([key for key, *_ in drawn(root)], [[1, 2], [1, 2, 3, 4]], what=what, hint=hint)
    expect_equal(removed, 3, what="tokens removed where only 3 are not locked", hint=hint)
    root = tree_of([1, 2, 3, 4], [8, 9])
    inner = radix.insert(root, [1, 2], 1, 3)  # cuts the node, and a request uses [1, 2] alone
    radix.lock(inner)
    removed = attempt(root, 100)
    hint = "[1, 2] has no children any more, but a request uses it: look at lock_ref there, too."
    what = "what is left of [1, 2, 3, 4] and [8, 9] when [1, 2] is locked and 100 tokens were asked for"
    expect_equal([key for key, *_ in drawn(root)], [[1, 2]], what=what, hint=hint)
    expect_equal(removed, 4, what="tokens removed where [1, 2] is locked", hint=hint)
    hint = "Nothing was asked for, so nothing goes."
    expect_equal(attempt(tree_of([1, 2]), 0), 0, what="tokens removed of 0", hint=hint)
    hint = "Go by last_used, not by the order of insertion."
    root = tree_of([1], [2], [1])
    attempt(root, 1)
    expect_equal([key for key, *_ in drawn(root)], [[1]], what="[1], [2], [1] again", hint=hint)
    rng = random.Random(3)
    for _ in range(40):
        _evicts_alike(attempt, rng)


def _evicts_alike(attempt: Callable[..., int], rng: random.Random) -> None:
    page_size = rng.choice([1, 1, 2])
    stored = [[rng.randrange(3) for _ in range(rng.randrange(1, 9))] for _ in range(7)]
    actual, expected = (tree_of(*stored, page_size=page_size) for _ in range(2))
    locked = rng.randrange(7)
    for root in (actual, expected):
        radix.lock(radix.insert(root, stored[locked], page_size, 8))
    num_tokens = rng.randrange(12)
    case = f"{num_tokens} tokens where {stored} were stored in pages of {page_size}, no. {locked + 1} locked"
    wanted = radix.evict(expected, num_tokens)
    expect_equal(attempt(actual, num_tokens), wanted, what=f"tokens removed of {case}")
    what = f"the tree, as (tokens from the root, lock_ref, last_used), after evicting {case}"
    expect_equal(drawn(actual), drawn(expected), what=what)
    if broken := damage(actual, page_size):
        raise CheckFailed(f"{broken}, after evicting {case}.")


def _predict_hit_rate(prompts: list[Tokens], cache: RadixCache) -> float:
    cached = []
    for prompt in prompts:
        cached.append(cache.match(prompt))
        cache.insert(prompt)
    return hit_rate(cached, prompts)


@check(reference=_predict_hit_rate, copy_inputs=False)
def predict_hit_rate(attempt: Callable[..., float]) -> None:
    """Examine the learner's `predict_hit_rate(prompts, cache)`."""
    hint = "Look each prompt up before you store it: the first finds an empty cache."
    expect_close(attempt([[1, 2, 3, 4]], RadixCache()), 0.0, what="one prompt", hint=hint)
    hint = "The second finds 2 of its 4 tokens: 2 of 8 in all. Prompts count as tokens, not as one each."
    two = attempt([[1, 2, 3, 4], [1, 2, 8, 9]], RadixCache())
    expect_close(two, 0.25, what="[1, 2, 3, 4], then [1, 2, 8, 9]", hint=hint)
    hint = "2 + 4 of the 12 tokens: the share of all tokens together, not the mean over prompts."
    uneven = attempt([[1, 2], [1, 2, 3, 4], [1, 2, 3, 4, 5, 6]], RadixCache())
    expect_close(
        uneven, 6 / 12, what="prompts of 2, 4 and 6 tokens, each a prefix of the next", hint=hint
    )
    hint = "cache.match looks up all but the last token, as an engine does: 3 of 4, not 4."
    same = attempt([[1, 2, 3, 4], [1, 2, 3, 4]], RadixCache())
    expect_close(same, 3 / 8, what="the same prompt twice", hint=hint)
    hint = "Use the cache that you are given: it knows its page size and capacity."
    pages = attempt([[1, 2, 3, 4], [1, 2, 3, 9]], RadixCache(page_size=2))
    expect_close(pages, 2 / 8, what="3 shared tokens in pages of 2", hint=hint)
    small = attempt([[1, 2, 3, 4], [5, 6, 7, 8], [1, 2, 3, 4]], RadixCache(capacity=4))
    expect_close(small, 0.0, what="a prompt again, after one that took its room", hint=hint)


def _speedup(fraction: float, prefill_s: float, rest_s: float) -> float:
    return (prefill_s + rest_s) / ((1 - fraction) * prefill_s + rest_s)


@check(reference=_speedup)
def predict_speedup(attempt: Callable[..., float]) -> None:
    """Examine the learner's `predict_speedup(fraction, prefill_s, rest_s)`."""
    hint = "Nothing is cached: cold and warm take the same time."
    expect_close(attempt(0.0, 0.9, 0.1), 1.0, what="nothing cached", hint=hint)
    hint = "Half of 0.9 s is left, and the 0.1 s stay: 1.0 s against 0.55 s."
    expect_close(attempt(0.5, 0.9, 0.1), 1.0 / 0.55, what="half cached, 0.9 s + 0.1 s", hint=hint)
    hint = "All prefill saved, the rest remains: 1.0 s against 0.1 s."
    expect_close(attempt(1.0, 0.9, 0.1), 10.0, what="all cached, 0.9 s + 0.1 s", hint=hint)
    expect_close(attempt(0.75, 0.4, 0.4), 0.8 / 0.5, what="three quarters, 0.4 s + 0.4 s")


def _next_request(cached: list[int], passed_over: list[int], limit: int) -> int:
    for position, count in enumerate(passed_over):
        if count >= limit:
            return position
    return cached.index(max(cached))


@check(reference=_next_request)
def next_request(attempt: Callable[..., int]) -> None:
    """Examine the learner's `next_request(cached, passed_over, limit)`."""
    hint = "The request at position 1 finds most of its prompt in the cache."
    expect_equal(attempt([0, 90, 40], [0, 0, 0], 5), 1, what="cached 0, 90, 40", hint=hint)
    hint = "Of equals, the one that came first."
    expect_equal(attempt([40, 90, 90], [0, 0, 0], 5), 1, what="cached 40, 90, 90", hint=hint)
    hint = "The first was passed over 5 times, which is the limit: now it goes, whatever is cached."
    expect_equal(attempt([0, 90, 40], [5, 0, 0], 5), 0, what="the first at the limit", hint=hint)
    expect_equal(attempt([0, 90, 40], [4, 0, 0], 5), 1, what="the first just below the limit")
    hint = "Two are at the limit: the one that came first."
    expect_equal(attempt([90, 0, 40], [0, 5, 7], 5), 1, what="two at the limit", hint=hint)
    hint = "A limit of 0 means first come, first served."
    expect_equal(attempt([0, 90], [0, 0], 0), 0, what="a limit of 0", hint=hint)
    rng = random.Random(4)
    prefixes = [[rng.randrange(99) for _ in range(30)] for _ in range(3)]
    prompts = [[*rng.choice(prefixes), i] for i in range(30)]
    prompts.insert(2, [-1] * 30)
    for limit in (3, 10):
        served = drain_queue(prompts, RadixCache(60), lambda c, p, n=limit: attempt(c, p, n))  # type: ignore[misc]
        wanted = drain_queue(prompts, RadixCache(60), lambda c, p, n=limit: _next_request(c, p, n))  # type: ignore[misc]
        what = f"the order of 31 requests, one of which shares nothing, with a limit of {limit}"
        expect_equal(served.order, wanted.order, what=what)


ORDER_SCHEMA: Json = {
    "type": "object",
    "properties": {
        "drink": {"enum": ["espresso", "latte", "tea"]},
        "count": {"type": "integer", "minimum": 1, "maximum": 9},
        "to_go": {"type": "boolean"},
    },
    "required": ["drink", "count", "to_go"],
    "additionalProperties": False,
}
GOOD_ORDERS = (
    {"drink": "espresso", "count": 1, "to_go": True},
    {"drink": "latte", "count": 9, "to_go": False},
    {"drink": "tea", "count": 4, "to_go": True},
)
BAD_ORDERS: tuple[tuple[object, str], ...] = (
    ({"drink": "beer", "count": 1, "to_go": True}, "There is no beer: drink is one of three."),
    ({"drink": "iced tea", "count": 1, "to_go": True}, "drink is one of three, not a part of it."),
    ({"drink": 5, "count": 1, "to_go": True}, "drink is a text."),
    ({"drink": None, "count": 1, "to_go": True}, "drink is a text."),
    ({"drink": "tea", "count": 0, "to_go": True}, "Nobody orders 0: count is 1 to 9."),
    ({"drink": "tea", "count": 10, "to_go": True}, "count is 1 to 9; a bound keeps answers short."),
    ({"drink": "tea", "count": 1.5, "to_go": True}, "count is a whole number."),
    ({"drink": "tea", "count": "2", "to_go": True}, "count is a number, not a text."),
    ({"drink": "tea", "count": 1, "to_go": "yes"}, "to_go is true or false, not a text."),
    ({"drink": "tea", "count": 1}, "to_go is missing: which fields are required?"),
    ({"count": 1, "to_go": True}, "drink is missing: which fields are required?"),
    ({"drink": "tea", "to_go": True}, "count is missing: which fields are required?"),
    (
        {"drink": "tea", "count": 1, "to_go": True, "note": "hot"},
        "note is no field: without additionalProperties: false a model may write on for ever.",
    ),
    (["tea", 1, True], "It is an object, not a list."),
    ("tea", "It is an object, not a text."),
)


@check(reference=ORDER_SCHEMA)
def order_schema(attempt: object) -> None:
    """Examine the learner's `order_schema`, a JSON schema."""
    judge_schema(attempt, GOOD_ORDERS, BAD_ORDERS)


def judge_schema(schema: object, good: Iterable[object], bad: Iterable[tuple[object, str]]) -> None:
    """Return whether a schema takes what is good and refuses what is bad."""
    expect(isinstance(schema, dict), "a JSON schema is a dictionary here.")
    assert isinstance(schema, dict)
    try:
        jsonschema.validators.validator_for(schema).check_schema(schema)
    except jsonschema.SchemaError as error:
        raise CheckFailed(f"this isn't a JSON schema: {error.message}.") from error
    for order in good:
        try:
            jsonschema.validate(order, schema)
        except jsonschema.ValidationError as error:
            raise CheckFailed(f"it refuses {order!r}, a good order: {error.message}.") from error
    for order, hint in bad:
        try:
            jsonschema.validate(order, schema)
        except jsonschema.ValidationError:
            continue
        raise CheckFailed(f"it accepts {order!r}. {hint}")


def _token_mask(moves: Moves, state: int, tokens: Sequence[bytes]) -> list[int]:
    allowed = []
    for token, text in enumerate(tokens):
        after: int | None = state
        for byte in text:
            after = moves[after].get(byte) if after is not None else None
        if text and after is not None:
            allowed.append(token)
    return allowed


@check(reference=_token_mask)
def token_mask(attempt: Callable[..., list[int]]) -> None:
    """Examine the learner's `token_mask(moves, state, tokens)`."""
    tokens = [b"t", b"true", b"tru", b"trust", b"rue", b"false", b"", b"e", b"true false"]
    automaton = compile_pattern("(true|false)")
    hint = "t, true, tru and false begin true or false. trust and rue don't."
    got = attempt(automaton.moves, 0, tokens)
    expect_type(got, list, what="the allowed tokens")
    expect(6 not in got, "a token without bytes is a special token, and the grammar forbids those.")
    expect(8 not in got, "b'true false' goes on after the end of true, so no text has it.")
    expect_equal(got, [0, 1, 2, 5], what=f"the tokens of {tokens} before (true|false)", hint=hint)
    hint = "Begin at the state that you are given. After tru only e can follow."
    got = attempt(automaton.moves, automaton.after(b"tru"), tokens)
    expect_equal(got, [7], what="the tokens that are allowed after tru", hint=hint)
    hint = "After the end of the text no token is left. The engine adds the end token itself."
    got = attempt(automaton.moves, automaton.after(b"true"), tokens)
    expect_equal(got, [], what="the tokens after a complete answer", hint=hint)
    hint = "A token has several bytes: each move begins where the last one ended."
    digits = [b"1", b"12", b"123", b"x1", b"1x"]
    got = attempt(compile_pattern("[0-9]{2}").moves, 0, digits)
    expect_equal(got, [0, 1], what=f"the tokens of {digits} before [0-9]{{2}}", hint=hint)
