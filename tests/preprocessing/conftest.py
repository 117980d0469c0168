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
from preprocessing.simulation.products import PRODUCTS, Ground
from preprocessing.simulation.raster import write_tif
from preprocessing.simulation.safe import digital_numbers
from preprocessing.simulation.view import make_view

SMALL_PX = 192
SIMULATED = {
    "sentinel2-L2A": "sentinel2-l2a",
    "sentinel2-L1C": "sentinel2-l1c",
    "sentinel2-L2A-zip": "sentinel2-l2a-zip",
    "sentinel2_aws-L1C": "sentinel2-aws-l1c",
    "sentinel2_aws-L1C-zip": "sentinel2-aws-l1c-zip",
    "sentinel2_aws-L2A": "sentinel2-aws-l2a",
    "landsat-LC09": "landsat9-l2sp",
    "landsat-LC09-tar": "landsat9-l2sp-tar",
    "landsat-LC09-L1TP-polar": "landsat9-l1tp-polar",
    "landsat-LC08-L1TP": "landsat8-l1tp",
    "landsat-LE07-L2SR": "landsat7-l2sr",
    "landsat-LT05": "landsat5-l2sp",
    "landsat-LT04-L1TP-tar": "landsat4-l1tp-tar",
}
"""Product kind, `<reader>-...` -> what the simulator calls it."""
KINDS = (*SIMULATED, "oscd")


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


def make(kind: str, folder: Path) -> Path:
    """Write one product of a kind, alone in its folder; returns its path."""
    if kind == "oscd":
        return write_oscd(folder)
    # AWS tiles as of before the offset: their metadata does not state it
    baseline = "02.06" if kind == "sentinel2_aws-L1C" else "05.10"
    return PRODUCTS[SIMULATED[kind]].write(folder, Ground(SMALL_PX, baseline=baseline), lambda image: None)


@pytest.fixture(scope="session")
def products(tmp_path_factory) -> dict[str, Path]:
    """One small product of every kind the readers know, each alone in its folder."""
    return {kind: make(kind, tmp_path_factory.mktemp(kind)) for kind in KINDS}


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
