"""OSCD, the Onera Satellite Change Detection set: Sentinel-2 L1C, one tif a band, two dates a city.

Layout: `images/<city>/imgs_1|imgs_2/*_B02.tif` on each band's native grid, and `images/<city>/dates.txt`. The
images are from before processing baseline 04.00, so reflectance is DN / 10 000 without an offset.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from pathlib import Path

from pipeline.errors import SceneError
from preprocessing.readers.product import (
    Reader,
    Request,
    find_folders,
    labels_beside,
    list_members,
    missing_band,
    scene_id,
)
from preprocessing.scenes import BandSource, Scene

QUANTIFICATION = 10_000
_FOLDER = re.compile(r"imgs_[12]")
_BAND_FILE = re.compile(r".*_(B[0-9][0-9A])\.tif", re.IGNORECASE)
_DATE = re.compile(r"^date_([12])\s*:\s*(\d{4})(\d{2})(\d{2})\s*$", re.MULTILINE)


def find(root: Path, request: Request) -> Sequence[Path]:
    """List the `imgs_1` and `imgs_2` folders at or below `root`."""
    return find_folders(root, _is_product)


def _is_product(folder: Path, names: Collection[str]) -> bool:
    # the name is enough: an emptied folder must be refused by `open`, not overlooked
    return bool(_FOLDER.fullmatch(folder.name))


def open_scene(product: Path, request: Request) -> Scene:
    """Describe one date of one city; raises `SceneError` for a missing band or date."""
    files = _band_files(product)
    # file names hold the time of processing, not of sensing: only dates.txt tells
    date_number = product.name[-1]
    return Scene(
        id=scene_id(f"oscd_{product.parent.name}_{date_number}"),
        sensor=request.sensor.name,
        level="L1C",
        reader=READER.name,
        location=product,
        acquired=_date(product.parent / "dates.txt", date_number),
        bands=tuple(_source(product, files, name) for name in request.bands),
        labels=labels_beside(product),
        licence=request.sensor.licence,
        notes=("no cloud mask: OSCD has none",),
    )


def _band_files(product: Path) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, path in list_members(product).items():
        match = _BAND_FILE.fullmatch(name)
        if not match:
            continue
        # the pattern takes either case, the table of bands only one
        band = match[1].upper()
        if band in found:
            raise SceneError(
                f"{product}: two files of band {band}, {Path(found[band]).name} and {name}. Keep one."
            )
        found[band] = path
    return found


def _source(product: Path, files: dict[str, str], band: str) -> BandSource:
    if band not in files:
        raise missing_band(product, band, "", list(files))
    return BandSource(band, files[band], scale=1 / QUANTIFICATION, offset=0.0)


def _date(path: Path, number: str) -> str:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise SceneError(
            f"cannot read {path} ({error}): it holds the dates of both images. Restore it."
        ) from error
    for date_number, year, month, day in _DATE.findall(text):
        if date_number == number:
            return f"{year}-{month}-{day}"
    raise SceneError(f"{path} has no line `date_{number}: YYYYMMDD`. Restore it.")


READER = Reader(
    "oscd",
    ("sentinel2",),
    "OSCD folders `<city>/imgs_1` and `imgs_2` with one `*_B02.tif` a band and `dates.txt`",
    find,
    open_scene,
)
