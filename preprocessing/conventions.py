"""Attributes by which other tools understand a stored scene: CF 1.11 and the GeoZarr `proj:` and `spatial:` sets."""

from __future__ import annotations

from typing import Any

from rasterio.crs import CRS

from pipeline.sample import NODATA, SCALE, Flag
from preprocessing.grids import Grid

_STANDARD_NAMES = dict.fromkeys(("L1C", "L1TP", "L1GT", "L1GS"), "toa_bidirectional_reflectance")
_CONVENTIONS = {
    "proj": "f17cb550-5864-4468-aeb7-f3180cfb622f",
    "spatial": "689b58e2-cf7b-45e0-9fff-9cfc0883d6b4",
}
"""GeoZarr's conventions by name, with the identifiers their specifications fix."""
_ON_GRID = {"grid_mapping": "spatial_ref", "coordinates": "spatial_ref"}
"""`coordinates` as well: xarray then hands the CRS along with the array without further options."""


def standard_name(level: str) -> str:
    """Return the CF name of what a processing level holds: top-of-atmosphere or surface reflectance."""
    return _STANDARD_NAMES.get(level, "surface_bidirectional_reflectance")


def reflectance_attributes(level: str) -> dict[str, Any]:
    """Return the attributes of the reflectance array; `level` tells top of atmosphere from surface."""
    return _ON_GRID | {
        "scale_factor": SCALE,
        "add_offset": 0.0,
        # as stored: xarray compares it before it scales
        "_FillValue": NODATA,
        "units": "1",
        "standard_name": standard_name(level),
        "long_name": f"{level} reflectance",
    }


def mask_attributes() -> dict[str, Any]:
    """Return the attributes of the mask of bit flags."""
    return _ON_GRID | {
        "long_name": "quality flags",
        "flag_masks": [int(f) for f in Flag],
        "flag_meanings": " ".join(str(f.name).lower() for f in Flag),
    }


def label_attributes() -> dict[str, Any]:
    """Return the attributes of the class numbers."""
    return _ON_GRID | {"long_name": "class number"}


def axis_attributes(axis: str, crs: CRS) -> dict[str, Any]:
    """Return the attributes of the coordinate `x` or `y`."""
    if crs.is_geographic:
        name, units = {"x": "longitude", "y": "latitude"}[axis], "degrees"
    else:
        name, units = f"projection_{axis}_coordinate", "m"
    return {"axis": axis.upper(), "standard_name": name, "units": units}


def crs_attributes(grid: Grid) -> dict[str, Any]:
    """Return the attributes of the grid mapping variable (CF, with GDAL's transform beside it)."""
    crs, t = grid.crs, grid.transform
    wkt = crs.to_wkt()
    name = "latitude_longitude" if crs.is_geographic else "transverse_mercator"
    # naming a projection wrongly is worse than not at all: the WKT is always there
    known = {"grid_mapping_name": name} if crs.is_geographic or "Transverse_Mercator" in wkt else {}
    return known | {
        "crs_wkt": wkt,
        "spatial_ref": wkt,
        "GeoTransform": f"{t.c!r} {t.a!r} {t.b!r} {t.f!r} {t.d!r} {t.e!r}",
    }


def group_attributes(grid: Grid) -> dict[str, Any]:
    """Return the attributes of a scene's group (GeoZarr `proj:` and `spatial:`), with the conventions they follow."""
    left, bottom, right, top = grid.bounds
    epsg = grid.crs.to_epsg()
    # home-made projections have no code; the WKT says the same
    code = {"proj:code": f"EPSG:{epsg}"} if epsg else {}
    place = {"proj:wkt2": grid.crs.to_wkt(version="WKT2_2019")} if grid.is_placed else {}
    return code | {
        "Conventions": "CF-1.11",
        "zarr_conventions": [_convention(name, uuid) for name, uuid in _CONVENTIONS.items()],
        **place,
        "spatial:dimensions": ["y", "x"],
        "spatial:transform": list(grid.transform)[:6],
        "spatial:shape": list(grid.shape_px),
        # of a south-up grid the first row is the lowest
        "spatial:bbox": [left, min(bottom, top), right, max(bottom, top)],
        "spatial:registration": "pixel",
    }


def _convention(name: str, uuid: str) -> dict[str, str]:
    return {
        "name": name,
        "uuid": uuid,
        "schema_url": f"https://raw.githubusercontent.com/zarr-conventions/{name}/refs/tags/v0.1/schema.json",
        "spec_url": f"https://github.com/zarr-conventions/{name}/blob/v0.1/README.md",
    }
