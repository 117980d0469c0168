"""What a sharding run is asked for, and whether an output folder was made by the same request.

`settings.json` in the output remembers the request. Keys that say what the stored numbers mean cannot change
under an existing output; keys that only choose or arrange tiles can, and only what depends on them is redone.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator
from rasterio.crs import CRS
from rasterio.errors import CRSError

from pipeline import manifest, sample
from pipeline.config import Config, UserPath, differences
from pipeline.errors import CorruptDataError, OutputError, did_you_mean
from pipeline.indices import Index
from pipeline.sample import Codec, Flag
from pipeline.sensors import Sensor, sensor
from preprocessing import standard_indices
from preprocessing.files import NO_BAND, FilesConfig
from preprocessing.labelling import LabelConfig
from preprocessing.remote import DaskConfig
from preprocessing.selection import SelectConfig
from preprocessing.splits import SplitConfig, tables

NAME = "settings.json"
SOURCES = "sources.json"
"""The products a finished set was made of, each with a digest of its files."""
TOLD = 5
"""Products named in a message; the others are counted."""
MAX_UPSAMPLING = 6.0
"""A band is not brought onto pixels smaller than its own by more than this."""
UPSAMPLING_SLACK = 1.05
"""Cropped data sets have grids that are a little off: 60 m over 10 m can be 6.03."""
FREE_KEYS = ("name", "scenes", "output", "workers", "dask", "max_rejected", "keep_zarr")
"""Say where and how to work, not what to make: never compared."""
ARRANGING_KEYS = (
    "indices",
    "edge",
    "clear_excludes",
    "min_valid",
    "min_clear",
    "split",
    "labels",
    "codec",
    "shard_mb",
    "seed",
    "duplicates",
    "select",
)
"""Choose and arrange tiles: a change redoes what depends on them."""


class ShardConfig(Config):
    """Archives to shards: which scenes, onto which grid, which tiles, how packed."""

    name: str = Field(default="shards", pattern=r"^[A-Za-z0-9_-]{1,64}$")
    """Name of the shard set."""
    scenes: UserPath = Path("archive")
    """Folder the products are looked for in."""
    output: UserPath = Path("shards")
    """Folder the archive, the shards and the manifest are written to."""
    sensor: str
    """Band table: a key of `pipeline.sensors.SENSORS`."""
    reader: str = "auto"
    """Product family: a key of `preprocessing.readers.READERS`, or `auto` to try all products of the sensor."""
    files: FilesConfig | None = Field(default=None, validate_default=True)
    """Of reader `geotiff`: where the images lie and what they do not say about themselves."""
    bands: tuple[str, ...] = Field(min_length=1)
    """Bands to store, by the sensor's names, in this order."""
    gsd_m: Literal["native"] | Annotated[float, Field(gt=0)] = "native"
    """Pixel size in metres; `native` takes the finest requested band's own grid."""
    crs: str | None = None
    """Coordinate system in metres to reproject to (`EPSG:32633`); none keeps each scene's own."""
    offset: Literal["auto", "applied", "not_applied"] = "auto"
    """`auto` adds the radiometric offset that the product states; `applied`: the archive has added it already;
    `not_applied`: it must be added although the metadata has lost it (-1000 for Sentinel-2)."""
    quality_masks: Literal["auto", "required", "off"] = "auto"
    """What the bands of a product say of themselves (Sentinel-2: lost, defective and saturated pixels): `auto` uses
    the masks that are there, `required` rejects a product that lacks one, `off` uses none."""
    resampling: Literal["bilinear", "cubic", "nearest"] = "bilinear"
    """How bands of another pixel size come onto the grid; masks are always nearest, but for saturation."""
    cell_px: int = Field(default=8, gt=0)
    """Side of a statistics cell in pixels; the model's patch size or a divisor of it."""
    tile_px: int = Field(default=96, gt=0, validate_default=True)
    """Side of a tile in pixels, a multiple of `cell_px`."""
    stride_px: int | None = Field(default=None, gt=0)
    """Distance between tiles, a multiple of `cell_px`; none is `tile_px` (tiles touch, none overlap)."""
    edge: Literal["drop", "shift", "pad"] = "drop"
    """Ground at the right and lower edges that is less than a tile: `drop` it, `shift` a tile back over it (it overlaps
    the one before), or `pad` it with nodata (`min_valid` then decides; images smaller than a tile need it)."""
    indices: tuple[str, ...] = Field(default=("NDVI", "NDWI", "NDBI"), min_length=1, validate_default=True)
    """Spectral indices whose cell statistics are stored: of `pipeline.indices.INDICES`, or any other name of spyndex
    (its package is the extra `spyndex`)."""
    clear_excludes: tuple[str, ...] = ("saturated", "cloud", "shadow", "cirrus")
    """Mask flags that make a pixel unclear: left out of all statistics."""
    min_valid: float = Field(default=0.9, ge=0, le=1)
    """Least share of a tile's pixels that hold a measurement in every band."""
    min_clear: float = Field(default=0.7, ge=0, le=1)
    """Least share of a tile's pixels that are valid and clear."""
    split: SplitConfig = SplitConfig()
    """Training and validation."""
    labels: LabelConfig | None = None
    """Labels by the set or by class rasters; none makes an unlabelled set."""
    codec: Codec = "lz4"
    """Compression of samples: `lz4` is read fastest for what it takes to write; `lz4hc` is a twentieth smaller and read
    faster still, and written at some 45 MB/s a core; `zstd` is a tenth smaller and read four times slower."""
    shard_mb: float = Field(default=256, gt=0)
    """Target size of a shard in megabytes of uncompressed samples."""
    seed: int = 0
    """Chooses the global order of samples."""
    keep_zarr: bool = True
    """Keep the Zarr archive; without it a scene's pixels are freed once its samples are cut."""
    select: SelectConfig = SelectConfig()
    """Which scenes of the archive are used."""
    duplicates: Literal["drop", "keep"] = "drop"
    """`drop` takes no ground twice from one acquisition (two baselines, a product copied); `keep` looks for none."""
    workers: int = Field(default=0, ge=0)
    """Dask worker processes on this machine; 0 works in this process. With `dask` it only serves the plan."""
    dask: DaskConfig = DaskConfig()
    """Dask workers that are there already, on other machines perhaps, in place of `workers`."""
    max_rejected: int | float = Field(default=0.1, ge=0)
    """Scenes that may be rejected before the run fails: a count, or a share of all (below 1, with a point)."""

    @field_validator("clear_excludes")
    @classmethod
    def _known_flags(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        # nodata is never clear, so it is not a choice
        known = [str(f.name).lower() for f in Flag if f is not Flag.NODATA]
        for name in names:
            if name not in known:
                raise ValueError(f"unknown flag `{name}`.{did_you_mean(name, known)}")
        return names

    @field_validator("crs")
    @classmethod
    def _known_crs(cls, name: str | None) -> str | None:
        if name is None:
            return None
        try:
            crs = CRS.from_string(name)
        except CRSError as error:
            raise ValueError(f"`{name}` is no coordinate system ({error}); write it as EPSG:32633") from error
        # a pixel of equal degrees is no square on the ground, and tiles are squares
        if not crs.is_projected:
            raise ValueError(
                f"`{name}` has no metres; take a projected one, such as a UTM zone, or leave it out"
            )
        return str(crs.to_string())

    @field_validator("files")
    @classmethod
    def _files_of_reader(cls, files: FilesConfig | None, earlier: ValidationInfo) -> FilesConfig | None:
        if (earlier.data.get("reader") == "geotiff") != (files is not None):
            raise ValueError(
                "reader `geotiff` needs `files` (where the images lie), and no other reader takes it"
            )
        if files and "sensor" in earlier.data:
            sensor(earlier.data["sensor"]).select([name for name in files.layers if name != NO_BAND])
        return files

    # Each check belongs to the last of the keys it compares, in the order above: the message names that key.
    # All are made before any scene is opened: a misspelt band would otherwise reject them all.

    @field_validator("sensor")
    @classmethod
    def _known_sensor(cls, name: str) -> str:
        return sensor(name).name

    @field_validator("bands")
    @classmethod
    def _known_bands(cls, names: tuple[str, ...], earlier: ValidationInfo) -> tuple[str, ...]:
        if "sensor" in earlier.data:
            sensor(earlier.data["sensor"]).select(names)
        return names

    @field_validator("gsd_m")
    @classmethod
    def _not_too_fine(cls, gsd_m: float | str, earlier: ValidationInfo) -> float | str:
        # a scene's own grids are looked at when it is opened
        if isinstance(gsd_m, str) or not {"sensor", "bands"} <= earlier.data.keys():
            return gsd_m
        for band in sensor(earlier.data["sensor"]).select(earlier.data["bands"]):
            if band.gsd_m > gsd_m * MAX_UPSAMPLING * UPSAMPLING_SLACK:
                raise ValueError(
                    f"band {band.name} has {band.gsd_m:g} m pixels: {gsd_m:g} m would enlarge it more than"
                    f" {MAX_UPSAMPLING:g} times; take larger pixels, or leave the band out of `bands`"
                )
        return gsd_m

    @field_validator("tile_px", "stride_px")
    @classmethod
    def _whole_cells(cls, side_px: int | None, earlier: ValidationInfo) -> int | None:
        cell_px = earlier.data.get("cell_px", 1)
        if side_px is not None and side_px % cell_px:
            raise ValueError(f"{side_px} is no multiple of cell_px {cell_px}; change one of them")
        return side_px

    @field_validator("indices")
    @classmethod
    def _have_bands(cls, names: tuple[str, ...], earlier: ValidationInfo) -> tuple[str, ...]:
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"{', '.join(twice)} listed twice; list each once")
        if {"sensor", "bands"} <= earlier.data.keys():
            instrument = sensor(earlier.data["sensor"])
            for name in names:
                found = standard_indices.index(name, instrument.name, earlier.data["bands"])
                for role in found.roles:
                    instrument.resolve(role, earlier.data["bands"])
        return names

    @property
    def instrument(self) -> Sensor:
        """The sensor's band table."""
        return sensor(self.sensor)

    @property
    def step_px(self) -> int:
        """Distance between tiles in pixels."""
        return self.stride_px or self.tile_px

    @property
    def unclear_bits(self) -> Flag:
        """The flags that make a pixel unclear, nodata among them."""
        bits = Flag.NODATA
        for name in self.clear_excludes:
            bits |= Flag[name.upper()]
        return bits

    def index(self, name: str) -> Index:
        """Return one of `indices`."""
        return standard_indices.index(name, self.sensor, self.bands)

    def index_bands(self, name: str) -> tuple[str, ...]:
        """Return the stored bands an index is computed from, in its formula's order."""
        return tuple(self.instrument.resolve(role, self.bands).name for role in self.index(name).roles)

    def fallbacks(self) -> tuple[str, ...]:
        """Say for which role a stand-in band is used."""
        roles = dict.fromkeys(role for name in self.indices for role in self.index(name).roles)
        used = [(role, self.instrument.resolve(role, self.bands)) for role in roles]
        return tuple(
            f"{role} is {band.name} ({band.role}): no {role} band was asked for"
            for role, band in used
            if band.role != role
        )

    def allowed_rejections(self, scenes: int) -> int:
        """Return how many of `scenes` may be rejected."""
        # 1 means one scene and 1.0 too: nobody asks for "all may fail"
        if isinstance(self.max_rejected, int) or self.max_rejected >= 1:
            return int(self.max_rejected)
        return int(self.max_rejected * scenes)


