"""Digital numbers to reflectance x 10 000 (int16) on one grid, and the mask of flags.

`DN * scale + offset` with the numbers the reader found in the product. Nodata is tested on the DN, before the
offset; the arithmetic never happens in the unsigned type. Every file is read once, from the top down.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sample import NODATA, SCALE, Flag
from preprocessing import grids, resampling
from preprocessing.grids import Grid
from preprocessing.resampling import Resampler
from preprocessing.rows import RowReader
from preprocessing.scenes import BandSource, Scene

LOW, HIGH = -32767, 32767
"""Stored range; beyond it a value is clipped, above it also flagged as saturated."""
TABLE_PX = 1 << 16
"""Below this a table over all numbers is larger than the band itself."""


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
    """Rows of one band on the scene's grid."""

    name: str
    pixels: NDArray[np.int16]
    """[y, x], reflectance x 10 000, nodata -32768."""
    saturated: NDArray[np.bool_] | None
    """[y, x]; None where no pixel is."""


def lay_out(scene: Scene, gsd_m: float | None, crs: str | None) -> Layout:
    """Read the grids of a scene's files and choose the common one.

    Raises `SceneError` naming the files where they do not belong together.
    """
    # quality layers too: a mask of other ground would mark the wrong pixels
    images = (*scene.bands, *scene.after)
    paths = [b.path for b in images] + [m.path for m in scene.masks if not m.polygons]
    # once a file: the layers of one file have one grid
    own = {path: grids.read_grid(path, gsd_m) for path, gsd_m in _grids_wanted(scene).items()}
    for band in images:
        grids.check_stated(band.path, own[band.path], band.stated)
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


def to_units(band: BandSource, numbers: NDArray[Any]) -> NDArray[np.float64]:
    """Return reflectance x 10 000, not rounded, of DN of any shape; nodata is not looked at."""
    return numbers.astype(np.float64) * (band.scale / SCALE) + band.offset / SCALE


def round_units(units: NDArray[np.floating]) -> tuple[NDArray[np.int16], NDArray[np.bool_]]:
    """Round reflectance x 10 000 of any shape to stored int16 (ties to even); NaN becomes nodata.

    Returns the numbers, and where they were too large and were clipped.
    """
    # most rows hold nothing that needs care; NaN is neither below nor above
    if units.size and units.min() >= LOW and units.max() <= HIGH:
        return np.rint(units).astype(np.int16), np.zeros(units.shape, np.bool_)
    # numpy turns NaN into an arbitrary integer
    valid = np.isfinite(units)
    whole = np.rint(np.where(valid, units, 0))
    # -32767 is the least: one less would read as nodata
    pixels = np.where(valid, np.clip(whole, LOW, HIGH), NODATA).astype(np.int16)
    return pixels, valid & (whole > HIGH)


class DateReader:
    """The bands of one date on the scene's grid, some rows at a time; a context manager that closes the files."""

    def __init__(self, layout: Layout, how: str) -> None:
        """how: `bilinear`, `cubic` or `nearest`; no file is opened yet."""
        self._target, self._how = layout.target, how
        self._bands = list(zip(layout.scene.bands, layout.bands, strict=True))
        of_file: dict[str, list[BandSource]] = {}
        for band in layout.scene.bands:
            of_file.setdefault(band.path, []).append(band)
        # an 8-bit buffer starts as nodata, so what is not decoded stays unmeasured
        self._files = {
            path: RowReader(path, tuple(b.layer for b in bands), bands[0].nodata_dn or 0, bands[0].checksum)
            for path, bands in of_file.items()
        }
        self._last = {band.path: band for band in layout.scene.bands}
        self._layers = {path: [b.layer for b in bands] for path, bands in of_file.items()}
        self._ways = {
            grid: resampling.between(grid, layout.target, "bilinear" if how == resampling.NEAREST else how)
            for _, grid in self._bands
            # equality of transforms, not closeness: a copy is exact only on the same grid
            if grid != layout.target
        }

    def __enter__(self) -> DateReader:
        return self

    def __exit__(self, *_: object) -> None:
        for reader in self._files.values():
            reader.close()

    def images(self, rows: slice) -> Iterator[BandImage]:
        """Yield rows of the bands on the scene's grid [y, x], in order; they must never go back.

        Raises `SceneError` naming a file that is altered or cannot be decoded to its end.
        """
        for band, grid in self._bands:
            way = self._ways.get(grid)
            low, high = way.span(rows) if way else (rows.start, rows.stop)
            # all layers of a file at once: where they are interleaved one cannot be decoded alone
            numbers = self._files[band.path].take(low, high)[self._layers[band.path].index(band.layer)]
            if way and self._how != resampling.NEAREST:
                yield _resampled(band, numbers, way, low, rows)
            else:
                yield _exact(band, way.nearest(numbers, low, rows) if way else numbers)
            # on the scene's own grid nothing is needed twice, and a strip of every band is a lot
            if not way and band is self._last[band.path]:
                self._files[band.path].release(rows.stop)


