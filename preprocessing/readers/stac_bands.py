"""What a STAC Item says of an asset's pixels: which layer a band is, scale and offset, and the grid (`proj:`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import SceneError
from preprocessing import checksums, locations
from preprocessing.readers.product import Request, missing_band
from preprocessing.readers.stac_items import Item, location
from preprocessing.scenes import BandSource, Checksum, StatedGrid

NAMES = {
    "nir": ("nir08",),  # Landsat's only near infrared goes by this name
    "nir_narrow": ("nir08",),
    "water_vapour": ("nir09",),
    "swir1": ("swir16",),
    "swir2": ("swir22",),
}
"""Role of a band -> common names of STAC where they differ."""
FIRST_BASELINE_WITH_OFFSET = 4.0
_SIX = 6


def sources(place: Path, item: Item, file: Path, request: Request) -> Iterator[BandSource]:
    """Yield the requested bands of an Item; `place` is its name, `file` where it stands.

    Raises `SceneError` for a band without an asset, and for numbers without a meaning.
    """
    properties: Item = item.get("properties", {})
    for name in request.bands:
        asset, layer = _asset(place, item, name, request)
        raster = _raster(asset, layer)
        scale, offset = raster.get("scale"), raster.get("offset", 0.0)
        if scale is None:
            scale, offset = _by_baseline(place, properties)
        if request.offset == "applied" or properties.get("earthsearch:boa_offset_applied"):
            offset = 0.0
        nodata = raster.get("nodata", 0)
        path = location(file, str(asset.get("href")))
        yield BandSource(
            name,
            path,
            float(scale),
            float(offset),
            nodata_dn=None if nodata == "nan" else nodata,
            layer=layer,
            checksum=stated_sum(asset, path),
            stated=stated_grid(place, properties, asset),
        )


def stated_sum(asset: Item, path: str) -> Checksum | None:
    """Return what an asset's bytes are said to sum to; None for remote ones, of which parts are read."""
    if locations.is_remote(path):
        return None
    return checksums.from_multihash(str(asset.get("file:checksum", "")))


def stated_grid(place: Path, properties: Item, asset: Item) -> StatedGrid | None:
    """Return the grid that the projection extension states, as far as it does; an asset's own word counts."""
    # bands of several pixel sizes state what they do not share themselves
    said = dict(properties) | dict(asset)
    transform, shape = said.get("proj:transform") or (), said.get("proj:shape") or ()
    try:
        found = StatedGrid(
            by=place.name,
            crs=_crs(said),
            # a full matrix of nine ends in 0 0 1
            transform=tuple(float(number) for number in transform[:_SIX]),
            shape_px=(int(shape[0]), int(shape[1])) if shape else None,
        )
    except (TypeError, ValueError, IndexError) as error:
        raise SceneError(
            f"{place}: proj:transform {transform} or proj:shape {shape} is none ({error})."
        ) from error
    return found if found.crs or found.transform or found.shape_px else None


def _crs(said: Mapping[str, Any]) -> str:
    # 1.1 writes EPSG:32633, 1.0 the number alone
    if said.get("proj:code"):
        return str(said["proj:code"])
    if said.get("proj:epsg"):
        return f"EPSG:{said['proj:epsg']}"
    return str(said.get("proj:wkt2") or "")


def _asset(place: Path, item: Item, name: str, request: Request) -> tuple[Item, int]:
    """Return the asset that holds a band, and its layer in it."""
    role = request.sensor[name].role
    wanted = (name, role, *NAMES.get(role, ()))
    assets: Item = item.get("assets", {})
    # a key that is the band's name is meant; common names can be shared by an overview
    for key in wanted:
        if key in assets and len(_bands(assets[key])) <= 1:
            return assets[key], 1
    for asset in assets.values():
        for layer, band in enumerate(_bands(asset), 1):
            if band.get("name") == name and "data" in asset.get("roles", ["data"]):
                return asset, layer
    raise missing_band(place, name, "", sorted(assets))


def _bands(asset: Item) -> Sequence[Item]:
    found: Sequence[Item] = asset.get("eo:bands") or asset.get("bands") or ()
    return found


def _raster(asset: Item, layer: int) -> dict[str, Any]:
    """Return scale, offset and nodata of a layer, as far as they are stated."""
    listed = asset.get("raster:bands") or ()
    if len(listed) >= layer:
        return dict(listed[layer - 1])
    # STAC 1.1: with the bands, or once for all of them
    band = dict(_bands(asset)[layer - 1]) if len(_bands(asset)) >= layer else {}
    both = dict(asset) | band
    names = {"scale": "raster:scale", "offset": "raster:offset", "nodata": "nodata"}
    return {name: both[key] for name, key in names.items() if key in both}


def _by_baseline(place: Path, properties: Item) -> tuple[float, float]:
    """Return scale and offset of Sentinel-2 numbers whose Item states none."""
    try:
        baseline = float(properties["s2:processing_baseline"])
    except (KeyError, ValueError) as error:
        raise SceneError(
            f"{place} states neither raster:bands with a scale nor s2:processing_baseline: its numbers have no"
            " meaning. Add raster:bands to its assets."
        ) from error
    return 1e-4, (-0.1 if baseline >= FIRST_BASELINE_WITH_OFFSET else 0.0)
