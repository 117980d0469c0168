"""Pixel grids: where the pixels of a band or a scene lie on the ground.

The file's own transform decides, never a nominal pixel size: cropped data sets have grids that do not nest.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray
from rasterio.crs import CRS
from rasterio.errors import CRSError, NotGeoreferencedWarning, RasterioError
from rasterio.warp import calculate_default_transform, transform

from pipeline.errors import SceneError
from preprocessing import locations
from preprocessing.scenes import StatedGrid
from preprocessing.settings import MAX_UPSAMPLING, UPSAMPLING_SLACK

SAME_PIXEL = 0.01
"""A wanted pixel size this close to the native one takes the native grid."""
UNPLACED = CRS.from_wkt('LOCAL_CS["image without a place on Earth",UNIT["metre",1]]')
"""Metres from an image's own corner: patches of many labelled sets have lost their place."""
Floats = NDArray[np.float64]
Box = tuple[float, float, float, float]
"""Left, bottom, right and top in units of a CRS."""


@dataclass(frozen=True)
class Grid:
    """A north-up or south-up raster: coordinate system, transform and size."""

    crs: CRS
    transform: Affine
    width_px: int
    height_px: int

    @property
    def shape_px(self) -> tuple[int, int]:
        """(height, width)."""
        return self.height_px, self.width_px

    @property
    def is_placed(self) -> bool:
        """Whether the grid has a place on Earth."""
        return bool(self.crs != UNPLACED)

    @property
    def bounds(self) -> Box:
        """(left, bottom, right, top) in units of the CRS; bottom and top as the transform has them."""
        # by hand: multiplying affine by a tuple is on its way out
        t = self.transform
        return t.c, t.f + t.e * self.height_px, t.c + t.a * self.width_px, t.f

    @property
    def pixel_m(self) -> tuple[float, float]:
        """Pixel size (x, y) in metres; for degrees, on the ellipsoid at the grid's centre."""
        dx, dy = abs(self.transform.a), abs(self.transform.e)
        if not self.is_placed:
            return dx, dy
        if not self.crs.is_geographic:
            return dx * self.crs.linear_units_factor[1], dy * self.crs.linear_units_factor[1]
        per_x, per_y = metres_per_degree(self.transform.f + self.transform.e * self.height_px / 2)
        return dx * per_x, dy * per_y

    def rows(self, part: slice) -> Grid:
        """Return the grid of some of the rows."""
        t = self.transform
        moved = Affine(t.a, t.b, t.c, t.d, t.e, t.f + t.e * part.start)
        return Grid(self.crs, moved, self.width_px, part.stop - part.start)

    def box(self, row_px: int, column_px: int, size_px: int) -> Box:
        """Return the square of pixels that begins at a row and a column, in units of the CRS."""
        t = self.transform
        x, y = (t.c + t.a * column_px, t.f + t.e * row_px)
        return x, y + t.e * size_px, x + t.a * size_px, y

    def covered(self, boxes: Sequence[Box], cell_px: int) -> NDArray[np.bool_]:
        """Return which cells [y / cell_px, x / cell_px] have their centre in one of the boxes."""
        t, cells = self.transform, np.zeros((self.height_px // cell_px, self.width_px // cell_px), bool)
        for left, bottom, right, top in boxes:
            columns = sorted(((left - t.c) / t.a / cell_px, (right - t.c) / t.a / cell_px))
            rows = sorted(((top - t.f) / t.e / cell_px, (bottom - t.f) / t.e / cell_px))
            # centres lie at halves; a box before the first cell must not count from the end
            (top_cell, end), (first, last) = ((max(round(v), 0) for v in pair) for pair in (rows, columns))
            cells[top_cell:end, first:last] = True
        return cells

    def centres(self) -> tuple[Floats, Floats]:
        """Return x of every column's centre [width_px] and y of every row's [height_px], in units of the CRS."""
        t = self.transform
        x: Floats = t.c + t.a * (np.arange(self.width_px, dtype=np.float64) + 0.5)
        y: Floats = t.f + t.e * (np.arange(self.height_px, dtype=np.float64) + 0.5)
        return x, y

    def lonlat(self, columns: Floats, rows: Floats) -> tuple[Floats, Floats]:
        """Return longitude and latitude (WGS 84, degrees) of pixel corners given as [n] columns and rows.

        NaN where the grid has no place on Earth.
        """
        if not self.is_placed:
            return np.full(columns.shape, np.nan), np.full(rows.shape, np.nan)
        x = self.transform.c + self.transform.a * columns
        y = self.transform.f + self.transform.e * rows
        lon, lat = transform(self.crs, CRS.from_epsg(4326), x, y)
        return np.asarray(lon, np.float64), np.asarray(lat, np.float64)


def metres_per_degree(latitude: float) -> tuple[float, float]:
    """Return the length in metres of a degree of longitude and of latitude on the WGS 84 ellipsoid."""
    # on a sphere of mean radius the north-south pixel would be off by up to half a percent
    a, e2 = 6378137.0, 0.00669437999014
    phi = math.radians(latitude)
    w = math.sqrt(1 - e2 * math.sin(phi) ** 2)
    degree = math.pi / 180
    return degree * a * math.cos(phi) / w, degree * a * (1 - e2) / w**3


@contextmanager
def opened(path: str) -> Iterator[Any]:
    """Open a raster with rasterio; one without a place on Earth is nothing to warn of."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with rasterio.Env(**locations.GDAL_SETTINGS), rasterio.open(path) as source:
            yield source


def read_grid(path: str, gsd_m: float | None = None) -> Grid:
    """Read a raster's own grid; raises `SceneError` naming a file that cannot be used.

    gsd_m: pixel size in metres of a file without georeferencing; None refuses one.
    """
    try:
        with opened(path) as source:
            grid = Grid(source.crs, source.transform, source.width, source.height)
    except RasterioError as error:
        raise SceneError(f"{path} cannot be opened ({error}); {locations.remedy(path)}.") from error
    # rasterio opens such a file without complaint
    if grid.crs is None and gsd_m is not None:
        return Grid(UNPLACED, Affine(gsd_m, 0, 0, 0, -gsd_m, 0), grid.width_px, grid.height_px)
    if grid.crs is None:
        raise SceneError(f"{path} has no coordinate system; it cannot be placed on the ground.")
    if grid.transform.b or grid.transform.d:
        raise SceneError(f"{path} is rotated; set `crs` after warping it north-up.")
    return grid


def stated(where: StatedGrid | None) -> Grid | None:
    """Return the grid that metadata states, without opening its file; None where it does not state all of it."""
    if where is None or not where.crs or len(where.transform) != len("abcdef") or not where.shape_px:
        return None
    return Grid(_crs_of(where), Affine(*where.transform), where.shape_px[1], where.shape_px[0])


def check_stated(path: str, grid: Grid, where: StatedGrid | None) -> None:
    """Raise `SceneError` naming both where a file does not lie where its metadata says.

    Edges may differ by half a pixel: some count from the centres of pixels.
    """
    if where is None:
        return
    size, t = where.shape_px or grid.shape_px, Affine(*(where.transform or grid.transform[:6]))
    crs = _crs_of(where) if where.crs else grid.crs
    apart = np.abs(np.subtract(Grid(crs, t, size[1], size[0]).bounds, grid.bounds))
    slack = np.abs([grid.transform.a, grid.transform.e] * 2) / 2
    if crs != grid.crs or size != grid.shape_px or (apart > slack).any():
        raise SceneError(
            f"{where.by} states {_told(crs, t, size)}, but {path} has"
            f" {_told(grid.crs, grid.transform, grid.shape_px)}: correct its proj: fields, or fetch both again."
        )


def _crs_of(where: StatedGrid) -> CRS:
    try:
        return CRS.from_user_input(where.crs)
    except CRSError as error:
        raise SceneError(
            f"{where.by} states a coordinate system that is none, {where.crs} ({error})."
        ) from error


def _told(crs: CRS, t: Affine, size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]} px of {abs(t.a):g} from {t.c:.10g}, {t.f:.10g} in {str(crs)[:40]}"


def read_label_grid(path: str, bands: Sequence[Grid]) -> Grid:
    """Read the grid of a class raster; without georeferencing of its own it takes that of a band of its size.

    Raises `SceneError` naming a raster that fits no band.
    """
    own = read_grid(path, gsd_m=1.0)
    if own.is_placed and bands[0].is_placed:
        return own
    for grid in bands:
        if grid.shape_px == own.shape_px:
            return grid
    sizes = ", ".join(sorted({f"{g.height_px} x {g.width_px}" for g in bands}))
    raise SceneError(
        f"{path} has {own.height_px} x {own.width_px} px and no place on Earth in common with the bands, which have"
        f" {sizes}: it cannot be laid over them."
    )


def check_together(paths: Sequence[str], grids: Sequence[Grid]) -> None:
    """Raise `SceneError` naming both files where layers differ in CRS or in extent.

    Extents may differ by half a pixel of the coarsest layer.
    """
    # the coarsest pixel sets the slack: cropping to whole pixels moves an edge by up to half of one
    slack_x = max(abs(g.transform.a) for g in grids) / 2
    slack_y = max(abs(g.transform.e) for g in grids) / 2
    first, slack = grids[0], np.array([slack_x, slack_y, slack_x, slack_y])
    for path, grid in zip(paths[1:], grids[1:], strict=True):
        if grid.crs != first.crs:
            raise SceneError(
                f"{paths[0]} and {path} have different coordinate systems ({_name(first)}, {_name(grid)})."
            )
        apart = np.abs(np.subtract(grid.bounds, first.bounds))
        if (apart > slack).any():
            worst = float((apart / slack).max()) / 2
            raise SceneError(
                f"{paths[0]} and {path} cover different ground: edges are {worst:.1f} coarsest pixels apart."
            )


def _name(grid: Grid) -> str:
    return str(grid.crs.to_string())[:40]


def choose(finest: Grid, gsd_m: float | None, crs: str | None) -> Grid:
    """Return the grid a scene is stored on.

    Without `gsd_m` the finest band's own grid; with it, pixels of that size from the same upper-left corner.
    Reprojects only where `crs` is given.
    """
    if crs is not None and not finest.is_placed:
        raise SceneError(
            "an image without a place on Earth cannot be reprojected: take `crs` out of the settings."
        )
    # naming the CRS a scene has already must not resample it
    if crs is not None and CRS.from_string(crs) != finest.crs:
        return _reprojected(finest, CRS.from_string(crs), gsd_m)
    dx_m, dy_m = finest.pixel_m
    if gsd_m is None or max(abs(dx_m / gsd_m - 1), abs(dy_m / gsd_m - 1)) <= SAME_PIXEL:
        return finest
    t, x_factor, y_factor = finest.transform, gsd_m / dx_m, gsd_m / dy_m
    return Grid(
        finest.crs,
        Affine(t.a * x_factor, 0, t.c, 0, t.e * y_factor, t.f),
        # rounded down: a pixel beyond the edge would hold invented values
        max(int(finest.width_px / x_factor + SAME_PIXEL), 1),
        max(int(finest.height_px / y_factor + SAME_PIXEL), 1),
    )


def _reprojected(grid: Grid, crs: CRS, gsd_m: float | None) -> Grid:
    left, bottom, right, top = grid.bounds
    affine, width, height = calculate_default_transform(
        grid.crs, crs, grid.width_px, grid.height_px, left, bottom, right, top, resolution=gsd_m
    )
    return Grid(crs, affine, int(width), int(height))


def check_upsampling(name: str, source: Grid, target: Grid) -> None:
    """Raise `SceneError` where a band would be enlarged more than 6 times."""
    # in metres and per axis: degrees are longer along y than along x
    factor = max(s / t for s, t in zip(source.pixel_m, target.pixel_m, strict=True))
    if factor > MAX_UPSAMPLING * UPSAMPLING_SLACK:
        raise SceneError(
            f"band {name} has pixels {factor:.1f} times those of the grid; at most {MAX_UPSAMPLING:g} is sensible."
            " Set a larger `gsd_m`, or leave the band out of `bands`."
        )
