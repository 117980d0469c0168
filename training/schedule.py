"""Learning rate as a pure function of the step, and which parameters it and the decay apply to."""

from __future__ import annotations

import math
import re

from pydantic import Field
from torch import nn

from pipeline.config import Config

REFERENCE_BATCH = 256


class OptimiserConfig(Config):
    """AdamW and its schedule."""

    base_lr: float = Field(default=2e-4, gt=0)
    """Learning rate for a batch of 256; the rate used is base_lr * global batch / 256."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay rates of the moments."""
    weight_decay: float = Field(default=0.05, ge=0)
    """Decoupled weight decay; none on biases and one-dimensional parameters."""
    warmup_epochs: float = Field(default=20.0, ge=0)
    """Linear warm-up, in epochs."""
    clip_norm: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 turns clipping off."""

    def peak_lr(self, global_batch: int) -> float:
        """Return the learning rate at the end of warm-up."""
        return self.base_lr * global_batch / REFERENCE_BATCH


def learning_rate(step: int, peak: float, warmup_steps: int, total_steps: int) -> float:
    """Return the rate of a step: linear warm-up, then half a cosine to 0."""
    if step < warmup_steps:
        # + 1: a first step at rate 0 would be wasted
        return peak * (step + 1) / warmup_steps
    progress = (step - warmup_steps) / max(total_steps - warmup_steps, 1)
    return peak * 0.5 * (1 + math.cos(math.pi * min(progress, 1.0)))


def decay_groups(model: nn.Module, weight_decay: float) -> list[dict[str, object]]:
    """Return AdamW's parameter groups: decay on matrices, none on biases and one-dimensional parameters."""
    return layer_decay_groups(model, weight_decay, 1.0, 0)


def layer_decay_groups(
    model: nn.Module, weight_decay: float, layer_decay: float, depth: int
) -> list[dict[str, object]]:
    """Return groups whose `lr_scale` falls by `layer_decay` with each block below the head.

    Embedding and positions are layer 0, block i is layer i + 1, everything else (norm, head) is the last.
    Frozen parameters are left out.
    """
    groups: dict[tuple[int, bool], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            # one group for all layers where they do not differ: fewer groups, faster steps
            layer = _layer(name, depth) if layer_decay < 1 else depth + 1
            groups.setdefault((layer, parameter.ndim > 1), []).append(parameter)
    return [
        {
            "params": found,
            "weight_decay": weight_decay if decayed else 0.0,
            "lr_scale": layer_decay ** (depth + 1 - layer),
        }
        for (layer, decayed), found in groups.items()
    ]


def _layer(name: str, depth: int) -> int:
    block = re.match(r"encoder\.blocks\.(\d+)\.", name)
    if block:
        return int(block[1]) + 1
    return 0 if name.startswith(("encoder.embed", "encoder.positions", "encoder.class_token")) else depth + 1
