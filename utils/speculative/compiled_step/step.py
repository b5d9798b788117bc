"""The compiled step of a target and of its draft heads: the same results as the modules' own PyTorch code."""

from __future__ import annotations

import ctypes
import warnings
from collections.abc import Callable, Sequence
from ctypes import byref, c_float, c_int
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from utils.speculative.compiled_step.library import CompiledStepError, StepLibrary, load_library
from utils.speculative.compiled_step.structures import Eagle as EagleStruct
from utils.speculative.compiled_step.structures import Layer, Matrix, Shape, in_panels
from utils.speculative.heads import Eagle, Eagle3Draft, MedusaHeads
from utils.speculative.target import DecoderLayer, KVCache, Seen, Target, TargetShape
from utils.speculative.tree import DraftTree

Draft = TypeVar("Draft")
MULTIPLE = 16  # hidden sizes are whole vectors of every instruction set


def use_compiled_step(target: Target) -> str:
    """Let a target, and the drafters that are used with it, run through the compiled step if they can.

    Args:
        target: Target in float32 on the CPU. Its weights are copied, so change them only before this call.

    Returns:
        A sentence for the user: which step runs, and why it is PyTorch's if the compiled one can't.
    """
    target.compiled = None
    try:
        target.compiled = CompiledStep(target, load_library())
    except CompiledStepError as error:
        return f"The PyTorch loop runs. {error}"
    library = target.compiled.library
    return f"The compiled step runs ({library.compiler}, {library.instructions})."


def _require_layout(name: str, shape: TargetShape, library: StepLibrary) -> None:
    sizes = {
        "the hidden size": (shape.hidden, library.panel),
        "the feed-forward size": (shape.ffn, library.panel),
        "the vocabulary": (shape.vocab, library.panel),
        "the head size": (shape.head_dim, 2 * MULTIPLE),
        "heads times their size": (
            (shape.heads + 2 * shape.kv_heads) * shape.head_dim,
            library.panel,
        ),
    }
    for what, (size, multiple) in sizes.items():
        if size % multiple:
            raise CompiledStepError(
                f"The compiled step can't compute {name}, because {what} ({size}) isn't a multiple "
                f"of {multiple}."
            )


class _Weights:
    """Weights in the layout of the library. It keeps the tensors alive that the structures point to."""

    def __init__(self, library: StepLibrary) -> None:
        self.library = library
        self._kept: list[Tensor] = []

    def keep(self, tensor: Tensor) -> int:
        """Return the address of the numbers, which stay where they are."""
        self._kept.append(tensor.detach().contiguous())
        return self._kept[-1].data_ptr()

    def matrix(self, weight: Tensor) -> Matrix:
        """Return a matrix [outputs, inputs] in panels."""
        panels = in_panels(weight, self.library.panel, self.library.lanes)
        outputs, inputs = weight.shape
        return Matrix(self.keep(panels), inputs, outputs, int(panels.dtype == torch.bfloat16))

    def layer(self, layer: DecoderLayer) -> Layer:
        """Return a decoder layer."""
        input_norm = getattr(layer, "input_norm", None)
        return Layer(
            *(self.matrix(m.weight) for m in (layer.qkv, layer.o, layer.gate_up, layer.down)),
            None if input_norm is None else self.keep(input_norm),
            self.keep(layer.post_norm),
            self.keep(layer.qk_weight) if layer.shape.qk_norm else None,
        )

    def shape(self, shape: TargetShape, target: Target) -> Shape:
        """Return sizes and the target's rotary tables."""
        return Shape(
            *(shape.hidden, shape.ffn, shape.heads, shape.kv_heads, shape.head_dim, shape.eps),
            self.keep(target.rotary.cos),
            self.keep(target.rotary.sin),
        )


