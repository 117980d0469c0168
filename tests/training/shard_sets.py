"""Small shard sets for the training tests, written with the project's own formats."""

from __future__ import annotations

import io
import tarfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np

from pipeline import histogram as histograms
from pipeline import manifest as manifests
from pipeline.contract import BandContract, DataContract, LabelKind
from pipeline.indices import INDICES
from pipeline.manifest import Manifest, SceneRecord, Shard
from pipeline.saliency import cell_statistics
from pipeline.sample import NO_CLASS, NODATA, Flag, Sample, encode
from pipeline.sensors import SENSORS

INDEX_NAMES = ("NDVI", "NDWI", "NDBI")
ROLES = ("blue", "green", "red", "nir", "swir1", "swir2")
TILE_PX, CELL_PX = 48, 8
CLASSES = ("water", "field", "town")
_SPECTRA = {
    0: (0.06, 0.05, 0.03, 0.02, 0.01, 0.01),
    1: (0.03, 0.07, 0.05, 0.4, 0.2, 0.1),
    2: (0.1, 0.12, 0.14, 0.2, 0.25, 0.22),
}


_LIKE = {
    "coastal": "blue", "rededge1": "red", "rededge2": "nir", "rededge3": "nir", "nir_narrow": "nir",
    "water_vapour": "nir",
}  # fmt: skip
"""Bands beside those of `ROLES`, and whose values they have."""


@dataclass(frozen=True)
class Kind:
    """What differs between made sets."""

    sensor: str = "sentinel2"
    bands: tuple[str, ...] = ("B02", "B03", "B04", "B08", "B11", "B12")
    level: str = "L2A"
    scene: str = "tile"
    tile_px: int = TILE_PX
    name: str = "made"
    earlier: tuple[str, ...] = ()
    labelled: tuple[str, ...] = ("train", "val")
    labels: LabelKind = "class"
    """What a label is; of pairs always a mask of what changed."""
    dates: Literal[1, 2] = 1
    licence: str = "Made up for tests: CC0-1.0."

    @property
    def classes(self) -> tuple[str, ...]:
        return CLASSES if self.dates == 1 else ("same", "change")

    @property
    def roles(self) -> tuple[str, ...]:
        """What each band is."""
        return tuple(b.role for b in SENSORS[self.sensor].select(self.bands))


SENTINEL2 = Kind()
TWELVE_BANDS = Kind(
    bands=("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12"), tile_px=96
)
LANDSAT = Kind("landsat_oli", ("B2", "B3", "B4", "B5", "B6", "B7"), "L2SP", "oli")


