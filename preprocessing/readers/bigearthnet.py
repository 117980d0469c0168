"""BigEarthNet, versions 1 and 2: Sentinel-2 L2A patches of 1.2 km, one tif a band, several classes a patch.

Layout: any folders with `<patch>/<patch>_B02.tif`, twelve bands of 120, 60 and 20 px. In version 1 a
`<patch>_labels_metadata.json` names CORINE classes, which become the 19 classes of BigEarthNet-19; in version 2 the
set's `metadata.parquet` (`labels.table`) names those 19 and the split. Both were made before processing baseline
04.00 or without its offset. Sumbul et al., IGRSM 2021 (19 classes); Clasen et al., 2024 (version 2).
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from pipeline.errors import SceneError
from preprocessing.readers.product import Reader, Request, find_folders, missing_band, scene_id
from preprocessing.readers.tables import Entry, Row, Table, parquet_rows
from preprocessing.scenes import BandSource, Given, Scene

QUANTIFICATION = 10_000
LISTS_FROM = "https://zenodo.org/records/10891137 (metadata.parquet)"
_PATCH = re.compile(
    r"S2[AB]_MSIL2A_(\d{4})(\d{2})(\d{2})T(\d{2})(\d{2})(\d{2})(?:_N\d{4}_R\d{3}_T\w{5})?_\d+_\d+"
)

CLASSES_19: Mapping[str, tuple[str, ...]] = {
    "Urban fabric": ("Continuous urban fabric", "Discontinuous urban fabric"),
    "Industrial or commercial units": ("Industrial or commercial units",),
    "Arable land": ("Non-irrigated arable land", "Permanently irrigated land", "Rice fields"),
    "Permanent crops": (
        "Vineyards",
        "Fruit trees and berry plantations",
        "Olive groves",
        "Annual crops associated with permanent crops",
    ),
    "Pastures": ("Pastures",),
    "Complex cultivation patterns": ("Complex cultivation patterns",),
    "Land principally occupied by agriculture, with significant areas of natural vegetation": (
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
    ),
    "Agro-forestry areas": ("Agro-forestry areas",),
    "Broad-leaved forest": ("Broad-leaved forest",),
    "Coniferous forest": ("Coniferous forest",),
    "Mixed forest": ("Mixed forest",),
    "Natural grassland and sparsely vegetated areas": ("Natural grassland", "Sparsely vegetated areas"),
    "Moors, heathland and sclerophyllous vegetation": ("Moors and heathland", "Sclerophyllous vegetation"),
    "Transitional woodland, shrub": ("Transitional woodland/shrub",),
    "Beaches, dunes, sands": ("Beaches, dunes, sands",),
    "Inland wetlands": ("Inland marshes", "Peatbogs"),
    "Coastal wetlands": ("Salt marshes", "Salines"),
    "Inland waters": ("Water courses", "Water bodies"),
    "Marine waters": ("Coastal lagoons", "Estuaries", "Sea and ocean"),
}
"""The 19 classes, each with the CORINE classes (level 3) it holds."""
LEFT_OUT = (
    "Road and rail networks and associated land",
    "Port areas",
    "Airports",
    "Mineral extraction sites",
    "Dump sites",
    "Construction sites",
    "Green urban areas",
    "Sport and leisure facilities",
    "Bare rock",
    "Burnt areas",
    "Intertidal flats",
)
"""CORINE classes that the 19 leave out: a patch of these alone has no class."""
_NEW_NAME: dict[str, str | None] = {
    old: new for new, olds in CLASSES_19.items() for old in olds
} | dict.fromkeys(LEFT_OUT)


def find(root: Path, request: Request) -> Sequence[Path]:
    """List the folders of patches at or below `root`."""
    return find_folders(root, _is_patch)


def _is_patch(folder: Path, names: Collection[str]) -> bool:
    # tiles of version 2 have names of the same kind, and hold patches
    return bool(_PATCH.fullmatch(folder.name)) and any(
        name.startswith(folder.name) and "." in name for name in names
    )


def open_scene(product: Path, request: Request) -> Scene:
    """Describe one patch; raises `SceneError` for a missing band and labels that cannot be read."""
    match = _PATCH.fullmatch(product.name)
    if not match:
        raise SceneError(f"{product} is not named as patches are. Give it the set's own name again.")
    year, month, day, hour, minute, second = match.groups()
    return Scene(
        id=scene_id(product.name),
        sensor=request.sensor.name,
        level="L2A",
        reader=READER.name,
        location=product,
        acquired=f"{year}-{month}-{day}T{hour}:{minute}:{second}Z",
        bands=tuple(_source(product, band, request) for band in request.bands),
        given=_given(product, request),
        licence=f"{request.sensor.licence} BigEarthNet labels: CDLA-Permissive-1.0.",
        notes=("no cloud mask: BigEarthNet has none",),
    )


def _source(product: Path, band: str, request: Request) -> BandSource:
    path = product / f"{product.name}_{band}.tif"
    if not path.is_file():
        there = sorted(p.stem.removeprefix(f"{product.name}_") for p in product.glob("*_B*.tif"))
        raise missing_band(product, band, "", there)
    # copies without georeferencing are common
    return BandSource(band, str(path), 1 / QUANTIFICATION, 0.0, gsd_m=request.sensor[band].gsd_m)


def _given(product: Path, request: Request) -> Given:
    # the table decides where there is one: version 2 renamed classes
    beside = product / f"{product.name}_labels_metadata.json"
    if request.table is not None:
        said = TABLE.read(request.table).get(product.name, Entry())
        return Given(product.name, said.classes, said.split)
    return Given(product.name, read_labels(beside) if beside.is_file() else None)


def read_labels(path: Path) -> tuple[str, ...]:
    """Read the classes of a patch of version 1 as names of the 19; raises `SceneError` for what is no label file."""
    try:
        names = json.loads(path.read_text(encoding="utf-8"))["labels"]
        return to_19(names)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise SceneError(f"{path} cannot be read as labels ({error!r}). Fetch the patch again.") from error


def to_19(names: Sequence[str]) -> tuple[str, ...]:
    """Return the 19-class names that CORINE names make, each once, in the order of the classes.

    Raises KeyError for a name that is none of the 43.
    """
    found = {_NEW_NAME[name] for name in names}
    # None among the found is a class that the 19 leave out
    return tuple(name for name in CLASSES_19 if name in found)


def _entry(table: str, row: Row) -> tuple[str, Entry]:
    return row["patch_id"], Entry(tuple(row["labels"]), row["split"])


TABLE = Table(("patch_id", "labels", "split"), _entry, parquet_rows, LISTS_FROM)
"""The metadata.parquet of version 2."""
READER = Reader(
    "bigearthnet",
    ("sentinel2",),
    "BigEarthNet patches `<patch>/<patch>_B02.tif`",
    find,
    open_scene,
    automatic=False,
    lists_from=LISTS_FROM,
)
