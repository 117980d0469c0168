"""A simulated Sentinel-2 tile in the layout of the public AWS buckets: the images of a `.SAFE`, laid out anew."""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from preprocessing.simulation.safe import SafeOptions, write_safe

_IMAGE = re.compile(r".*_(B[0-9][0-9A]|SCL)(?:_(\d+)m)?\.jp2")


def write_aws(folder: Path, options: SafeOptions, written: Callable[[str], None] = lambda name: None) -> Path:
    """Write one tile and its land cover into `folder`; returns the tile's folder, named by its identifier.

    written: is told each image's name when it is done.
    """
    folder.mkdir(parents=True, exist_ok=True)
    # the images are those of the product, moved: both layouts hold the same bytes
    with tempfile.TemporaryDirectory(dir=folder) as work:
        product = write_safe(Path(work), options, written)
        [granule] = (product / "GRANULE").iterdir()
        [identifier] = re.findall(r"<TILE_ID[^>]*>([^<]+)<", (granule / "MTD_TL.xml").read_text("utf-8"))
        tile: Path = folder / str(identifier)
        (tile / "qi").mkdir(parents=True)
        for image in (granule / "IMG_DATA").rglob("*.jp2"):
            _move(image, tile / _image_name(image))
        for mask in (granule / "QI_DATA").glob("MSK_*"):
            _move(mask, tile / "qi" / mask.name)
        _move(granule / "MTD_TL.xml", tile / "metadata.xml")
        for name, tree in _info(product.stem, options).items():
            (tile / name).write_text(json.dumps(tree, indent=2), encoding="utf-8")
        _move(product.parent / f"{product.stem}_landcover.tif", folder / f"{identifier}_landcover.tif")
    return tile


def _move(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.move(source, target)


def _image_name(image: Path) -> str:
    match = _IMAGE.fullmatch(image.name)
    if not match:
        raise ValueError(f"{image.name} is no image of a band")
    return f"R{match[2]}m/{match[1]}.jp2" if match[2] else f"{match[1]}.jp2"


def _info(name: str, options: SafeOptions) -> dict[str, dict[str, Any]]:
    tile = name.split("_")[5]
    place: dict[str, Any] = {"utmZone": int(tile[1:3]), "latitudeBand": tile[3], "gridSquare": tile[4:]}
    path = f"products/simulated/{name}"
    return {
        "tileInfo.json": {**place, "productName": name, "productPath": path, "dataCoveragePercentage": 96.0},
        "productInfo.json": {"name": name, "path": path, "datatakeIdentifier": f"N{options.baseline}"},
    }
