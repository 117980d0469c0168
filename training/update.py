"""The optimiser's update: AdamW that clips, and leaves the weights alone where the gradient is not finite, in one pass.

Both are decided on the device: the host need not know the norm before it goes on to the next step.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor


class Update:
    """AdamW with clipping to `clip_norm` (0: none) and a gate, inside torch's fused kernel."""

    def __init__(self, groups: list[dict[str, Any]], betas: tuple[float, float], clip_norm: float) -> None:
        """groups: AdamW's parameter groups; a group's `lr_scale` multiplies the learning rate."""
        self.clip_norm = clip_norm
        self.optimiser = torch.optim.AdamW(groups, lr=1.0, betas=betas, fused=True)
        self._fixed = [{k: v for k, v in group.items() if k != "params"} for group in groups]

    def set_lr(self, lr: float) -> None:
        """Set the learning rate of the next step."""
        for group, fixed in zip(self.optimiser.param_groups, self._fixed, strict=True):
            # a pure function of the step, so the schedule has no state to save
            group["lr"] = lr * float(fixed.get("lr_scale", 1.0))

    def gate(self, norm: Tensor) -> Tensor:
        """Arrange the next step by the gradient's norm; return 1 where it is going to be left out, else 0."""
        missed = (~torch.isfinite(norm)).float()
        # what the kernel has for loss scaling serves here: it divides by one and stops at the other
        self.optimiser.grad_scale = (  # type: ignore[attr-defined]
            torch.clamp((norm.float() + 1e-6) / (self.clip_norm or math.inf), min=1)
        )
        self.optimiser.found_inf = missed  # type: ignore[attr-defined]
        return missed
