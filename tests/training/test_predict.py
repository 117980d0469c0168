"""Whole scenes: from a simulated product to a map in its place on Earth, against the shards of the same scene."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import rasterio
import torch
import zarr

from pipeline.errors import ContractError, CorruptDataError, MissingInputError
from tests.training.processes import ROOT, run_cases
from training.downstream import Trained
from training.predict import Blend, PredictConfig, Predictor, Scene, main
from training.reader import ShardReader
from training.world import World

BANDS = "bands=[B02,B03,B04,B08,B11,B12]"


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated scene of 384 px, sharded with a class of every pixel, and a segmentation trained on it."""
    folder = tmp_path_factory.mktemp("predict")
    words = [f"scenes={folder}/archive", f"output={folder}/shards", BANDS, "tile_px=48", "labels.kind=mask"]
    split = ["split.val_share=0.3", "split.block_m=500", "split.buffer_m=0", "min_clear=0.2"]
    for command in (
        ["preprocessing/simulate.py", f"{folder}/archive", "--size-px", "384"],
        ["preprocessing/shard.py", "configs/shard/demo_sentinel2.yaml", *words, *split],
    ):
        subprocess.run([sys.executable, *command], cwd=ROOT, check=True, capture_output=True)
    tune = [f"output={folder}", f"data.shards={folder}/shards", "model.size=tiny", "batch.size=8", "epochs=6"]
    rate = ["optimiser.base_lr=0.03", "optimiser.warmup_epochs=1"]
    assert run_cases(folder, [("finetune", [*tune, *rate, "task=segmentation", "name=map"])]) == [True]
    return folder


def scene_of(made: Path) -> Path:
    (scene,) = (path.parent for path in (made / "shards/archive.zarr").glob("*/zarr.json"))
    return scene


def predict(made: Path, output: Path, *words: str) -> None:
    assert main([f"run={made}/map", f"scene={scene_of(made)}", f"output={output}", *words]) == 0


def test_a_map_lies_where_the_scene_does_and_agrees_with_its_labels(made: Path, tmp_path: Path) -> None:
    predict(made, tmp_path / "map.tif", "overlap=0.25")
    group = zarr.open_group(scene_of(made), mode="r")
    labels, pixels = np.asarray(group["label"]), np.asarray(group["reflectance"])
    place = group.attrs["scene"]["grid"]  # type: ignore[index,call-overload]
    with rasterio.open(tmp_path / "map.tif") as raster:
        found = raster.read(1)
        assert raster.crs == rasterio.crs.CRS.from_wkt(place["crs"])  # type: ignore[index,call-overload]
        assert list(raster.transform)[:6] == place["transform"]  # type: ignore[index,call-overload]
        assert (raster.nodata, raster.tags()["classes"][:13]) == (255, "water, forest")
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
    assert found.shape == labels.shape
    unmeasured = (pixels == -32768).any(0)
    assert ((found == 255) == unmeasured).all()
    known = (labels < 5) & ~unmeasured
    agreed = (found == labels)[known].mean()
    assert agreed > 0.6
    # a map that was turned or shifted would agree less
    for moved in (np.roll(found, 24, 0), np.roll(found, 24, 1), np.rot90(found), found[::-1]):
        assert (moved == labels)[known].mean() < agreed - 0.03


def test_without_overlap_a_scene_is_predicted_as_its_shards_are(made: Path, tmp_path: Path) -> None:
    predict(made, tmp_path / "map.tif", "overlap=0", "write=scores", "batch=3")
    trained = Trained.of(made / "map")
    model = trained.model.eval()
    with rasterio.open(tmp_path / "map.tif") as raster:
        found = raster.read()
        assert raster.descriptions == trained.task.classes
    reader, compared = ShardReader(made / "shards", "train"), 0
    for number in range(len(reader)):
        sample = reader.read(number)
        row, column = (int(part) for part in sample.key.rsplit("_", 2)[1:])
        # windows begin at multiples of the tile's side, as tiles do
        assert (row % 48, column % 48) == (0, 0)
        with torch.no_grad():
            expected = model(trained.normaliser(torch.from_numpy(sample.pixels)[None])).softmax(1)[0].numpy()
        assert np.allclose(found[:, row : row + 48, column : column + 48], expected, atol=1e-5)
        compared += 1
    assert compared > 5


def test_what_does_not_fit_is_told(made: Path) -> None:
    config = PredictConfig(run=made / "map", scene=scene_of(made), output=made / "map.tif")
    trained, scene = Trained.of(config.run), Scene.open(config.scene)
    other = Scene({**scene.header, "sensor": "landsat_oli", "bands": ["B02"]}, scene.dates)
    with pytest.raises(ContractError, match=r"sensor: 'sentinel2' -> 'landsat_oli'; bands B03, B04"):
        Predictor(config, trained, other, World())
    with pytest.raises(MissingInputError, match="no finished scene"):
        Scene.open(made)


@pytest.mark.parametrize("damage", ["gone", "cut short", "no list"])
def test_a_scene_that_lost_a_file_is_refused_and_no_map_of_nodata(tmp_path: Path, damage: str) -> None:
    group = zarr.open_group(tmp_path, mode="w", zarr_format=3)
    group.attrs["scene"] = {"id": "s1"}
    group.create_array("reflectance", data=np.ones((1, 8, 8), np.int16), chunks=(1, 8, 8), fill_value=-32768)
    chunk, marker = tmp_path / "reflectance/c/0/0/0", tmp_path / "reflectance/COMPLETE.json"
    files = {"reflectance/c/0/0/0": [chunk.stat().st_size, ""]}
    marker.write_text(json.dumps({"files": files}))
    assert (Scene.open(tmp_path).read([0], slice(0, 8))[0] == 1).all()
    if damage == "gone":
        chunk.unlink()
    elif damage == "cut short":
        chunk.write_bytes(chunk.read_bytes()[:-1])
    else:
        marker.write_text("{}")
    with pytest.raises(CorruptDataError, match="again"):
        Scene.open(tmp_path)


@pytest.mark.parametrize(("side", "window", "step"), [(40, 16, 8), (37, 16, 5), (16, 16, 8), (33, 16, 16)])
def test_blending_keeps_what_all_windows_say(side: int, window: int, step: int) -> None:
    from training.windows import starts

    truth = np.random.default_rng(0).random((2, side, side)).astype(np.float32)
    blend, rows = Blend(2, side, window), []
    tops = starts(side, window, step)
    for top, following in zip(tops, (*tops[1:], side), strict=True):
        for left in tops:
            blend.add(left, truth[:, top : top + window, left : left + window])
        rows.append(blend.take(following - top))
    assert np.allclose(np.concatenate(rows, 1), truth, atol=1e-6)
