"""Drafters: each proposes, per sequence, a tree of tokens that may come next."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor

from utils.speculative.heads import Eagle, Eagle3Draft, MedusaHeads
from utils.speculative.speculation_error import SpeculationError
from utils.speculative.target import KVCache, Target, attend, attention_mask, positions_of
from utils.speculative.tree import ChoiceTree, DraftTree, chain, rerank, subtree

if TYPE_CHECKING:
    from utils.speculative.compiled_step.step import CompiledEagle


@dataclass(frozen=True)
class Draft:
    """A tree and its tokens; tokens[0] is the root's."""

    tree: DraftTree
    tokens: list[int]


@dataclass(frozen=True)
class News:
    """Gain of a sequence since the last draft.

    Attributes:
        tokens: All of the sequence, its newest token (the root of the next draft) included.
        hidden: The target's last hidden states of the n tokens before the newest that are new, [n, hidden].
        features: Their auxiliary features, [n, k x hidden]; None if the drafter asked for none.
    """

    tokens: Sequence[int]
    hidden: Tensor
    features: Tensor | None


class Drafter(Protocol):
    """Interface between the loop and a drafter."""

    name: str
    aux_layers: tuple[int, ...]
    nodes: int  # most nodes of a draft, the root included

    def start(self, target: Target, rows: int, slots: int) -> None:
        """Forget everything, and prepare for `rows` sequences of up to `slots` tokens."""
        ...

    def draft(self, row: int, news: News) -> Draft:
        """Take in the news of a row, and guess on."""
        ...


class PlainDrafter:
    """No guess at all: plain decoding, as a tree of one node."""

    name = "plain"
    aux_layers: tuple[int, ...] = ()
    nodes = 1

    def start(self, target: Target, rows: int, slots: int) -> None:
        """See `Drafter`."""

    def draft(self, row: int, news: News) -> Draft:
        """See `Drafter`."""
        return Draft(chain(0), [news.tokens[-1]])


class Reference:
    """Proposes a text that may well be what the target writes, such as a task's known answer.

    Verifying it takes one forward pass where the target agrees: how `dataset` makes data quickly, and no less
    the target's own.

    Args:
        answers: One per row, token ids.
        aux_layers: Features to ask for.
    """

    name = "reference"

    def __init__(self, answers: Sequence[Sequence[int]], aux_layers: tuple[int, ...] = ()) -> None:
        self.answers, self.aux_layers = answers, aux_layers
        self.nodes = 1 + max(map(len, answers))

    def start(self, target: Target, rows: int, slots: int) -> None:
        """See `Drafter`."""
        self._prompts: dict[int, int] = {}

    def draft(self, row: int, news: News) -> Draft:
        """See `Drafter`."""
        tokens, answer = news.tokens, list(self.answers[row])
        done = len(tokens) - self._prompts.setdefault(row, len(tokens) - 1)
        same = list(tokens[-done:]) == answer[:done]
        rest = answer[done:] if same else []
        return Draft(chain(len(rest)), [tokens[-1], *rest])


class NGramDrafter:
    """N-gram lookup: drafts the tokens that followed the last few tokens when these occurred before.

    The control for every other drafter: it needs no training and costs nothing.

    Args:
        guesses: Tokens to propose.
        longest: Longest n-gram looked for, then shorter ones.
        shortest: Shortest one.
    """

    name = "n-gram"
    aux_layers: tuple[int, ...] = ()

    def __init__(self, guesses: int = 4, longest: int = 4, shortest: int = 2) -> None:
        if guesses < 1 or not 1 <= shortest <= longest:
            raise SpeculationError("n-gram lookup needs guesses >= 1 and 1 <= shortest <= longest.")
        self.guesses, self.sizes = guesses, range(longest, shortest - 1, -1)
        self.nodes = guesses + 1

    def start(self, target: Target, rows: int, slots: int) -> None:
        """See `Drafter`."""
        # per row and size: where the text behind an n-gram's last occurrence begins
        self._behind: list[list[dict[tuple[int, ...], int]]] = [
            [{} for _ in self.sizes] for _ in range(rows)
        ]
        self._entered = [0] * rows

    def draft(self, row: int, news: News) -> Draft:
        """See `Drafter`."""
        tokens = news.tokens
        for end in range(self._entered[row], len(tokens)):
            for table, size in zip(self._behind[row], self.sizes, strict=True):
                if end >= size:
                    table[tuple(tokens[end - size : end])] = end
        self._entered[row] = len(tokens)
        for table, size in zip(self._behind[row], self.sizes, strict=True):
            start = table.get(tuple(tokens[-size:]))
            if start is not None:
                found = list(tokens[start : start + self.guesses])
                return Draft(chain(len(found)), [tokens[-1], *found])
        return Draft(chain(0), [tokens[-1]])


