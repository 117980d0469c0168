"""What turns images into feature maps for downstream tasks: our encoder, or ResNet-50 as the supervised baseline.

Shape letters: B batch, C bands, H W pixels, T spectral groups, N = T * S tokens, D width, y x cells of a map.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from training.architecture import ModelConfig
from training.blocks import DropPath
from training.model import Encoder, which
from training.resnet import STRIDES, WIDTHS, ResNet
from training.tokens import Layout
from training.world import World

Backbone = Literal["encoder", "resnet50"]
LEVELS = 4
"""Depths of the encoder that dense tasks read."""


@dataclass(frozen=True)
class Shape:
    """What a backbone's maps look like, from the finest, or first, to the last."""

    image_px: int
    groups: int
    """T: 1 where bands are mixed at once."""
    widths: tuple[int, ...]
    """D of each map."""
    sides: tuple[int, ...]
    """Cells a side of each map."""

    @property
    def width(self) -> int:
        """D of the last map, and of what it is pooled to."""
        return self.widths[-1]


def build(kind: Backbone, config: ModelConfig, layout: Layout, sensor: str) -> Encoder | ResNet:
    """Return a backbone with new weights, for the images of one sensor."""
    return ResNet(layout.channels) if kind == "resnet50" else Encoder(config, {sensor: layout})


def shape_of(backbone: nn.Module, layout: Layout) -> Shape:
    """Return the shape of a backbone's maps."""
    if isinstance(backbone, Encoder):
        levels = len(depths(backbone))
        return Shape(layout.image_px, layout.groups, (backbone.width,) * levels, (layout.side,) * levels)
    # each convolution of stride 2 rounds up
    sides = tuple(math.ceil(layout.image_px / stride) for stride in STRIDES)
    return Shape(layout.image_px, 1, WIDTHS, sides)


def depths(encoder: Encoder) -> tuple[int, ...]:
    """Return after how many blocks the encoder's maps are taken: at equal distances, the last at the end."""
    levels = min(LEVELS, encoder.depth)
    return tuple(encoder.depth * (number + 1) // levels for number in range(levels))


def feature_maps(backbone: nn.Module, image_BCHW: Tensor, pooled: bool) -> list[Tensor]:
    """Return maps [B, T, D, y, x] of normalised images; pooled: the last one only, which is all that is needed."""
    if not isinstance(backbone, Encoder):
        found: Sequence[Tensor] = backbone(image_BCHW)
        return [x[:, None] for x in found]
    layout = backbone.layouts[which("", backbone.layouts)]
    wanted = depths(backbone)[-1:] if pooled else depths(backbone)
    return [_as_map(tokens, layout) for tokens in backbone.levels(image_BCHW, wanted)]


def _as_map(tokens_BND: Tensor, layout: Layout) -> Tensor:
    # the token index is t * S + s
    B, _, D = tokens_BND.shape
    return tokens_BND.view(B, layout.groups, layout.side, layout.side, D).permute(0, 1, 4, 2, 3)


def set_drop_path(backbone: nn.Module, rate: float) -> None:
    """Let a backbone's blocks drop paths, from none in the first to `rate` in the last."""
    drops = [module for module in backbone.modules() if isinstance(module, DropPath)]
    for drop, share in zip(drops, torch.linspace(0, rate, len(drops)).tolist(), strict=True):
        drop.rate = share


def synchronised(backbone: nn.Module, world: World) -> nn.Module:
    """Return a backbone whose batch statistics are those of all ranks; raises `ConfigError` where that cannot be."""
    if world.size == 1:
        return backbone
    if world.device.type == "cpu":
        raise ConfigError("backbone: resnet50 trains in one process on CPUs: start one rank.")
    found: nn.Module = nn.SyncBatchNorm.convert_sync_batchnorm(backbone)  # type: ignore[no-untyped-call]
    return found