class CompiledStep:
    """A target's forward pass, and the drafts of its heads.

    Args:
        target: Target in float32 on the CPU.
        library: Loaded library.

    Raises:
        CompiledStepError: The library has no code for this target.
    """

    def __init__(self, target: Target, library: StepLibrary) -> None:
        if target.dtype != torch.float32 or target.device.type != "cpu":
            raise CompiledStepError(
                "The compiled step computes in float32 on the CPU, and the target is "
                f"{target.dtype} on {target.device}."
            )
        _require_layout("this target", target.shape, library)
        self.target, self.library = target, library
        self._weights = weights = _Weights(library)
        self._shape = weights.shape(target.shape, target)
        self._layers = (Layer * target.shape.layers)(*map(weights.layer, target.decoder_layers))
        self._embedding = weights.keep(target.embed.weight)
        self._norm = weights.keep(target.norm)
        self._head = weights.matrix(target.head.weight)
        self._drafts: dict[int, tuple[nn.Module, list[int], Any]] = {}

    def forward(self, ids: Tensor, trees: Sequence[DraftTree], cache: KVCache) -> Seen:
        """Compute the nodes of one tree per row; see `Target.forward`."""
        rows, n = ids.shape
        hidden = torch.empty(rows, n, self.target.shape.hidden)
        states = sorted(self.target.aux_layers)
        features = torch.empty(rows, n, len(states) * self.target.shape.hidden)
        if rows == 1 and trees[0].size == n:
            mask, positions = trees[0].mask, trees[0].depths + cache.lengths[0]
        else:
            mask = torch.eye(n, dtype=torch.bool).repeat(rows, 1, 1)
            positions = torch.tensor(cache.lengths)[:, None].repeat(1, n)
            for row, tree in enumerate(trees):
                mask[row, : tree.size, : tree.size] = tree.mask
                positions[row, : tree.size] += tree.depths
        self.library.code.target_step(
            byref(self._shape),
            self._layers,
            len(self._layers),
            ctypes.c_void_p(self._embedding),
            ctypes.c_void_p(self._norm),
            *map(_pointer, (ids, positions, mask)),
            rows,
            n,
            _pointer(cache.data),
            cache.slots,
            (c_int * rows)(*cache.lengths),
            (c_int * len(states))(*states),
            len(states),
            *map(_pointer, (hidden, features)),
        )
        return Seen(hidden, features if states else None)

    def logits(self, hidden: Tensor) -> Tensor:
        """Return the target's logits of hidden states [..., hidden]."""
        flat = hidden.reshape(-1, hidden.shape[-1]).contiguous()
        out = torch.empty(len(flat), self._head.outputs)
        self.library.code.matrix_product(
            byref(self._head), _pointer(flat), len(flat), _pointer(out)
        )
        return out.view(*hidden.shape[:-1], -1)

    def medusa(self, heads: MedusaHeads) -> CompiledMedusa | None:
        """Return these heads compiled, or None, with a warning, if the library has no code for them."""
        return self._draft(heads, lambda: CompiledMedusa(heads, self.library))

    def eagle(self, eagle: Eagle) -> CompiledEagle | None:
        """Return this draft compiled, or None, with a warning, if the library has no code for it."""
        return self._draft(eagle, lambda: CompiledEagle(eagle, self.target, self.library))

    def _draft(self, heads: nn.Module, build: Callable[[], Draft]) -> Draft | None:
        """Return what `build` makes of the heads, which is kept until their weights change."""
        versions = [p._version for p in heads.parameters()]
        known = self._drafts.get(id(heads))
        if known is None or known[0] is not heads or known[1] != versions:
            try:
                draft: Draft | None = build()
            except CompiledStepError as error:
                warnings.warn(f"{error} It drafts in PyTorch.", stacklevel=4)
                draft = None
            known = self._drafts[id(heads)] = (heads, versions, draft)
        return known[2]