class MedusaDrafter:
    """Medusa's heads over a static tree.

    Args:
        heads: Heads that were trained for this target.
        choices: Paths of ranks, see `ChoiceTree`; None for each head's best guess, one after the other. The
            root is the target's own next token, known already: (r,) is head 0's guess after it.

    Raises:
        SpeculationError: The tree has no node, is deeper than there are heads, or asks for a rank that no
            head has.
    """

    name = "Medusa"
    aux_layers: tuple[int, ...] = ()

    def __init__(
        self, heads: MedusaHeads, choices: Sequence[tuple[int, ...]] | None = None
    ) -> None:
        self.heads = heads
        chain_ = [(0,) * (i + 1) for i in range(heads.count)]
        self.tree = ChoiceTree(chain_ if choices is None else choices)
        if self.tree.depth < 1:
            raise SpeculationError(
                "A tree without choices guesses nothing: leave them out for a chain, or use PlainDrafter()."
            )
        if self.tree.depth > heads.count:
            raise SpeculationError(
                f"The tree is {self.tree.depth} deep and there are {heads.count} Medusa heads: "
                "each level needs a head."
            )
        self.nodes = self.tree.size
        self._top = int(self.tree.ranks.max()) + 1
        vocab = heads.lm_heads.shape[2]
        if self._top > vocab:
            raise SpeculationError(
                f"A choice has rank {self._top - 1}; the heads know {vocab} tokens, ranks 0 to {vocab - 1}."
            )

    def start(self, target: Target, rows: int, slots: int) -> None:
        """See `Drafter`."""
        hidden, vocab = self.heads.lm_heads.shape[1:]
        if (hidden, vocab) != (target.shape.hidden, target.shape.vocab):
            raise SpeculationError(
                f"These Medusa heads are for hidden size {hidden} and {vocab} tokens; the target has "
                f"{target.shape.hidden} and {target.shape.vocab}."
            )
        _refuse_types(self.name, self.heads.lm_heads, target)
        self._picked = (self.tree.heads * self._top + self.tree.ranks).to(target.device)
        self._compiled = target.compiled and target.compiled.medusa(self.heads)

    def draft(self, row: int, news: News) -> Draft:
        """See `Drafter`."""
        if self._compiled:
            logits = self._compiled.logits(news.hidden[-1], self.tree.depth)
        else:
            logits = self.heads(news.hidden[-1:])[: self.tree.depth, 0]
        best = logits.topk(self._top, -1).indices.flatten()
        return Draft(self.tree, [news.tokens[-1], *best[self._picked].tolist()])


