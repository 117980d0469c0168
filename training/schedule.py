"""Learning rate as a pure function of the step (METHOD 6)."""

from __future__ import annotations

import math

from pydantic import Field

from pipeline.config import Config

REFERENCE_BATCH = 256


class OptimiserConfig(Config):
    """AdamW and its schedule."""

    base_lr: float = Field(2e-4, gt=0)
    """Learning rate for a batch of 256; the rate used is base_lr * global batch / 256."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the moments."""
    weight_decay: float = Field(0.05, ge=0)
    """Decoupled weight decay; none on biases and one-dimensional parameters."""
    warmup_epochs: float = Field(20.0, ge=0)
    """Linear warm-up, in epochs."""
    clip_norm: float = Field(1.0, ge=0)
    """Largest global gradient norm; 0 turns clipping off."""

    def peak_lr(self, global_batch: int) -> float:
        """Return the learning rate at the end of warm-up."""
        return self.base_lr * global_batch / REFERENCE_BATCH


def learning_rate(step: int, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Return the rate of a step: linear warm-up, then half a cosine to 0."""
    if step < warmup_steps:
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))
