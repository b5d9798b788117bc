"""Knowledge within a draft's reach: the token after next, guessed from several inputs by a linear map."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from utils.speculative.dataset import Recorded
from utils.speculative.target import Target

RIDGE = 1e-2  # weight of the penalty, as a share of the mean variance of the inputs


def probe(target: Target, learn: Sequence[Recorded], test: Sequence[Recorded]) -> dict[str, float]:
    """Return the share of right guesses of token i + 2 by linear maps, by their input at position i.

    A map from inputs to one number per token is fitted by ridge regression to the tokens that came, and its
    highest number is its guess: no training loop, no settings to tune, the same for all inputs. Only tokens
    of answers count.

    Args:
        target: Model whose embeddings are read.
        learn: Answers to which the map is fitted.
        test: Other answers, on which guesses are counted.

    Returns:
        Share of right guesses, 0 to 1, by input.
    """
    seen, wanted = _examples(target, learn)
    fresh, expected = _examples(target, test)
    vocab = target.shape.vocab
    return {name: _share(seen[name], wanted, fresh[name], expected, vocab) for name in seen}


def _examples(target: Target, data: Sequence[Recorded]) -> tuple[Mapping[str, Tensor], Tensor]:
    """Inputs by name, [n, size] each, and the tokens to guess, [n]."""
    embed = target.embed.weight.float().cpu()
    tokens, hidden, features, wanted = [], [], [], []
    for s in data:
        rows = range(max(0, s.prompt - 2), len(s.ids) - 2)
        if not rows:
            continue
        span = slice(rows.start, rows.stop)
        tokens.append(embed[s.ids[rows.start + 1 : rows.stop + 1]])
        hidden.append(s.hidden[span].float())
        features.append(s.features[span].float())
        wanted.append(s.ids[rows.start + 2 : rows.stop + 2])
    token, last, several = torch.cat(tokens), torch.cat(hidden), torch.cat(features)
    return {
        "token i+1 alone": token,
        "token i+1, last hidden state": torch.cat((token, last), 1),
        "token i+1, low, middle and high hidden state": torch.cat((token, several), 1),
    }, torch.cat(wanted)


def _share(seen: Tensor, wanted: Tensor, fresh: Tensor, expected: Tensor, vocab: int) -> float:
    mean, spread = seen.mean(0), seen.std(0) + 1e-6

    def scaled(x: Tensor) -> Tensor:
        return torch.cat(((x - mean) / spread, x.new_ones(len(x), 1)), 1)

    x = scaled(seen)
    products = x.new_zeros(x.shape[1], vocab).index_add_(1, wanted, x.t().contiguous())
    gram = x.t() @ x + RIDGE * len(x) * torch.eye(x.shape[1])
    weights = torch.linalg.solve(gram, products)
    guessed = (scaled(fresh) @ weights).argmax(1)
    return float((guessed == expected).float().mean())
