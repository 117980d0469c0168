"""What a model is asked to be: its size, its groups of bands, its positions, its decoder and its target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain
from typing import Literal, NamedTuple

from pydantic import Field, model_validator

from pipeline.config import Config
from pipeline.contract import BandContract
from pipeline.errors import ConfigError, unknown
from pipeline.sensors import SENSORS
from training.tokens import Layout

Groups = tuple[tuple[str, ...], ...]
"""Band names, group by group."""
Target = Literal["none", "unit", "signed", "cube_standardised", "band_standardised"]


class Size(NamedTuple):
    """Width, depth and heads of the encoder, then of the decoder."""

    width: int
    depth: int
    heads: int
    decoder_width: int
    decoder_heads: int


SIZES: dict[str, Size] = {
    "tiny": Size(96, 4, 3, 64, 2),
    "small": Size(384, 12, 6, 256, 8),
    # 32 a decoder's head, as published, though 64 would suit the kernels of GPUs better
    "base": Size(768, 12, 12, 512, 16),
    "large": Size(1024, 24, 16, 512, 16),
    "huge": Size(1280, 32, 16, 512, 16),
}


class ModelConfig(Config):
    """The masked autoencoder."""

    size: str = "base"
    """A key of `SIZES`: tiny and small are ours, for laptops."""
    patch_px: int = Field(default=8, ge=1)
    """Side of a cube in pixels."""
    bands_per_cube: int = Field(default=3, ge=1)
    """Bands of a cube, with one projection for all; must divide the number of bands."""
    groups: Groups | dict[str, Groups] | None = None
    """Band names group by group instead, of any number and with a projection each; by sensor where several differ.
    Gives the bands too, where data.bands does not."""
    positions: Literal["learnable", "sincos", "vanilla"] = "learnable"
    """Positions of the cubes: learned tables of places and of groups, fixed sines and cosines of both, or one learned
    table of all cubes."""
    spectral_position: Literal["table", "wavelength"] = "table"
    """Positions of the groups: by their number, or a learned function of wavelength and bandwidth, which knows
    sensors that it was not trained on."""
    class_token: bool = False
    """One more token, that stands for the whole image."""
    decoder: Literal["self", "cross"] = "self"
    """self: shown and hidden cubes attend to each other (S2MAE); cross: each hidden cube to the shown ones only, which
    with masking.reconstruct costs in proportion to what is reconstructed."""
    decoder_depth: int = Field(default=4, ge=1)
    """Blocks of the decoder."""
    target: Target = "unit"
    """What is reconstructed: the input's scale, [0, 1], [-1, 1], or standardised by cube or by cube and band."""
    spectral_sum_loss: bool = False
    """Add the error of the sum over the groups at every place; needs `decoder: self`, equal groups and
    masking.reconstruct 1."""
    attention: str = "auto"
    """A key of `ATTENTIONS`."""

    @model_validator(mode="after")
    def _sound(self) -> ModelConfig:
        # by hand, not by Literal: the message then names the nearest
        if self.size not in SIZES:
            raise ValueError(str(unknown("size", self.size, SIZES, "model.size")))
        if self.positions == "vanilla" and self.spectral_position == "wavelength":
            raise ValueError(
                "positions: vanilla has no groups that spectral_position: wavelength could place"
            )
        if self.spectral_sum_loss and self.decoder == "cross":
            raise ValueError("spectral_sum_loss needs predictions at all cubes: set decoder: self")
        for name in self.groups if isinstance(self.groups, dict) else ():
            if name not in SENSORS:
                raise ValueError(str(unknown("sensor", name, SENSORS, "model.groups")))
        return self

    @property
    def dimensions(self) -> Size:
        """The numbers behind `size`."""
        return SIZES[self.size]

    def groups_of(self, sensor: str) -> Groups | None:
        """Return the groups of a sensor, None where its cubes hold `bands_per_cube` bands."""
        return self.groups.get(sensor) if isinstance(self.groups, dict) else self.groups

    def bands(self, sensor: str) -> tuple[str, ...] | None:
        """Return the bands that the groups of a sensor ask for, None where there are no groups."""
        groups = self.groups_of(sensor)
        return None if groups is None else tuple(chain(*groups))

    def layout(self, sensor: str, bands: Sequence[BandContract], image_px: int) -> Layout:
        """Return how images of a sensor with `bands`, in this order, are cut into cubes.

        Raises `ConfigError` where bands and cubes do not fit.
        """
        groups, names = self.groups_of(sensor), [b.name for b in bands]
        if groups is None:
            layout = Layout.even(len(names), image_px, self.patch_px, self.bands_per_cube)
        else:
            layout = Layout(_members(groups, names, sensor), image_px, self.patch_px, shared=False)
        if self.spectral_sum_loss and not layout.equal:
            raise ConfigError(
                "model.spectral_sum_loss adds up the groups, which must be equal; see model.groups."
            )
        # a hand-over tells groups by wavelength, for sensors call the same light by other names
        return replace(layout, waves_nm=tuple((b.centre_nm, b.width_nm) for b in bands))


def _members(groups: Groups, names: Sequence[str], sensor: str) -> tuple[tuple[int, ...], ...]:
    """Return the channels of each group; raises `ConfigError` unless each band is in exactly one."""
    asked = list(chain(*groups))
    # both ways: a band in no group would be read and never seen
    wrong = sorted({n for n in asked if asked.count(n) > 1} | set(asked) ^ set(names))
    if wrong or not all(groups):
        raise ConfigError(
            f"model.groups must hold each band of sensor {sensor} ({', '.join(names)}) once and leave no group empty;"
            f" look at {', '.join(wrong) or 'the empty group'}, or set data.bands."
        )
    return tuple(tuple(names.index(n) for n in group) for group in groups)