def digest(tree: Any) -> str:
    """Return a short identifier of a tree's content: of JSON, dataclasses and what says all as text."""
    return hashlib.sha256(json.dumps(tree, sort_keys=True, default=_as_json).encode()).hexdigest()[:16]


def _as_json(value: Any) -> Any:
    # `asdict` would copy every number on the way: seconds in an archive of patches
    return {f.name: getattr(value, f.name) for f in fields(value)} if is_dataclass(value) else str(value)


def comparable(config: ShardConfig) -> dict[str, Any]:
    """Return what decides the data, with the formats it is written in; lists stand by name and content."""
    tree = config.model_dump(mode="json", exclude=set(FREE_KEYS))
    # not by path: the same lists elsewhere divide alike, and a changed list elsewhere must be seen
    tree["split"]["files"] = {split: _known(path) for split, path in config.split.files.items()}
    tree["split"]["groups"] = _known(config.split.groups)
    if config.labels:
        tree["labels"]["table"] = _known(config.labels.table)
    return tree | {"format_versions": {"manifest": manifest.FORMAT_VERSION, "sample": sample.FORMAT_VERSION}}


def _known(path: Path | None) -> str | None:
    if path is None:
        return None
    return " ".join([path.name, *(f"{one.name} sha256:{manifest.sha256(one)}" for one in tables(path))])


