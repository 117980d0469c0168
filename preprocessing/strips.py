"""A scene some rows at a time: where the rows come from, and the window of them that is in memory.

A Sentinel-2 scene with all its bands has three gigabytes. Everything that is made of pixels is therefore made of
one strip after the other: stored, summed up over cells, cut into tiles.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pipeline.sample import NO_CLASS, NODATA, Flag
from preprocessing import grids, labelling, masks, radiometry, resampling
from preprocessing.archive import SHARD_PX, StoredScene
from preprocessing.labelling import LabelConfig
from preprocessing.radiometry import DateReader, Layout
from preprocessing.rows import read_numbers

STRIP_PX = SHARD_PX
"""Rows of a strip: a shard of the archive must be written at once."""


@dataclass(frozen=True)
class Strip:
    """Rows of a scene, all its bands; views that are filled in place."""

    rows: slice
    """In the scene."""
    pixels: NDArray[np.int16]
    """[band, y, x], reflectance x 10 000."""
    mask: NDArray[np.uint8]
    """[y, x], bits of `Flag`."""
    after: NDArray[np.int16] | None = None
    """[band, y, x] of the later date, in sets of pairs."""
    label: NDArray[np.uint8] | None = None
    """[y, x], class numbers, where the scene has a class raster."""

    def arrays(self) -> Iterator[tuple[str, NDArray[np.int16] | NDArray[np.uint8]]]:
        """Yield the arrays of the archive that this is a part of, by name."""
        yield "reflectance", self.pixels
        yield "mask", self.mask
        if self.after is not None:
            yield "after", self.after
        if self.label is not None:
            yield "label", self.label


class Rows(Protocol):
    """Where the rows of a scene come from, from the top down."""

    @property
    def has_labels(self) -> bool:
        """Whether there are class numbers."""

    def fill(self, strip: Strip) -> None:
        """Fill a strip's arrays, which hold no measurements, with its rows."""


class ProductRows:
    """Rows of a product, decoded and brought onto the scene's grid; a context manager that closes its files."""

    def __init__(self, layout: Layout, how: str, labels: LabelConfig | None) -> None:
        """how: `bilinear`, `cubic` or `nearest`. The quality layers and the class raster are read now, whole."""
        self._layout, self._how = layout, how
        # whole, for a byte a pixel allows it: polygons and widened nodata do not end where a strip does
        self._mask = np.zeros(layout.target.shape_px, np.uint8)
        for source, grid in zip(layout.scene.masks, layout.masks, strict=True):
            masks.add_flags(self._mask, source, grid, (layout.target, how))
        self._label = _labels(layout, labels) if layout.scene.labels and labels else None
        self._open = ExitStack()
        self._dates: list[DateReader] = []

    def __enter__(self) -> ProductRows:
        # what is open already is closed again where the second date cannot be opened
        with ExitStack() as opened:
            self._dates = [
                opened.enter_context(DateReader(date, self._how)) for _, date in self._layout.dates()
            ]
            self._open = opened.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    @property
    def has_labels(self) -> bool:
        """Whether the scene has a class raster that is asked for."""
        return self._label is not None

    def fill(self, strip: Strip) -> None:
        """Fill a strip's arrays with its rows.

        Raises `SceneError` naming a file that is altered or cannot be decoded to its end.
        """
        strip.mask[:] = self._mask[strip.rows]
        if strip.label is not None and self._label is not None:
            strip.label[:] = self._label[strip.rows]
        # not strict: most scenes have one date
        for pixels, date in zip((strip.pixels, strip.after), self._dates, strict=False):
            if pixels is not None:
                _fill_date(pixels, strip, date)


def _fill_date(pixels: NDArray[np.int16], strip: Strip, date: DateReader) -> None:
    for band, image in zip(pixels, date.images(strip.rows), strict=True):
        band[:] = image.pixels
        radiometry.add_band_flags(strip.mask, image)


def _labels(layout: Layout, wanted: LabelConfig) -> NDArray[np.uint8]:
    """Return class numbers [y, x] on the scene's grid."""
    path = str(layout.scene.labels)
    own = grids.read_label_grid(path, layout.bands)
    # clamped edges would spread a raster of other ground over the scene
    grids.check_together([layout.scene.bands[0].path, path], [layout.bands[0], own])
    codes = read_numbers(path, 0, layout.scene.label_layer)
    return labelling.numbers(resampling.nearest(codes, own, layout.target), wanted)


class StoredRows:
    """Rows of a scene of the archive."""

    def __init__(self, stored: StoredScene) -> None:
        self._stored = stored

    @property
    def has_labels(self) -> bool:
        """Whether class numbers are stored."""
        return self._stored.has_labels

    def fill(self, strip: Strip) -> None:
        """Fill a strip's arrays with its rows; raises `CorruptDataError` for altered data."""
        for name, array in strip.arrays():
            lead = (slice(None),) * (array.ndim - 2)
            array[:] = self._stored.read(name, *lead, strip.rows)


class Window:
    """The rows of a scene that are in memory: the newest strip, and what of earlier ones is still needed."""

    def __init__(self, shape: tuple[int, int, int], room_px: int, kinds: tuple[bool, bool]) -> None:
        """Lay out room without measurements.

        shape: bands, rows and columns in memory, a strip's rows among them; room_px: columns beyond the scene's
        that tiles over its edge need; kinds: whether there is a second date, and whether there are class numbers.
        """
        bands, height, width = shape
        self.width_px = width
        """Columns of the scene, without the room beyond."""
        both = (height, width + room_px)
        self.pixels = np.full((bands, *both), NODATA, np.int16)
        self.mask = np.full(both, int(Flag.NODATA), np.uint8)
        self.after = np.full((bands, *both), NODATA, np.int16) if kinds[0] else None
        self.label = np.full(both, NO_CLASS, np.uint8) if kinds[1] else None
        self.top_px, self.end_px = 0, 0
        """The rows of the scene that are held."""

    def _all(self) -> list[tuple[NDArray[np.int16] | NDArray[np.uint8], int]]:
        """Return the arrays and what stands where nothing was measured."""
        known = [
            (self.pixels, NODATA),
            (self.after, NODATA),
            (self.mask, int(Flag.NODATA)),
            (self.label, NO_CLASS),
        ]
        return [(array, empty) for array, empty in known if array is not None]

    def advance(self, keep_from_px: int, rows: slice) -> Strip:
        """Let go of rows before `keep_from_px`, and return a strip of room for the next `rows`."""
        kept, gone = self.end_px - keep_from_px, keep_from_px - self.top_px
        for array, empty in self._all():
            if gone and kept > 0:
                # forward in memory and never over itself: few rows are kept
                array[..., :kept, :] = array[..., gone : gone + kept, :].copy()
            array[..., max(kept, 0) :, :] = empty
        self.top_px, self.end_px = keep_from_px, rows.stop
        inside = slice(rows.start - self.top_px, rows.stop - self.top_px)
        across = slice(0, self.width_px)
        return Strip(
            rows,
            self.pixels[:, inside, across],
            self.mask[inside, across],
            None if self.after is None else self.after[:, inside, across],
            None if self.label is None else self.label[inside, across],
        )
