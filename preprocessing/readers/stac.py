"""STAC Items of Sentinel-2 and Landsat: a folder of them, a collection in one file, or a catalog that links to them.

Items are local json files; their assets may be local or remote (COGs through GDAL's virtual file systems). Scale,
offset and nodata come from `raster:bands` (STAC 1.0) or the bands themselves (1.1); where
`earthsearch:boa_offset_applied` says so, the offset is in the numbers already. `file:checksum` of local assets is
compared; of remote ones only the blocks that are needed are fetched. Specifications: stacspec.org, the eo, raster,
projection, file and processing extensions, Earth Search v1.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import SceneError
from preprocessing import locations
from preprocessing.readers import landsat, stac_items
from preprocessing.readers.product import Reader, Request, scene_id
from preprocessing.readers.sentinel2_masks import SCL_FLAGS
from preprocessing.readers.stac_bands import sources, stated_sum
from preprocessing.readers.stac_items import Item
from preprocessing.scenes import MaskSource, Scene


def find(root: Path, request: Request) -> Sequence[Path]:
    """List the Items of the sensor at or below a folder, in a file, or that a catalog's links lead to."""
    return stac_items.find(root, lambda item: _is_of(item, request))


def _is_of(item: Item, request: Request) -> bool:
    """Say whether an Item may be of a sensor: an archive of several gives each its own."""
    satellite = _platform(item)
    # landsat-8, LANDSAT_8, Landsat 8
    digit = re.fullmatch(r"landsat\D*([4-9])", satellite)
    if digit:
        return digit[1] in landsat.SATELLITES.get(request.sensor.name, "")
    # an Item need not name its platform: then its assets decide
    return request.sensor.name == "sentinel2" if satellite.startswith("sentinel-2") else True


def _platform(item: Item) -> str:
    return str(item.get("properties", {}).get("platform", "")).lower()


def open_scene(product: Path, request: Request) -> Scene:
    """Describe one Item; raises `SceneError` for a missing band or level."""
    item, file = stac_items.open_item(product)
    properties: Item = item.get("properties", {})
    cloud, masks = properties.get("eo:cloud_cover"), tuple(_masks(item, file, request))
    bands = tuple(sources(product, item, file, request))
    return Scene(
        id=scene_id(str(item.get("id", product.stem))),
        sensor=request.sensor.name,
        level=_level(product, item),
        reader=READER.name,
        location=product,
        acquired=_acquired(item),
        bands=bands,
        masks=masks,
        licence=request.sensor.licence,
        cloud_share=None if cloud is None else float(cloud) / 100,
        version=str(properties.get("s2:processing_baseline", "")),
        notes=tuple(_notes(item, request, masks, any(locations.is_remote(band.path) for band in bands))),
    )


def _acquired(item: Item) -> str:
    properties: Item = item.get("properties", {})
    # null where the Item states a span of time instead
    return str(properties.get("datetime") or properties.get("start_datetime") or "")


def _notes(item: Item, request: Request, masks: Sequence[MaskSource], remote: bool) -> Iterator[str]:
    applied = request.offset == "applied" or item.get("properties", {}).get("earthsearch:boa_offset_applied")
    yield "offset in the numbers already" if applied else "offset as the Item states it"
    if not masks:
        yield "no cloud mask: no quality layer among the assets"
    if remote:
        yield "remote assets: read in parts, so that their sums are not compared"


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


def _masks(item: Item, file: Path, request: Request) -> Iterator[MaskSource]:
    gaps = landsat.has_gaps(_platform(item), _acquired(item))
    for key, asset in item.get("assets", {}).items():
        path = stac_items.location(file, str(asset.get("href")))
        stated = stated_sum(asset, path)
        if key.lower() == "scl":
            yield MaskSource(path, classes=dict(SCL_FLAGS), checksum=stated)
        elif key.lower() == "qa_pixel":
            fringe_px = landsat.FRINGE_PX if gaps else 0
            yield MaskSource(
                path, bits=dict(landsat.QA_PIXEL_BITS), grow_nodata_px=fringe_px, checksum=stated
            )
        elif key.lower() == "qa_radsat":
            yield MaskSource(path, bits=landsat.saturation_bits(request), checksum=stated)


READER = Reader(
    "stac",
    ("sentinel2", "landsat_oli", "landsat_tm"),
    "STAC Items (json) below a folder, in a collection file, or behind the links of a catalog.json",
    find,
    open_scene,
    automatic=False,
)
