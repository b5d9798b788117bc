"""The compiled step: PyTorch's numbers, one order of summation for any number of rows, and fallbacks."""

import platform
import stat
from contextlib import contextmanager

import pytest
import torch

from utils.speculative.compiled_step import library, structures, use_compiled_step
from utils.speculative.compiled_step.library import CompiledStepError, load_library
from utils.speculative.dataset import held_out, tokenizer_of
from utils.speculative.drafters import EagleDrafter, MedusaDrafter, NGramDrafter, PlainDrafter
from utils.speculative.generate import generate
from utils.speculative.heads import Eagle1Draft, Eagle3Draft, EagleShape, MedusaHeads
from utils.speculative.pretrained import load_shipped
from utils.speculative.target import Rotary, Target, TargetShape, load_target
from utils.speculative.training import draft_layer
from utils.speculative.tree import DraftTree, chain
from utils.tinymodel import hub

LIMIT = 30
TREE = DraftTree([-1, 0, 0, 1, 1, 2, 3, 3, 5])
X86 = platform.machine() == "x86_64"


def compiler_here():
    try:
        load_library()
    except CompiledStepError as error:
        return str(error)
    return ""


pytestmark = pytest.mark.skipif(bool(compiler_here()), reason=compiler_here() or "it runs")


@pytest.fixture(scope="module")
def target():
    torch.set_num_threads(1)
    loaded = load_target(str(hub.TINY))
    assert use_compiled_step(loaded).startswith("The compiled step runs (")
    return loaded


@pytest.fixture(scope="module")
def shipped(target):
    return load_shipped(target)


@pytest.fixture(scope="module")
def prompts(target):
    tokenizer = tokenizer_of(target)
    return [held_out(tokenizer, kind, 1, 9)[0].ids for kind in ("code", "list", "data")]


@contextmanager
def pytorch(target):
    """Let the PyTorch loop run for a while."""
    compiled, target.compiled = target.compiled, None
    yield
    target.compiled = compiled


def random_target(**changed):
    """A Llama with two key heads and weights that are no bfloat16."""
    torch.manual_seed(3)
    sizes = {"layers": 3, "hidden": 64, "ffn": 128, "heads": 4, "kv_heads": 2, "head_dim": 32}
    shape = TargetShape(**(sizes | {"vocab": 192, "eps": 1e-5, "qk_norm": False} | changed))
    inverse = 1.0 / 10000.0 ** (torch.arange(0, shape.head_dim, 2) / shape.head_dim)
    return Target(shape, Rotary(inverse, 256)).requires_grad_(False).eval()


def one_by_one(target, ids, cache):
    """Logits of a text that goes on with one token at a time, and the cache's length afterwards."""
    found = []
    for token in ids[0]:
        seen = target(token.view(1, 1), [chain(0)], cache)
        found.append(target.logits(seen.hidden[0]))
        cache.lengths[0] += 1
    return torch.cat(found)


def prompt_tree_and_next(target, vocab):
    """Logits and features of a prompt, of a tree after it, and of a token after a path of the tree."""
    torch.manual_seed(0)
    ids, nodes = torch.randint(5, vocab, (1, 60)), torch.randint(5, vocab, (1, TREE.size))
    target.aux_layers = (0, 2, target.shape.layers)
    cache = target.cache(1, 128)
    found = [target(ids, [chain(59)], cache)]
    cache.lengths = [60]
    found.append(target(nodes, [TREE], cache))
    cache.keep(0, [0, 1, 4])
    found.append(target(nodes[:, :1], [chain(0)], cache))
    target.aux_layers = ()
    return [(target.logits(seen.hidden), seen.features) for seen in found]


@torch.inference_mode()
def check_against_pytorch(target, vocab):
    compiled = prompt_tree_and_next(target, vocab)
    with pytorch(target):
        readable = prompt_tree_and_next(target, vocab)
    for (logits, features), (expected, states) in zip(compiled, readable, strict=True):
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)
        assert torch.equal(logits.argmax(-1), expected.argmax(-1))
        torch.testing.assert_close(features, states, atol=1e-3, rtol=1e-4)


def test_compiled_step_computes_what_pytorch_computes(target):
    check_against_pytorch(target, target.shape.vocab)


def test_compiled_step_computes_other_layouts():
    for changed in ({}, {"qk_norm": True}, {"kv_heads": 1, "heads": 2, "head_dim": 64}):
        other = random_target(**changed)
        assert use_compiled_step(other).startswith("The compiled step runs")
        check_against_pytorch(other, 192)


