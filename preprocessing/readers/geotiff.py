"""Plain image files: one multi-layer file a scene or one file a band, found by a pattern (`preprocessing/files.py`).

Images may lack georeferencing. Class rasters beside them, and classes and splits told by folders, label them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from pipeline.errors import ConfigError, SceneError
from pipeline.sensors import SENSORS
from preprocessing import files
from preprocessing.files import FilesConfig
from preprocessing.readers.product import Reader, Request, find_files, missing_band, scene_id
from preprocessing.scenes import BandSource, Given, Scene


def find(root: Path, request: Request) -> Sequence[Path]:
    """List the images that match `files.images` at or below `root`; of one file a band, the first of each scene."""
    first: dict[tuple[Path, str], Path] = {}
    for path in find_files(root):
        found = files.match(_asked(request).images, path)
        if found:
            folder, texts = found
            # all files of a scene tell the same but for the band
            scene = files.fill(_asked(request).images, texts | {"band": ""})
            first.setdefault((folder, scene), path)
    return sorted(first.values())


def open_scene(product: Path, request: Request) -> Scene:
    """Describe one image; raises `SceneError` for a missing band and names that do not match the pattern."""
    asked = _asked(request)
    found = files.match(asked.images, product)
    if not found:
        raise SceneError(f"{product} does not match `files.images`, {asked.images}.")
    folder, texts = found
    labels = folder / files.fill(asked.labels, texts) if asked.labels else None
    return Scene(
        id=scene_id(texts["name"]),
        sensor=request.sensor.name,
        level=asked.level,
        reader=READER.name,
        location=product,
        acquired=asked.acquired,
        bands=tuple(_bands(product, folder, texts, request)),
        # a set may label some of its images only
        labels=str(labels) if labels and labels.is_file() else None,
        label_layer=asked.label_layer,
        given=Given(texts["name"], (texts["class"],) if "class" in texts else None, texts.get("split", "")),
        licence=asked.licence or request.sensor.licence,
        notes=(f"reflectance = stored number x {asked.scale:g} + {asked.offset:g}, by the settings",),
    )


def _asked(request: Request) -> FilesConfig:
    if request.files is None:
        raise ConfigError(
            "reader `geotiff` needs `files`: set `files.images`, `files.layers` and `files.level`."
        )
    return request.files


def _bands(product: Path, folder: Path, texts: dict[str, str], request: Request) -> Iterator[BandSource]:
    asked = _asked(request)
    finest = min((request.sensor[name].gsd_m for name in asked.layers if name != files.NO_BAND), default=0.0)
    for name in request.bands:
        path, layer = product, 1
        if not asked.layers:
            path = folder / files.fill(asked.images, texts | {"band": name})
        elif name in asked.layers:
            layer = asked.layers.index(name) + 1
        if not path.is_file() or (asked.layers and name not in asked.layers):
            raise missing_band(product, name, "", _present(folder, texts, request))
        # layers share a grid; files of single bands have each their own
        gsd_m = asked.gsd_m or (finest if asked.layers else request.sensor[name].gsd_m)
        yield BandSource(name, str(path), asked.scale, asked.offset, asked.nodata, None, layer, gsd_m)


def _present(folder: Path, texts: dict[str, str], request: Request) -> list[str]:
    asked = _asked(request)
    if asked.layers:
        return [name for name in asked.layers if name != files.NO_BAND]
    names = [band.name for band in request.sensor.bands]
    return [n for n in names if (folder / files.fill(asked.images, texts | {"band": n})).is_file()]


READER = Reader(
    "geotiff",
    tuple(SENSORS),
    "image files that match `files.images`",
    find,
    open_scene,
    automatic=False,
)