def make_sample(number: int, kind: Kind = SENTINEL2) -> Sample:
    """One tile of two land covers in stripes; every seventh has a nodata corner."""
    rng = np.random.default_rng(number)
    label = number % len(CLASSES)
    side = np.arange(kind.tile_px)
    stripes = (side[None] // 12 + side[:, None] // 16 + number) % 4 == 0
    classes = np.where(stripes, (label + 1) % 3, label)
    table = np.array([_SPECTRA[c] for c in range(3)])
    reflectance = table[classes].transpose(2, 0, 1) * rng.uniform(0.8, 1.2, (1, *stripes.shape))
    reflectance = reflectance[[ROLES.index(_LIKE.get(role, role)) for role in kind.roles]]
    pixels = np.rint(reflectance * 1e4).astype(np.int16)
    mask = np.zeros(stripes.shape, np.uint8)
    if number % 7 == 0:
        mask[:16, :16] = Flag.NODATA
        pixels[:, :16, :16] = NODATA
    sample = Sample(
        f"{kind.scene}_{number:05d}", pixels, mask, _cells(pixels, mask, kind), {"scene": kind.scene}, label
    )
    if kind.dates == 2:
        return _pair(sample, rng)
    codes = np.where(mask == 0, classes, NO_CLASS).astype(np.uint8)
    by_kind = {"class": label, "classes": tuple(np.unique(classes).tolist()), "mask": codes}
    return replace(sample, label=by_kind[kind.labels])


def _pair(sample: Sample, rng: np.random.Generator) -> Sample:
    """Add a later date on which a square has become town."""
    changed = np.zeros(sample.mask.shape, np.uint8)
    row, column = rng.integers(0, len(changed) - 20, 2)
    changed[row : row + 20, column : column + 20] = 1
    town = np.rint(np.array(_SPECTRA[2]) * 1e4).astype(np.int16)[:, None, None] + 3000
    after = np.where(changed & (sample.mask == 0), town, sample.pixels).astype(np.int16)
    return replace(sample, after=after, label=changed)


def _cells(pixels: np.ndarray, mask: np.ndarray, kind: Kind) -> np.ndarray:
    reflectance = pixels.astype(np.float32) * 1e-4
    roles = dict(zip(kind.roles, reflectance, strict=True))
    values = np.stack([INDICES[n](*(roles[r] for r in INDICES[n].roles)) for n in INDEX_NAMES])
    return cell_statistics(values, mask == 0, CELL_PX)


def write_shards(folder: Path, splits: dict[str, range], kind: Kind = SENTINEL2, per_shard: int = 16) -> Path:
    """Write a shard set with the numbered samples of each split; returns its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    written = {
        name: tuple(_write_split(folder, name, numbers, per_shard, kind)) for name, numbers in splits.items()
    }
    counted = histograms.empty(len(kind.bands))
    for sample in (make_sample(n, kind) for n in splits.get("train", ())):
        histograms.count(counted, sample.pixels, sample.mask == 0)
    histograms.write(folder, kind.bands, counted)
    scene = SceneRecord(
        id=kind.scene,
        reader="made",
        acquired="2024-06-01T10:00:00Z",
        level=kind.level,
        tiles={k: len(v) for k, v in splits.items()},
        licence=kind.licence,
    )
    manifest = Manifest(
        name=kind.name, contract=contract_of(kind), statistics=histograms.statistics(counted), splits=written,
        scenes=(scene,), settings={}, code_version="test", notices=(kind.licence,) if kind.licence else (), earlier=kind.earlier,
    )  # fmt: skip
    manifests.write(manifest, folder)
    return folder


def _write_split(folder: Path, name: str, numbers: range, per_shard: int, kind: Kind) -> list[Shard]:
    (folder / name).mkdir(exist_ok=True)
    shards = []
    for start in range(0, len(numbers), per_shard):
        chosen = numbers[start : start + per_shard]
        path = folder / name / f"shard-{start // per_shard:06d}.tar"
        with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
            for number in chosen:
                sample = make_sample(number, kind)
                sample = sample if name in kind.labelled else replace(sample, label=None)
                for suffix, data in encode(sample).items():
                    info = tarfile.TarInfo(f"{sample.key}.{suffix}")
                    info.size = len(data)
                    tar.addfile(info, io.BytesIO(data))
        shards.append(Shard(path=f"{name}/{path.name}", samples=len(chosen), size_bytes=path.stat().st_size,
                            sha256=manifests.sha256(path)))  # fmt: skip
    return shards


def contract_of(kind: Kind) -> DataContract:
    bands = SENSORS[kind.sensor].select(kind.bands)
    names = dict(zip(kind.roles, kind.bands, strict=True))
    return DataContract(
        sensor=kind.sensor, level=kind.level, gsd_m=10, tile_px=kind.tile_px, cell_px=CELL_PX, indices=INDEX_NAMES,
        index_formulas={i: INDICES[i].text for i in INDEX_NAMES},
        index_bands={i: tuple(names[r] for r in INDICES[i].roles) for i in INDEX_NAMES}, resampling="bilinear",
        bands=tuple(
            BandContract(name=b.name, role=b.role, centre_nm=b.centre_nm, width_nm=b.width_nm, source_gsd_m=b.gsd_m)
            for b in bands
        ),
        classes=kind.classes, label_kind="mask" if kind.dates == 2 else kind.labels, dates=kind.dates,
    )  # fmt: skip
