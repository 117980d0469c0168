"""P13: the same ground at the same moment is used once, and no ground is lost."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from pipeline import config as configs
from pipeline import manifest as manifests
from preprocessing import duplicates, packing, shard
from preprocessing.duplicates import Place
from preprocessing.grids import Grid
from preprocessing.scenes import BandSource, MaskSource, Scene
from preprocessing.simulation.safe import SafeOptions, write_safe

SIDE_PX = 192


def words(scenes: Path, output: Path, *more: str) -> list[str]:
    """Words that shard everything in a folder into training tiles of 16 px."""
    return [
        str(configs.ROOT / "configs/shard/landsat_c2.yaml"), f"scenes={scenes}", f"output={output}",
        "tile_px=16", "min_valid=0.5", "shard_mb=5", "max_rejected=5", *more,
    ]  # fmt: skip


def keys(output: Path) -> list[str]:
    paths = sorted(output.glob("*/*.tar"))
    return [key for path in paths for key, _ in packing.read_shard(path)]


def squares(output: Path) -> set[str]:
    """Rows and columns of the tiles of a set; all scenes here have one grid."""
    return {key.split("_", 7)[-1] for key in keys(output)}


def report(output: Path) -> dict:
    return json.loads((output / "quality.json").read_text())


def blank(product: Path, columns: slice) -> Path:
    """Take the measurement out of some columns of a Landsat product, as where a split acquisition ends."""
    # it states the sums of the files as they were
    next(product.glob("*_stac.json")).unlink()
    for path in product.glob("*.TIF"):
        with rasterio.open(path, "r+") as raster:
            data = raster.read(1)
            data[:, columns] = 1 if "QA_PIXEL" in path.name else 0
            raster.write(data, 1)
    return product


@pytest.fixture
def landsat(products, tmp_path):
    """Copy the Landsat product under another name, with some columns blank."""

    def copy(name: str, columns: slice = slice(0, 0)) -> Path:
        return blank(Path(shutil.copytree(products["landsat-LC09"], tmp_path / "archive" / name)), columns)

    return copy


def test_p13_the_same_scene_twice_is_used_once(landsat, tmp_path):
    for folder in ("a", "b"):
        landsat(f"{folder}/LC09_L2SP_193026_20240601_20240602_02_T1")
    assert shard.main(words(tmp_path / "archive", tmp_path / "set")) == 0
    made = manifests.read(tmp_path / "set")
    assert [s.id for s in made.scenes] == ["LC09_L2SP_193026_20240601_20240602_02_T1"]
    (decision,) = report(tmp_path / "set")["duplicates"]
    assert (decision["new_share"], decision["kept"]) == (0, False)
    assert "it is left out" in decision["text"]
    assert len(keys(tmp_path / "set")) == made.samples("train")


def test_p13_of_two_baselines_the_higher_is_used_whatever_the_folders_are_called(tmp_path):
    for baseline, name in (("04.00", "renamed-to-z.SAFE"), ("05.10", "a.SAFE")):
        product = write_safe(tmp_path / "archive", SafeOptions(SIDE_PX, baseline=baseline))
        product.rename(product.with_name(name))
    told = words(tmp_path / "archive", tmp_path / "set", "sensor=sentinel2", "reader=sentinel2", "gsd_m=20")
    assert shard.main([*told, "bands=[B03,B04,B8A,B11]", "tile_px=24", "labels=null"]) == 0
    (scene,) = manifests.read(tmp_path / "set").scenes
    assert scene.id == "a"
    assert "processing baseline 05.10" in scene.notes
    assert report(tmp_path / "set")["duplicates"][0]["scene"] == "renamed-to-z"


def test_p13_both_halves_of_a_split_acquisition_are_used(landsat, tmp_path):
    landsat("west", slice(40, None))
    landsat("east", slice(0, 40))
    assert shard.main(words(tmp_path / "archive", tmp_path / "set")) == 0
    assert len(manifests.read(tmp_path / "set").scenes) == 2
    landsat("whole")
    assert shard.main(words(tmp_path / "archive/whole", tmp_path / "one")) == 0
    assert squares(tmp_path / "set") == squares(tmp_path / "one")
    places = [key.split("_", 1)[1] for key in keys(tmp_path / "set")]
    assert len(places) == len(set(places))


def test_p13_where_halves_overlap_each_tile_is_cut_once(landsat, tmp_path):
    landsat("a", slice(50, None))
    landsat("b", slice(0, 20))
    assert shard.main(words(tmp_path / "archive", tmp_path / "set")) == 0
    (decision,) = report(tmp_path / "set")["duplicates"]
    assert decision["kept"]
    tiles = report(tmp_path / "set")["scenes"]["b"]["tiles"]
    assert tiles["duplicate"] > 0
    assert tiles["train"] > 0
    places = [key.split("_", 1)[1] for key in keys(tmp_path / "set")]
    assert len(places) == len(set(places))
    landsat("whole")
    assert shard.main(words(tmp_path / "archive/whole", tmp_path / "one")) == 0
    assert set(places) == {key.split("_", 1)[1] for key in keys(tmp_path / "one")}


def test_p13_a_damaged_scene_is_replaced_by_its_duplicate(landsat, tmp_path):
    landsat("good")
    bad = next(landsat("bad").glob("*_SR_B4.TIF"))
    bad.write_bytes(bad.read_bytes()[:3000])
    assert shard.main(words(tmp_path / "archive", tmp_path / "set")) == 0
    assert [s.id for s in manifests.read(tmp_path / "set").scenes] == ["good"]
    assert [Path(r["product"]).name for r in report(tmp_path / "set")["rejected"]] == ["bad"]


def test_p13_the_result_is_the_same_for_a_rerun_and_can_be_switched_off(landsat, tmp_path, capsys):
    landsat("a", slice(50, None))
    landsat("b", slice(0, 20))
    told = words(tmp_path / "archive", tmp_path / "set")
    shard.main(told)
    before = (tmp_path / "set/manifest.json").read_bytes()
    assert shard.main(told) == 0
    assert "nothing was done" in capsys.readouterr().out
    assert (tmp_path / "set/manifest.json").read_bytes() == before
    shard.main([*told, "duplicates=keep"])
    assert not report(tmp_path / "set")["duplicates"]
    assert len(keys(tmp_path / "set")) > manifests.read(tmp_path / "set").scenes[0].tiles["train"]


# ---- which scenes are one acquisition


def place(name: str, acquired: str, left: float = 500_000, **more: object) -> Place:
    grid = Grid(
        CRS.from_epsg(more.pop("epsg", 32632)), Affine(10, 0, left, 0, -10, 5_500_000), 10_980, 10_980
    )
    band = BandSource("B02", "/nowhere.tif", 1e-4, 0)
    scene = Scene(name, "sentinel2", "L2A", "sentinel2", Path(f"/{name}"), acquired, (band,), **more)
    return Place.of(scene, grid)


def names(*places: Place) -> list[list[str]]:
    return [[p.scene.id for p in group] for group in duplicates.acquisitions(places)]


def test_p13_time_and_ground_decide_and_the_later_version_leads():
    old = place("x", "2024-06-01T10:10:31.024Z", version="04.00 2024-06-02")
    new = place("y", "2024-06-01T10:10:31Z", version="05.10 2024-06-01")
    assert names(old, new) == [["y", "x"]]
    # the same moment by another clock, and another by the same numbers
    assert names(old, place("y", "2024-06-01T12:10:31.0240001+02:00", version="05")) == [["y", "x"]]
    assert names(old, place("y", "2024-06-01T10:10:31+02:00")) == []
    assert names(old, place("z", "2024-06-06T10:10:31.024Z")) == []
    assert names(old, place("z", "2024-06-01T10:10:31", left=500_000 + 99_800)) == []
    assert names(old, place("z", "2024-06-01T10:10:31", epsg=32633)) == []


def test_p13_scenes_are_found_on_the_borders_of_search_cells_and_after_small_shifts():
    for left in range(400_000, 800_000, 17_770):
        one = place("x", "2024-06-01T10:10:31Z", left=left)
        assert names(one, place("y", "2024-06-01T10:12:00Z", left=left + 3_000)) == [["x", "y"]]


def test_p13_without_any_time_only_equal_pixels_are_a_duplicate(products, tmp_path):
    product = products["oscd"]
    path = str(next(product.glob("*_B02.tif")))
    other = tmp_path / "B02.tif"
    shutil.copy(path, other)
    one, two = place("x", ""), place("y", "")
    same = [replace(p, scene=replace(p.scene, bands=(replace(p.scene.bands[0], path=f),)))
            for p, f in ((one, path), (two, str(other)))]  # fmt: skip
    assert names(*same) == [["x", "y"]]
    with rasterio.open(other, "r+") as raster:
        raster.write(raster.read(1) + 5, 1)
    assert names(*same) == []
    assert names(one, two) == []


def test_new_share_is_that_of_measured_ground(tmp_path):
    def write(name: str, columns: slice) -> Place:
        data = np.full((100, 100), 4, np.uint8)
        data[:, columns] = 0
        path = tmp_path / f"{name}.tif"
        shape = {"width": 100, "height": 100, "count": 1, "dtype": "uint8"}
        with rasterio.open(path, "w", driver="GTiff", crs="EPSG:32632", transform=Affine(10, 0, 0, 0, -10, 0),
                           **shape) as raster:  # fmt: skip
            raster.write(data, 1)
        from pipeline.sample import Flag

        made = place(name, "")
        scene = replace(made.scene, masks=(MaskSource(str(path), classes={0: Flag.NODATA}),))
        return Place(scene, Grid(CRS.from_epsg(32632), Affine(10, 0, 0, 0, -10, 0), 100, 100), None)

    west, east = write("w", slice(70, None)), write("e", slice(0, 40))
    assert duplicates.new_share(east, [west]) == pytest.approx(0.5)
    assert duplicates.new_share(east, [east]) == 0
    assert duplicates.new_share(write("all", slice(0, 0)), [west, east]) == 0
