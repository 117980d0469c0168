"""The MTL of a simulated Landsat product: what readers look for, in the groups of the real one, in its three forms."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from preprocessing.simulation.raster import Place

GSD_M = 30
Value = str | int | float
Groups = dict[str, dict[str, Value]]
ROOT = "LANDSAT_METADATA_FILE"


@dataclass(frozen=True)
class Description:
    """What the MTL says of one simulated product."""

    name: str
    level: str
    spacecraft: str
    instrument: str
    time: datetime
    sun_elevation: float
    side_px: int
    place: Place
    files: Mapping[str, str]
    """Key of PRODUCT_CONTENTS -> file name."""
    rescaling: Mapping[str, Mapping[str, tuple[float, float]]]
    """Group -> band number -> factor and summand from digital number to reflectance."""


def write_mtl(folder: Path, what: Description) -> None:
    """Write the MTL as text, JSON and XML into the product's folder."""
    groups = _groups(what)
    (folder / f"{what.name}_MTL.txt").write_text(mtl_text(groups), encoding="ascii")
    (folder / f"{what.name}_MTL.json").write_text(json.dumps({ROOT: _as_text(groups)}), encoding="ascii")
    (folder / f"{what.name}_MTL.xml").write_text(mtl_xml(groups), encoding="ascii")


def _groups(what: Description) -> Groups:
    """Return the MTL's groups; the rescaling of Level 1 repeats the keys of Level 2 with other values."""
    return {
        "PRODUCT_CONTENTS": {
            "ORIGIN": "Simulated scene: no satellite took it",
            "LANDSAT_PRODUCT_ID": what.name,
            "PROCESSING_LEVEL": what.level,
            "COLLECTION_NUMBER": 2,
            "COLLECTION_CATEGORY": "T1",
            "OUTPUT_FORMAT": "GEOTIFF",
            **what.files,
        },
        "IMAGE_ATTRIBUTES": {
            "SPACECRAFT_ID": what.spacecraft,
            "SENSOR_ID": what.instrument,
            "WRS_PATH": 193,
            "WRS_ROW": 26,
            "DATE_ACQUIRED": f"{what.time:%Y-%m-%d}",
            "SCENE_CENTER_TIME": f"{what.time:%H:%M:%S}.0000000Z",
            "SUN_ELEVATION": what.sun_elevation,
        },
        "PROJECTION_ATTRIBUTES": _projection(what),
        **{group: _rescaling(bands) for group, bands in what.rescaling.items()},
    }


def _projection(what: Description) -> dict[str, Value]:
    utm: dict[str, Value] = {"MAP_PROJECTION": "UTM", "UTM_ZONE": int(what.place.crs[-2:])}
    polar: dict[str, Value] = {
        "MAP_PROJECTION": "PS",
        "VERTICAL_LON_FROM_POLE": 0.0,
        "TRUE_SCALE_LAT": -71.0,
        "FALSE_EASTING": 0,
        "FALSE_NORTHING": 0,
    }
    # EPSG codes of UTM end in the zone
    return {
        **(utm if what.place.crs.startswith("EPSG:326") else polar),
        "DATUM": "WGS84",
        "GRID_CELL_SIZE_REFLECTIVE": float(GSD_M),
        "REFLECTIVE_LINES": what.side_px,
        "REFLECTIVE_SAMPLES": what.side_px,
    }


def _rescaling(bands: Mapping[str, tuple[float, float]]) -> dict[str, Value]:
    factors: dict[str, Value] = {
        f"REFLECTANCE_MULT_BAND_{band}": factor for band, (factor, _) in bands.items()
    }
    return factors | {f"REFLECTANCE_ADD_BAND_{band}": summand for band, (_, summand) in bands.items()}


def mtl_text(groups: Groups) -> str:
    """Write groups as an MTL.txt (ODL)."""
    lines = [f"GROUP = {ROOT}"]
    for name, pairs in groups.items():
        lines.append(f"  GROUP = {name}")
        lines += [f"    {key} = {_odl(value)}" for key, value in pairs.items()]
        lines.append(f"  END_GROUP = {name}")
    return "\n".join([*lines, f"END_GROUP = {ROOT}", "END", ""])


def _odl(value: Value) -> str:
    # ODL quotes texts but no dates
    bare_date = isinstance(value, str) and len(value) == 10 and value[4:5] == value[7:8] == "-"
    return f'"{value}"' if isinstance(value, str) and not bare_date else str(value)


def mtl_xml(groups: Groups) -> str:
    """Write groups as an MTL.xml."""
    lines = ['<?xml version="1.0" encoding="UTF-8"?>', f"<{ROOT}>"]
    for name, pairs in groups.items():
        lines.append(f"  <{name}>")
        lines += [f"    <{key}>{value}</{key}>" for key, value in pairs.items()]
        lines.append(f"  </{name}>")
    return "\n".join([*lines, f"</{ROOT}>", ""])


def _as_text(groups: Groups) -> dict[str, dict[str, str]]:
    # real ones hold numbers as text too: a reader must not rely on their types
    return {name: {key: str(value) for key, value in pairs.items()} for name, pairs in groups.items()}
