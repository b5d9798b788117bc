"""Draft trees: masks, positions, retrieve indices, the choice of nodes."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from utils.speculative.speculation_error import SpeculationError
from utils.speculative.tree import ChoiceTree, DraftTree, best_choices, chain, rerank, subtree

SMALL = DraftTree([-1, 0, 0, 1, 1, 3])


@st.composite
def trees(draw):
    size = draw(st.integers(1, 24))
    return DraftTree([-1, *(draw(st.integers(0, i - 1)) for i in range(1, size))])


def test_a_small_tree_by_hand():
    assert SMALL.depths.tolist() == [0, 1, 1, 2, 2, 3]
    assert SMALL.children == ((1, 2), (3, 4), (), (5,), (), ())
    assert SMALL.path(5) == [0, 1, 3, 5]
    assert SMALL.mask[5].int().tolist() == [1, 1, 0, 1, 0, 1]
    assert SMALL.retrieve_indices.tolist() == [[0, 2, -1, -1], [0, 1, 4, -1], [0, 1, 3, 5]]


@given(trees())
@settings(max_examples=200, deadline=None)
def test_a_node_sees_its_path_and_nothing_else(tree):
    for node in range(tree.size):
        path = tree.path(node)
        assert sorted(path) == path and path[0] == 0 and path[-1] == node
        assert tree.mask[node].nonzero().flatten().tolist() == path
        assert int(tree.depths[node]) == len(path) - 1
    leaves = {row[row >= 0][-1].item() for row in tree.retrieve_indices}
    assert leaves == {node for node in range(tree.size) if not tree.children[node]}


def test_a_chain_is_the_trivial_tree():
    tree = chain(3)
    assert tree.parents == (-1, 0, 1, 2) and tree.depth == 3
    assert torch.equal(tree.mask, torch.ones(4, 4, dtype=torch.bool).tril())
    assert chain(0).size == 1


def test_choices_name_head_and_rank():
    tree = ChoiceTree([(0, 0), (0,), (1,), (0, 2), (0, 0, 1)])
    assert tree.choices == ((0,), (1,), (0, 0), (0, 2), (0, 0, 1))
    assert tree.parents == (-1, 0, 0, 1, 1, 3)
    assert tree.heads.tolist() == [0, 0, 1, 1, 2]
    assert tree.ranks.tolist() == [0, 1, 0, 2, 1]


@pytest.mark.parametrize("parents", [[], [0], [-1, 1], [-1, 2, 0], [-1, -1]])
def test_invalid_tree_is_refused(parents):
    with pytest.raises(SpeculationError, match="parent comes before its child"):
        DraftTree(parents)


def test_a_choice_needs_its_beginning():
    with pytest.raises(SpeculationError, match=r"\(1, 0\) needs \(1,\)"):
        ChoiceTree([(0,), (1, 0)])


def expected(accuracy, choices):
    total = 0.0
    for path in choices:
        gain = 1.0
        for head, rank in enumerate(path):
            gain *= accuracy[head][rank]
        total += gain
    return total


def test_the_best_choices_are_the_best_of_all_trees():
    accuracy = [[0.6, 0.2, 0.1], [0.5, 0.3, 0.05], [0.4, 0.2, 0.1]]
    every = [p for n in (1, 2, 3) for p in itertools.product(range(3), repeat=n)]
    for nodes in (1, 2, 3, 4):
        closed = [
            c
            for c in itertools.combinations(every, nodes)
            if all(len(p) == 1 or p[:-1] in c for p in c)
        ]
        best = max(expected(accuracy, c) for c in closed)
        actual = best_choices(accuracy, nodes)
        ChoiceTree(actual)
        assert expected(accuracy, actual) == pytest.approx(best)


@given(trees(), st.integers(1, 10), st.randoms(use_true_random=False))
@settings(max_examples=200, deadline=None)
def test_reranking_keeps_the_most_probable_nodes_and_a_tree(tree, nodes, rng):
    scores = [0.0]
    for parent in tree.parents[1:]:
        scores.append(scores[parent] + rng.choice([0.0, -0.5, -1.0]))
    kept = rerank(tree.parents, scores, nodes)
    assert kept[0] == 0 and len(kept) == min(nodes + 1, tree.size)
    assert kept == sorted(set(kept))
    left = [scores[n] for n in range(tree.size) if n not in kept]
    assert not left or min(scores[n] for n in kept) >= max(left)
    small = subtree(tree.parents, kept)  # refuses a node without its parent
    assert [int(d) for d in small.depths] == [int(tree.depths[n]) for n in kept]
