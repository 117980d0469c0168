"""One raster onto another grid, by the transforms of both, some rows at a time.

Between pixel centres: weights are renormalised over valid source pixels, edges are clamped, and a pixel is
invalid where the source pixel it lies in is. Where the target is coarser the kernel is widened to the target's
pixel, so that every source pixel counts. Cubic weights are negative in part, and beside a gap would be divided by
next to nothing: there the bilinear ones serve.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray
from rasterio.enums import Resampling
from rasterio.warp import reproject, transform

from preprocessing.grids import Grid

STRIP_PX = 128
"""Rows worked on at a time: float intermediates of a strip stay in the processor's cache."""
LEAST_SHARE = 1e-5
"""Less of a source pixel than this is rounding: of 65 535 it would be less than one unit."""
WHOLE = 1e-6
"""Weights of valid pixels this close to 1 are all of them."""
PROBES = 65
"""Points along each side of a target by which its place in another coordinate system is found."""
MARGIN_PX = 8
"""Source pixels beyond them that are read, in pixels of the coarser of both grids."""
TOLERANCE_PX = 0.01
"""GDAL reprojects the ends of rows and draws lines between them, which may be off by this much: where strips end, too."""
Image = NDArray[np.float32]
Ints = NDArray[np.intp]
Floats = NDArray[np.float64]
ScalarT = TypeVar("ScalarT", bound=np.generic)


def triangle(x: Floats) -> Floats:
    """Weight of a source pixel at a distance of `x` pixels, bilinear."""
    weights: Floats = np.maximum(0.0, 1 - np.abs(x))
    return weights


def keys(x: Floats) -> Floats:
    """Weight of a source pixel at a distance of `x` pixels: cubic convolution, a = -0.5 (Keys 1981)."""
    x = np.abs(x)
    near, far = (1.5 * x - 2.5) * x * x + 1, ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))


KERNELS: dict[str, tuple[Callable[[Floats], Floats], float]] = {
    "bilinear": (triangle, 1.0),
    "cubic": (keys, 2.0),
}
"""Weights and how many pixels they reach."""
NEAREST = "nearest"
"""The way that mixes nothing."""


@dataclass(frozen=True)
class Taps:
    """Which source pixels make each target pixel along one axis, and how much of each."""

    positions: Ints
    """[tap, target]"""
    weights: Image
    """[tap, target], summing to 1 over taps."""
    nearest: Ints
    """[target], the source pixel the target's centre lies in."""


def taps(kernel: str, axis: tuple[float, float], centres: Floats, size_px: int) -> Taps:
    """Lay out the taps of target `centres` [target] (CRS units) on a source axis of `size_px` pixels.

    axis: where the source begins, and its step, in CRS units.
    """
    weigh, reach = KERNELS[kernel]
    at = (centres - axis[0]) / axis[1]
    step = abs(centres[1] - centres[0]) / abs(axis[1]) if len(centres) > 1 else 1.0
    # a target coarser than the source widens the kernel, as GDAL does; else it would alias
    wide = max(float(step), 1.0)
    # 1e-9: on nested grids rounding must not shift the taps by a pixel
    first = np.floor(at - 0.5 - wide * reach + 1e-9).astype(np.intp) + 1
    positions = first + np.arange(int(np.ceil(2 * wide * reach)))[:, None]
    weights = weigh((positions + 0.5 - at) / wide)
    # widened kernels do not sum to 1 by themselves
    weights /= weights.sum(0)
    return Taps(
        # clamped, not dropped: an edge pixel keeps its value instead of losing weight
        np.clip(positions, 0, size_px - 1),
        weights.astype(np.float32),
        np.clip(np.floor(at).astype(np.intp), 0, size_px - 1),
    )


def axes(kernel: str, source: Grid, target: Grid) -> tuple[Taps, Taps]:
    """Return the taps of the columns and of the rows between two grids of one CRS."""
    x, y = target.centres()
    return (
        taps(kernel, (source.transform.c, source.transform.a), x, source.width_px),
        taps(kernel, (source.transform.f, source.transform.e), y, source.height_px),
    )


def strips(height_px: int, strip_px: int = STRIP_PX, first_px: int = 0) -> Iterator[slice]:
    """Divide rows into strips."""
    for start in range(first_px, height_px, strip_px):
        yield slice(start, min(start + strip_px, height_px))


