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


def write_jp2(path: Path, array: NDArray[np.uint8] | NDArray[np.uint16], gsd_m: float, block_px: int) -> None:
    """Write [y, x] or [layer, y, x] as JPEG 2000 without loss, as the product's own writer lays it out."""
    options = {"QUALITY": "100", "REVERSIBLE": "YES", "YCBCR420": "NO", "GMLJP2": "YES"}
    with _raster(path, "JP2OpenJPEG", _profile(array, gsd_m, block_px) | options) as raster:
        raster.write(array if array.ndim == 3 else array[None])


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
