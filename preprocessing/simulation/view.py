"""What one band of a sensor sees of ground and weather."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from preprocessing.simulation.landscape import GSD_M, Ground, make_ground
from preprocessing.simulation.noise import Float, generator
from preprocessing.simulation.spectra import CLOUD, MATERIALS
from preprocessing.simulation.weather import DENSE, THIN, Weather, make_weather

SENSOR_NOISE = 0.0015
"""Standard deviation of a measurement, in reflectance."""
SHADOW_DEPTH = 0.6
"""Share of the light that a dense cloud's shadow takes."""
CLASS_NODATA, CLASS_SHADOW, CLASS_WATER, CLASS_CLOUD_MEDIUM, CLASS_CLOUD_HIGH, CLASS_CIRRUS = (
    0,
    3,
    6,
    8,
    9,
    10,
)
"""Sentinel-2 SCL codes."""


@dataclass(frozen=True)
class View:
    """Ground and weather of one acquisition."""

    ground: Ground
    weather: Weather
    key: str
    """What the sensor's noise depends on, with band and pixel size."""

    @property
    def size_px(self) -> int:
        """Side of the ground in 10 m pixels."""
        return int(self.ground.classes.shape[0])

    def reflectance(self, centre_nm: float, haze: bool = False) -> Float:
        """Return the reflectance [y, x] at 10 m, without sensor noise, at a wavelength.

        haze: add what the air scatters back, as a top-of-atmosphere product has it.
        """
        table = np.array([material.at(centre_nm) for material in MATERIALS], np.float32)
        paint, weather = self.ground.paint, self.weather
        seen = table[paint.first] * (1 - paint.share) + table[paint.second] * paint.share
        # shadow falls on the ground, clouds lie over both
        seen *= paint.brightness * (1 - np.float32(SHADOW_DEPTH) * weather.shadow)
        cover = np.maximum(weather.cloud, weather.cirrus)
        seen += cover * (np.float32(CLOUD.at(centre_nm)) - seen)
        return seen + np.float32(0.09 * (443 / centre_nm) ** 4) if haze else seen

    def measure(self, reflectance: Float, gsd_m: float, band: str) -> Float:
        """Return what a detector of a pixel size measures of a 10 m field [y, x]: block means with sensor noise."""
        # noise after averaging: each detector has its own, whatever its size
        seen = block_mean(reflectance, factor(gsd_m))
        random = generator(self.key, band, gsd_m).standard_normal(seen.shape, np.float32)
        return seen + np.float32(SENSOR_NOISE) * random

    def outside(self, gsd_m: float) -> NDArray[np.bool_]:
        """Return the pixels [y, x] that reach beyond the swath."""
        # a pixel that is measured in part is not measured
        return block_mean(self.weather.outside.astype(np.float32), factor(gsd_m)) > 0

    def classes(self, gsd_m: float) -> NDArray[np.uint8]:
        """Return the land cover [y, x] at a pixel size, 0 beyond the swath."""
        return np.where(self.outside(gsd_m), 0, nearest(self.ground.classes, factor(gsd_m))).astype(np.uint8)

    @cached_property
    def _surface_scl(self) -> NDArray[np.uint8]:
        return np.array([material.scl for material in MATERIALS], np.uint8)[self.ground.paint.first]

    def scene_classification(self, gsd_m: float) -> NDArray[np.uint8]:
        """Return the scene classification [y, x] in Sentinel-2 SCL codes."""
        n = factor(gsd_m)
        cloud, shadow, cirrus = (
            block_mean(field, n) for field in (self.weather.cloud, self.weather.shadow, self.weather.cirrus)
        )
        # the first rule that holds wins, as in the real classification's order of trust
        rules = {
            CLASS_NODATA: self.outside(gsd_m),
            CLASS_CLOUD_HIGH: cloud > DENSE,
            CLASS_CLOUD_MEDIUM: cloud > THIN,
            CLASS_CIRRUS: cirrus > THIN / 5,
            CLASS_SHADOW: shadow > THIN,
        }
        surface = nearest(self._surface_scl, n)
        return np.select(list(rules.values()), [np.uint8(code) for code in rules], surface)


def make_view(size_px: int, seed: int, acquisition: str) -> View:
    """Make one acquisition of a seed's ground; `acquisition` names the day and the instrument."""
    key = f"{acquisition} {seed}"
    return View(make_ground(size_px, seed), make_weather(size_px, key), key)


def factor(gsd_m: float) -> int:
    """Return how many 10 m pixels one pixel has along a side."""
    return round(gsd_m / GSD_M)


def block_mean(field: Float, n: int) -> Float:
    """Return the means of n x n blocks; [y, x] -> [y / n, x / n]."""
    if n == 1:
        return field
    rows, columns = (side // n for side in field.shape)
    return np.asarray(field.reshape(rows, n, columns, n).mean((1, 3), dtype=np.float32), np.float32)


def nearest(field: NDArray[np.uint8], n: int) -> NDArray[np.uint8]:
    """Return the value at the centre of each n x n block; [y, x] -> [y / n, x / n]."""
    # of an even block the pixel right below the centre
    return field[n // 2 :: n, n // 2 :: n]
