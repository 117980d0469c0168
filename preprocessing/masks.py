"""Quality layers to mask flags: class codes, bit fields, a layer for each class, or polygons."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.features import rasterize

from pipeline.errors import SceneError
from pipeline.sample import Flag
from preprocessing import checksums, codestream, locations, markup, resampling, rows
from preprocessing.codestream import Alike, Box
from preprocessing.grids import Grid
from preprocessing.rows import RowReader
from preprocessing.scenes import MaskSource

Flags = NDArray[np.uint8]


def mask_flags(mask: MaskSource, grid: Grid, target: Grid, how: str = "bilinear") -> Flags:
    """Read a quality layer onto the target grid as mask flags, uint8 [y, x], as `add_flags` does."""
    flags = np.zeros(target.shape_px, np.uint8)
    add_flags(flags, mask, grid, (target, how))
    return flags


def add_flags(flags: Flags, mask: MaskSource, grid: Grid, onto: tuple[Grid, str]) -> None:
    """Add a quality layer to mask flags [y, x] of a target grid, in place; `onto`: that grid, and the way to it.

    Nearest, but for saturation, which marks every pixel that resampling in that way carries it to.
    Raises `SceneError` where the layer cannot be read, or does not hold what `mask` says.
    """
    source, (target, how) = _own_flags(mask, grid), onto
    # what bands say of themselves is mostly nothing
    if not source.any():
        return
    flags |= resampling.nearest(source, grid, target)
    # the bands it speaks of are resampled with their neighbours
    saturated = (source & np.uint8(Flag.SATURATED)) != 0
    if saturated.any():
        flags[resampling.touched(saturated, grid, target, how)] |= np.uint8(Flag.SATURATED)


def _own_flags(mask: MaskSource, grid: Grid) -> Flags:
    """Return flags [y, x] on the layer's own grid."""
    checksums.verify(mask.path, mask.checksum)
    if mask.polygons:
        return _burnt(mask, grid)
    if mask.layers:
        return _layered(mask, grid)
    flags = _decoded(mask)
    if mask.grow_nodata_px:
        gaps = (flags & np.uint8(Flag.NODATA)) != 0
        flags[grown(gaps, mask.grow_nodata_px)] |= np.uint8(Flag.NODATA)
    return flags


def _decoded(mask: MaskSource) -> Flags:
    codes = rows.read_numbers(mask.path, 0)
    if not np.issubdtype(codes.dtype, np.integer):
        raise SceneError(f"{mask.path} holds {codes.dtype}, not class codes or bit fields.")
    # all codes through a table: one pass, whatever the number of classes
    size = np.iinfo(codes.dtype).max + 1
    if size > 1 << 16:
        raise SceneError(f"{mask.path} holds {codes.dtype}; quality layers have 8 or 16 bits.")
    flags: Flags = flag_table(mask, size)[codes]
    return flags


def flag_table(mask: MaskSource, size: int) -> Flags:
    """Return the flags of every code below `size`, uint8 [code]."""
    table = np.zeros(size, np.uint8)
    for code, flag in mask.classes.items():
        table[code] |= np.uint8(flag)
    numbers = np.arange(size)
    for bit, flag in mask.bits.items():
        table[(numbers >> bit & 1).astype(bool)] |= np.uint8(flag)
    return table


def _layered(mask: MaskSource, grid: Grid) -> Flags:
    flags = np.zeros(grid.shape_px, np.uint8)
    whole = Alike((Box(0, 0, grid.width_px, grid.height_px),), b"")
    # window by window: eight layers of a whole tile of 10 m are a gigabyte
    with RowReader(mask.path, tuple(range(1, len(mask.layers) + 1))) as reader:
        # all layers in one read: a JPEG 2000 tile holds them all
        for tiles in codestream.alike(mask.path) or [whole]:
            known = tiles.digest, mask.layers
            if known in _NOTHING:
                continue
            part = _united(reader.window(tiles.boxes[0]), mask.layers)
            for box in tiles.boxes if part.any() else ():
                flags[box.top : box.top + box.height, box.left : box.left + box.width] = part
            if tiles.digest and not part.any():
                _NOTHING.add(known)
    return flags


