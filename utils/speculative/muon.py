"""Muon as PyTorch has it, with its matrix products in the data type of the parameters on a CPU."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of the quintic iteration, as in torch.optim.Muon
STEPS = 5


def orthogonalized(update: Tensor, eps: float = 1e-7) -> Tensor:
    """Five Newton-Schulz iterations towards the nearest orthogonal matrix (Jordan 2024, "Muon").

    Args:
        update: [rows, columns].
        eps: Least norm that is divided by.

    Returns:
        Same size and data type; singular values are about 0.7 to 1.2.
    """
    a, b, c = COEFFICIENTS
    x = update.t() if update.shape[0] > update.shape[1] else update
    x = x / x.norm().clamp(min=eps)
    for _ in range(STEPS):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.t() if update.shape[0] > update.shape[1] else x


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, which multiplies in bfloat16 always: slow on a CPU that has to emulate that.

    State and settings are PyTorch's, so checkpoints of either go on with the other. Only
    `adjust_lr_fn="match_rms_adamw"` is supported on a CPU.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """Take one step, see `torch.optim.Optimizer.step`."""
        if any(p.is_cuda for group in self.param_groups for p in group["params"]):
            return super().step(closure)  # type: ignore[no-untyped-call]
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state["momentum_buffer"] = torch.zeros_like(p.grad)
                buffer = state["momentum_buffer"]
                buffer.lerp_(p.grad, 1 - group["momentum"])
                update = p.grad.lerp(buffer, group["momentum"]) if group["nesterov"] else buffer
                rate = group["lr"] * 0.2 * max(p.shape) ** 0.5
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(orthogonalized(update, group["eps"]), alpha=-rate)
        return None
