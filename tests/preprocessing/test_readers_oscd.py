"""OSCD: two scenes a city, plain L1C digital numbers."""

import shutil

import pytest
import rasterio

from pipeline.errors import SceneError
from pipeline.sensors import SENSORS
from preprocessing.readers import Request, discover
from preprocessing.readers.oscd import open_scene

ALL = Request(SENSORS["sentinel2"], tuple(b.name for b in SENSORS["sentinel2"].bands))


def test_two_dates_are_two_scenes(products):
    found = discover(products["oscd"].parents[2], ALL)
    scenes = [reader.open(path, ALL) for reader, path in found]
    assert [(s.id, s.acquired) for s in scenes] == [
        ("oscd_simulacity_1", "2016-04-24"),
        ("oscd_simulacity_2", "2017-10-11"),
    ]
    assert {(b.scale, b.offset, b.nodata_dn) for s in scenes for b in s.bands} == {(1e-4, 0.0, 0)}
    assert all(s.level == "L1C" and s.masks == () for s in scenes)


@pytest.mark.parametrize("text", [None, "", "date_2: 20171011", "date_1: yesterday"])
def test_missing_date_is_refused(copied, text):
    product = copied("oscd")
    dates = product.parent / "dates.txt"
    dates.unlink() if text is None else dates.write_text(text)
    with pytest.raises(SceneError, match=r"dates\.txt"):
        open_scene(product, ALL)


def test_two_files_of_one_band_are_refused(copied):
    product = copied("oscd")
    band = next(product.glob("*_B02.tif"))
    shutil.copy(band, band.with_name("T32UPU_20160424T101032_B02.tif"))
    with pytest.raises(SceneError, match="two files of band B02"):
        open_scene(product, ALL)


def test_real_oscd_has_28_scenes_of_13_bands(real_data):
    found = discover(real_data / "oscd", ALL)
    scenes = [reader.open(path, ALL) for reader, path in found]
    assert len({s.id for s in scenes}) == len(scenes) == 28
    assert {s.id for s in scenes} >= {"oscd_saclay_e_1", "oscd_saclay_e_2", "oscd_rio_2"}
    assert all(len(s.bands) == 13 for s in scenes)
    assert min(s.acquired for s in scenes) >= "2015-06-23"
    for source in scenes[0].bands:
        assert source.path.endswith(f"_{source.name}.tif")
        with rasterio.open(source.path) as raster:
            assert (raster.dtypes, raster.crs.to_epsg()) == (("uint16",), 4326)
