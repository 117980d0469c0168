import re

import numpy as np
import pytest
import rasterio
from rasterio.warp import transform

from pipeline import manifest as manifests
from pipeline.errors import MissingInputError, OutputError, UnknownNameError
from preprocessing import archive, packing, show


def run(shard_set, *words: str) -> int:
    return show.main([str(shard_set), *words])


def test_a_table_and_a_picture(shard_set, tmp_path, capsys):
    picture = tmp_path / "sheet.png"
    assert run(shard_set, "--count", "7", "--picture", str(picture)) == 0
    out = capsys.readouterr().out
    assert re.search(r"NDVI +\(nir - red\) / floored\(nir \+ red\) +B08, B04", out)
    assert len([line for line in out.splitlines() if line.startswith("B")]) == 12
    with rasterio.open(picture) as png:
        assert (png.driver, png.count) == ("PNG", 3)
        assert png.shape == (2 * 52, 6 * 100)  # seven pairs of 48 px tiles in rows of six
        assert png.read(1).std() > 10


def test_the_manifests_own_path_is_as_good(shard_set, tmp_path):
    picture = tmp_path / "sheet.png"
    assert run(shard_set / "manifest.json", "--count", "1", "--picture", str(picture)) == 0
    assert picture.exists()


def test_a_scene_side_by_side(shard_set, tmp_path, capsys):
    picture = tmp_path / "scene.png"
    assert run(shard_set, "--scene", "first", "--picture", str(picture)) == 0
    assert "natural colours, NDVI, NDWI, NDBI, saliency" in capsys.readouterr().out
    with rasterio.open(picture) as png:
        assert png.shape == (388, 5 * 388)
        panels = png.read()[:, :384].reshape(3, 384, 5, 388)[..., :384]
    assert all(panels[:, :, k].std() > 10 for k in range(5))


def test_a_sample_side_by_side_with_what_is_known_of_it(shard_set, tmp_path, capsys):
    made = manifests.read(shard_set)
    key = next(packing.read_shard(shard_set / made.shards("val")[0].path))[0]
    picture = tmp_path / "sample.png"
    assert run(shard_set, "--sample", key, "--picture", str(picture)) == 0
    assert "bounds_lonlat: [" in capsys.readouterr().out
    with rasterio.open(picture) as png:
        assert png.shape == (388, 5 * 388)  # 48 px eight times enlarged


def test_a_scene_as_geotiff_lies_where_the_archive_says(shard_set, tmp_path, capsys):
    path = tmp_path / "scene.tif"
    assert run(shard_set, "--scene", "first", "--cog", str(path)) == 0
    (scene,) = manifests.read(shard_set).scenes
    stored = archive.StoredScene(shard_set / archive.FOLDER / scene.id)
    with rasterio.open(path) as raster:
        assert raster.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert raster.descriptions == stored.header.bands
        assert (raster.nodata, raster.scales[0], raster.dtypes[0]) == (-32768, 1e-4, "int16")
        assert raster.crs == stored.header.grid.crs
        assert raster.transform.almost_equals(stored.header.grid.transform)
        np.testing.assert_array_equal(raster.read(), stored.read("reflectance"))
        assert raster.tags()["acquired"] == scene.acquired
        # a place on Earth read from the file alone shows the pixel the archive has there
        lon, lat = stored.header.grid.lonlat(np.array([100.5]), np.array([200.5]))
        x, y = transform("EPSG:4326", raster.crs, lon, lat)
        (value,) = raster.sample([(x[0], y[0])], indexes=1)
    assert value == stored.read("reflectance", 0)[200, 100]
    assert not list(tmp_path.glob(".*"))


def test_what_is_not_there_is_told(shard_set, tmp_path):
    with pytest.raises(UnknownNameError, match="unknown scene `S2A`"):
        run(shard_set, "--scene", "S2A")
    with pytest.raises(UnknownNameError, match="unknown sample `none`"):
        run(shard_set, "--sample", "none")
    with pytest.raises(OutputError, match=r"cannot write .*none/scene\.tif .*--cog"):
        run(shard_set, "--cog", str(tmp_path / "none/scene.tif"))


@pytest.mark.parametrize("count", ["0", "-2", "many"])
def test_a_count_of_no_tiles_is_told(shard_set, capsys, count):
    with pytest.raises(SystemExit) as ended:
        run(shard_set, "--count", count)
    assert ended.value.code == 2
    assert "argument --count: " in capsys.readouterr().err


def test_a_picture_that_cannot_be_written_is_told(shard_set, tmp_path):
    picture = tmp_path / "none/sheet.png"
    with pytest.raises(OutputError, match=f"cannot write {picture} .*--picture"):
        run(shard_set, "--count", "1", "--picture", str(picture))


def test_no_set_is_told(tmp_path):
    with pytest.raises(MissingInputError, match=f"no shard set at {tmp_path}"):
        run(tmp_path)
