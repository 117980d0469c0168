"""Pictures of scenes and samples: natural colours, indices, saliency, and sheets of many tiles."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from pipeline import manifest as manifests
from pipeline import sample
from pipeline.contract import BandStatistics, normalisation
from pipeline.errors import ContractError, OutputError
from pipeline.manifest import Manifest
from pipeline.saliency import saliency
from pipeline.sample import Sample
from pipeline.sensors import sensor
from preprocessing import packing

COLUMNS = 6
GAP_PX = 4
GAMMA = 0.7
Picture = NDArray[np.uint8]
"""[3, y, x]"""
_DIVERGING = np.array(
    [(102, 60, 16), (214, 170, 105), (245, 243, 236), (110, 180, 120), (8, 84, 52)], np.float64
)
"""From -1 over 0 to 1: brown, sand, white, green, dark green."""


def first_samples(folder: Path, made: Manifest, split: str, count: int) -> list[Sample]:
    """Return the first samples of a split; their order is shuffled already."""
    paths = [folder / shard.path for shard in made.shards(split)]
    # lazily: only as many shards are opened as the picture needs
    found = ((key, members, path) for path in paths for key, members in packing.read_shard(path))
    return [sample.decode(key, members, str(path)) for key, members, path in itertools.islice(found, count)]


def contact_sheet(made: Manifest, samples: Sequence[Sample]) -> Picture:
    """Lay tiles out in rows, each in natural colours beside its saliency; returns uint8 [3, y, x]."""
    pairs = [np.concatenate([natural_colours(made, s), heat(s)], axis=2) for s in samples]
    return sheet(pairs, COLUMNS)


def sheet(pictures: Sequence[Picture], columns: int) -> Picture:
    """Lay pictures of one size out in rows on white."""
    height, width = (side + GAP_PX for side in pictures[0].shape[1:])
    laid = np.full(
        (3, -(-len(pictures) // columns) * height, min(columns, len(pictures)) * width), 255, np.uint8
    )
    for number, picture in enumerate(pictures):
        top, left = number // columns * height, number % columns * width
        laid[:, top : top + picture.shape[1], left : left + picture.shape[2]] = picture
    return laid


def colour_places(sensor_name: str, bands: tuple[str, ...]) -> list[int]:
    """Return where red, green and blue are stored; the first band thrice where a set lacks one of them."""
    table = sensor(sensor_name)
    try:
        names = [table.resolve(role, bands).name for role in ("red", "green", "blue")]
    except ContractError:
        return [0, 0, 0]
    return [bands.index(name) for name in names]


def natural_colours(made: Manifest, tile: Sample) -> Picture:
    """Return red, green and blue, uint8 [3, y, x], stretched between the set's 0.5 and 99.5 % quantiles."""
    places = colour_places(made.contract.sensor, made.contract.band_names)
    # the set's own quantiles, as the model sees them
    return stretched(tile.pixels[places], tuple(made.statistics[p] for p in places))


def stretched(pixels: NDArray[np.int16], statistics: tuple[BandStatistics, ...]) -> Picture:
    """Return stored bands [3, y, x] as a picture, bright enough for the eye."""
    shown = normalisation("minmax", statistics)(pixels)
    return (shown**GAMMA * 255).astype(np.uint8)


def heat(tile: Sample) -> Picture:
    """Return a tile's saliency as a picture from black over red to yellow, [3, y, x]."""
    # a cell is one colour: the model sees no finer saliency
    return warm(enlarged(saliency_map(tile.cells), tile.mask.shape[0] // tile.cells.shape[1]))


def saliency_map(cells: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return the saliency, 0 to 1, of cells [index, y, x, 3] as [y, x]."""
    return np.asarray(saliency(cells), np.float64).reshape(cells.shape[1:3])


def enlarged(values: NDArray[np.float64], factor: int) -> NDArray[np.float64]:
    """Repeat every value [y, x] as a square."""
    return np.asarray(np.kron(values, np.ones((factor, factor))), np.float64)


def warm(level: NDArray[np.float64]) -> Picture:
    """Colour values from 0 (black) over red to 1 (yellow)."""
    return (np.stack([np.clip(2 * level, 0, 1), np.clip(2 * level - 1, 0, 1), level * 0]) * 255).astype(
        np.uint8
    )


def diverging(values: NDArray[np.float64]) -> Picture:
    """Colour an index from -1 (brown) over 0 (white) to 1 (green); grey where it is not a number."""
    known = np.nan_to_num(np.clip(values, -1, 1))
    stops = np.linspace(-1, 1, len(_DIVERGING))
    channels = np.stack([np.interp(known, stops, channel) for channel in _DIVERGING.T])
    return np.where(np.isnan(values), 128, channels).astype(np.uint8)


def png(picture: Picture) -> bytes:
    """Encode a picture as PNG."""
    bands, height, width = picture.shape
    shape = {"width": width, "height": height, "count": bands, "dtype": "uint8"}
    # in memory first: what rasterio raises for a file that cannot be written has no public name
    with warnings.catch_warnings(), MemoryFile() as memory:
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture lies nowhere
        with memory.open(driver="PNG", **shape) as raster:
            raster.write(picture)
        return bytes(memory.read())


def write_png(path: Path, picture: Picture) -> None:
    """Write a picture as PNG; raises `OutputError` where it cannot be written."""
    try:
        manifests.write_atomically(path, png(picture))
    except OSError as error:
        raise OutputError(
            f"cannot write {path} ({error}). Take another place with --picture FILE.png."
        ) from error
