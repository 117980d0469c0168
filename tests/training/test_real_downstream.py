"""The downstream harness on real imagery: OSCD's pairs, BigEarthNet's patches, HLS chips. Skipped where it is absent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import rasterio
import torch

from pipeline.config import load
from tests.training.processes import ROOT, run_cases
from training import journal
from training.downstream import FinetuneConfig, Setup
from training.world import World

CITIES = ("bercy", "saclay_e")


def shard(config: str, *words: str) -> None:
    command = [sys.executable, "preprocessing/shard.py", f"configs/shard/{config}.yaml", *words]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)


@pytest.fixture(scope="module")
def sets(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cities of OSCD, BigEarthNet's few patches, and the HLS chips of some groups."""
    folder = tmp_path_factory.mktemp("real")
    for kind in ("images", "labels"):
        (folder / "oscd" / kind).mkdir(parents=True)
        for city in CITIES:
            (folder / "oscd" / kind / city).symlink_to(real_data / "oscd" / kind / city)
    for name, city in zip(("train", "val"), CITIES, strict=True):
        (folder / f"{name}.txt").write_text(f"{city}\n")
    lists = [f"split.files.{name}={folder}/{name}.txt" for name in ("train", "val")]

    bands = "bands=[B02,B03,B04,B08,B11,B12]"
    shard("oscd_change", f"scenes={folder}/oscd", f"output={folder}/change", bands, "split.by=set", *lists)
    patches = real_data / "bigearthnet_v2_mini"
    shard(
        "bigearthnet", f"scenes={patches}", f"output={folder}/ben", f"labels.table={patches}/metadata.parquet"
    )
    chips = folder / "chips"
    (chips / "images").mkdir(parents=True)
    groups = json.loads((real_data / "hls_water_worldcover/groups.json").read_text())
    kept = {name: group for name, group in groups.items() if group % 4 == 0}
    for name in kept:
        (chips / "images" / f"{name}.tif").symlink_to(real_data / f"hls_water_worldcover/images/{name}.tif")
    (chips / "groups.json").write_text(json.dumps(kept))
    shard("hls_worldcover", f"scenes={chips}", f"output={folder}/wc", f"split.groups={chips}/groups.json")
    return folder


@pytest.fixture(scope="module")
def output(sets: Path) -> Path:
    words = [f"output={sets}/runs", "batch.size=4", "model.size=tiny", "steps=2", "optimiser.warmup_epochs=0"]
    change = [f"data.shards={sets}/change", "task=change"]
    cases = [
        ("finetune", [*words, *change, "name=change"]),
        ("finetune", [*words, *change, "name=statistics", "mode=logistic"]),
        ("finetune", [*words, f"data.shards={sets}/ben", "task=multilabel", "name=ben", "data.image_px=64"]),
        ("finetune", [*words, f"data.shards={sets}/wc", "name=wc", "mode=logistic", "index_statistics=true"]),
    ]
    assert run_cases(sets, cases) == [True] * 4
    return sets / "runs"


def last(output: Path, name: str) -> dict[str, float]:
    return journal.read(output / name)[-1].metrics


def test_each_labelled_pixel_of_whole_cities_is_scored_once(sets: Path, real_data: Path) -> None:
    words = [f"data.shards={sets}/change", "task=change", "name=x", "model.size=tiny", "init=null"]
    setup = Setup(load(FinetuneConfig, None, words), World(), None)
    # what is said decides nothing here
    tally = setup.score(lambda batch: torch.zeros(len(batch.keys), 2, 96, 96), setup.validation(8)).tally
    (path,) = (real_data / "oscd/labels" / CITIES[1]).rglob("*.tif")
    with rasterio.open(path) as raster:
        codes = raster.read(1)
    (first,) = (real_data / "oscd/images" / CITIES[1]).glob("imgs_1/*B02.tif")
    with rasterio.open(first) as raster:
        shape = raster.shape
    # labels are not of quite the images' size
    held = codes[: shape[0], : shape[1]]
    assert tally.sum(1).tolist() == [int((held == 1).sum()), int((held == 2).sum())]


def test_real_sets_are_scored(output: Path) -> None:
    assert 0 < last(output, "statistics")["val_change_f1"] < 1
    assert 0 < last(output, "ben")["val_macro_map"] <= 1
    assert last(output, "wc")["val_accuracy"] > 0.5