class CompiledMedusa:
    """Medusa's heads.

    Args:
        heads: Heads in float32.
        library: Loaded library.
    """

    def __init__(self, heads: MedusaHeads, library: StepLibrary) -> None:
        hidden, vocab = heads.lm_heads.shape[1:]
        if hidden % library.panel or vocab % library.panel:
            raise CompiledStepError(
                "The compiled step can't compute these Medusa heads, because their sizes "
                f"({hidden}, {vocab}) aren't multiples of {library.panel}."
            )
        self.library, self._vocab = library, vocab
        self._weights = weights = _Weights(library)
        blocks = [weights.matrix(block.t()) for layer in heads.blocks for block in layer]
        self._blocks = (Matrix * len(blocks))(*blocks)
        self._biases = weights.keep(heads.biases)
        self._lm_heads = (Matrix * heads.count)(
            *(weights.matrix(head.t()) for head in heads.lm_heads)
        )
        self._layers, self._count = heads.layers, heads.count

    def logits(self, hidden: Tensor, heads: int) -> Tensor:
        """Return the logits [heads, vocab] of the first few heads for one hidden state [hidden]."""
        hidden, out = hidden.contiguous(), torch.empty(heads, self._vocab)
        self.library.code.medusa_logits(
            self._blocks,
            ctypes.c_void_p(self._biases),
            self._lm_heads,
            *(self._layers, self._count, heads),
            _pointer(hidden),
            _pointer(out),
        )
        return out


class CompiledEagle:
    """An EAGLE draft: chains, and EAGLE-2's dynamic trees.

    Args:
        eagle: Draft in float32.
        target: Its target, whose embeddings it reads.
        library: Loaded library.
    """

    def __init__(self, eagle: Eagle, target: Target, library: StepLibrary) -> None:
        shape = eagle.shape
        _require_layout("this draft", shape.layer, library)
        if shape.draft_vocab % library.panel:
            raise CompiledStepError(
                "The compiled step can't compute this draft, because its vocabulary "
                f"({shape.draft_vocab}) isn't a multiple of {library.panel}."
            )
        self.library = library
        self._weights = weights = _Weights(library)
        third = isinstance(eagle, Eagle3Draft)
        self._eagle = EagleStruct(
            weights.shape(shape.layer, target),
            weights.layer(eagle.layer),
            weights.matrix(eagle.fc.weight),
            weights.matrix(eagle.lm_head.weight if isinstance(eagle, Eagle3Draft) else eagle.head),
            None if third else weights.keep(eagle.fc.bias),
            weights.keep(eagle.feature_norm) if isinstance(eagle, Eagle3Draft) else None,
            weights.keep(eagle.norm) if isinstance(eagle, Eagle3Draft) else None,
            weights.keep(target.embed.weight),
            weights.keep(eagle.d2t),
        )

    def chain(
        self, tokens: Sequence[int], features: Tensor, cache: KVCache, depth: int, threshold: float
    ) -> list[int]:
        """Take in new tokens with the target's features before them, and return a chain of guesses."""
        n, guesses, features = len(features), (ctypes.c_int64 * depth)(), features.contiguous()
        found = self.library.code.eagle_chain(
            *self._given(tokens, features, cache), depth, c_float(threshold), guesses
        )
        cache.lengths[0] += n
        return guesses[:found]

    def tree(
        self,
        tokens: Sequence[int],
        features: Tensor,
        cache: KVCache,
        depth: int,
        width: int,
        kept: int,
    ) -> tuple[list[int], list[int]]:
        """Take in new tokens as `chain` does, and return parents and tokens of a dynamic tree."""
        n, features = len(features), features.contiguous()
        parents, nodes = (c_int * (1 + kept))(), (ctypes.c_int64 * (1 + kept))()
        found = self.library.code.eagle_tree(
            *self._given(tokens, features, cache), depth, width, kept, parents, nodes
        )
        cache.lengths[0] += n
        return parents[:found], nodes[:found]

    def _given(self, tokens: Sequence[int], features: Tensor, cache: KVCache) -> tuple[object, ...]:
        n = len(features)
        return (
            byref(self._eagle),
            (ctypes.c_int64 * n)(*tokens[-n:]),
            _pointer(features),
            n,
            _pointer(cache.data),
            cache.slots,
            cache.lengths[0],
        )


def _pointer(tensor: Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())
