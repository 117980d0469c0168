"""The table of spectral indices, written in band roles on reflectance.

Adding an index is one entry in `INDICES`. Indices are always computed on reflectance, before any statistical
normalisation: a shifted band makes a ratio meaningless.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import unknown

FLOOR = 0.02
"""Smallest denominator, in reflectance: over dark water a tiny one turns sensor noise into structure."""

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Index:
    """A spectral index: the band roles it needs and its formula on reflectance of any shape."""

    name: str
    title: str
    """What it shows."""
    roles: tuple[str, ...]
    """Common band names (`nir`), in the formula's order."""
    formula: Callable[..., Array]
    """One float32 array a role, to one of the same shape."""

    def __call__(self, *bands: Array) -> Array:
        """Evaluate on reflectance (unit 1, float32, one array a role, equal shapes); clipped to [-1, 1]."""
        # a floored denominator lets ratios of negative reflectance pass 1
        clipped: Array = np.clip(self.formula(*bands), np.float32(-1), np.float32(1))
        return clipped


def floored(denominator: Array) -> Array:
    """Return the denominator, at least `FLOOR`. Formulas call nothing but this, so that they can be compiled."""
    # negative reflectance is legal, so a sum can be tiny or below zero
    at_least: Array = np.maximum(denominator, np.float32(FLOOR))
    return at_least


def normalised_difference(a: Array, b: Array) -> Array:
    """Return (a - b) / floored(a + b), float32 of the bands' shape; a, b: reflectance of equal shapes."""
    ratio: Array = (a - b) / floored(a + b)
    return ratio


def bare_soil(swir1: Array, red: Array, nir: Array, blue: Array) -> Array:
    """Return BSI, ((swir1 + red) - (nir + blue)) over the floored sum of all four; float32 reflectance."""
    ratio: Array = (swir1 + red - nir - blue) / floored(swir1 + red + nir + blue)
    return ratio


def enhanced_vegetation(nir: Array, red: Array, blue: Array) -> Array:
    """Return EVI, 2.5 (nir - red) / (nir + 6 red - 7.5 blue + 1), the denominator floored; float32 reflectance."""
    # float32 throughout: Python's numbers would make a compiled loop run in float64
    f32: Any = np.float32
    greenness: Array = f32(2.5) * (nir - red) / floored(nir + f32(6) * red - f32(7.5) * blue + f32(1))
    return greenness


def index(name: str) -> Index:
    """Return the index called `name`; raises `UnknownNameError` with the nearest one."""
    try:
        return INDICES[name]
    except KeyError:
        raise unknown("index", name, INDICES) from None


INDICES: dict[str, Index] = {
    i.name: i
    for i in (
        Index("NDVI", "vegetation", ("nir", "red"), normalised_difference),
        Index("NDWI", "open water (McFeeters)", ("green", "nir"), normalised_difference),
        Index("NDBI", "built-up", ("swir1", "nir"), normalised_difference),
        Index("MNDWI", "open water (Xu)", ("green", "swir1"), normalised_difference),
        Index("NBR", "burnt area", ("nir", "swir2"), normalised_difference),
        Index("NDMI", "moisture of vegetation", ("nir", "swir1"), normalised_difference),
        Index("NDSI", "snow", ("green", "swir1"), normalised_difference),
        Index("BSI", "bare soil", ("swir1", "red", "nir", "blue"), bare_soil),
        Index("EVI", "vegetation, dense canopies too", ("nir", "red", "blue"), enhanced_vegetation),
    )
}
