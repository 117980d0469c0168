"""Every kind of product that can be simulated, by name: for tests, and to try a configuration without an archive."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from preprocessing.simulation import aws, landsat, old_safe, safe
from preprocessing.simulation.landsat import LandsatOptions
from preprocessing.simulation.packed import tar_product, zip_product
from preprocessing.simulation.safe import SafeOptions

Written = Callable[[str], None]
Pack = Callable[[Path], Path]


@dataclass(frozen=True)
class Ground:
    """What products are made of: the side of the ground in 10 m pixels, and the key of everything on it."""

    size_px: int
    seed: int = 1
    baseline: str = "05.10"
    """Sentinel-2 processing baseline."""


@dataclass(frozen=True)
class Kind:
    """One kind of product."""

    sensor: str
    """Key in `SENSORS`."""
    write: Callable[[Path, Ground, Written], Path]
    """Write one, with its land cover beside it, into a folder; returns its path. Told every image that is done."""
    image_count: Callable[[Ground], int]
    """Number of images that it tells of."""
    scenes: int = 1
    """Number of scenes it holds, each on ground of its own."""


def _sentinel2(level: Literal["L1C", "L2A"], pack: Pack | None = None, tile: bool = False) -> Kind:
    def options(ground: Ground) -> SafeOptions:
        return SafeOptions(ground.size_px, ground.seed, ground.baseline, level)

    def write(folder: Path, ground: Ground, written: Written) -> Path:
        product = (aws.write_aws if tile else safe.write_safe)(folder, options(ground), written)
        return pack(product) if pack else product

    return Kind("sentinel2", write, lambda ground: safe.image_count(options(ground)))


def _old_sentinel2(pack: Pack | None = None) -> Kind:
    def write(folder: Path, ground: Ground, written: Written) -> Path:
        product = old_safe.write_old_safe(folder, SafeOptions(ground.size_px, ground.seed), written)
        return pack(product) if pack else product

    # real ones of that time hold many tiles: two show as well that each becomes a scene
    return Kind("sentinel2", write, lambda ground: old_safe.old_image_count(SafeOptions(ground.size_px)), 2)


def _landsat(
    satellite: Literal["LC08", "LC09", "LE07", "LT05", "LT04"],
    level: Literal["L2SP", "L2SR", "L1TP"],
    pack: Pack | None = None,
    polar: bool = False,
) -> Kind:
    def options(ground: Ground) -> LandsatOptions:
        return LandsatOptions(ground.size_px, ground.seed, satellite, level, polar)

    def write(folder: Path, ground: Ground, written: Written) -> Path:
        product = landsat.write_landsat(folder, options(ground), written)
        return pack(product) if pack else product

    # LC: both instruments, LE and LT: ETM+ and TM
    sensor = "landsat_oli" if satellite.startswith("LC") else "landsat_tm"
    return Kind(sensor, write, lambda ground: landsat.image_count(options(ground)))


PRODUCTS: dict[str, Kind] = {
    "sentinel2-l2a": _sentinel2("L2A"),
    "sentinel2-l1c": _sentinel2("L1C"),
    "sentinel2-l2a-zip": _sentinel2("L2A", zip_product),
    "sentinel2-l1c-zip": _sentinel2("L1C", zip_product),
    "sentinel2-l1c-2016": _old_sentinel2(),
    "sentinel2-l1c-2016-zip": _old_sentinel2(zip_product),
    "sentinel2-aws-l1c": _sentinel2("L1C", tile=True),
    "sentinel2-aws-l2a": _sentinel2("L2A", tile=True),
    "sentinel2-aws-l1c-zip": _sentinel2("L1C", zip_product, tile=True),
    "landsat9-l2sp": _landsat("LC09", "L2SP"),
    "landsat9-l2sp-tar": _landsat("LC09", "L2SP", tar_product),
    "landsat9-l1tp-polar": _landsat("LC09", "L1TP", polar=True),
    "landsat8-l2sr": _landsat("LC08", "L2SR"),
    "landsat8-l1tp": _landsat("LC08", "L1TP"),
    "landsat7-l2sp": _landsat("LE07", "L2SP"),
    "landsat7-l2sr": _landsat("LE07", "L2SR"),
    "landsat5-l2sp": _landsat("LT05", "L2SP"),
    "landsat4-l1tp": _landsat("LT04", "L1TP"),
    "landsat4-l1tp-tar": _landsat("LT04", "L1TP", tar_product),
}