@torch.inference_mode()
def test_chains_are_bit_identical_to_one_token_at_a_time(target):
    torch.manual_seed(1)
    ids = torch.randint(5, target.shape.vocab, (1, 140))
    cache = target.cache(1, 192)
    expected = one_by_one(target, ids, cache)
    for first in (0, 60, 63, 127):
        for n in range(2, 14):
            cache.lengths = [first]
            seen = target(ids[:, first : first + n], [chain(n - 1)], cache)
            assert torch.equal(target.logits(seen.hidden[0]), expected[first : first + n]), n


@torch.inference_mode()
def test_prompts_are_bit_identical_to_one_token_at_a_time(target):
    torch.manual_seed(2)
    ids = torch.randint(5, target.shape.vocab, (1, 90))
    expected = one_by_one(target, ids, target.cache(1, 128))
    seen = target(ids, [chain(89)], target.cache(1, 128))
    assert torch.equal(target.logits(seen.hidden[0]), expected)


@torch.inference_mode()
def test_paths_of_a_tree_are_bit_identical_to_chains(target):
    torch.manual_seed(4)
    ids, nodes = torch.randint(5, 2048, (1, 60)), torch.randint(5, 2048, (1, TREE.size))
    cache = target.cache(1, 128)
    target(ids, [chain(59)], cache)
    cache.lengths = [60]
    together = target.logits(target(nodes, [TREE], cache).hidden[0])
    for leaf in (4, 6, 7, 8):
        path = TREE.path(leaf)
        cache.lengths = [60]
        assert torch.equal(together[path], one_by_one(target, nodes[:, path], cache))


@torch.inference_mode()
def test_batches_are_bit_identical_to_single_rows(target):
    torch.manual_seed(5)
    lengths, trees = [40, 7, 63], [TREE, chain(0), chain(3)]
    ids, nodes = torch.randint(5, 2048, (3, 63)), torch.randint(5, 2048, (3, TREE.size))
    cache = target.cache(3, 128)
    target(ids, [chain(62)] * 3, cache)
    cache.lengths = list(lengths)
    together = target(nodes, trees, cache).hidden
    for row, (length, tree) in enumerate(zip(lengths, trees, strict=True)):
        alone = target.cache(1, 128)
        target(ids[row : row + 1, :length], [chain(length - 1)], alone)
        alone.lengths = [length]
        seen = target(nodes[row : row + 1, : tree.size], [tree], alone)
        assert torch.equal(together[row, : tree.size], seen.hidden[0])


def drafters(shipped):
    choices = [(0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0), (0, 0, 1)]
    return {
        "n-gram": NGramDrafter(4),
        "Medusa chain": MedusaDrafter(shipped.medusa),
        "Medusa tree": MedusaDrafter(shipped.medusa, choices),
        "EAGLE-1 chain": EagleDrafter(shipped.eagle1, 3),
        "EAGLE-1 tree": EagleDrafter(shipped.eagle1, 3, 2, 5),
        "EAGLE-3 chain": EagleDrafter(shipped.eagle3, 4),
        "EAGLE-3 chain, unsure": EagleDrafter(shipped.eagle3, 6, threshold=0.5),
        "EAGLE-3 tree": EagleDrafter(shipped.eagle3, 4, 3, 9),
    }


def test_answers_and_drafts_are_the_readable_loops_for_every_method(target, shipped, prompts):
    with pytorch(target):
        plain = generate(target, prompts, PlainDrafter(), max_new_tokens=LIMIT).generations
    for name, drafter in drafters(shipped).items():
        own = generate(target, prompts, drafter, max_new_tokens=LIMIT).generations
        assert [g.tokens for g in own] == [g.tokens for g in plain], name
        with pytorch(target):
            expected = generate(target, prompts, drafter, max_new_tokens=LIMIT).generations
        for a, b in zip(own, expected, strict=True):
            assert (a.tokens, a.accepted, a.drafted) == (b.tokens, b.accepted, b.drafted), name


def test_heads_that_were_trained_on_are_copied_again(target):
    heads = MedusaHeads(2, target.shape.hidden, target.shape.vocab)
    heads.start_from(target.head.weight)
    before = target.compiled.medusa(heads)
    assert target.compiled.medusa(heads) is before
    with torch.no_grad():
        heads.biases.add_(1.0)
    hidden = torch.randn(target.shape.hidden)
    after = target.compiled.medusa(heads).logits(hidden, 2)
    torch.testing.assert_close(after, heads(hidden[None])[:, 0].detach(), atol=1e-4, rtol=0)


