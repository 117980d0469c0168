"""Which scenes of an archive are wanted: by date, cloud, area or list."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from datetime import date
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator

from pipeline.config import Config, UserPath
from pipeline.errors import ConfigError, MissingInputError
from preprocessing.scenes import Scene

Ring = NDArray[np.float64]
"""[corner, (longitude, latitude)], degrees, not closed."""


class SelectConfig(Config):
    """Which scenes of the archive are used; without a key all are."""

    date_from: date | None = None
    """First day of acquisition, as 2024-06-01."""
    date_to: date | None = None
    """Last day of acquisition."""
    max_cloud: float | None = Field(default=None, ge=0, le=1)
    """Largest share of clouds that a product may state; one that states none is used."""
    area: tuple[float, float, float, float] | UserPath | None = None
    """Ground a scene must touch: [west, south, east, north] in degrees, or a GeoJSON file of polygons."""
    list: UserPath | None = None
    """File with the names of the products to use: one a line, or a CSV with a column `product`."""

    @field_validator("area")
    @classmethod
    def _a_box(cls, area: Any) -> Any:
        if isinstance(area, tuple) and not (area[0] < area[2] and area[1] < area[3]):
            raise ValueError(f"{list(area)} is no box: write [west, south, east, north] in degrees")
        return area


def unwanted(select: SelectConfig, scene: Scene) -> str:
    """Say why a scene is not selected by what its metadata states; empty where it is."""
    day = _day(scene.acquired)
    if (select.date_from or select.date_to) and day is None:
        return "no date"
    if select.date_from and day and day < select.date_from:
        return "before date_from"
    if select.date_to and day and day > select.date_to:
        return "after date_to"
    if select.max_cloud is not None and (scene.cloud_share or 0) > select.max_cloud:
        return "over max_cloud"
    if select.list and not _listed(select.list) & {scene.id, scene.location.name, str(scene.location)}:
        return "not on the list"
    return ""


def outside(select: SelectConfig, corners: Ring) -> bool:
    """Say whether a scene's corners [4, (lon, lat)] lie apart from the selected area."""
    if select.area is None:
        return False
    return not any(touch(ring, one) for ring in _rings(select.area) for one in _in_one_piece(corners))


def _in_one_piece(corners: Ring) -> tuple[Ring, ...]:
    """Return corners across the 180th meridian as they lie beyond it on either side; others as they are."""
    # no scene is half a world wide: taken as they stand, such corners enclose all the other meridians
    if np.ptp(corners[:, 0]) <= 180:
        return (corners,)
    east = np.where([True, False], corners + np.array([360.0, 0.0]) * (corners[:, :1] < 0), corners)
    return east, east - np.array([360.0, 0.0])


def _day(acquired: str) -> date | None:
    try:
        return date.fromisoformat(acquired[:10])
    except ValueError:
        return None


@lru_cache(maxsize=4)
def _listed(path: Path) -> frozenset[str]:
    """Read the product names of a list; `#` begins a remark."""
    try:
        # a spreadsheet's mark at the beginning would hide the column
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise MissingInputError(f"cannot read the list {path} ({error}); set `select.list`.") from error
    if lines and "product" in lines[0].split(","):
        found = [str(row["product"]) for row in csv.DictReader(lines)]
    else:
        found = [line.partition("#")[0].strip() for line in lines]
    # a path serves as well as the name at its end
    names = {name.rstrip("/") for name in found if name}
    return frozenset(names | {Path(name).name for name in names})


@lru_cache(maxsize=4)
def _rings(area: tuple[float, float, float, float] | Path) -> tuple[Ring, ...]:
    """Return the outlines of the area; holes are ignored."""
    if not isinstance(area, Path):
        west, south, east, north = area
        return (np.array([(west, north), (east, north), (east, south), (west, south)], np.float64),)
    try:
        rings = list(_outlines(json.loads(area.read_text(encoding="utf-8"))))
    except FileNotFoundError as error:
        raise MissingInputError(f"there is no {area}; set `select.area` to a GeoJSON file.") from error
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise ConfigError(f"`select.area`: {area} is no GeoJSON ({error!r}).") from error
    if not rings:
        raise ConfigError(f"`select.area`: {area} holds no polygon.")
    return tuple(rings)


def _outlines(tree: dict[str, Any]) -> Sequence[Ring]:
    kind = tree["type"]
    if kind == "FeatureCollection":
        return [ring for one in tree["features"] for ring in _outlines(one)]
    if kind == "Feature":
        # null is how a feature says that it has no place
        return _outlines(tree["geometry"]) if tree["geometry"] else []
    if kind == "GeometryCollection":
        return [ring for one in tree["geometries"] for ring in _outlines(one)]
    polygons = {"Polygon": [tree["coordinates"]], "MultiPolygon": tree["coordinates"]}.get(kind, [])
    # the outline stands first and holes after it; points may carry a height (RFC 7946)
    return [np.array(polygon[0], np.float64)[:, :2] for polygon in polygons]


def touch(one: Ring, other: Ring) -> bool:
    """Say whether two simple polygons have ground in common."""
    # boxes first: most pairs lie far apart, and need no edge compared
    if (one.max(0) < other.min(0)).any() or (other.max(0) < one.min(0)).any():
        return False
    # either an edge crosses an edge, or one lies within the other
    return bool(_cross(one, other) or _inside(one[0], other) or _inside(other[0], one))


def _cross(one: Ring, other: Ring) -> bool:
    a, b = one[:, None], np.roll(one, -1, 0)[:, None]
    c, d = other[None], np.roll(other, -1, 0)[None]
    return bool(((_side(a, b, c) != _side(a, b, d)) & (_side(c, d, a) != _side(c, d, b))).any())


def _side(start: Ring, end: Ring, point: Ring) -> NDArray[np.bool_]:
    """Say on which side of a line a point lies, for arrays of them."""
    along, to = end - start, point - start
    left: NDArray[np.bool_] = along[..., 0] * to[..., 1] - along[..., 1] * to[..., 0] > 0
    return left


def _inside(point: NDArray[np.float64], ring: Ring) -> bool:
    """Count the edges that a ray to the east crosses."""
    start, end = ring, np.roll(ring, -1, 0)
    spans = (start[:, 1] > point[1]) != (end[:, 1] > point[1])
    # edges along the ray cross nothing, and must not divide by 0
    rise = np.where(spans, end[:, 1] - start[:, 1], 1)
    at = start[:, 0] + (point[1] - start[:, 1]) / rise * (end[:, 0] - start[:, 0])
    return bool((spans & (at > point[0])).sum() % 2)
