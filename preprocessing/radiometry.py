"""Digital numbers to reflectance x 10 000 (int16) on one grid, and the mask of flags.

`DN * scale + offset` with the numbers the reader found in the product. Nodata is tested on the DN, before the
offset; the arithmetic never happens in the unsigned type. Every file is read whole and once: JP2 blocks are
costly to decode.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.errors import RasterioError

from pipeline.errors import SceneError
from pipeline.sample import NODATA, SCALE, Flag
from preprocessing import checksums, grids, resampling
from preprocessing.grids import Grid
from preprocessing.scenes import BandSource, Scene

LOW, HIGH = -32767, 32767
"""Stored range; beyond it a value is clipped, above it also flagged as saturated."""
UNREAD = 0xDEAD
"""What the buffer holds before decoding: a decoder that stops early leaves it there."""
UNREAD_PX = 1024
"""This many pixels left as they were cannot be a coincidence."""
TABLE_PX = 1 << 16
"""Below this a table over all numbers is larger than the band itself."""
TOGETHER_PX = 1 << 26
"""Pixels of several layers of a file that are read at once."""
GDAL_SETTINGS = {"GDAL_NUM_THREADS": "1", "GDAL_DISABLE_READDIR_ON_OPEN": "EMPTY_DIR"}
"""With more threads GDAL reads a truncated JP2 without any error."""


@dataclass(frozen=True)
class Layout:
    """A scene's files with their grids, and the grid they are brought onto."""

    scene: Scene
    bands: tuple[Grid, ...]
    masks: tuple[Grid, ...]
    target: Grid
    after: tuple[Grid, ...] = ()

    def dates(self) -> Iterator[tuple[str, Layout]]:
        """Yield the name of the array that each date is stored in, and the layout of its bands."""
        yield "reflectance", self
        if self.scene.after:
            yield "after", replace(self, scene=replace(self.scene, bands=self.scene.after), bands=self.after)


@dataclass(frozen=True)
class BandImage:
    """One band on the scene's grid."""

    name: str
    pixels: NDArray[np.int16]
    """[y, x], reflectance x 10 000, nodata -32768."""
    saturated: NDArray[np.bool_]
    """[y, x]"""


def lay_out(scene: Scene, gsd_m: float | None, crs: str | None) -> Layout:
    """Read the grids of a scene's files and choose the common one.

    Raises `SceneError` naming the files where they do not belong together.
    """
    # quality layers too: a mask of other ground would mark the wrong pixels
    images = (*scene.bands, *scene.after)
    paths = [b.path for b in images] + [m.path for m in scene.masks if not m.polygons]
    # once a file: the layers of one file have one grid
    own = {path: grids.read_grid(path, gsd_m) for path, gsd_m in _grids_wanted(scene).items()}
    found = [own[p] for p in paths]
    grids.check_together(paths, found)
    bands, after = found[: len(scene.bands)], found[len(scene.bands) : len(images)]
    # by area: real pixels are not always square
    finest = min(bands, key=lambda g: abs(g.transform.a * g.transform.e))
    # polygons have no pixels of their own
    masks = [finest if m.polygons else own[m.path] for m in scene.masks]
    target = grids.choose(finest, gsd_m, crs)
    for band, grid in zip(scene.bands, bands, strict=True):
        grids.check_upsampling(band.name, grid, target)
    return Layout(scene, tuple(bands), tuple(masks), target, tuple(after))


def _grids_wanted(scene: Scene) -> dict[str, float | None]:
    """Return the files of a scene, each with the pixel size to take where it says none."""
    masks: dict[str, float | None] = {m.path: None for m in scene.masks if not m.polygons}
    return masks | {b.path: b.gsd_m for b in (*scene.bands, *scene.after)}


