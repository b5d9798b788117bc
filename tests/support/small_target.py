"""An untrained target of three layers, on which a training step takes milliseconds."""

import torch

from utils.speculative.target import Rotary, Target, TargetShape


def small_target(device="cpu"):
    torch.manual_seed(3)
    shape = TargetShape(
        layers=3,
        hidden=16,
        ffn=24,
        heads=4,
        kv_heads=2,
        head_dim=4,
        vocab=20,
        eps=1e-6,
        qk_norm=True,
    )
    target = Target(shape, Rotary(torch.tensor([1.0, 0.01]), 128)).requires_grad_(False)
    return target.to(device)