class Resampler(Protocol):
    """From one grid to rows of another; a source is given as its rows from `low` on, as `span` asks for them."""

    def span(self, rows: slice) -> tuple[int, int]:
        """Return the source rows (first, end) that target rows are made of; first never goes back."""

    def mix(
        self, values: Image, valid: NDArray[np.bool_], low: int, rows: slice
    ) -> Iterator[tuple[slice, Image]]:
        """Yield (rows, float32 [rows, x]) of the target rows, NaN where the nearest source pixel is not `valid`."""

    def touched(self, flagged: NDArray[np.bool_], low: int, rows: slice) -> NDArray[np.bool_]:
        """Return where [rows, x] a flagged source pixel has a part in the value."""

    def nearest(self, codes: NDArray[ScalarT], low: int, rows: slice) -> NDArray[ScalarT]:
        """Return target rows [rows, x], each pixel from the source pixel it lies in."""


def between(source: Grid, target: Grid, how: str) -> Resampler:
    """Return the way from one grid to another; `how` is a key of `KERNELS`."""
    return Mixer(source, target, how) if source.crs == target.crs else Warper(source, target, how)


class Mixer:
    """Between two grids of one coordinate system."""

    def __init__(self, source: Grid, target: Grid, how: str) -> None:
        self._columns, self._rows = axes("bilinear", source, target)
        # apart: where there are gaps both are needed
        self._wide = None if how == "bilinear" else axes(how, source, target)
        self._height = source.height_px
        self._along = source.transform.e * target.transform.e > 0

    def span(self, rows: slice) -> tuple[int, int]:
        """Return the source rows (first, end) that target rows are made of."""
        # the target's first row is the source's last one
        if not self._along:
            return 0, self._height
        used = [self._rows.nearest[rows], self._rows.positions[:, rows]]
        used += [self._wide[1].positions[:, rows]] if self._wide else []
        return min(int(part.min()) for part in used), max(int(part.max()) for part in used) + 1

    def mix(
        self, values: Image, valid: NDArray[np.bool_], low: int, rows: slice
    ) -> Iterator[tuple[slice, Image]]:
        """Yield (rows, float32 [rows, x]) of the target rows, NaN where the nearest source pixel is not `valid`."""
        # 0 and not NaN: a NaN times weight 0 is still NaN
        known = values if valid.all() else np.where(valid, values, np.float32(0))
        for strip in strips(rows.stop, first_px=rows.start):
            first, end = (row - low for row in self.span(strip))
            # most rows have no gaps: that saves half the work
            if valid[first:end].all():
                yield strip, _mix(known, self._wide or (self._columns, self._rows), low, strip)
            else:
                yield strip, self._beside_gaps(known, valid, low, strip)

    def _beside_gaps(self, known: Image, valid: NDArray[np.bool_], low: int, strip: slice) -> Image:
        both = (self._columns, self._rows)
        share = _mix(valid.astype(np.float32), both, low, strip)
        # validity is that of the own source pixel, so that gaps neither shrink nor grow
        inside = self.nearest(valid, low, strip)
        # a whole share is 1 but for rounding, which must not tell pixels near a gap from those far off
        whole = ~inside | (share > 1 - WHOLE)
        total = _mix(known, both, low, strip) / np.where(whole, np.float32(1), share)
        if self._wide:
            reached = self._parts((~valid).astype(np.float32), self._wide, low, strip) > LEAST_SHARE
            total = np.where(reached, total, _mix(known, self._wide, low, strip))
        return np.where(inside, total, np.float32(np.nan))

    def touched(self, flagged: NDArray[np.bool_], low: int, rows: slice) -> NDArray[np.bool_]:
        """Return where [rows, x] a flagged source pixel has a part in the value."""
        found = np.zeros((rows.stop - rows.start, len(self._columns.nearest)), np.bool_)
        # the usual case, which costs nothing
        if not flagged.any():
            return found
        share = flagged.astype(np.float32)
        for strip in strips(rows.stop, first_px=rows.start):
            part = self._parts(share, self._wide or (self._columns, self._rows), low, strip)
            found[strip.start - rows.start : strip.stop - rows.start] = part > LEAST_SHARE
        return found

    def _parts(self, share: Image, used: tuple[Taps, Taps], low: int, strip: slice) -> Image:
        """Return how much of a share [y, x] goes into each pixel, whether it is added or subtracted."""
        columns, rows = (Taps(t.positions, np.abs(t.weights), t.nearest) for t in used)
        return _mix(share, (columns, rows), low, strip)

    def nearest(self, codes: NDArray[ScalarT], low: int, rows: slice) -> NDArray[ScalarT]:
        """Return target rows [rows, x], each pixel from the source pixel it lies in; edges are clamped."""
        # rows first: they are copied whole
        picked = np.take(codes, self._rows.nearest[rows] - low, axis=0, mode="clip")
        return np.take(picked, self._columns.nearest, axis=1, mode="clip")


