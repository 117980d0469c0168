"""Sentinel-2 products of before December 2016: every granule is a scene on a grid of its own, under the old names."""

import re
import shutil

import numpy as np
import pytest
import rasterio

from pipeline import manifest as manifests
from pipeline.config import ROOT
from pipeline.errors import SceneError
from pipeline.sensors import SENSORS
from preprocessing import shard
from preprocessing.readers import READERS, Request, discover
from preprocessing.readers.sentinel2 import open_scene
from preprocessing.simulation.products import PRODUCTS, Ground
from preprocessing.simulation.safe import TILES

SENSOR = SENSORS["sentinel2"]
REQUEST = Request(SENSOR, ("B02", "B8A", "B01"))


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    """One product of two tiles, as a folder and zipped."""
    folder = tmp_path_factory.mktemp("old")
    return {
        kind: PRODUCTS[f"sentinel2-l1c-2016{kind}"].write(folder / f"in{kind}", Ground(192), lambda _: None)
        for kind in ("", "-zip")
    }


@pytest.fixture
def copied(old, tmp_path):
    product = tmp_path / "archive" / old[""].name
    shutil.copytree(old[""].parent, product.parent)
    return product


def granule(product, tile):
    return next((product / "GRANULE").glob(f"*_{tile}_*"))


@pytest.mark.parametrize("kind", ["", "-zip"])
def test_each_granule_is_a_scene_with_grid_and_land_cover_of_its_own(old, kind):
    found = discover(old[kind].parent, REQUEST)
    assert [reader.name for reader, _ in found] == ["sentinel2", "sentinel2"]
    scenes = [reader.open(path, REQUEST) for reader, path in found]
    for scene, (tile, place) in zip(scenes, TILES.items(), strict=True):
        assert re.fullmatch(rf"S2A_OPER_MSI_L1C_TL_SIML_\d+T\d+_A000001_{tile}-\w{{8}}", scene.id)
        assert scene.location == old[kind] / "GRANULE" / f"{scene.id[:-9]}_N02.04"
        assert (scene.level, scene.notes[0], scene.bands[0].offset) == (
            "L1C",
            "processing baseline 02.04",
            0.0,
        )
        assert scene.masks[0].path.endswith(f"_MSK_CLOUDS_SIML_20240602T101031_A000001_{tile}_B00_MSIL1C.gml")
        assert all(tile in band.path and band.checksum for band in scene.bands)
        with rasterio.open(scene.bands[0].path) as raster, rasterio.open(scene.labels) as labels:
            assert (raster.transform.c, raster.transform.f) == (place.left_m, place.top_m)
            assert labels.transform == raster.transform
    first, second = (rasterio.open(scene.bands[0].path).read(1) for scene in scenes)
    assert (first != second).mean() > 0.9


def test_a_granule_has_the_time_and_the_clouds_of_its_own_metadata(copied):
    one = granule(copied, "T32UQU")
    path = next(one.glob("*_MTD_L1C_TL_*.xml"))
    text = path.read_text().replace("2024-06-02T10:10:31", "2024-06-02T10:14:02")
    path.write_text(
        text.replace(
            "<n1:Geometric", "<CLOUDY_PIXEL_PERCENTAGE>12.5</CLOUDY_PIXEL_PERCENTAGE><n1:Geometric", 1
        )
    )
    (copied / "manifest.safe").unlink()
    scene, other = open_scene(one, REQUEST), open_scene(granule(copied, "T32UPU"), REQUEST)
    assert (scene.acquired, scene.cloud_share) == ("2024-06-02T10:14:02.000Z", 0.125)
    assert (other.acquired, other.cloud_share) == ("2024-06-02T10:10:31.000Z", None)


def test_what_is_wrong_with_one_granule_leaves_the_other(copied):
    broken = granule(copied, "T32UQU")
    next(broken.glob("IMG_DATA/*_B8A.jp2")).unlink()
    with pytest.raises(SceneError, match=r"_T32UQU_N02.04: no file of band B8A in .*IMG_DATA"):
        open_scene(broken, REQUEST)
    assert len(open_scene(granule(copied, "T32UPU"), REQUEST).bands) == 3


def test_p05_changed_metadata_of_a_granule_is_found(copied):
    path = next(granule(copied, "T32UPU").glob("*.xml"))
    path.write_text(path.read_text().replace("10:10:31", "10:10:32"))
    with pytest.raises(SceneError, match=r"_T32UPU.xml is not what its product was published with"):
        open_scene(path.parent, REQUEST)


def test_a_granule_without_metadata_is_refused(copied):
    next(granule(copied, "T32UPU").glob("*.xml")).unlink()
    with pytest.raises(SceneError, match="one of its granules has no metadata"):
        open_scene(granule(copied, "T32UPU"), REQUEST)


def test_a_product_of_one_granule_under_the_old_names_is_one_scene(copied):
    shutil.rmtree(granule(copied, "T32UQU"))
    [(reader, path)] = discover(copied.parent, REQUEST)
    assert path == copied
    assert all("T32UPU" in band.path for band in reader.open(path, REQUEST).bands)


def test_several_granules_are_never_read_as_one(old):
    with pytest.raises(SceneError, match="holds 2 granules"):
        READERS["sentinel2"].open(old[""], REQUEST)


def test_products_in_a_folder_named_granule_are_products(products, tmp_path):
    shutil.copytree(products["sentinel2-L2A"], tmp_path / "GRANULE" / products["sentinel2-L2A"].name)
    [(reader, path)] = discover(tmp_path, REQUEST)
    assert reader.open(path, REQUEST).location == path


def test_old_products_go_to_shards_tile_by_tile(old, tmp_path):
    words = [
        "tile_px=48",
        "split.val_share=0",
        "min_clear=0",
        "min_valid=0.5",
        "workers=0",
        "bands=[B02,B03,B04,B08,B11]",
    ]
    given = [f"scenes={old['-zip'].parent}", f"output={tmp_path}", "reader=sentinel2", *words]
    assert shard.main([str(ROOT / "configs/shard/oscd.yaml"), *given]) == 0
    made = manifests.read(tmp_path)
    assert ["T32UPU" in made.scenes[0].id, "T32UQU" in made.scenes[1].id] == [True, True]
    assert made.samples("train") > 10
    assert np.isin([scene.reader for scene in made.scenes], ["sentinel2"]).all()
