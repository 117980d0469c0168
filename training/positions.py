"""Where a cube stands: positions of places and of spectral groups, learned, fixed, or by wavelength.

Shape letters: B batch, S places, T spectral groups, N = T * S tokens, K chosen tokens, C bands, F features, D width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from training.architecture import ModelConfig
from training.tokens import Layout

_HIDDEN = 128
_SPAN_NM, _WIDTH_NM = (400.0, 2500.0), (10.0, 400.0)  # what reflected sunlight is measured in
# the finest wave is as long as what two sensors' versions of a band lie apart: finer ones would tell them apart
_WAVE_OCTAVES, _WIDTH_OCTAVES = 5, 3


class Positions(nn.Module):
    """Positions of tokens: a part by place plus a part by spectral group, or one joint table.

    A table belongs to a side in patches or to a sensor, so that sensors share what they can.
    """

    def __init__(self, config: ModelConfig, layouts: Mapping[str, Layout], width: int) -> None:
        super().__init__()
        self.layouts = dict(layouts)
        self.spatial, self.spectral, self.joint = nn.ModuleDict(), nn.ModuleDict(), nn.ModuleDict()
        self.by_wave: nn.Module | None = None
        fixed = config.positions == "sincos"
        for name, layout in layouts.items():
            if config.positions == "vanilla":
                self.joint[name] = _learned(layout.tokens, width)
                continue
            side = str(layout.side)
            if side not in self.spatial:
                self.spatial[side] = (
                    Fixed(place_codes(layout.side, width)) if fixed else _learned(layout.places, width)
                )
            self.spectral[name] = _spectral(config, layout, width)
        if config.spectral_position == "wavelength":
            # one function for all sensors: that is its point
            self.by_wave = nn.Sequential(
                nn.Linear(WAVE_FEATURES, _HIDDEN), nn.GELU(), nn.Linear(_HIDDEN, width)
            )

    def forward(self, tokens_BK: Tensor, sensor: str) -> Tensor:
        """Return the positions [B, K, D] of token indices [B, K] of a sensor's images."""
        layout = self.layouts[sensor]
        # in a packed row the index goes on from image to image
        token = tokens_BK % layout.tokens
        if self.joint:
            joint: Tensor = self.joint[sensor](token)
            return joint
        place, group = token % layout.places, token // layout.places
        spectral = self.spectral[sensor]
        by_group = spectral(group) if self.by_wave is None else spectral(self.by_wave)[group]
        out: Tensor = self.spatial[str(layout.side)](place) + by_group
        return out

    def others(self, sensor: str) -> list[nn.Module]:
        """Return the learned tables that images of `sensor` leave alone."""
        mine = {sensor, str(self.layouts[sensor].side)}
        tables = [*self.spatial.items(), *self.spectral.items(), *self.joint.items()]
        return [m for name, m in tables if name not in mine and isinstance(m, nn.Embedding)]


class Fixed(nn.Module):
    """A table that is not learned."""

    def __init__(self, codes: Tensor) -> None:
        super().__init__()
        # not persistent: it follows from the layout, and no checkpoint need carry it
        self.register_buffer("codes", codes, persistent=False)

    def forward(self, index: Tensor) -> Tensor:
        """Return the rows [..., D] at indices [...]."""
        return self.get_buffer("codes")[index]


class ByWavelength(nn.Module):
    """Positions of a sensor's groups: the mean over a group's bands of a function of wavelength and width."""

    def __init__(self, layout: Layout) -> None:
        super().__init__()
        if not layout.waves_nm:
            raise ConfigError(
                "spectral_position: wavelength needs a layout with wavelengths: ModelConfig.layout."
            )
        share_TC = torch.zeros(layout.groups, layout.channels)
        for group, members in enumerate(layout.members):
            share_TC[group, list(members)] = 1 / len(members)
        self.register_buffer("share", share_TC, persistent=False)
        self.register_buffer("features", wave_features(layout.waves_nm), persistent=False)

    def forward(self, network: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the positions [T, D] of all groups, by a network from features [C, F] to [C, D]."""
        return self.get_buffer("share") @ network(self.get_buffer("features"))


def _learned(rows: int, width: int) -> nn.Embedding:
    # a module, not a bare parameter: ZeRO-3 gathers a module's weights where it is called
    table = nn.Embedding(rows, width, _weight=torch.empty(rows, width))
    nn.init.trunc_normal_(table.weight, std=0.02)
    return table


def _spectral(config: ModelConfig, layout: Layout, width: int) -> nn.Module:
    if config.spectral_position == "wavelength":
        return ByWavelength(layout)
    fixed = config.positions == "sincos"
    return Fixed(group_codes(layout.groups, width)) if fixed else _learned(layout.groups, width)


def place_codes(side: int, width: int) -> Tensor:
    """Return sines and cosines of x and y for each place, [S, D], zero where the group codes stand."""
    half = (width - _code_width(width)) // 2
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    codes = torch.cat([_waves(x.flatten(), half), _waves(y.flatten(), half)], 1)
    return nn.functional.pad(codes, (0, width - codes.shape[1]))


def group_codes(groups: int, width: int) -> Tensor:
    """Return sines and cosines of the group's number, [T, D], zero where the place codes stand."""
    codes = _waves(torch.arange(groups), _code_width(width))
    return nn.functional.pad(codes, (width - codes.shape[1], 0))


def _code_width(width: int) -> int:
    """Return how much of the width tells the group: a quarter; from 512 on as SatMAE does, 256 of 768, 128 of 512."""
    return width // 4 if width < 512 else 128 * math.ceil(width / 512)


def _waves(at: Tensor, width: int) -> Tensor:
    # float64: sin of a large argument in float32 differs between machines
    rates = 10000.0 ** -(torch.arange(width // 2, dtype=torch.float64) / (width // 2))
    angles = at.double()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1).float()


def wave_features(waves_nm: tuple[tuple[float, float], ...]) -> Tensor:
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


WAVE_FEATURES = 2 * (_WAVE_OCTAVES + _WIDTH_OCTAVES)
