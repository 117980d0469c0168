"""Simulated products for the tests of this room; all are made once and must not be changed: copy what you break."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipeline.config import ROOT
from pipeline.sensors import SENSORS
from preprocessing import shard
from preprocessing.readers import Request
from preprocessing.simulate import Simulation, simulate
from preprocessing.simulation.aws import write_aws
from preprocessing.simulation.landsat import LandsatOptions, write_landsat
from preprocessing.simulation.packed import tar_product, zip_product
from preprocessing.simulation.raster import write_tif
from preprocessing.simulation.safe import SafeOptions, digital_numbers, write_safe
from preprocessing.simulation.view import make_view

SMALL_PX = 192
KINDS = (
    "sentinel2-L2A",
    "sentinel2-L1C",
    "sentinel2-L2A-zip",
    "sentinel2_aws-L1C",
    "sentinel2_aws-L1C-zip",
    "sentinel2_aws-L2A",
    "landsat-LC09",
    "landsat-LC08-L1TP",
    "landsat-LT05",
    "landsat-LC09-tar",
    "landsat-LE07-L2SR",
    "landsat-LT04-L1TP-tar",
    "landsat-LC09-L1TP-polar",
    "oscd",
)


@pytest.fixture(scope="session")
def simulated_archive(tmp_path_factory) -> Path:
    """An archive of one Sentinel-2 L2A and one Landsat 9 product, 384 px (3.84 km) wide."""
    folder = tmp_path_factory.mktemp("simulated") / "archive"
    simulate(folder, Simulation(size_px=384))
    return folder


def write_oscd(folder: Path) -> Path:
    """Write both dates of one small OSCD city; returns the first date's folder."""
    city = folder / "oscd" / "images" / "simulacity"
    city.mkdir(parents=True)
    (city / "dates.txt").write_text("date_1: 20160424\ndate_2: 20171011\n")
    for date in (1, 2):
        view = make_view(SMALL_PX, date, "oscd")
        for band in SENSORS["sentinel2"].bands:
            measured = view.measure(view.reflectance(band.centre_nm, haze=True), band.gsd_m, band.name)
            stored = digital_numbers(measured, view.outside(band.gsd_m), 0)
            write_tif(city / f"imgs_{date}" / f"T32UPU_20160424T101031_{band.name}.tif", stored, band.gsd_m)
    return city / "imgs_1"


MAKERS: dict[str, Callable[[Path], Path]] = {
    "sentinel2-L2A": lambda folder: write_safe(folder, SafeOptions(SMALL_PX)),
    "sentinel2-L1C": lambda folder: write_safe(folder, SafeOptions(SMALL_PX, level="L1C")),
    "landsat-LC09": lambda folder: write_landsat(folder, LandsatOptions(SMALL_PX)),
    "landsat-LC08-L1TP": lambda folder: write_landsat(folder, LandsatOptions(SMALL_PX, 1, "LC08", "L1TP")),
    "landsat-LE07-L2SR": lambda folder: write_landsat(folder, LandsatOptions(SMALL_PX, 1, "LE07", "L2SR")),
    "landsat-LT04-L1TP-tar": lambda folder: tar_product(
        write_landsat(folder, LandsatOptions(SMALL_PX, 1, "LT04", "L1TP"))
    ),
    "landsat-LC09-L1TP-polar": lambda folder: write_landsat(
        folder, LandsatOptions(SMALL_PX, 1, "LC09", "L1TP", polar=True)
    ),
    "landsat-LT05": lambda folder: write_landsat(folder, LandsatOptions(SMALL_PX, 1, "LT05")),
    "sentinel2-L2A-zip": lambda folder: zip_product(write_safe(folder, SafeOptions(SMALL_PX))),
    "sentinel2_aws-L1C": lambda folder: write_aws(
        folder, SafeOptions(SMALL_PX, level="L1C", baseline="02.06")
    ),
    "sentinel2_aws-L1C-zip": lambda folder: zip_product(
        write_aws(folder, SafeOptions(SMALL_PX, level="L1C"))
    ),
    "sentinel2_aws-L2A": lambda folder: write_aws(folder, SafeOptions(SMALL_PX)),
    "landsat-LC09-tar": lambda folder: tar_product(write_landsat(folder, LandsatOptions(SMALL_PX))),
    "oscd": write_oscd,
}


@pytest.fixture(scope="session")
def products(tmp_path_factory) -> dict[str, Path]:
    """One small product of every kind the readers know, each alone in its folder."""
    return {kind: make(tmp_path_factory.mktemp(kind)) for kind, make in MAKERS.items()}


def all_bands(kind: str) -> Request:
    """Return a request for every band a product kind holds."""
    name = (
        "sentinel2"
        if kind == "oscd" or "sentinel2" in kind
        else "landsat_tm"
        if re.search("LT0|LE07", kind)
        else "landsat_oli"
    )
    without = {"B10"} if "L2A" in kind else set()
    return Request(SENSORS[name], tuple(b.name for b in SENSORS[name].bands if b.name not in without))


@pytest.fixture(params=KINDS)
def kind(request, products) -> SimpleNamespace:
    """Each product kind in turn: its name, reader, product folder and a request for all its bands."""
    name = request.param
    return SimpleNamespace(
        name=name, reader=name.split("-")[0], product=products[name], request=all_bands(name)
    )


@pytest.fixture
def copied(products, tmp_path) -> Callable[[str], Path]:
    """Copy a product, with what stands beside it, to where a test may break it."""

    def copy(name: str) -> Path:
        original = products[name]
        shutil.copytree(original.parent, tmp_path / name)
        return tmp_path / name / original.name

    return copy


@pytest.fixture(scope="session")
def shard_words(simulated_archive) -> list[str]:
    """Words that shard the small simulated Sentinel-2 scene; `output` is left to the test."""
    return [
        str(ROOT / "configs/shard/demo_sentinel2.yaml"),
        f"scenes={simulated_archive}",
        "tile_px=48",
        "split.block_m=2000",
        "split.seed=6",
        "min_valid=0.5",
        "min_clear=0.2",
        "shard_mb=0.5",
    ]


@pytest.fixture(scope="session")
def shard_set(shard_words, tmp_path_factory) -> Path:
    """The shard set of the small simulated Sentinel-2 scene, made in this process."""
    output = tmp_path_factory.mktemp("set") / "shards"
    assert shard.main([*shard_words, f"output={output}"]) == 0
    return output