_NOTHING: set[tuple[bytes, tuple[Flag, ...]]] = set()
"""Digests of tiles that hold nothing of these flags: the same few in every product, so that this stays small."""


def _united(layers: NDArray[np.uint8], flags: Sequence[Flag]) -> Flags:
    """Return the flags [y, x] of layers [layer, y, x]."""
    united = np.zeros(layers.shape[1:], np.uint8)
    for layer, flag in zip(layers, flags, strict=True):
        united[layer != 0] |= np.uint8(flag)
    return united


def grown(mask: NDArray[np.bool_], px: int) -> NDArray[np.bool_]:
    """Return a mask [y, x] widened by `px` pixels along rows, columns and diagonals."""
    wide = mask.copy()
    # one axis after the other makes a square
    for axis in (0, 1):
        narrow = np.moveaxis(wide.copy(), axis, 0)
        along = np.moveaxis(wide, axis, 0)
        for shift in range(1, px + 1):
            along[shift:] |= narrow[:-shift]
            along[:-shift] |= narrow[shift:]
    return wide


def _burnt(mask: MaskSource, grid: Grid) -> Flags:
    """Burn the polygons of a GML mask into flags [y, x]."""
    flags = np.zeros(grid.shape_px, np.uint8)
    try:
        with locations.open_bytes(mask.path) as stream:
            tree = markup.parse(stream.read(), mask.path)
        _check_place(tree, mask.path, grid)
        for kind, flag in mask.polygons.items():
            shapes = [
                _shape(feature) for feature in tree.iter(f"{_EOP}MaskFeature") if _kind(feature) == kind
            ]
            if shapes:
                burnt = rasterize(shapes, out_shape=grid.shape_px, transform=grid.transform, dtype=np.uint8)
                flags[burnt != 0] |= np.uint8(flag)
    except locations.UNREADABLE as error:
        # the deliberate ones are ValueErrors too
        if isinstance(error, SceneError):
            raise
        raise SceneError(f"{mask.path} cannot be read ({error}); fetch the product again.") from error
    return flags


_EOP, _GML = "{http://www.opengis.net/eop/2.0}", "{http://www.opengis.net/gml/3.2}"


def _check_place(tree: markup.Element, path: str, grid: Grid) -> None:
    """Raise `SceneError` where the polygons are given in other coordinates than the grid's."""
    # like urn:ogc:def:crs:EPSG:8.7:32755; a mask without polygons has none
    for envelope in tree.iter(f"{_GML}Envelope"):
        code = envelope.get("srsName", "").rpartition(":")[2]
        if not code.isdigit() or CRS.from_epsg(int(code)) != grid.crs:
            raise SceneError(f"{path} is in EPSG:{code or '?'}, not in the coordinate system of the bands.")


def _kind(feature: markup.Element) -> str:
    found = feature.find(f"{_EOP}maskType")
    return (found.text or "").strip() if found is not None else ""


def _shape(feature: markup.Element) -> dict[str, Any]:
    """Return a feature's polygon as GeoJSON: the outline, then holes."""
    rings = [
        _ring(positions)
        for place in ("exterior", "interior")
        for edge in feature.iter(f"{_GML}{place}")
        for positions in edge.iter(f"{_GML}posList")
    ]
    return {"type": "Polygon", "coordinates": rings}


def _ring(positions: markup.Element) -> list[tuple[float, float]]:
    numbers = [float(word) for word in (positions.text or "").split()]
    # some masks carry a height, which is not one
    step = int(positions.get("srsDimension", "2"))
    return list(zip(numbers[::step], numbers[1::step], strict=True))
