"""Trees, acceptance rules and checkpoints, against medusa-llm 0.1 and eagle-llm 1.2.1."""

import itertools
import types

import pytest
import torch
from safetensors.torch import load_file
from transformers import LlamaConfig

from utils.speculative.checkpoints import save_heads
from utils.speculative.heads import Eagle1Draft, EagleShape, unroll
from utils.speculative.target import Rotary, Target, TargetShape
from utils.speculative.tree import ChoiceTree
from utils.speculative.verify import Greedy, Typical, accept_greedy

SPARSE = [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1), (0, 1, 0), (1, 0, 0)]
DENSE = [3, 2, 2]  # guesses of each head: medusa-llm's release knows such trees only


def dense_tree():
    ranks = [range(n) for n in DENSE]
    return ChoiceTree([p for n in (1, 2, 3) for p in itertools.product(*ranks[:n])])


def as_set(rows):
    return {tuple(i for i in row if i >= 0) for row in rows.tolist()}


def test_a_sparse_tree_has_eagles_buffers(oracles):
    expected = oracles("eagle.model.utils").generate_tree_buffers([list(p) for p in SPARSE], "cpu")
    tree = ChoiceTree(SPARSE)
    assert torch.equal(expected["tree_attn_mask"][0, 0].bool(), tree.mask)
    assert torch.equal(expected["tree_position_ids"], tree.depths)
    assert as_set(expected["retrieve_indices"]) == as_set(tree.retrieve_indices)


def test_a_dense_tree_has_medusas_buffers(oracles):
    expected = oracles("medusa.model.utils").generate_medusa_buffers([1, *DENSE], "cpu")
    tree = dense_tree()
    assert torch.equal(expected["medusa_attn_mask"][0, 0].bool(), tree.mask)
    assert expected["medusa_position_ids"].tolist() == tree.depths.tolist()
    assert as_set(expected["retrieve_indices"]) == as_set(tree.retrieve_indices)


def drawn(tree, generator, vocab=6):
    """Tokens of a tree whose siblings differ, and logits at its nodes."""
    tokens = [0] * tree.size
    for below in tree.children:
        picked = torch.randperm(vocab, generator=generator)[: len(below)].tolist()
        for child, token in zip(below, picked, strict=True):
            tokens[child] = token
    return tokens, 2 * torch.randn(tree.size, vocab, generator=generator)


def paths_of(tree, tokens, logits):
    """Candidates [leaves, depth + 1] and logits [leaves, depth + 1, vocab], as both packages want them."""
    rows = tree.retrieve_indices
    candidates = torch.tensor(tokens)[rows.clamp(min=0)]
    candidates[rows < 0] = -1
    return candidates, logits[rows.clamp(min=0)]


@pytest.mark.parametrize("seed", range(40))
def test_greedy_acceptance_is_theirs(oracles, seed):
    generator = torch.Generator().manual_seed(seed)
    for tree in (ChoiceTree(SPARSE), dense_tree()):
        tokens, logits = drawn(tree, generator)
        candidates, at = paths_of(tree, tokens, logits)
        actual = Greedy()(tree, tokens, logits)
        evaluate = oracles("eagle.model.utils").evaluate_posterior
        best, length, last = evaluate(at, candidates, None, None, None, None, None, None)
        assert int(length) == len(actual.path) - 1
        assert int(last.argmax()) == actual.token
        assert actual.path == tree.retrieve_indices[best, : int(length) + 1].tolist()
        assert accept_greedy(tree, tokens, logits.argmax(-1).tolist()) == actual.path
    medusa = oracles("medusa.model.utils").evaluate_posterior
    _, length = medusa(at, candidates, 0.0, 0.09, 0.3)  # of the dense tree
    assert int(length) == len(actual.path) - 1


@pytest.mark.parametrize("seed", range(40))
def test_typical_acceptance_is_medusas(oracles, seed):
    tree = dense_tree()
    tokens, logits = drawn(tree, torch.Generator().manual_seed(seed))
    candidates, at = paths_of(tree, tokens, logits)
    expected = oracles("medusa.model.utils").evaluate_posterior(at, candidates, 0.8, 0.09, 0.3)
    best, length = expected
    wanted = tree.retrieve_indices[best, : int(length) + 1].tolist()
    assert Typical(temperature=0.8)(tree, tokens, logits).path == wanted


def test_the_eagle1_draft_computes_what_eagles_own_does(oracles, tmp_path):
    """Its names are read by their model, and row i of ours is row i of theirs."""
    shape = TargetShape(3, 32, 48, 4, 2, 8, 50, 1e-6, qk_norm=False)
    inverse = 10000.0 ** (-torch.arange(0, 8, 2) / 8)
    target = Target(shape, Rotary(inverse, 64, config={"rope_theta": 10000.0}))
    layer = TargetShape(1, 32, 48, 4, 2, 8, 50, 1e-6, qk_norm=False)
    actual = Eagle1Draft(EagleShape(layer, 50, ()), target.head.weight.detach())
    save_heads(actual, target, tmp_path, torch.float32)
    config = LlamaConfig(vocab_size=50, hidden_size=32, intermediate_size=48, num_hidden_layers=1)
    config.update({"num_attention_heads": 4, "num_key_value_heads": 2, "rms_norm_eps": 1e-6})
    settings = types.SimpleNamespace(**config.to_dict(), rope_scaling=None)  # None until 2025
    settings.pretraining_tp = 1
    expected = oracles("eagle.model.cnets").Model(settings).eval()
    missing, unexpected = expected.load_state_dict(
        load_file(tmp_path / "model.safetensors"), strict=False
    )
    assert (missing, unexpected) == (["embed_tokens.weight"], [])
    expected.embed_tokens.weight.data.copy_(target.embed.weight)
    ids, hidden = torch.randint(50, (2, 9)), torch.randn(2, 9, 32)
    with torch.no_grad():
        wanted = expected(hidden[:, :8], ids[:, 1:])
        tables = target.rotary.at(torch.arange(10)[None], torch.float32)
        (got,) = unroll(actual, target.embed.weight, tables, ids, hidden, 1)
    torch.testing.assert_close(got, wanted, atol=1e-5, rtol=1e-4)
