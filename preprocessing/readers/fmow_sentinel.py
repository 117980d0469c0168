"""fMoW-Sentinel: images of places of 62 kinds, thirteen bands a tif, listed in csv files.

Layout: any folder with `<category>/<category>_<location>/<category>_<location>_<image>.tif`. `labels.table` is a csv
of the set (`train.csv`), or a folder with several: a row has category, location_id, image_id and timestamp, and the
file's name is the split. Without it the category is that of the folder. Cong et al., NeurIPS 2022 (SatMAE).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from pipeline.errors import SceneError
from preprocessing.readers.product import Reader, Request, find_files, scene_id
from preprocessing.readers.tables import Entry, Row, Table, csv_rows
from preprocessing.scenes import BandSource, Given, Scene
from preprocessing.splits import usual_name

LAYERS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
QUANTIFICATION = 10_000
LISTS_FROM = "https://purl.stanford.edu/vg497cb6002"
_IMAGE = re.compile(r"(?P<category>[^/]+)/(?P=category)_(\d+)/(?P=category)_\2_(\d+)\.tif")


def find(root: Path, request: Request) -> Sequence[Path]:
    """List the images at or below `root`."""
    return sorted(path for path in find_files(root) if _match(path))


def _match(path: Path) -> re.Match[str] | None:
    return _IMAGE.fullmatch("/".join(path.parts[-3:]))


def open_scene(product: Path, request: Request) -> Scene:
    """Describe one image; raises `SceneError` for one whose name is not as the set has it."""
    match = _match(product)
    if not match:
        raise SceneError(f"{product} is not named as images of the set are. Give it its own name again.")
    # what the lists do not have is in no split; without lists the folder tells the category
    said = (TABLE.read(request.table) if request.table else {}).get(product.stem, Entry())
    return Scene(
        id=scene_id(product.stem),
        sensor=request.sensor.name,
        level="L1C",
        reader=READER.name,
        location=product,
        acquired=said.acquired,
        bands=tuple(_source(product, name, request) for name in request.bands),
        given=Given(product.stem, (match["category"],), said.split),
        licence=f"{request.sensor.licence} fMoW-Sentinel (Cong et al.): CC BY 4.0, locations from fMoW.",
        notes=("no cloud mask: fMoW-Sentinel has none",),
    )


def _source(product: Path, name: str, request: Request) -> BandSource:
    # all bands were brought onto 10 m
    layer = LAYERS.index(request.sensor[name].name) + 1
    return BandSource(name, str(product), 1 / QUANTIFICATION, 0.0, layer=layer, gsd_m=10)


def _entry(table: str, row: Row) -> tuple[str, Entry]:
    name = f"{row['category']}_{row['location_id']}_{row['image_id']}"
    # the file of the test split is called test_gt.csv
    return name, Entry(split=usual_name(table.removesuffix("_gt")), acquired=row["timestamp"])


TABLE = Table(("category", "location_id", "image_id", "timestamp"), _entry, csv_rows, LISTS_FROM)
"""The set's train.csv, val.csv and test_gt.csv."""
READER = Reader(
    "fmow_sentinel",
    ("sentinel2",),
    "fMoW-Sentinel images `<category>/<category>_<location>/<category>_<location>_<image>.tif`",
    find,
    open_scene,
    automatic=False,
    lists_from=LISTS_FROM,
)
