"""Rasters: nothing is lost, every grid starts at the same corner, JPEG 2000 is coded as in real products."""

import struct
from pathlib import Path

import numpy as np
import pytest
import rasterio

from preprocessing.simulation.raster import IMAGE_CODINGS, MASK_CODINGS, PLACE, Coding, write_jp2, write_tif


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("size_px", "tile_px", "block"), [(32, 192, 32), (48, 32, 32), (64, 640, 64)])
def test_jpeg_2000_is_lossless_and_lies_where_it_should(tmp_path, dtype, size_px, tile_px, block):
    top = np.iinfo(dtype).max
    array = np.random.default_rng(1).integers(0, top, (size_px, size_px), dtype, endpoint=True)
    write_jp2(tmp_path / "new folder" / "a.jp2", array, 20, Coding(tile_px, 8, 128))
    with rasterio.open(tmp_path / "new folder" / "a.jp2") as raster:
        assert raster.driver == "JP2OpenJPEG"
        np.testing.assert_array_equal(raster.read(1), array)
        assert raster.crs.to_string() == PLACE.crs
        assert raster.transform[:6] == (20, 0, PLACE.left_m, 0, -20, PLACE.top_m)
        assert raster.block_shapes == [(block, block)]
    # georeference inside the file, not in a file beside it that a manifest would not list
    assert [path.name for path in (tmp_path / "new folder").iterdir()] == ["a.jp2"]


def coding_of(path: Path) -> tuple[Coding, dict[str, int]]:
    """Read the SIZ and COD markers of a JPEG 2000 file (ISO 15444-1, A.5.1 and A.6.1)."""
    data = path.read_bytes()
    start = data.find(b"\xff\x4f\xff\x51")
    assert start > 0
    tile_px, tile_rows_px = struct.unpack_from(">II", data, start + 24)
    cod = data.find(b"\xff\x52", start)
    (length,) = struct.unpack_from(">H", data, cod + 2)
    style, order, layers, _, levels, width, height, passes, wavelet = struct.unpack_from(
        ">BBHBBBBBB", data, cod + 4
    )
    assert style == 1 and width == height and tile_px == tile_rows_px
    precincts = set(data[cod + 14 : cod + 2 + length])
    assert len(precincts) == 1
    number = precincts.pop()
    assert number >> 4 == number & 15
    rest = {"order": order, "layers": layers, "passes": passes, "wavelet": wavelet}
    return Coding(tile_px, 4 << width, 1 << (number & 15), levels), rest


@pytest.mark.parametrize("codings", [IMAGE_CODINGS, MASK_CODINGS], ids=["images", "masks"])
@pytest.mark.parametrize("gsd_m", [10, 20, 60])
def test_jpeg_2000_is_coded_as_asked_with_5_3_wavelets_in_one_layer(tmp_path, codings, gsd_m):
    side_px = codings[gsd_m].tile_px
    array = np.random.default_rng(1).integers(0, 9, (side_px, side_px), np.uint8)
    write_jp2(tmp_path / "a.jp2", array, gsd_m, codings[gsd_m])
    found, rest = coding_of(tmp_path / "a.jp2")
    assert found == codings[gsd_m]
    assert rest == {"order": 0, "layers": 1, "passes": 0, "wavelet": 1}


@pytest.mark.parametrize(("side_px", "levels"), [(32, 4), (34, 4), (80, 5)])
def test_the_smallest_images_are_halved_as_often_as_they_can_be(tmp_path, side_px, levels):
    array = np.arange(side_px * side_px, dtype=np.uint16).reshape(side_px, side_px)
    write_jp2(tmp_path / "a.jp2", array, 20, MASK_CODINGS[20])
    with rasterio.open(tmp_path / "a.jp2") as raster:
        np.testing.assert_array_equal(raster.read(1), array)
    assert coding_of(tmp_path / "a.jp2")[0].levels == levels


def test_real_products_are_coded_like_the_simulated_ones(real_data):
    [granule] = (real_data / "sentinel2_safe").glob("*.SAFE/GRANULE/L2A*")
    images = {
        60: "IMG_DATA/R60m/*_B01_60m.jp2",
        20: "IMG_DATA/R20m/*_SCL_20m.jp2",
        10: "IMG_DATA/R10m/*_10m.jp2",
    }
    for gsd_m, pattern in images.items():
        assert coding_of(next(granule.glob(pattern)))[0] == IMAGE_CODINGS[gsd_m]
    for gsd_m, band in {60: "B01", 20: "B05", 10: "B02"}.items():
        assert coding_of(granule / f"QI_DATA/MSK_QUALIT_{band}.jp2")[0] == MASK_CODINGS[gsd_m]


@pytest.mark.parametrize("nodata", [None, 0])
def test_geotiff_keeps_values_and_nodata(tmp_path, nodata):
    array = np.arange(30 * 30, dtype=np.uint16).reshape(30, 30)
    write_tif(tmp_path / "a.tif", array, 30, nodata)
    with rasterio.open(tmp_path / "a.tif") as raster:
        np.testing.assert_array_equal(raster.read(1), array)
        assert raster.nodata == nodata
        assert (raster.res, raster.compression.value) == ((30, 30), "DEFLATE")
