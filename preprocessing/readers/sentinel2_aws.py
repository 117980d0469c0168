"""Sentinel-2 tiles in the layout of the public AWS buckets, L1C and L2A: one file a band, as folders and zipped.

`B02.jp2` or `R10m/B02.jp2`, `metadata.xml` (the tile's MTD_TL.xml), `tileInfo.json`, `qi/`. The product's own
metadata, which states the offset, is not part of a tile: where it does not lie beside (MTD_MSIL1C.xml), quantification
and offset are those that the specification gives every product of the tile's processing baseline.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.errors import SceneError
from preprocessing import markup
from preprocessing.readers import packed, sentinel2
from preprocessing.readers.product import (
    Reader,
    Request,
    find_products,
    labels_beside,
    list_members,
    product_name,
    read_member,
)
from preprocessing.readers.sentinel2_bands import (
    BAND_IDS,
    NATIVE,
    OFFSET_DN,
    Contents,
    Metadata,
    has_offset,
    make_scene,
)
from preprocessing.scenes import Scene

QUANTIFICATION = 10_000
"""The same in every product so far."""
METADATA, TILE_INFO = "metadata.xml", "tileInfo.json"
_PRODUCT_NAME = re.compile(r"S2[A-D]_OPER_MSI_L(1C|2A)_TL_.*", re.IGNORECASE)
_IMAGE_FILE = re.compile(r"(?:R(\d+)m/)?(B[0-9][0-9A]|SCL)\.jp2")
_COMPACT_NAME = re.compile(r"S2[A-D]_MSIL(?:1C|2A)_\d{8}T\d{6}_N\d{4}_R\d{3}_T\w{5}_\d{8}T\d{6}")
_LEVELS = {"Level-1C_Tile_ID": "L1C", "Level-2A_Tile_ID": "L2A"}


def find(root: Path, request: Request) -> Sequence[Path]:
    """List the tiles at or below `root`."""
    return find_products(root, _is_product)


def _is_product(place: Path, names: Collection[str]) -> bool:
    # named alike in old products, which are another reader's
    if place.parent.name == "GRANULE":
        return False
    # tiles are mirrored under any name, mostly the number of a day's image
    has_bands = any(_IMAGE_FILE.fullmatch(name) for name in names)
    return (
        TILE_INFO in names or (METADATA in names and has_bands) or bool(_PRODUCT_NAME.fullmatch(place.name))
    )


def open_scene(product: Path, request: Request) -> Scene:
    """Describe one tile; raises `SceneError` naming what is missing, refused or contradictory."""
    members = list_members(product)
    if METADATA not in members:
        raise SceneError(f"{product}: {METADATA} is not there. {_AGAIN}")
    where = f"{product.name}/{METADATA}"
    tree = markup.parse(read_member(product, METADATA), where)
    contents = Contents(
        product=product,
        metadata=_metadata(product, members, tree),
        members=members,
        images=_images(members),
        folder="",
        labels=labels_beside(product),
        checksums=packed.zip_checksums(product),
    )
    return make_scene(contents, request, _name(product, members, tree), READER.name)


def _metadata(product: Path, members: Collection[str], tree: markup.Element) -> Metadata:
    # not part of a tile, but some tools fetch it along
    if sentinel2.metadata_of(members):
        return sentinel2.read_metadata(product, members, {})
    where = f"{product.name}/{METADATA}"
    # the root's name stands behind its namespace
    level = _LEVELS.get(tree.tag.rpartition("}")[2])
    identifier = markup.text(tree, "TILE_ID") or ""
    baseline = re.search(r"_N(\d\d\.\d\d)$", identifier)
    if level is None or not baseline:
        raise SceneError(
            f"{where}: not the metadata of a tile (root {tree.tag}, TILE_ID {identifier!r}). {_AGAIN}"
        )
    # by the baseline and not by the date: old scenes are reprocessed
    offset = OFFSET_DN if has_offset(baseline[1]) else 0
    acquired, cloud_share = sentinel2.tile_facts(tree, where)
    return Metadata(
        level=level,
        baseline=baseline[1],
        acquired=acquired,
        quantification=QUANTIFICATION,
        offsets=dict.fromkeys(BAND_IDS, offset) if offset else {},
        cloud_share=cloud_share,
        generated=markup.text(tree, "ARCHIVING_TIME") or "",
    )


def _name(product: Path, members: Collection[str], tree: markup.Element) -> str:
    """Return the name of the product that the tile is of, so that the same scene as `.SAFE` is seen to be the same."""
    if TILE_INFO in members:
        try:
            stated = json.loads(read_member(product, TILE_INFO))["productName"]
        except (ValueError, KeyError, TypeError) as error:
            raise SceneError(f"{product.name}/{TILE_INFO}: not a tile's ({error!r}). {_AGAIN}") from error
        # products of before December 2016 have several tiles
        if _COMPACT_NAME.fullmatch(str(stated)):
            return str(stated)
    return markup.text(tree, "TILE_ID") or product_name(product)


def _images(members: Collection[str]) -> dict[str, dict[float, str]]:
    """Return layer (B02, SCL) -> pixel size in metres -> relative name."""
    images: dict[str, dict[float, str]] = {}
    for name in members:
        match = _IMAGE_FILE.fullmatch(name)
        if match:
            images.setdefault(match[2], {})[float(match[1] or NATIVE)] = name
    return images


_AGAIN = "Fetch the tile again."

READER = Reader(
    "sentinel2_aws",
    ("sentinel2",),
    "Sentinel-2 tiles of the AWS buckets, folders or zips with metadata.xml, tileInfo.json and B*.jp2",
    find,
    open_scene,
)
