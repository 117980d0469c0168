"""ResNet-50 (He et al. 2016, with the stride in the 3 x 3 convolution): the supervised baseline, trained from scratch.

Shape letters: B batch, C bands, H W pixels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

STAGES = (3, 4, 6, 3)
"""Blocks of each stage; 50 layers with the stem and the head."""
WIDTHS = (256, 512, 1024, 2048)
STRIDES = (4, 8, 16, 32)
"""Pixels a cell of each stage's map."""


class Bottleneck(nn.Module):
    """1 x 1, 3 x 3, 1 x 1 convolutions with a residual."""

    def __init__(self, entering: int, leaving: int, stride: int) -> None:
        super().__init__()
        inner = leaving // 4
        last, norm = _conv(inner, leaving, 1)
        # a branch that begins at 0 leaves the residual alone: deep nets start better
        nn.init.zeros_(norm.weight)
        self.path = nn.Sequential(
            *_conv(entering, inner, 1), nn.ReLU(), *_conv(inner, inner, 3, stride), nn.ReLU(), last, norm
        )
        same = entering == leaving and stride == 1
        self.beside = nn.Identity() if same else nn.Sequential(*_conv(entering, leaving, 1, stride))

    def forward(self, x: Tensor) -> Tensor:
        """Map [B, entering, H, W] to [B, leaving, H / stride, W / stride]."""
        return F.relu(self.path(x) + self.beside(x))


class ResNet(nn.Module):
    """ResNet-50 with a stem for any number of bands."""

    depth = 0
    """It has no layers that layer decay could tell apart."""

    def __init__(self, bands: int) -> None:
        super().__init__()
        self.stem = nn.Sequential(*_conv(bands, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1))
        entering = (64, *WIDTHS[:-1])
        self.stages = nn.ModuleList(
            nn.Sequential(
                Bottleneck(enter, leave, 1 if number == 0 else 2),
                *(Bottleneck(leave, leave, 1) for _ in range(blocks - 1)),
            )
            for number, (enter, leave, blocks) in enumerate(zip(entering, WIDTHS, STAGES, strict=True))
        )

    def forward(self, image_BCHW: Tensor) -> list[Tensor]:
        """Map normalised images to the maps of the four stages, finest first."""
        maps, x = [], self.stem(image_BCHW)
        for stage in self.stages:
            x = stage(x)
            maps.append(x)
        return maps


def _conv(entering: int, leaving: int, kernel: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    # no bias: the normalisation behind it would take it out again
    conv = nn.Conv2d(entering, leaving, kernel, stride, kernel // 2, bias=False)
    nn.init.kaiming_normal_(conv.weight, mode="fan_out", nonlinearity="relu")
    return conv, nn.BatchNorm2d(leaving)