def read_numbers(path: str, empty: float, layer: int | tuple[int, ...] = 1) -> NDArray[Any]:
    """Read a layer of a raster whole, [y, x] in its own type; several layers of one type as [layer, y, x].

    Raises `SceneError` naming a file that cannot be decoded to its end.
    """
    try:
        with rasterio.Env(**GDAL_SETTINGS), grids.opened(path) as source:
            # codes of 8 bits use every value, so only 16 bits have room for a sentinel
            several = layer if isinstance(layer, tuple) else (layer,)
            kind = source.dtypes[max(several) - 1]
            wide = kind == "uint16"
            buffer = np.full((len(several), *source.shape), UNREAD if wide else empty, kind)
            source.read(several, out=buffer)
    except IndexError as error:
        raise SceneError(f"{path} has no layer {layer}; compare the settings with the file.") from error
    except (RasterioError, MemoryError) as error:
        raise SceneError(
            f"{path} cannot be decoded ({error}); the file is damaged: fetch the product again."
        ) from error
    unread = int(np.count_nonzero(buffer == UNREAD)) if wide else 0
    if unread >= UNREAD_PX:
        raise SceneError(
            f"{path}: {unread} pixels were never decoded; the file is damaged: fetch the product again."
        )
    return buffer if isinstance(layer, tuple) else buffer[0]


def to_units(band: BandSource, numbers: NDArray[Any]) -> NDArray[np.float64]:
    """Return reflectance x 10 000, not rounded, of DN of any shape; nodata is not looked at."""
    return numbers.astype(np.float64) * (band.scale / SCALE) + band.offset / SCALE


def round_units(units: NDArray[np.floating]) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """Round reflectance x 10 000 of any shape to stored int16 (ties to even); NaN becomes nodata.

    Returns the numbers, and where they were too large and were clipped.
    """
    # numpy turns NaN into an arbitrary integer
    valid = np.isfinite(units)
    whole = np.rint(np.where(valid, units, 0))
    # -32767 is the least: one less would read as nodata
    pixels = np.where(valid, np.clip(whole, LOW, HIGH), NODATA).astype(np.int16)
    return pixels, valid & (whole > HIGH)


def band_images(layout: Layout, how: str) -> Iterator[BandImage]:
    """Yield the scene's bands on its grid [y, x], one at a time; `how` is `bilinear` or `nearest`.

    Raises `SceneError` naming a file that cannot be decoded to its end.
    """
    held = _read_together(layout)
    for band, grid in zip(layout.scene.bands, layout.bands, strict=True):
        numbers = held.pop((band.path, band.layer), None)
        if numbers is None:
            yield band_image(band, grid, layout.target, how)
        else:
            yield _on_target(band, numbers, (grid, layout.target), how)


def _read_together(layout: Layout) -> dict[tuple[str, int], NDArray[Any]]:
    """Read files that hold several of the bands at once, where they are small: (path, layer) -> numbers [y, x]."""
    # opening a file takes longer than a small layer, and interleaved layers are decoded together anyway
    found: dict[tuple[str, int], NDArray[Any]] = {}
    for path, count in Counter(band.path for band in layout.scene.bands).items():
        bands = [pair for pair in zip(layout.scene.bands, layout.bands, strict=True) if pair[0].path == path]
        if count == 1 or count * math.prod(bands[0][1].shape_px) > TOGETHER_PX:
            continue
        checksums.verify(path, bands[0][0].checksum)
        layers = tuple(band.layer for band, _ in bands)
        numbers = read_numbers(path, bands[0][0].nodata_dn or 0, layers)
        found |= {(path, layer): part for layer, part in zip(layers, numbers, strict=True)}
    return found


def band_image(band: BandSource, grid: Grid, target: Grid, how: str) -> BandImage:
    """Read one band and bring it onto the target grid [y, x]; `how` is `bilinear` or `nearest`.

    Raises `SceneError` naming a file that is altered or cannot be decoded to its end.
    """
    checksums.verify(band.path, band.checksum)
    # an 8-bit buffer starts as nodata, so what is not decoded stays unmeasured
    return _on_target(band, read_numbers(band.path, band.nodata_dn or 0, band.layer), (grid, target), how)


