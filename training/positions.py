"""Where a cube stands: positions of places and of spectral groups, learned, fixed, or by wavelength.

Shape letters: B batch, S places, T spectral groups, N = T * S tokens, K chosen tokens, C bands, F features, D width.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pipeline.errors import ConfigError
from training.architecture import ModelConfig
from training.spectral_backbone.codes import (
    WAVE_FEATURES,
    group_codes,
    group_shares,
    place_codes,
    wave_features,
)
from training.tokens import Layout

_HIDDEN = 128


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
        self.register_buffer("share", group_shares(layout.members, layout.channels), persistent=False)
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
