"""One raster onto another grid, by the transforms of both.

Bilinear between pixel centres: weights are renormalised over valid source pixels, edges are clamped, and a
pixel is invalid where the source pixel it lies in is. Where the target is coarser the triangle is widened to
the target's pixel, so that every source pixel counts.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.warp import reproject

from preprocessing.grids import Grid

STRIP_PX = 128
"""Rows worked on at a time: float intermediates of a strip stay in the processor's cache."""
LEAST_SHARE = 1e-5
"""Less of a source pixel than this is rounding: of 65 535 it would be less than one unit."""
Image = NDArray[np.float32]
Ints = NDArray[np.intp]
ScalarT = TypeVar("ScalarT", bound=np.generic)


@dataclass(frozen=True)
class Taps:
    """Which source pixels make each target pixel along one axis, and how much of each."""

    positions: Ints
    """[tap, target]"""
    weights: Image
    """[tap, target], summing to 1 over taps."""
    nearest: Ints
    """[target], the source pixel the target's centre lies in."""


def taps(source_origin: float, source_step: float, centres: NDArray[np.float64], size_px: int) -> Taps:
    """Lay out bilinear taps for target `centres` [target] (CRS units) on a source axis of `size_px` pixels."""
    at = (centres - source_origin) / source_step
    step = abs(centres[1] - centres[0]) / abs(source_step) if len(centres) > 1 else 1.0
    # a target coarser than the source widens the triangle, as GDAL does; else it would alias
    reach = max(float(step), 1.0)
    # 1e-9: on nested grids rounding must not shift the taps by a pixel
    first = np.floor(at - 0.5 - reach + 1e-9).astype(np.intp) + 1
    positions = first + np.arange(int(np.ceil(2 * reach)))[:, None]
    weights = np.maximum(0.0, 1 - np.abs(positions + 0.5 - at) / reach)
    # widened triangles do not sum to 1 by themselves
    weights /= weights.sum(0)
    return Taps(
        # clamped, not dropped: an edge pixel keeps its value instead of losing weight
        np.clip(positions, 0, size_px - 1),
        weights.astype(np.float32),
        np.clip(np.floor(at).astype(np.intp), 0, size_px - 1),
    )


def axes(source: Grid, target: Grid) -> tuple[Taps, Taps]:
    """Return the taps of the columns and of the rows between two grids of one CRS."""
    x, y = target.centres()
    return (
        taps(source.transform.c, source.transform.a, x, source.width_px),
        taps(source.transform.f, source.transform.e, y, source.height_px),
    )


def strips(height_px: int, strip_px: int = STRIP_PX) -> Iterator[slice]:
    """Divide rows into strips."""
    for start in range(0, height_px, strip_px):
        yield slice(start, min(start + strip_px, height_px))


def bilinear(
    values: Image, valid: NDArray[np.bool_], source: Grid, target: Grid
) -> Iterator[tuple[slice, Image]]:
    """Yield (rows, values float32 [rows, x]) of the target; NaN where the nearest source pixel is invalid.

    values, valid: [y, x] of the source.
    """
    columns, rows = axes(source, target)
    # most bands have no gaps: that saves half the work
    complete = bool(valid.all())
    # 0 and not NaN: a NaN times weight 0 is still NaN
    known = values if complete else np.where(valid, values, np.float32(0))
    for strip in strips(target.height_px):
        total = _mix(known, columns, rows, strip)
        if not complete:
            share = _mix(valid.astype(np.float32), columns, rows, strip)
            # validity is that of the own source pixel, so that gaps neither shrink nor grow
            inside = valid[np.ix_(rows.nearest[strip], columns.nearest)]
            total = np.where(inside, total / np.where(inside, share, np.float32(1)), np.float32(np.nan))
        yield strip, total


def _mix(values: Image, columns: Taps, rows: Taps, strip: slice) -> Image:
    """Weigh source pixels: along x for the source rows this strip needs, then along y."""
    positions, weights = rows.positions[:, strip], rows.weights[:, strip]
    # only the source rows this strip needs are widened
    low, high = int(positions.min()), int(positions.max()) + 1
    wide = _weighed(values[low:high], columns.positions, columns.weights, axis=1)
    return _weighed(wide, positions - low, weights[..., None], axis=0)


def _weighed(values: Image, positions: Ints, weights: Image, axis: int) -> Image:
    """Return the sum over taps of the values at their positions along an axis, times their weights."""
    # taken and added in place: fancy indexing is four times slower
    total: Image = np.take(values, positions[0], axis=axis, mode="clip")
    total *= weights[0]
    for position, weight in zip(positions[1:], weights[1:], strict=True):
        part = np.take(values, position, axis=axis, mode="clip")
        part *= weight
        total += part
    return total


def touched(flagged: NDArray[np.bool_], source: Grid, target: Grid, how: Resampling) -> NDArray[np.bool_]:
    """Return where on the target a flagged source pixel [y, x] has a part in the value that `how` gives."""
    # the usual cases, which cost nothing
    if source == target:
        return flagged
    if not flagged.any():
        return np.zeros(target.shape_px, np.bool_)
    share = flagged.astype(np.float32)
    # the same way the values go, so that the same pixels have a part
    if source.crs != target.crs:
        return warp(share, source, target, how, np.nan) > LEAST_SHARE
    found = np.empty(target.shape_px, np.bool_)
    for rows, part in bilinear(share, np.ones_like(flagged), source, target):
        found[rows] = part > LEAST_SHARE
    return found


def nearest(codes: NDArray[ScalarT], source: Grid, target: Grid) -> NDArray[ScalarT]:
    """Bring a class raster [y, x] onto the target; each pixel takes the source pixel it lies in.

    Edges are clamped; only in another coordinate system there can be pixels without source: 0.
    """
    if source.crs != target.crs:
        return warp(codes, source, target, Resampling.nearest, 0)
    columns, rows = axes(source, target)
    return codes[np.ix_(rows.nearest, columns.nearest)]


def warp(
    values: NDArray[ScalarT], source: Grid, target: Grid, how: Resampling, nodata: float
) -> NDArray[ScalarT]:
    """Reproject [y, x] to another coordinate system; pixels without source become `nodata`."""
    # GDAL leaves pixels without source as they were
    result = np.full(target.shape_px, nodata, values.dtype)
    reproject(
        values,
        result,
        src_transform=source.transform,
        src_crs=source.crs,
        dst_transform=target.transform,
        dst_crs=target.crs,
        src_nodata=nodata,
        dst_nodata=nodata,
        resampling=how,
        num_threads=1,
    )
    return result