def _on_target(band: BandSource, numbers: NDArray[Any], between: tuple[Grid, Grid], how: str) -> BandImage:
    """Bring the numbers [y, x] of a band from its own grid onto the target: `between` are both."""
    grid, target = between
    # on numbers, before conversion: nothing is mixed, so the exact path applies
    if how == "nearest" and grid.crs == target.crs:
        numbers, grid = resampling.nearest(numbers, grid, target), target
    # equality of transforms, not closeness: a copy is exact only on the same grid
    if grid == target:
        return _exact(band, numbers)
    return _resampled(band, numbers, grid, target, how)


def _exact(band: BandSource, numbers: NDArray[Any]) -> BandImage:
    """Convert without resampling: a table over all DN for 8 and 16 bit, arithmetic in strips for the rest."""
    pixels = np.empty(numbers.shape, np.int16)
    saturated = np.empty(numbers.shape, np.bool_)
    # one look-up a pixel instead of float arithmetic
    table = _table(band, numbers.dtype) if numbers.size > TABLE_PX else None
    for rows in resampling.strips(numbers.shape[0]):
        part = numbers[rows]
        if table is None:
            pixels[rows], saturated[rows] = _convert(band, part)
        else:
            pixels[rows], saturated[rows] = table[0][part], table[1][part]
    return BandImage(band.name, pixels, saturated)


def _table(band: BandSource, kind: np.dtype[Any]) -> tuple[NDArray[np.int16], NDArray[np.bool_]] | None:
    if kind not in (np.uint8, np.uint16):
        return None
    return _convert(band, np.arange(np.iinfo(kind).max + 1).astype(kind))


def _convert(band: BandSource, numbers: NDArray[Any]) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    units = to_units(band, numbers)
    # tested on the number: with an offset, DN 0 would become a plausible -0.1
    units[_is_nodata(band, numbers)] = np.nan
    pixels, too_large = round_units(units)
    return pixels, too_large | _is_saturated(band, numbers)


def _is_nodata(band: BandSource, numbers: NDArray[Any]) -> NDArray[np.bool_]:
    if band.nodata_dn is None:
        return np.zeros(numbers.shape, np.bool_)
    result: NDArray[np.bool_] = numbers == band.nodata_dn
    return result


def _is_saturated(band: BandSource, numbers: NDArray[Any]) -> NDArray[np.bool_]:
    if band.saturated_dn is None:
        return np.zeros(numbers.shape, np.bool_)
    result: NDArray[np.bool_] = numbers == band.saturated_dn
    return result


def _resampled(band: BandSource, numbers: NDArray[Any], grid: Grid, target: Grid, how: str) -> BandImage:
    # float32 holds 16-bit numbers exactly; the weights cost far less than one unit
    units = to_units(band, numbers).astype(np.float32)
    valid = ~_is_nodata(band, numbers) & np.isfinite(units)
    # not nearest: what a saturated number has a part in is as invented as the number itself
    saturated = resampling.touched(_is_saturated(band, numbers), grid, target, Resampling[how])
    pixels = np.empty(target.shape_px, np.int16)
    if grid.crs == target.crs:
        parts = resampling.bilinear(units, valid, grid, target)
    else:
        units[~valid] = np.nan
        warped = resampling.warp(units, grid, target, Resampling[how], np.nan)
        parts = iter([(slice(None), warped)])
    for rows, part in parts:
        pixels[rows], too_large = round_units(part)
        saturated[rows] |= too_large
    return BandImage(band.name, pixels, saturated)


def add_band_flags(mask: NDArray[np.uint8], image: BandImage) -> None:
    """Mark in `mask` (uint8 [y, x]), in place, where a band holds no measurement or a saturated one."""
    mask[image.pixels == NODATA] |= np.uint8(Flag.NODATA)
    mask[image.saturated] |= np.uint8(Flag.SATURATED)