def test_draft_of_another_layout_drafts_in_pytorch(target, prompts):
    torch.manual_seed(0)
    draft = Eagle3Draft(EagleShape(draft_layer(target), 500, (2, 12, 21)))
    plain = generate(target, prompts[:1], PlainDrafter(), max_new_tokens=8)
    with pytest.warns(UserWarning, match=r"its vocabulary \(500\) isn't a multiple"):
        found = generate(target, prompts[:1], EagleDrafter(draft, 3), max_new_tokens=8)
    assert found.generations[0].tokens == plain.generations[0].tokens


def test_target_of_another_layout_or_type_runs_in_pytorch():
    narrow = random_target(hidden=48)
    assert use_compiled_step(narrow).startswith("The PyTorch loop runs. ")
    assert narrow.compiled is None
    run = generate(narrow, [[1, 2, 3]], PlainDrafter(), max_new_tokens=4)
    assert len(run.generations[0].tokens) == 4
    halves = random_target().bfloat16()
    assert "in float32 on the CPU, and the target is torch.bfloat16" in use_compiled_step(halves)


def test_weights_are_stored_as_bfloat16_only_if_that_is_exact():
    exact = torch.randn(64, 32).bfloat16().float()
    assert structures.in_panels(exact, 64, 8).dtype == torch.bfloat16
    assert structures.in_panels(exact + 1e-4, 64, 8).dtype == torch.float32


def test_missing_compiler_is_told_and_pytorch_runs(monkeypatch):
    load_library.cache_clear()
    monkeypatch.setenv("CXX", "/no/such/compiler")
    message = use_compiled_step(other := random_target())
    load_library.cache_clear()
    assert message.startswith(
        "The PyTorch loop runs. There is no C++ compiler (/no/such/compiler)."
    )
    assert "apt install g++" in message and other.compiled is None


def fake_compiler(folder, build):
    """A compiler that tells a version and then does `build`."""
    path = folder / "cxx"
    path.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo "old 4.8" && exit 0\n{build}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        ('echo "step.cpp:1: #error COMPILER_TOO_OLD" >&2; exit 1', "old 4.8 is too old. Install g"),
        ('echo "step.cpp:9: error: no such thing" >&2; exit 1', "can't build the step: step.cpp:9"),
        ("exit 1", "can't build the step: no message"),
    ],
)
def test_compiler_that_cannot_build_leaves_nothing(build, message, monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, build))
    with pytest.raises(CompiledStepError, match=message):
        load_library(tmp_path / "built")
    assert list((tmp_path / "built").iterdir()) == []


def test_compiler_that_does_not_start_is_told(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", fake_compiler(tmp_path, ""))
    (tmp_path / "cxx").write_text("#!/no/such/shell\n")
    with pytest.raises(CompiledStepError, match=r"doesn't start\. Set CXX"):
        load_library(tmp_path / "none")


@pytest.mark.skipif(not X86, reason="x86-64 has CPUs without vector instructions of 256 bits")
def test_cpu_without_avx2_is_told(tmp_path):
    with pytest.raises(CompiledStepError, match="neither AVX2 nor AVX-512 nor NEON"):
        load_library(tmp_path, ("-march=x86-64",))


@pytest.mark.skipif(not X86, reason="AVX2 is an instruction set of x86-64")
def test_avx2_computes_what_this_cpu_computes(target, tmp_path):
    from utils.speculative.compiled_step.step import CompiledStep

    loaded = load_library(tmp_path, ("-march=haswell",))
    assert loaded.instructions == "AVX2"
    other = load_target(str(hub.TINY))
    other.compiled = CompiledStep(other, loaded)
    check_against_pytorch(other, 2048)


def test_library_is_built_once(target, monkeypatch):
    load_library.cache_clear()
    monkeypatch.setattr(library, "_build", None)
    assert load_library().compiler == target.compiled.library.compiler


def test_folder_that_cannot_be_written_is_told(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(CompiledStepError, match="can't be written or loaded"):
        load_library(tmp_path / "file")


def test_eagle1_draft_is_compiled_too(target, shipped):
    assert isinstance(shipped.eagle1, Eagle1Draft)
    assert target.compiled.eagle(shipped.eagle1) is not None
