"""Any implementation of the radix tree, held to its invariants on generated traces.

`hypothesis` makes the traces, and shrinks one that fails to the shortest that still does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.configuration import set_hypothesis_home_dir
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from utils.engines.runtime import LOGS
from utils.kvcache.radix import Node, Tokens, walk

# Few different tokens, so that prefixes are shared, end inside nodes, and split them.
SEQUENCES = st.lists(st.integers(0, 2), max_size=12)


def common(first: Tokens, second: Tokens) -> int:
    """Tokens that two sequences have in common at their beginning, counted one by one."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(first), len(second)))


def spelled(node: Node) -> Tokens:
    """Return all tokens from the root to the end of a node."""
    parts: list[Tokens] = []
    while node.parent is not None:
        parts.append(node.key)
        node = node.parent
    return [token for part in reversed(parts) for token in part]


def total(root: Node) -> int:
    """Tokens that the tree holds."""
    return sum(len(node.key) for node in walk(root))


def damage(root: Node, page_size: int) -> str:
    """Return the fault in the links of a tree, in words; "" if there is none."""
    for node in walk(root):
        for page, child in node.children.items():
            if not isinstance(child, Node) or not isinstance(child.key, list):
                return "a child is a Node whose key is a list"
            if child.parent is not node:
                return f"the parent of the node {child.key} is not the node that has it as a child"
            if page != tuple(child.key[:page_size]):
                return f"the node {child.key} stands under {page!r} in its parent's children"
            if not child.key or len(child.key) % page_size:
                return f"the node {child.key} does not hold whole pages of {page_size}"
    return ""


def evicted_by_hand(root: Node, num_tokens: int) -> set[Node]:
    """Return the nodes that must go: the least recently used leaf, looked up anew for every single one."""
    alive, gone = set(walk(root)) - {root}, set[Node]()
    while sum(len(node.key) for node in gone) < num_tokens:
        leaves = [n for n in alive if not n.lock_ref and not alive & set(n.children.values())]
        if not leaves:
            break
        oldest = min(leaves, key=lambda node: node.last_used)
        alive.remove(oldest)
        gone.add(oldest)
    return gone


def machine(
    match: Callable[..., int],
    insert: Callable[..., Node],
    lock: Callable[..., None],
    evict: Callable[..., int],
) -> type[RuleBasedStateMachine]:
    """Compare random use of a tree with plain lists of its expected content.

    The four functions are ``match_prefix``, ``insert``, ``lock`` and ``evict`` of
    :mod:`utils.kvcache.radix`, or stand in for them.
    """

    class Tree(RuleBasedStateMachine):
        @initialize(page_size=st.integers(1, 3))
        def begin(self, page_size: int) -> None:
            self.page_size = page_size
            self.root = Node([])
            self.stored: list[Tokens] = []  # what must be found again
            self.held: list[tuple[Node, Tokens]] = []
            self.now = 0

        def longest(self, tokens: Tokens) -> int:
            """Brute force: the longest common beginning with any path of the tree."""
            found = max(common(tokens, spelled(node)) for node in walk(self.root))
            return found // self.page_size * self.page_size

        @rule(tokens=SEQUENCES)
        def insert(self, tokens: Tokens) -> None:
            self.now += 1
            pages = tokens[: len(tokens) // self.page_size * self.page_size]
            before, known = total(self.root), self.longest(tokens)
            node = insert(self.root, tokens, self.page_size, self.now)
            assert spelled(node) == pages, "the node that is returned ends the sequence"
            assert total(self.root) == before + len(pages) - known, "tokens are conserved"
            self.stored.append(pages)

        @rule(tokens=SEQUENCES)
        def hold(self, tokens: Tokens) -> None:
            self.now += 1
            node = insert(self.root, tokens, self.page_size, self.now)
            lock(node, 1)
            self.held.append((node, spelled(node)))

        @precondition(lambda self: self.held)
        @rule(data=st.data())
        def let_go(self, data: Any) -> None:
            node, _ = self.held.pop(data.draw(st.integers(0, len(self.held) - 1), label="which"))
            lock(node, -1)

        @rule(num_tokens=st.integers(0, 20))
        def evict(self, num_tokens: int) -> None:
            before, expected = total(self.root), evicted_by_hand(self.root, num_tokens)
            nodes = set(walk(self.root))
            removed = evict(self.root, num_tokens)
            gone = nodes - set(walk(self.root))
            assert not any(node.lock_ref for node in gone), "a locked node was evicted"
            assert gone == expected, (
                "the least recently used leaf first, and only until it is enough"
            )
            assert removed == before - total(self.root), "what is returned was removed"
            self.stored = [tokens[: self.longest(tokens)] for tokens in self.stored]

        @rule(tokens=SEQUENCES)
        def match(self, tokens: Tokens) -> None:
            found = match(self.root, tokens, self.page_size)
            assert found == self.longest(tokens), "the longest match equals brute force"

        @invariant()
        def holds(self) -> None:
            broken = damage(self.root, self.page_size)
            assert not broken, broken
            for tokens in self.stored:
                found = match(self.root, tokens, self.page_size)
                assert found == len(tokens), "every stored sequence is found again"
            wanted: dict[Node, int] = {}
            for node, tokens in self.held:
                assert spelled(node) == tokens, "a locked node stays the end of its sequence"
                while node.parent is not None:
                    wanted[node] = wanted.get(node, 0) + 1
                    node = node.parent
            counts = {node: node.lock_ref for node in walk(self.root) if node.lock_ref}
            assert counts == wanted, "lock_ref counts who holds a node or something behind it"

    return Tree


def audit(
    match: Callable[..., int],
    insert: Callable[..., Node],
    lock: Callable[..., None],
    evict: Callable[..., int],
    traces: int = 300,
) -> str:
    """Try an implementation on generated traces of up to 20 steps.

    Returns:
        In words: that every invariant held, or the shortest trace found that breaks one.
    """
    set_hypothesis_home_dir(LOGS / "hypothesis")  # not beside the notebook
    chosen = settings(
        max_examples=traces,
        stateful_step_count=20,
        deadline=None,
        database=None,
        derandomize=True,
        print_blob=False,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink],
    )
    try:
        run_state_machine_as_test(machine(match, insert, lock, evict), settings=chosen)
    except Exception as error:
        trace = "\n".join("    " + line for line in getattr(error, "__notes__", ()))
        return (
            f"Broken: {type(error).__name__}: {error}\nThe shortest trace that shows it:\n{trace}"
        )
    return f"{traces} generated traces, every invariant held after every step."
