"""Faults that go through a whole run: wild pixels, odd paths."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline import config as configs
from pipeline import manifest as manifests
from pipeline import sample as samples
from pipeline.sample import Flag
from preprocessing import packing, shard


@pytest.fixture
def city(products, tmp_path):
    folder = tmp_path / "archive/images/a"
    shutil.copytree(products["oscd"].parent, folder)
    words = [str(configs.ROOT / "configs/shard/oscd.yaml"), f"scenes={tmp_path / 'archive'}", "shard_mb=4"]
    return folder, [*words, "tile_px=48", "split.val_share=0", "min_valid=0", "min_clear=0"]


def test_p12_wild_pixels_are_masked_and_every_scenes_part_in_the_statistics_is_told(city, tmp_path):
    folder, words = city
    shard.main([*words, f"output={tmp_path / 'before'}"])
    (path,) = (folder / "imgs_1").glob("*_B04.tif")
    with rasterio.open(path, "r+") as raster:
        data = raster.read(1)
        data[96:104, 96:104] = 65_535
        raster.write(data, 1)
    assert shard.main([*words, f"output={tmp_path / 'set'}"]) == 0
    before, made = (manifests.read(tmp_path / name) for name in ("before", "set"))
    place = made.contract.band_names.index("B04")
    old, new = before.statistics[place], made.statistics[place]
    assert new.n == old.n - 64
    assert (new.mean, new.std, new.low, new.high) == pytest.approx(
        (old.mean, old.std, old.low, old.high), rel=0.02
    )
    held = dict(packing.read_shard(tmp_path / "set" / made.shards("train")[0].path))
    tile = samples.decode("oscd_a_1_00096_00096", held["oscd_a_1_00096_00096"], "shard")
    assert (tile.mask[:8, :8] & Flag.SATURATED).all()
    tree = json.loads((tmp_path / "set/quality.json").read_text())
    parts = [scene["bands"]["B04"]["n"] for scene in tree["scenes"].values()]
    assert len(parts) == 2
    assert sum(parts) == new.n
    assert tree["scenes"]["oscd_a_1"]["flags"]["saturated"] == pytest.approx(64 / 192**2, abs=1e-6)


def test_p12_a_scene_of_garbage_gives_nothing_to_the_statistics_and_is_named(city, tmp_path, capsys):
    folder, words = city
    for path in (folder / "imgs_2").glob("*.tif"):
        with rasterio.open(path, "r+") as raster:
            noise = np.random.default_rng(0).integers(1, 30_000, (raster.height, raster.width))
            raster.write(noise.astype(raster.dtypes[0]), 1)
    assert shard.main([*words, f"output={tmp_path / 'set'}"]) == 0
    told = capsys.readouterr().out
    assert "warning: oscd_a_2 is left out of the statistics: " in told
    assert "is no reflectance (-0.2 to 1.6)" in told
    made = manifests.read(tmp_path / "set")
    assert {s.id: s.statistics_px > 0 for s in made.scenes} == {"oscd_a_1": True, "oscd_a_2": False}
    (tmp_path / "good.txt").write_text("oscd_a_1\n")
    shard.main([*words, f"output={tmp_path / 'good'}", f"select.list={tmp_path / 'good.txt'}"])
    assert made.statistics == manifests.read(tmp_path / "good").statistics
    tree = json.loads((tmp_path / "set/quality.json").read_text())
    assert list(tree["left_out_of_statistics"]) == ["oscd_a_2"]
    assert "Left out of the statistics" in (tmp_path / "set/quality.html").read_text()


def test_p16_relative_paths_and_an_input_that_cannot_be_written(city, tmp_path, monkeypatch):
    folder, words = city
    before = {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")}
    for path in (*folder.rglob("*"), folder):
        path.chmod(0o555 if path.is_dir() else 0o444)
    monkeypatch.chdir(tmp_path)
    try:
        assert shard.main([*words[:1], "scenes=archive", "output=./sets/ein Satz", *words[2:]]) == 0
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
    assert manifests.read(Path("sets/ein Satz")).samples("train") == 32
    # whoever may write everywhere has not done it
    assert {p: (p.stat().st_mtime_ns, p.stat().st_size) for p in folder.rglob("*")} == before
    assert {p.name for p in tmp_path.iterdir()} == {"archive", "sets"}


def test_p08_tiles_of_a_scene_mostly_without_data_are_dropped_by_reason(city, tmp_path):
    folder, words = city
    for path in (folder / "imgs_1").glob("*.tif"):
        with rasterio.open(path, "r+") as raster:
            data = raster.read(1)
            data[: int(np.ceil(len(data) * 0.6))] = 0
            raster.write(data, 1)
    assert shard.main([*words, "min_valid=0.9", f"output={tmp_path / 'set'}"]) == 0
    tree = json.loads((tmp_path / "set/quality.json").read_text())
    scene = tree["scenes"]["oscd_a_1"]
    assert scene["fates"][:3] == ["nnnn"] * 3
    assert scene["fates"][3].count("t") == scene["tiles"]["train"] > 0
    assert sum(scene["tiles"].values()) == 16
    assert scene["valid_share"] < 0.41
