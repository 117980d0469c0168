"""Decoders from feature maps to a class of every pixel: UPerNet-like, and the plainest there is.

A plain transformer's maps all have one size; the pyramid that UPerNet wants is made by scaling them, as BEiT does.
Shape letters: B batch, T spectral groups, D width, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from training.backbones import Shape

WIDTH = 128
POOLS = (1, 2, 3, 6)
"""Cells a side of the pooled maps, as in PSPNet."""


class LinearDecoder(nn.Module):
    """One linear map of the last features to classes, stretched over the pixels: a probe of what they hold."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.image_px = shape.image_px
        self.norm = nn.LayerNorm(shape.groups * shape.widths[-1], eps=1e-6)
        self.linear = nn.Linear(shape.groups * shape.widths[-1], classes)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return class scores [B, K, y, x]."""
        last_ByxD = maps[-1].flatten(1, 2).permute(0, 2, 3, 1)
        scores: Tensor = self.linear(self.norm(last_ByxD))
        return stretched(scores.permute(0, 3, 1, 2), self.image_px)


class UPerNet(nn.Module):
    """Pyramid pooling on the coarsest map, a top-down path, and all levels fused."""

    def __init__(self, shape: Shape, classes: int) -> None:
        super().__init__()
        self.image_px, self.sides = shape.image_px, pyramid(shape)
        self.lateral = nn.ModuleList(_conv(shape.groups * width, WIDTH, 1) for width in shape.widths)
        self.pooled = nn.ModuleList(_conv(WIDTH, WIDTH // len(POOLS), 1) for _ in POOLS)
        self.context = _conv(WIDTH * 2, WIDTH, 3)
        self.smooth = nn.ModuleList(_conv(WIDTH, WIDTH, 3) for _ in shape.widths)
        self.fuse = _conv(WIDTH * len(shape.widths), WIDTH, 3)
        self.leave = nn.Conv2d(WIDTH, classes, 1)

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return class scores [B, K, y, x] from maps [B, T, D, y, x], finest level first."""
        # lateral first: scaling 128 channels costs less than scaling all
        levels = [
            stretched(enter(x.flatten(1, 2)), side)
            for x, enter, side in zip(maps, self.lateral, self.sides, strict=True)
        ]
        levels[-1] = self._with_context(levels[-1])
        for coarse, fine in pairwise(reversed(range(len(levels)))):
            levels[fine] = levels[fine] + stretched(levels[coarse], self.sides[fine])
        smoothed = [smooth(x) for x, smooth in zip(levels, self.smooth, strict=True)]
        fused = self.fuse(torch.cat([stretched(x, self.sides[0]) for x in smoothed], 1))
        return stretched(self.leave(fused), self.image_px)

    def _with_context(self, x: Tensor) -> Tensor:
        side = x.shape[-1]
        pooled = [
            stretched(conv(F.adaptive_avg_pool2d(x, min(cells, side))), side)
            for cells, conv in zip(POOLS, self.pooled, strict=True)
        ]
        context: Tensor = self.context(torch.cat([x, *pooled], 1))
        return context


def pyramid(shape: Shape) -> tuple[int, ...]:
    """Return the cells a side of each level, finest first: a backbone's own where it has a pyramid, else from twice
    the token grid down.
    """
    if len(set(shape.sides)) > 1:
        return shape.sides
    side = shape.sides[0]
    return tuple(max(round(side * 2.0 ** (1 - level)), 1) for level in range(len(shape.sides)))


def _conv(entering: int, leaving: int, kernel: int) -> nn.Sequential:
    # groups, not batches: the same for any number of ranks and micro-batches
    return nn.Sequential(
        nn.Conv2d(entering, leaving, kernel, padding=kernel // 2, bias=False),
        nn.GroupNorm(8, leaving),
        nn.GELU(),
    )


def stretched(x: Tensor, side: int) -> Tensor:
    """Return maps [B, D, y, x] at `side` cells a side, bilinear."""
    if x.shape[-1] == side:
        return x
    # cells are areas: their outer edges lie on the image's, not their centres
    return F.interpolate(x, size=(side, side), mode="bilinear", align_corners=False)
