"""Writing the simulated rasters: JPEG 2000 without loss, tiled GeoTIFF, class rasters."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import DatasetWriter, MemoryFile

from preprocessing.simulation.landscape import LANDCOVER

LABEL_COLOURS = {1: (50, 90, 160), 2: (20, 90, 40), 3: (150, 190, 70), 4: (200, 160, 110), 5: (180, 70, 60)}

_TIFF = {"tiled": True, "compress": "deflate"}


@dataclass(frozen=True)
class Coding:
    """How a JPEG 2000 file is laid out: what decides how long it takes to decode."""

    tile_px: int
    block_px: int
    """Side of a code block, the unit of entropy coding: at 4 px a pixel takes thrice the time that it takes at 64."""
    precinct_px: int
    levels: int = 4
    """Times the image is halved: one resolution more than that."""


IMAGE_CODINGS = {10: Coding(1024, 64, 256), 20: Coding(640, 8, 128), 60: Coding(192, 4, 64)}
"""Pixel size in metres -> coding of the bands and of SCL, as real Sentinel-2 products have it."""
MASK_CODINGS = {10: Coding(1024, 64, 256), 20: Coding(2048, 64, 256, levels=5), 60: Coding(256, 16, 128)}
"""Pixel size in metres -> coding of their quality masks."""


@dataclass(frozen=True)
class Place:
    """Where the simulated ground lies: its upper left corner in a map projection."""

    crs: str
    left_m: float
    top_m: float


PLACE = Place("EPSG:32632", 600_000, 5_400_000)
"""Upper left corner of the Sentinel-2 tile T32UPU; multiples of 60 m, so that all grids nest."""


def transform(gsd_m: float, place: Place = PLACE) -> Affine:
    """Return the transform of a grid of square pixels."""
    return Affine(gsd_m, 0, place.left_m, 0, -gsd_m, place.top_m)


def _profile(array: NDArray[Any], gsd_m: float, block_px: int, place: Place = PLACE) -> dict[str, Any]:
    height, width = array.shape[-2:]
    return {
        "width": width,
        "height": height,
        "count": len(array) if array.ndim == 3 else 1,
        "dtype": array.dtype.name,
        "crs": CRS.from_string(place.crs),
        "transform": transform(gsd_m, place),
        "blockxsize": min(block_px, _multiple_of_16(width)),
        "blockysize": min(block_px, _multiple_of_16(height)),
    }


def _multiple_of_16(side_px: int) -> int:
    # what TIFF demands of a block
    return max(side_px // 16 * 16, 16)


@contextmanager
def _raster(path: Path, driver: str, profile: dict[str, Any]) -> Iterator[DatasetWriter]:
    """Open a raster in memory and write its bytes to `path` at the end.

    On a full disk this raises OSError as any file does; GDAL's own writers raise something private or nothing.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # the JPEG 2000 writer leaves the georeference out unless the name ends in .jp2
    with MemoryFile(ext=path.suffix) as memory:
        with memory.open(driver=driver, **profile) as raster:
            yield raster
        path.write_bytes(memory.read())


def write_jp2(
    path: Path,
    array: NDArray[np.uint8] | NDArray[np.uint16],
    gsd_m: float,
    coding: Coding,
    place: Place = PLACE,
) -> None:
    """Write [y, x] or [layer, y, x] as JPEG 2000 without loss, as the product's own writer lays it out."""
    profile = _profile(array, gsd_m, coding.tile_px, place)
    profile |= {"QUALITY": "100", "REVERSIBLE": "YES", "YCBCR420": "NO", "GMLJP2": "YES"}
    profile |= _coding_options(coding, min(profile["blockxsize"], profile["blockysize"]))
    with _raster(path, "JP2OpenJPEG", profile) as raster:
        raster.write(array if array.ndim == 3 else array[None])


def _coding_options(coding: Coding, tile_px: int) -> dict[str, str]:
    # the driver wants more than one pixel left of a tile, which only the smallest products have not
    levels = min(coding.levels, (tile_px - 1).bit_length() - 1)
    return {
        "CODEBLOCK_WIDTH": str(coding.block_px),
        "CODEBLOCK_HEIGHT": str(coding.block_px),
        "RESOLUTIONS": str(levels + 1),
        "PRECINCTS": ",".join([f"{{{coding.precinct_px},{coding.precinct_px}}}"] * (levels + 1)),
        "PLT": "YES",
    }


def write_tif(
    path: Path,
    array: NDArray[np.uint8] | NDArray[np.uint16],
    gsd_m: float,
    nodata: int | None = None,
    place: Place = PLACE,
) -> None:
    """Write [y, x] as a tiled, deflated GeoTIFF."""
    profile = _profile(array, gsd_m, 256, place) | _TIFF | {"nodata": nodata, "predictor": 2}
    with _raster(path, "GTiff", profile) as raster:
        raster.write(array, 1)


def write_landcover(path: Path, classes: NDArray[np.uint8], gsd_m: float, place: Place = PLACE) -> None:
    """Write a class raster [y, x] with the class names in its tag CLASSES, comma-separated, by value from 0."""
    with _raster(path, "GTiff", _profile(classes, gsd_m, 256, place) | _TIFF | {"nodata": 0}) as raster:
        raster.write(classes, 1)
        raster.update_tags(CLASSES=",".join(LANDCOVER))
        raster.write_colormap(1, LABEL_COLOURS)


def write_picture(path: Path, red_green_blue: NDArray[np.float32], brightest: float = 0.25) -> None:
    """Write reflectance [3, y, x] as a PNG for people; `brightest` is the reflectance that becomes white."""
    # a power below 1: most ground is dark, and would be black on a screen
    stretched = np.clip(red_green_blue / brightest, 0, 1) ** 0.6 * 255
    _, height, width = stretched.shape
    profile = {"width": width, "height": height, "count": 3, "dtype": "uint8"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)  # a picture lies nowhere
        with _raster(path, "PNG", profile) as raster:
            raster.write(stretched.astype(np.uint8))
