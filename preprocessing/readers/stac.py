"""STAC Items of Sentinel-2 and Landsat: a folder of them, or a catalog whose links lead to them.

Items are local json files; their assets may be local or remote (COGs through GDAL's virtual file systems). Scale,
offset and nodata come from `raster:bands` (STAC 1.0) or the bands themselves (1.1); where
`earthsearch:boa_offset_applied` says so, the offset is in the numbers already. Specifications: stacspec.org, the eo,
raster and processing extensions, Earth Search v1.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from pipeline.errors import MissingInputError, SceneError
from pipeline.sample import Flag
from preprocessing.readers.landsat import QA_PIXEL_BITS
from preprocessing.readers.product import Reader, Request, find_files, missing_band, scene_id
from preprocessing.readers.sentinel2_masks import SCL_FLAGS
from preprocessing.scenes import BandSource, MaskSource, Scene

Item = Mapping[str, Any]
NAMES = {
    "nir": ("nir08",),  # Landsat's only near infrared goes by this name
    "nir_narrow": ("nir08",),
    "water_vapour": ("nir09",),
    "swir1": ("swir16",),
    "swir2": ("swir22",),
}
"""Role of a band -> common names of STAC where they differ."""
FILE_SYSTEMS = {
    "https://": "/vsicurl/https://",
    "http://": "/vsicurl/http://",
    "s3://": "/vsis3/",
    "gs://": "/vsigs/",
}
FIRST_BASELINE_WITH_OFFSET = 4.0


def find(root: Path, request: Request) -> Sequence[Path]:
    """List the Items at or below a folder, or those that the links of a catalog or collection lead to."""
    if root.is_dir():
        return [path for path in find_files(root) if path.suffix == ".json" and _kind(path) == "Feature"]
    return sorted(_linked(root, set()))


def _kind(path: Path) -> str:
    """Return the type of a STAC object; empty for other json."""
    tree = _load(path)
    return str(tree.get("type", "")) if "stac_version" in tree else ""


def _load(path: Path) -> Item:
    try:
        tree = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise MissingInputError(f"{path} cannot be read as STAC ({error}). Fetch it again.") from error
    return tree if isinstance(tree, dict) else {}


def _linked(path: Path, seen: set[Path]) -> Iterator[Path]:
    """Yield the Items a catalog leads to; a link back is not followed."""
    real = path.resolve()
    if real in seen:
        return
    seen.add(real)
    if _kind(path) == "Feature":
        yield path
    for link in _load(path).get("links", ()):
        if link.get("rel") not in ("child", "item"):
            continue
        place = _location(path, str(link.get("href")))
        if place.startswith("/vsi"):
            raise MissingInputError(
                f"{path} links to {link['href']}: Items must be local. Fetch their json; their assets may stay where"
                " they are."
            )
        yield from _linked(Path(place), seen)


def _location(item: Path, href: str) -> str:
    """Return what rasterio opens for a link, relative to the file it stands in."""
    for start, system in FILE_SYSTEMS.items():
        if href.startswith(start):
            return system + href.removeprefix(start)
    return str(item.parent / href.removeprefix("file://"))


def open_scene(product: Path, request: Request) -> Scene:
    """Describe one Item; raises `SceneError` for a missing band or level."""
    item = _load(product)
    properties: Item = item.get("properties", {})
    cloud, masks = properties.get("eo:cloud_cover"), tuple(_masks(product, item, request))
    applied = request.offset == "applied" or bool(properties.get("earthsearch:boa_offset_applied"))
    return Scene(
        id=scene_id(str(item.get("id", product.stem))),
        sensor=request.sensor.name,
        level=_level(product, item),
        reader=READER.name,
        location=product,
        acquired=str(properties.get("datetime") or properties.get("start_datetime") or ""),
        bands=tuple(_source(product, item, name, request) for name in request.bands),
        masks=masks,
        licence=request.sensor.licence,
        cloud_share=None if cloud is None else float(cloud) / 100,
        version=str(properties.get("s2:processing_baseline", "")),
        notes=(
            "offset in the numbers already" if applied else "offset as the Item states it",
            *(() if masks else ("no cloud mask: no quality layer among the assets",)),
        ),
    )


def _level(product: Path, item: Item) -> str:
    properties: Item = item.get("properties", {})
    said = [
        properties.get("landsat:correction"),
        properties.get("s2:product_type"),
        properties.get("processing:level"),
    ]
    # S2MSI2A, sentinel-2-l2a, sentinel-2-c1-l2a
    for text in (str(s).upper() for s in [*said, item.get("collection")] if s):
        for level in ("L2SP", "L2SR", "L1TP", "L1GT", "L2A", "L1C"):
            if level in text or text == f"S2MSI{level[1:]}":
                return level
    raise SceneError(
        f"{product} does not say its level: neither landsat:correction, s2:product_type, processing:level nor its"
        " collection. Add one of them."
    )


def _source(product: Path, item: Item, name: str, request: Request) -> BandSource:
    asset, layer = _asset(product, item, name, request)
    properties: Item = item.get("properties", {})
    raster = _raster(asset, layer)
    scale, offset = raster.get("scale"), raster.get("offset", 0.0)
    if scale is None:
        scale, offset = _by_baseline(product, properties)
    if request.offset == "applied" or properties.get("earthsearch:boa_offset_applied"):
        offset = 0.0
    nodata = raster.get("nodata", 0)
    path = _location(product, str(asset.get("href")))
    return BandSource(
        name, path, float(scale), float(offset), None if nodata == "nan" else nodata, layer=layer
    )


def _asset(product: Path, item: Item, name: str, request: Request) -> tuple[Item, int]:
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
    raise missing_band(product, name, "", sorted(assets))


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


def _by_baseline(product: Path, properties: Item) -> tuple[float, float]:
    """Return scale and offset of Sentinel-2 numbers whose Item states none."""
    try:
        baseline = float(properties["s2:processing_baseline"])
    except (KeyError, ValueError) as error:
        raise SceneError(
            f"{product} states neither raster:bands with a scale nor s2:processing_baseline: its numbers have no"
            " meaning. Add raster:bands to its assets."
        ) from error
    return 1e-4, (-0.1 if baseline >= FIRST_BASELINE_WITH_OFFSET else 0.0)


def _masks(product: Path, item: Item, request: Request) -> Iterator[MaskSource]:
    # bit n - 1 stands for band n; bits of bands that were not asked for are left alone
    saturated = {int(name[1:]) - 1: Flag.SATURATED for name in request.bands if name[1:].isdigit()}
    for key, asset in item.get("assets", {}).items():
        path = _location(product, str(asset.get("href")))
        if key.lower() == "scl":
            yield MaskSource(path, classes=dict(SCL_FLAGS))
        elif key.lower() == "qa_pixel":
            yield MaskSource(path, bits=dict(QA_PIXEL_BITS))
        elif key.lower() == "qa_radsat":
            yield MaskSource(path, bits=saturated)


READER = Reader(
    "stac",
    ("sentinel2", "landsat_oli", "landsat_tm"),
    "STAC Items (json) below a folder, or a catalog.json that links to them",
    find,
    open_scene,
    automatic=False,
)
