"""Built steps against eager ones: the same numbers, and how long each takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median

import torch
from torch import Tensor

from utils.compiled.engine import Steps
from utils.compiled.prefill_decode import Cache
from utils.speculative.target import Target

# Largest difference of a logit; float32 sums in another order differ by about 1e-5.
TOLERANCE = 1e-3


@dataclass(frozen=True)
class Agreement:
    """Difference between two ways of running the same model.

    Attributes:
        logits: Largest difference of a logit, over prefill and all decode steps.
        scale: Largest logit, for comparison.
        cache: Largest difference of a key or value that was written.
        same_tokens: True if the greedy tokens are the same.
        tokens: Number of tokens that were compared.
    """

    logits: float
    scale: float
    cache: float
    same_tokens: bool
    tokens: int

    @property
    def within(self) -> bool:
        """True if both are the same within `TOLERANCE`."""
        return self.logits <= TOLERANCE and self.cache <= TOLERANCE


@torch.no_grad()
def agreement(
    target: Target, one: Steps, other: Steps, prompt: Sequence[int], slots: int, count: int = 16
) -> Agreement:
    """Answer a prompt greedily in two ways, both fed with the first one's tokens.

    Args:
        target: Gives the sizes.
        one: The way that chooses tokens.
        other: The way that is compared.
        prompt: Token ids, at least 2.
        slots: Slots of the KV cache; at least prompt and `count`.
        count: Tokens to generate.
    """
    ids = torch.tensor([list(prompt)])
    caches = [Cache.empty(target.shape, slots, target.dtype) for _ in range(2)]
    logits = [s.prefill(ids, c.keys, c.values) for s, c in zip((one, other), caches, strict=True)]
    worst, scale, same = _gap(*logits), float(logits[0].abs().max()), _same(*logits)
    for step in range(count - 1):
        token = logits[0].argmax(-1, keepdim=True)
        place = torch.tensor([len(prompt) + step])
        logits = [
            s.decode(token, place, c.keys, c.values)
            for s, c in zip((one, other), caches, strict=True)
        ]
        worst, same = max(worst, _gap(*logits)), same and _same(*logits)
    pairs = zip(caches[0].keys + caches[0].values, caches[1].keys + caches[1].values, strict=True)
    return Agreement(worst, scale, max(_gap(a, b) for a, b in pairs), same, count)


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


def _same(a: Tensor, b: Tensor) -> bool:
    return bool((a.argmax(-1) == b.argmax(-1)).all())


Times = dict[str, dict[str, list[float]]]


@torch.no_grad()
def time_steps(
    target: Target,
    ways: Mapping[str, Steps],
    prompts: Sequence[int],
    slots: int,
    repeats: int,
) -> Times:
    """Times prefill at several lengths and decode, every way in turn, the first of them changing.

    Args:
        target: Model that gives the sizes.
        ways: Ways to compare, by name.
        prompts: Prompt lengths, tokens.
        slots: Slots of the KV cache.
        repeats: Of every measurement.

    Returns:
        Seconds by work ("prefill 128", "decode") and way, one per repeat.
    """
    cache = Cache.empty(target.shape, slots, target.dtype)
    one, place = torch.zeros(1, 1, dtype=torch.int64), torch.tensor([slots // 2])

    def prefill(length: int, steps: Steps) -> Tensor:
        ids = torch.arange(length)[None] % target.shape.vocab
        return steps.prefill(ids, cache.keys, cache.values)

    def decode(steps: Steps) -> Tensor:
        return steps.decode(one, place, cache.keys, cache.values)

    works: dict[str, Callable[[Steps], object]] = {
        f"prefill {length}": partial(prefill, length) for length in prompts
    }
    works["decode"] = decode
    found: Times = {work: {name: [] for name in ways} for work in works}
    for work, call in works.items():
        times = 5 * repeats if work == "decode" else repeats
        alternate({name: partial(call, s) for name, s in ways.items()}, times, found[work])
    return found


def alternate(
    calls: Mapping[str, Callable[[], object]], repeats: int, into: dict[str, list[float]]
) -> None:
    """Times calls in turn, after one unmeasured call of each; who begins changes with every turn."""
    names = list(calls)
    for name in names:
        calls[name]()
    for repeat in range(repeats):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            began = time.perf_counter()
            calls[name]()
            into[name].append(time.perf_counter() - began)


def speedups(times: Mapping[str, Sequence[float]], base: str = "eager") -> dict[str, list[float]]:
    """Return each way's speed in multiples of `base`, repeat by repeat."""
    return {
        name: [b / actual for b, actual in zip(times[base], own, strict=True)]
        for name, own in times.items()
        if name != base
    }


def median_speedup(times: Mapping[str, Sequence[float]], name: str, base: str = "eager") -> float:
    """Median over the repeats of how many times as fast as `base` a way was."""
    return median(speedups(times, base)[name])
