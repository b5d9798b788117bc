"""Every setting of a training, in one place."""

from dataclasses import dataclass, field

from utils.tinymodel.model import ModelShape


@dataclass(frozen=True)
class Stage:
    """A stretch of training with one depth and one mix of sources.

    Attributes:
        steps: optimizer steps.
        layers: depth; a deeper stage grows the model of the stage before it.
        tokens: tokens of a step, per worker.
        lengths: tokens of a row; steps take them in turn.
        shares: share of the tokens from each source of `data.SOURCES`.
    """

    steps: int
    layers: int
    tokens: int
    lengths: tuple[int, ...]
    shares: dict[str, float]


@dataclass(frozen=True)
class Recipe:
    """A whole training: shape, stages, learning rates (warm-up, constant, linear decay to zero)."""

    name: str
    shape: ModelShape
    stages: tuple[Stage, ...]
    decay: int  # the last steps, over which the learning rates fall to zero
    workers: int = 2
    muon_lr: float = 8e-3
    adam_lr: float = 4e-3
    weight_decay: float = 0.05
    warmup: int = 40
    seed: int = 1
    checkpoint_seconds: int = 180
    accelerate: bool = True  # compile the layers and compute in bf16 (needs a C++ compiler)
    vocab_repeats: int = field(default=600)  # how often the word lists join the tokenizer's text

    @property
    def steps(self) -> int:
        """Optimizer steps of all stages."""
        return sum(stage.steps for stage in self.stages)

    def stage(self, step: int) -> tuple[int, Stage]:
        """Index of the step within its stage, and the stage."""
        for stage in self.stages:
            if step < stage.steps:
                return step, stage
            step -= stage.steps
        raise ValueError("step beyond the last stage")

    def rate(self, step: int) -> float:
        """Factor on the learning rates at a step: warm-up in each stage, decay at the end of all."""
        within, _ = self.stage(step)
        warm = min(1.0, (within + 1) / self.warmup)
        return warm * min(1.0, (self.steps - step) / self.decay)


_INDUCTION = {"copy": 0.5, "task": 0.5}
_MIX = {"copy": 0.08, "task": 0.62, "qa": 0.15, "prose": 0.15}
_FINAL = {"copy": 0.03, "task": 0.67, "qa": 0.15, "prose": 0.15}

RECIPES = {
    "tiny": Recipe(
        "tiny",
        ModelShape(),
        (
            Stage(476, 8, 4096, (256,), _INDUCTION),
            Stage(641, 8, 4096, (*[256] * 15, 1024), _MIX),
            Stage(609, 24, 4096, (*[256] * 11, 1024, *[256] * 11, 2048), _FINAL),
        ),
        decay=550,
    ),
    # the same steps in a few minutes: a shallow model that learns the formats and part of the copying
    "demo": Recipe(
        "demo",
        ModelShape(layers=4, hidden=128, ffn=320, heads=2),
        (
            Stage(120, 2, 2048, (128,), _INDUCTION),
            Stage(240, 4, 2048, (128,), _FINAL),
        ),
        decay=120,
        accelerate=False,
        checkpoint_seconds=30,
    ),
}
