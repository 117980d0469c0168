"""Formulas of positions: sines and cosines of places and groups, Fourier features of wavelengths.

Shape letters: S places, T spectral groups, C bands, F features, D width.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

_SPAN_NM, _WIDTH_NM = (400.0, 2500.0), (10.0, 400.0)  # what reflected sunlight is measured in
# the finest wave is as long as what two sensors' versions of a band lie apart: finer ones would tell them apart
_WAVE_OCTAVES, _WIDTH_OCTAVES = 5, 3
WAVE_FEATURES = 2 * (_WAVE_OCTAVES + _WIDTH_OCTAVES)
"""Features of a band."""


def place_codes(side: int, width: int) -> Tensor:
    """Return sines and cosines of x and y for each place, [S, D], zero where the group codes stand."""
    half = (width - _code_width(width)) // 2
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    codes = torch.cat([_waves(x.flatten(), half), _waves(y.flatten(), half)], 1)
    return F.pad(codes, (0, width - codes.shape[1]))


def group_codes(groups: int, width: int) -> Tensor:
    """Return sines and cosines of the group's number, [T, D], zero where the place codes stand."""
    codes = _waves(torch.arange(groups), _code_width(width))
    return F.pad(codes, (width - codes.shape[1], 0))


def _code_width(width: int) -> int:
    """Return how much of the width tells the group: a quarter; from 512 on as SatMAE does, 256 of 768, 128 of 512."""
    return width // 4 if width < 512 else 128 * math.ceil(width / 512)


def _waves(at: Tensor, width: int) -> Tensor:
    # float64: sin of a large argument in float32 differs between machines
    rates = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = at.double()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1).float()


def wave_features(waves_nm: Sequence[tuple[float, float]]) -> Tensor:
    """Return Fourier features [C, F] of the logarithms of centre wavelength and bandwidth."""
    centre_C, width_C = torch.tensor(waves_nm, dtype=torch.float64).T
    parts = []
    for value_C, (low, high), octaves in (
        (centre_C, _SPAN_NM, _WAVE_OCTAVES),
        (width_C, _WIDTH_NM, _WIDTH_OCTAVES),
    ):
        # the logarithm: 10 nm are much in the blue and little in the infrared
        within = (value_C.log() - math.log(low)) / math.log(high / low)
        angles = within[:, None] * math.pi * 2.0 ** torch.arange(octaves, dtype=torch.float64)
        parts += [angles.sin(), angles.cos()]
    return torch.cat(parts, 1).float()


def group_shares(groups: Sequence[Sequence[int]], channels: int) -> Tensor:
    """Return the share of each band in the mean of its group, [T, C]."""
    share_TC = torch.zeros(len(groups), channels)
    for group, members in enumerate(groups):
        share_TC[group, list(members)] = 1 / len(members)
    return share_TC


def resize_places(table_SD: Tensor, side: int) -> Tensor:
    """Interpolate a table of places bicubically to `side` x `side`."""
    old = round(len(table_SD) ** 0.5)
    if old == side:
        return table_SD
    grid_1Dyx = table_SD.T.reshape(1, -1, old, old)
    resized = F.interpolate(grid_1Dyx, size=(side, side), mode="bicubic", align_corners=False)
    return resized.flatten(2)[0].T.contiguous()
