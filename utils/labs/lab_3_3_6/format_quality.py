"""Quality of number formats: the tiny model's matrices are rounded, and the model predicts held-out texts."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from torch import Tensor

from utils.quantisation.number_formats import NumberFormat
from utils.speculative import dataset
from utils.speculative.target import Target

SEED = 9
EXACT = "float32"


@dataclass(frozen=True)
class JudgedText:
    """Text that the model predicts.

    Attributes:
        ids: Token ids.
        first: Index of the first token that is judged.
    """

    ids: list[int]
    first: int


@dataclass(frozen=True)
class FormatQuality:
    """Result of one format.

    Attributes:
        bits: Bits per weight.
        scale: Number of weights that share a scale, and the scale's type.
        error: Relative error of the weights, the root of the mean square, 0 to 1.
        perplexity: Perplexity on each kind of text.
    """

    bits: float
    scale: str
    error: float
    perplexity: Mapping[str, float]


def judged_texts(target: Target, answers: int, prose: int) -> dict[str, list[JudgedText]]:
    """Return held-out texts by kind: answers after their questions, and prose from its second token on."""
    tokenizer = dataset.tokenizer_of(target)
    asked = [
        prompt
        for kind in dataset.TRAINED
        for prompt in dataset.held_out(tokenizer, kind, answers, SEED)
        if prompt.answer
    ]
    pieces = dataset.held_out(tokenizer, dataset.UNLIKE, prose, SEED)
    return {
        "answers": [JudgedText(p.ids + p.answer, len(p.ids)) for p in asked],
        "prose": [JudgedText(p.ids, 1) for p in pieces],
    }


@torch.inference_mode()
def text_perplexity(target: Target, texts: Sequence[JudgedText]) -> float:
    """Return the perplexity over the judged tokens of all texts."""
    loss, count = 0.0, 0
    for text in texts:
        hidden = target.causal(torch.tensor([text.ids]))[0, text.first - 1 : -1]
        wanted = torch.tensor(text.ids[text.first :])
        loss += float(
            torch.nn.functional.cross_entropy(target.head(hidden), wanted, reduction="sum")
        )
        count += len(wanted)
    return math.exp(loss / count)


def _layer_weights(target: Target) -> list[Tensor]:
    return [
        matrix.weight
        for layer in target.decoder_layers
        for matrix in (layer.qkv, layer.o, layer.gate_up, layer.down)
    ]


def measure_formats(
    target: Target,
    formats: Mapping[str, NumberFormat],
    texts: Mapping[str, Sequence[JudgedText]],
) -> dict[str, FormatQuality]:
    """Round the matrices of all layers to each format in turn, and judge the texts.

    The embedding, which is also the head, and the norms keep their precision. The target is as before when
    the function returns.

    Args:
        target: Model in float32 on a CPU.
        formats: Formats by name.
        texts: Texts by kind.
    """
    weights = _layer_weights(target)
    exact = [weight.data for weight in weights]

    def judge() -> dict[str, float]:
        return {kind: text_perplexity(target, several) for kind, several in texts.items()}

    found = {EXACT: FormatQuality(32, "none", 0.0, judge())}
    try:
        for name, one in formats.items():
            rounded = [one.rounded(weight) for weight in exact]
            for weight, value in zip(weights, rounded, strict=True):
                weight.data = value
            error = _relative_error(exact, rounded)
            found[name] = FormatQuality(one.bits, one.scale, error, judge())
    finally:
        for weight, value in zip(weights, exact, strict=True):
            weight.data = value
    return found


def _relative_error(exact: Sequence[Tensor], rounded: Sequence[Tensor]) -> float:
    wrong = sum(float((a - b).square().sum()) for a, b in zip(exact, rounded, strict=True))
    return math.sqrt(wrong / sum(float(a.square().sum()) for a in exact))


def formats_table(found: Mapping[str, FormatQuality], parameters: int) -> pd.DataFrame:
    """Return a row per format: bytes, error and perplexity, without any speed.

    Args:
        found: Results by format.
        parameters: Number of weights in the matrices.
    """
    exact = found[EXACT].perplexity
    rows = {}
    for name, one in found.items():
        rows[name] = {
            "bits per weight": one.bits,
            "a scale for": one.scale,
            "matrices (MB)": round(one.bits / 8 * parameters / 1e6, 2),
            "error of the weights": f"{one.error:.1%}",
            **{f"perplexity, {kind}": round(value, 4) for kind, value in one.perplexity.items()},
            **{
                f"{kind}, change": f"{value / exact[kind] - 1:+.2%}"
                for kind, value in one.perplexity.items()
            },
        }
    return pd.DataFrame.from_dict(rows, orient="index")