def band_images(layout: Layout, how: str) -> Iterator[BandImage]:
    """Yield the scene's bands whole on its grid [y, x]; `how` is `bilinear`, `cubic` or `nearest`."""
    with DateReader(layout, how) as reader:
        yield from reader.images(slice(0, layout.target.height_px))


def _exact(band: BandSource, numbers: NDArray[Any]) -> BandImage:
    """Convert without resampling: a table over all DN for 8 and 16 bit, arithmetic for the rest."""
    pixels = np.empty(numbers.shape, np.int16)
    # one look-up a pixel instead of float arithmetic
    table = _table(band, numbers.dtype) if numbers.size > TABLE_PX else None
    # by the table's own index of what is flagged, most bands are seen to hold none
    flagged = table is None or _any_of(table[1], numbers)
    saturated = np.empty(numbers.shape, np.bool_) if flagged else None
    for rows in resampling.strips(numbers.shape[0]):
        if table is None and saturated is not None:
            pixels[rows], saturated[rows] = _convert(band, numbers[rows])
        elif table is not None:
            # `clip` never clips here; it saves numpy a look at every index, and a copy
            np.take(table[0], numbers[rows], mode="clip", out=pixels[rows])
            if saturated is not None:
                np.take(table[1], numbers[rows], mode="clip", out=saturated[rows])
    return BandImage(band.name, pixels, saturated)


def _any_of(flags: NDArray[np.bool_], numbers: NDArray[Any]) -> bool:
    """Say whether a number may be flagged: those are the largest, if any."""
    found = np.flatnonzero(flags)
    return bool(found.size) and bool(numbers.max(initial=0) >= found[0])


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


def _resampled(band: BandSource, numbers: NDArray[Any], way: Resampler, low: int, rows: slice) -> BandImage:
    # float32 holds 16-bit numbers exactly; the weights cost far less than one unit
    units = _units(band, numbers)
    valid = ~_is_nodata(band, numbers) & np.isfinite(units)
    # not nearest: what a saturated number has a part in is as invented as the number itself
    saturated = way.touched(_is_saturated(band, numbers), low, rows)
    pixels = np.empty(saturated.shape, np.int16)
    for part, mixed in way.mix(units, valid, low, rows):
        inside = slice(part.start - rows.start, part.stop - rows.start)
        # while the part is in the processor's cache
        pixels[inside], too_large = round_units(mixed)
        saturated[inside] |= too_large
    return BandImage(band.name, pixels, saturated if saturated.any() else None)


def _units(band: BandSource, numbers: NDArray[Any]) -> NDArray[np.float32]:
    """Return `to_units` in single precision."""
    if numbers.dtype != np.uint16 or numbers.size < TABLE_PX:
        return to_units(band, numbers).astype(np.float32)
    table = to_units(band, np.arange(TABLE_PX)).astype(np.float32)
    units = np.empty(numbers.shape, np.float32)
    for rows in resampling.strips(len(numbers)):
        np.take(table, numbers[rows], mode="clip", out=units[rows])
    return units


def add_band_flags(mask: NDArray[np.uint8], image: BandImage) -> None:
    """Mark in `mask` (uint8 [y, x]), in place, where a band holds no measurement or a saturated one."""
    # as bytes of 0 and 1: picking pixels by truth takes ten times longer
    mask |= (image.pixels == NODATA).view(np.uint8) * np.uint8(Flag.NODATA)
    if image.saturated is not None:
        mask |= image.saturated.view(np.uint8) * np.uint8(Flag.SATURATED)