class EagleDrafter:
    """EAGLE's autoregressive draft: a chain, or EAGLE-2's dynamic tree.

    Args:
        eagle: Trained for this target.
        depth: Tokens along a path.
        width: Children tried of a node, and nodes expanded of a level; 1 drafts a chain.
        nodes: Nodes kept of a tree, the root not counted; a chain keeps `depth`.
        threshold: A chain ends early where the draft gives its own guess, and all before it, less than this
            probability together.

    Raises:
        SpeculationError: Sizes below 1, fewer nodes than levels, or more children than the draft has tokens.
    """

    def __init__(
        self,
        eagle: Eagle,
        depth: int = 4,
        width: int = 1,
        nodes: int | None = None,
        threshold: float = 0.0,
    ) -> None:
        if depth < 1 or width < 1:
            raise SpeculationError("EAGLE drafts need depth and width of at least 1.")
        if width > eagle.shape.draft_vocab:
            raise SpeculationError(
                f"Width {width} is more than the {eagle.shape.draft_vocab} tokens that the draft knows."
            )
        if nodes is not None and width > 1 and nodes < 1:
            raise SpeculationError(f"A tree of {nodes} nodes guesses nothing: keep at least 1.")
        self.eagle, self.depth, self.width, self.threshold = eagle, depth, width, threshold
        self.kept = depth if width == 1 else (depth * width if nodes is None else nodes)
        self.nodes = 1 + self.kept
        self.name = "EAGLE-3" if isinstance(eagle, Eagle3Draft) else "EAGLE-1"
        self.aux_layers = eagle.shape.aux_layers

    def start(self, target: Target, rows: int, slots: int) -> None:
        """See `Drafter`."""
        layer, shape = self.eagle.shape.layer, target.shape
        if (layer.hidden, layer.vocab) != (shape.hidden, shape.vocab):
            raise SpeculationError(
                f"This {self.name} draft is for hidden size {layer.hidden} and {layer.vocab} tokens; the "
                f"target has {shape.hidden} and {shape.vocab}."
            )
        _refuse_types(self.name, self.eagle.fc.weight, target)
        needed = (
            slots - self.nodes + self.depth
        )  # a tree may be expanded deeper than what is kept of it
        if needed > len(target.rotary.cos):
            raise SpeculationError(
                f"Prompt, answer and a draft {self.depth} deep need {needed} positions; the model has "
                f"{len(target.rotary.cos)}. Ask for fewer tokens, or draft less deep."
            )
        self.target = target
        room = slots + self.depth * self.width
        self.caches = [KVCache(layer, 1, room, target.device, target.dtype) for _ in range(rows)]
        self._to_target = self.eagle.d2t.tolist()
        self._compiled = target.compiled and target.compiled.eagle(self.eagle)

    def draft(self, row: int, news: News) -> Draft:
        """See `Drafter`."""
        cache, eagle = self.caches[row], self.eagle
        feature = news.hidden if news.features is None else news.features
        if self._compiled:
            return self._draft_compiled(self._compiled, news.tokens, feature, cache)
        count = len(feature)
        known = torch.tensor([news.tokens[-count:]], device=self.target.device)
        output = self._run(known, eagle.fuse(feature)[None], chain(count - 1), cache)
        cache.lengths[0] += count
        root = news.tokens[-1]
        if self.width == 1:
            return self._chain(root, output[:, -1:], cache)
        return self._tree(root, output[:, -1:], cache)

    def _draft_compiled(
        self, compiled: CompiledEagle, tokens: Sequence[int], feature: Tensor, cache: KVCache
    ) -> Draft:
        """Return a draft by the compiled step, whose C++ has the same three steps: take in, expand, keep."""
        if self.width == 1:
            guesses = compiled.chain(tokens, feature, cache, self.depth, self.threshold)
            return Draft(chain(len(guesses)), [tokens[-1], *guesses])
        sizes = (self.depth, self.width, self.kept)
        parents, nodes = compiled.tree(tokens, feature, cache, *sizes)
        return Draft(DraftTree(parents), nodes)

    def _run(self, ids: Tensor, feature: Tensor, tree: DraftTree, cache: KVCache) -> Tensor:
        """Run the draft layer on n nodes: ids [1, n] and feature [1, n, hidden] give [1, n, hidden]."""
        start, n = cache.lengths[0], ids.shape[1]
        position = positions_of([tree], cache.lengths, n).to(ids.device)
        group = self.eagle.shape.layer.group
        mask = attention_mask([tree], cache.lengths, cache.span(start + n), group, feature)
        return self._layer(ids, feature, position, start, mask, cache)

    def _layer(
        self,
        ids: Tensor,
        feature: Tensor,
        position: Tensor,
        first: int,
        mask: Tensor,
        cache: KVCache,
    ) -> Tensor:
        """The draft layer under a mask of `attend`; keys and values go to the slots from `first` on."""
        embedded = self.target.embed(ids)
        table = self.target.rotary.at(position, embedded.dtype)
        layer = self.eagle.layer
        q, k, v = layer.project(self.eagle.inputs(embedded, feature), table)
        keys, values = cache.data[0]
        keys[:, :, first : first + ids.shape[1]] = k
        values[:, :, first : first + ids.shape[1]] = v
        used = mask.shape[-1]
        attended = attend(q, keys[:, :, :used], values[:, :, :used], mask)
        return layer.finish(self.eagle.residual(embedded, feature), attended)

    def _chain(self, root: int, output: Tensor, cache: KVCache) -> Draft:
        tokens, start, sure = [root], cache.lengths[0], 1.0
        for step in range(self.depth):
            logits = self.eagle.logits(output[0, -1])
            best = int(logits.argmax())
            if self.threshold:
                sure *= float(torch.softmax(logits, -1)[best])
                if sure < self.threshold and step:
                    break
            tokens.append(self._to_target[best])
            if step + 1 < self.depth:
                ids = torch.tensor([[tokens[-1]]], device=self.target.device)
                output = self._run(ids, output, chain(0), cache)
                cache.lengths[0] += 1
        cache.lengths[0] = start  # guesses leave the cache; what is accepted comes back as news
        return Draft(chain(len(tokens) - 1), tokens)

    def _tree(self, root: int, output: Tensor, cache: KVCache) -> Draft:
        """Expand the `width` most probable nodes of each level, then keep the `kept` best of all."""
        parents, scores, tokens = [-1], [0.0], [root]
        frontier = [0]  # nodes whose outputs `output` holds
        in_cache: list[int] = []  # expanded nodes, in the order of their keys in the cache
        for level in range(self.depth):
            logp = torch.log_softmax(self.eagle.logits(output[0]).float(), -1)
            top = logp.topk(self.width, -1)
            fresh, sources = [], []
            for i, node in enumerate(frontier):
                for value, index in zip(
                    top.values[i].tolist(), top.indices[i].tolist(), strict=True
                ):
                    fresh.append(len(parents))
                    sources.append(i)
                    parents.append(node)
                    scores.append(scores[node] + value)
                    tokens.append(self._to_target[index])
            if level + 1 == self.depth:
                break
            order = sorted(range(len(fresh)), key=lambda j: -scores[fresh[j]])[: self.width]
            order.sort()
            frontier = [fresh[j] for j in order]
            feature = output[:, [sources[j] for j in order]]
            output = self._expand(frontier, feature, parents, tokens, in_cache, cache)
        kept = rerank(parents, scores, self.kept)
        return Draft(subtree(parents, kept), [tokens[node] for node in kept])

    def _expand(
        self,
        frontier: list[int],
        feature: Tensor,
        parents: list[int],
        tokens: list[int],
        in_cache: list[int],
        cache: KVCache,
    ) -> Tensor:
        """Return the outputs of the nodes of a level; their keys follow those of the levels before."""
        target, start = self.target, cache.lengths[0]
        ids = torch.tensor([[tokens[node] for node in frontier]], device=target.device)
        in_cache += frontier
        ancestors = [_ancestors(node, parents) for node in frontier]
        n, behind = len(frontier), start + len(in_cache)
        position = torch.full((1, n), start + len(ancestors[0]) - 1, device=target.device)
        mask = feature.new_full((n, cache.span(behind)), float("-inf"))
        mask[:, :start] = 0
        seen = [[node in above for node in in_cache] for above in ancestors]
        mask[:, start:behind].masked_fill_(torch.tensor(seen, device=target.device), 0)
        folded = mask.repeat_interleave(self.eagle.shape.layer.group, 0)[None, None]
        return self._layer(ids, feature, position, behind - n, folded, cache)


def _refuse_types(name: str, weight: Tensor, target: Target) -> None:
    """Heads and target multiply each other's numbers: one data type, one device."""
    own, wanted = (weight.dtype, weight.device), (target.dtype, target.device)
    if own != wanted:
        raise SpeculationError(
            f"The {name} heads are {own[0]} on {own[1]}, the target is {wanted[0]} on {wanted[1]}: load "
            "them for this target (load_heads), or move them with .to(device, dtype)."
        )


def _ancestors(node: int, parents: Sequence[int]) -> set[int]:
    """Return a node and all above it but the root."""
    found = set()
    while node > 0:
        found.add(node)
        node = parents[node]
    return found