def _mix(values: Image, used: tuple[Taps, Taps], low: int, strip: slice) -> Image:
    """Weigh source pixels: along x for the source rows this strip needs, then along y."""
    columns, rows = used
    positions, weights = rows.positions[:, strip] - low, rows.weights[:, strip]
    # only the source rows this strip needs are widened
    first, end = int(positions.min()), int(positions.max()) + 1
    wide = _weighed(values[first:end], columns.positions, columns.weights, axis=1)
    return _weighed(wide, positions - first, weights[..., None], axis=0)


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


class Warper:
    """Between two grids of different coordinate systems: GDAL's reprojection."""

    def __init__(self, source: Grid, target: Grid, how: str) -> None:
        self._source, self._target, self._how = source, target, Resampling[how]

    def span(self, rows: slice) -> tuple[int, int]:
        """Return the source rows (first, end) that target rows are made of."""
        # down to the last row: the first row needed must never go back
        return self._reach(slice(rows.start, self._target.height_px))[0], self._reach(rows)[1]

    def _reach(self, rows: slice) -> tuple[int, int]:
        part = self._target.rows(rows)
        x, y = part.centres()
        columns, lines = (v[np.linspace(0, len(v) - 1, min(PROBES, len(v))).astype(int)] for v in (x, y))
        along, down = (v.ravel() for v in np.meshgrid(columns, lines))
        _, found = transform(part.crs, self._source.crs, along, down)
        at = (np.asarray(found) - self._source.transform.f) / self._source.transform.e
        # infinite where a point has no place in the other system
        at = at[np.isfinite(at)]
        coarser = max(part.pixel_m[1] / self._source.pixel_m[1], 1.0)
        margin = int(np.ceil(MARGIN_PX * coarser + part.height_px / PROBES * coarser))
        low, high = (int(at.min()), int(at.max()) + 1) if at.size else (0, 0)
        return max(min(low - margin, self._source.height_px), 0), max(
            min(high + margin, self._source.height_px), 0
        )

    def mix(
        self, values: Image, valid: NDArray[np.bool_], low: int, rows: slice
    ) -> Iterator[tuple[slice, Image]]:
        """Yield (rows, float32 [rows, x]) of the target rows, NaN where there is no valid source."""
        yield rows, self._warped(np.where(valid, values, np.float32(np.nan)), low, rows, (self._how, np.nan))

    def touched(self, flagged: NDArray[np.bool_], low: int, rows: slice) -> NDArray[np.bool_]:
        """Return where [rows, x] a flagged source pixel has a part in the value."""
        if not flagged.any():
            return np.zeros((rows.stop - rows.start, self._target.width_px), np.bool_)
        # the same way the values go, so that the same pixels have a part
        share = self._warped(flagged.astype(np.float32), low, rows, (self._how, np.nan))
        return np.abs(share) > LEAST_SHARE

    def nearest(self, codes: NDArray[ScalarT], low: int, rows: slice) -> NDArray[ScalarT]:
        """Return target rows [rows, x], each pixel from the source pixel it lies in, 0 where there is none."""
        return self._warped(codes, low, rows, (Resampling.nearest, 0))

    def _warped(
        self, values: NDArray[ScalarT], low: int, rows: slice, how: tuple[Resampling, float]
    ) -> NDArray[ScalarT]:
        source, target = self._source.rows(slice(low, low + len(values))), self._target.rows(rows)
        # GDAL leaves pixels without source as they were
        result = np.full(target.shape_px, how[1], values.dtype)
        if not values.size:
            return result
        reproject(
            values,
            result,
            src_transform=source.transform,
            src_crs=source.crs,
            dst_transform=target.transform,
            dst_crs=target.crs,
            src_nodata=how[1],
            dst_nodata=how[1],
            resampling=how[0],
            num_threads=1,
            tolerance=TOLERANCE_PX,
        )
        return result


def nearest(codes: NDArray[ScalarT], source: Grid, target: Grid) -> NDArray[ScalarT]:
    """Bring a class raster [y, x] onto the target; each pixel takes the source pixel it lies in.

    Edges are clamped; only in another coordinate system there can be pixels without source: 0.
    """
    return between(source, target, "bilinear").nearest(codes, 0, slice(0, target.height_px))


def touched(flagged: NDArray[np.bool_], source: Grid, target: Grid, how: str) -> NDArray[np.bool_]:
    """Return where on the target a flagged source pixel [y, x] has a part in the value that `how` gives."""
    # on its own grid nothing is mixed
    if source == target:
        return flagged
    if how == NEAREST:
        return nearest(flagged, source, target)
    return between(source, target, how).touched(flagged, 0, slice(0, target.height_px))
