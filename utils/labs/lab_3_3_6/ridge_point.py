"""The roofline of a model's matrices, measured: where the time of a step stops being that of reading weights.

A step multiplies every weight matrix with the vectors of n tokens: n prompt tokens in prefill, one token of
each of n requests in decode. The matrices are read once, whatever n is.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.roofline.machine import Machine
from utils.roofline.rates import measure_machine, synchronizer
from utils.speculative.target import Target
from utils.speculative.tree import chain


@dataclass(frozen=True)
class Work:
    """Bytes and operations of a step over a model's matrices.

    Attributes:
        parameters: In the matrices of all layers; embedding and head are left out.
        bytes: Bytes of these.
    """

    parameters: int
    bytes: int

    @property
    def flops_per_token(self) -> int:
        """A multiplication and an addition per parameter."""
        return 2 * self.parameters


def layer_matrices(target: Target) -> list[Tensor]:
    """Return the weight matrices of all layers, [out, in], in the order of their use."""
    return [
        matrix
        for layer in target.decoder_layers
        for matrix in (layer.qkv.weight, layer.o.weight, layer.gate_up.weight, layer.down.weight)
    ]


def work_of(matrices: Iterable[Tensor]) -> Work:
    """Parameters and bytes of matrices."""
    matrices = list(matrices)
    return Work(
        sum(m.numel() for m in matrices), sum(m.numel() * m.element_size() for m in matrices)
    )


def measure_constants(work: Work, dtype: torch.dtype, seconds: float) -> Machine:
    """Return the two constants of the roofline on this machine: reading as many bytes, and multiplying."""
    name = str(dtype).removeprefix("torch.")
    threads = torch.get_num_threads()
    return measure_machine(working_set=work.bytes, threads=threads, seconds=seconds, dtype=name)


def best_times(
    calls: Mapping[int, Callable[[], object]], repeats: int, device: torch.device
) -> dict[int, float]:
    """Return the shortest time of each call, s, with the calls in turn, since others only lengthen them."""
    wait = synchronizer(device.type)
    best = dict.fromkeys(calls, float("inf"))
    with torch.inference_mode():
        for repeat in range(repeats + 1):
            for n, call in calls.items():
                wait()
                began = time.perf_counter()
                call()
                wait()
                if repeat:
                    best[n] = min(best[n], time.perf_counter() - began)
    return best


def time_matrices(
    matrices: Sequence[Tensor], tokens: Sequence[int], repeats: int
) -> dict[int, float]:
    """Seconds that n tokens take through the matrices alone, for each n."""
    like = matrices[0]

    def through(inputs: Mapping[int, Tensor]) -> None:
        for matrix in matrices:
            F.linear(inputs[matrix.shape[1]], matrix)

    def call(n: int) -> Callable[[], object]:
        widths = {matrix.shape[1] for matrix in matrices}
        inputs = {width: like.new_ones(n, width) for width in widths}
        return lambda: through(inputs)

    return best_times({n: call(n) for n in tokens}, repeats, like.device)


def time_prefill(target: Target, lengths: Sequence[int], repeats: int) -> dict[int, float]:
    """Seconds that a prompt of each length takes through the whole model, without its head."""

    def call(n: int) -> Callable[[], object]:
        ids = torch.arange(n, device=target.device)[None] % target.shape.vocab
        return lambda: target.causal(ids)

    return best_times({n: call(n) for n in lengths}, repeats, target.device)


def time_decode(
    target: Target, batches: Sequence[int], context: int, repeats: int
) -> dict[int, float]:
    """Seconds that one token of each of n requests takes through the whole model, without its head."""

    def call(n: int) -> Callable[[], object]:
        cache = target.cache(n, context + 1)
        cache.lengths = [context] * n
        ids = torch.zeros(n, 1, dtype=torch.int64, device=target.device)
        return lambda: target(ids, [chain(0)] * n, cache)

    return best_times({n: call(n) for n in batches}, repeats, target.device)


def measured_ridge_point(times: Mapping[int, float]) -> float:
    """Tokens from which on the time grows with them: where the flat line of few meets the slope of most.

    Args:
        times: Seconds by tokens; the fewest and the most of them count.
    """
    few, most = min(times), max(times)
    return times[few] / (times[most] / most)
