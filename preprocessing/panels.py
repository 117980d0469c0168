"""One scene or one sample side by side: natural colours, indices, saliency."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.contract import DataContract
from pipeline.manifest import Manifest
from pipeline.sample import NODATA, SCALE, Sample
from preprocessing import pictures
from preprocessing.archive import StoredScene
from preprocessing.pictures import Picture

SCENE_PX = 700
"""Longest side of a scene's panel."""
SAMPLE_PX = 384
"""Least side of a sample's panel."""


@dataclass(frozen=True)
class Panels:
    """A picture, and what it shows from left to right."""

    picture: Picture
    titles: tuple[str, ...]


def of_sample(made: Manifest, tile: Sample) -> Panels:
    """Return the panels of a sample, enlarged."""
    values = index_values(made.contract, tile.pixels)
    shown = [pictures.natural_colours(made, tile), *map(pictures.diverging, values), pictures.heat(tile)]
    factor = max(SAMPLE_PX // tile.mask.shape[0], 1)
    return _laid([p.repeat(factor, 1).repeat(factor, 2) for p in shown], made.contract)


def of_scene(made: Manifest, stored: StoredScene) -> Panels:
    """Return the panels of a stored scene, thinned out to what a screen shows."""
    contract, grid = made.contract, stored.header.grid
    step = max(-(-max(grid.shape_px) // SCENE_PX), 1)
    # band by band: a whole tile is gigabytes
    thin = slice(None, None, step)
    pixels = np.stack([stored.read("reflectance", b)[thin, thin] for b in range(len(contract.bands))])
    places = pictures.colour_places(contract.sensor, contract.band_names)
    colours = pictures.stretched(pixels[places], tuple(made.statistics[p] for p in places))
    level = pictures.saliency_map(stored.read("cells"))
    rows, columns = (np.arange(0, side, step) // contract.cell_px for side in grid.shape_px)
    # a rest smaller than a cell has no statistics: the last ones stand for it
    heat = level[np.ix_(np.minimum(rows, level.shape[0] - 1), np.minimum(columns, level.shape[1] - 1))]
    values = index_values(contract, pixels)
    return _laid([colours, *map(pictures.diverging, values), pictures.warm(heat)], contract)


def index_values(contract: DataContract, pixels: NDArray[np.int16]) -> list[NDArray[np.float64]]:
    """Return every index of the set of stored pixels [band, y, x]; not a number where nothing was measured."""
    reflectance = np.where(pixels == NODATA, np.nan, pixels * SCALE)
    found = (reflectance[contract.band_positions(contract.index_bands[name])] for name in contract.indices)
    return [
        np.asarray(contract.index(name)(*bands.astype(np.float32)), np.float64)
        for name, bands in zip(contract.indices, found, strict=True)
    ]


def _laid(shown: Sequence[Picture], contract: DataContract) -> Panels:
    return Panels(pictures.sheet(shown, len(shown)), ("natural colours", *contract.indices, "saliency"))
