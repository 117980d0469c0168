"""The table of spectral indices, written in band roles on reflectance.

Adding an index is one entry in `INDICES`. Indices are always computed on reflectance, before any statistical
normalisation: a shifted band makes a ratio meaningless. Their values lie between -1 and 1, because saliency compares
indices with each other: it takes the largest mean of all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pipeline import formulas
from pipeline.errors import unknown
from pipeline.formulas import Array


@dataclass(frozen=True)
class Index:
    """A spectral index: its formula on reflectance of any shape, in the roles of the bands it needs."""

    name: str
    title: str
    """What it shows."""
    text: str
    """Its formula, as `pipeline.formulas` reads it."""

    @property
    def roles(self) -> tuple[str, ...]:
        """Common band names (`nir`), in the formula's order."""
        return formulas.formula(self.text).names

    @property
    def formula(self) -> Callable[..., Array]:
        """One float32 array a role, to one of the same shape; the same function for the same text."""
        return formulas.formula(self.text).function

    def __call__(self, *bands: Array) -> Array:
        """Evaluate on reflectance (unit 1, float32, one array a role, equal shapes); clipped to [-1, 1]."""
        # a floored denominator lets ratios of negative reflectance pass 1
        clipped: Array = np.clip(self.formula(*bands), np.float32(-1), np.float32(1))
        return clipped


def normalised_difference(name: str, title: str, a: str, b: str) -> Index:
    """Return the index (a - b) / floored(a + b) of two band roles."""
    return Index(name, title, f"({a} - {b}) / floored({a} + {b})")


def index(name: str) -> Index:
    """Return the index called `name`; raises `UnknownNameError` with the nearest one."""
    try:
        return INDICES[name]
    except KeyError:
        raise unknown("index", name, INDICES) from None


INDICES: dict[str, Index] = {
    i.name: i
    for i in (
        normalised_difference("NDVI", "vegetation", "nir", "red"),
        normalised_difference("NDWI", "open water (McFeeters)", "green", "nir"),
        normalised_difference("NDBI", "built-up", "swir1", "nir"),
        normalised_difference("MNDWI", "open water (Xu)", "green", "swir1"),
        normalised_difference("NBR", "burnt area", "nir", "swir2"),
        normalised_difference("NDMI", "moisture of vegetation", "nir", "swir1"),
        normalised_difference("NDSI", "snow", "green", "swir1"),
        Index(
            "BSI",
            "bare soil",
            "(swir1 + red - nir - blue) / floored(swir1 + red + nir + blue)",
        ),
        # dense vegetation stays below 1; what lies above is cloud and snow, which are clipped
        Index(
            "EVI",
            "vegetation, dense canopies too",
            "2.5 * (nir - red) / floored(nir + 6 * red - 7.5 * blue + 1)",
        ),
        # spyndex's name means half the soil's brightness everywhere but in its table of constants
        Index("SAVI", "vegetation on bright soil", "1.5 * (nir - red) / floored(nir + red + 0.5)"),
    )
}