def write_sources(folder: Path, sources: dict[str, str]) -> None:
    """Remember what a set was made of: product -> digest."""
    manifest.write_atomically(
        folder / SOURCES, (json.dumps(sources, indent=0, sort_keys=True) + "\n").encode()
    )


def read_sources(folder: Path) -> dict[str, str]:
    """Return what a set was made of; nothing where no set was ever finished, or nobody can say."""
    try:
        tree: dict[str, str] = json.loads((folder / SOURCES).read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return {}
    return tree


def source_changes(old: dict[str, str], new: dict[str, str]) -> str:
    """Tell which products are new, changed or gone, in one line; empty where all are the same."""
    words = [f"{name} is new" for name in sorted(new.keys() - old.keys())]
    words += [f"{name} changed" for name in sorted(new.keys() & old.keys()) if new[name] != old[name]]
    words += [f"{name} is gone" for name in sorted(old.keys() - new.keys())]
    more = f", and {len(words) - TOLD} more" if len(words) > TOLD else ""
    return ", ".join(words[:TOLD]) + more


def agree(config: ShardConfig, fresh: bool = False) -> list[str]:
    """Compare with what made the output; remember the request where it is new.

    fresh: nothing was stored there yet, so nothing can change its meaning.
    Returns the arranging keys that changed, as `key: old -> new`. Raises `OutputError` with the list of
    differences where the stored numbers would change their meaning.
    """
    path = config.output / NAME
    # the paths, and how many work where, may change: they do not decide any byte
    new = comparable(config)
    try:
        old = json.loads(path.read_text(encoding="utf-8")) if path.exists() else new
    except ValueError as error:
        raise CorruptDataError(
            f"{path} cannot be read ({error}). Take another `output`, or remove this one."
        ) from error
    changed = differences(old, new)
    # nested keys stand as `split.seed`: their first word decides
    refused = [c for c in changed if c.split(":")[0].split(".")[0] not in ARRANGING_KEYS]
    if refused and not fresh:
        raise OutputError(
            f"{config.output} was made with other settings: {'; '.join(refused)}. Take another `output`,"
            " or remove this one to make it again."
        )
    # written at once: a run that is killed later must find what it was about
    config.output.mkdir(parents=True, exist_ok=True)
    manifest.write_atomically(path, (json.dumps(new, indent=1, sort_keys=True) + "\n").encode())
    return changed
