"""Rasters: nothing is lost, every grid starts at the same corner."""

import numpy as np
import pytest
import rasterio

from preprocessing.simulation.raster import PLACE, write_jp2, write_tif


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("size_px", "block_px", "block"), [(32, 192, 32), (48, 32, 32), (64, 640, 64)])
def test_jpeg_2000_is_lossless_and_lies_where_it_should(tmp_path, dtype, size_px, block_px, block):
    top = np.iinfo(dtype).max
    array = np.random.default_rng(1).integers(0, top, (size_px, size_px), dtype, endpoint=True)
    write_jp2(tmp_path / "new folder" / "a.jp2", array, 20, block_px)
    with rasterio.open(tmp_path / "new folder" / "a.jp2") as raster:
        assert raster.driver == "JP2OpenJPEG"
        np.testing.assert_array_equal(raster.read(1), array)
        assert raster.crs.to_string() == PLACE.crs
        assert raster.transform[:6] == (20, 0, PLACE.left_m, 0, -20, PLACE.top_m)
        assert raster.block_shapes == [(block, block)]
    # georeference inside the file, not in a file beside it that a manifest would not list
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["a.jp2"]


@pytest.mark.parametrize("nodata", [None, 0])
def test_geotiff_keeps_values_and_nodata(tmp_path, nodata):
    array = np.arange(30 * 30, dtype=np.uint16).reshape(30, 30)
    write_tif(tmp_path / "a.tif", array, 30, nodata)
    with rasterio.open(tmp_path / "a.tif") as raster:
        np.testing.assert_array_equal(raster.read(1), array)
        assert raster.nodata == nodata
        assert (raster.res, raster.compression.value) == ((30, 30), "DEFLATE")
