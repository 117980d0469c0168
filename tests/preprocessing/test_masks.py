"""Quality layers as flags: layers, polygons with holes, a rim round gaps."""

import numpy as np
import pytest
from rasterio.crs import CRS

from pipeline.errors import SceneError
from pipeline.sample import Flag
from pipeline.sensors import SENSORS
from preprocessing import masks, radiometry
from preprocessing.grids import Grid
from preprocessing.readers import READERS, Request
from preprocessing.scenes import MaskSource
from preprocessing.simulation.cloud_masks import gml
from preprocessing.simulation.raster import MASK_CODINGS, PLACE, transform, write_jp2, write_tif
from preprocessing.simulation.safe import SafeOptions, write_safe
from preprocessing.simulation.view import make_view

POLYGONS = {"OPAQUE": Flag.CLOUD, "CIRRUS": Flag.CIRRUS}
RING = np.array([[0, 1, 1, 1, 0], [0, 1, 0, 1, 0], [0, 1, 1, 1, 0], [0, 0, 0, 0, 1]], bool)


def grid_60m(shape) -> Grid:
    return Grid(CRS.from_string(PLACE.crs), transform(60), shape[1], shape[0])


def write_gml(tmp_path, text: str) -> MaskSource:
    path = tmp_path / "MSK_CLOUDS_B00.gml"
    path.write_text(text, encoding="utf-8")
    return MaskSource(str(path), polygons=POLYGONS)


def test_polygons_with_holes_come_back_as_they_were(tmp_path):
    cirrus = np.zeros_like(RING)
    cirrus[3, 0] = True
    mask, own = write_gml(tmp_path, gml({"OPAQUE": RING, "CIRRUS": cirrus})), grid_60m(RING.shape)
    flags = masks.mask_flags(mask, own, own)
    np.testing.assert_array_equal(flags == Flag.CLOUD, RING)
    np.testing.assert_array_equal(flags == Flag.CIRRUS, cirrus)


def test_an_empty_polygon_mask_marks_nothing(tmp_path):
    own = grid_60m(RING.shape)
    assert not masks.mask_flags(write_gml(tmp_path, gml({"OPAQUE": RING & False})), own, own).any()


def test_heights_in_polygons_are_left_out(tmp_path):
    text = gml({"OPAQUE": RING[:1, :]})
    flat = text.split('srsDimension="2">')[1].split("<")[0]
    numbers = iter(flat.split())
    high = " ".join(f"{x} {y} 99.5" for x, y in zip(numbers, numbers, strict=True))
    mask = write_gml(tmp_path, text.replace(f'"2">{flat}', f'"3">{high}'))
    own = grid_60m((1, 5))
    np.testing.assert_array_equal(masks.mask_flags(mask, own, own) == Flag.CLOUD, RING[:1])


@pytest.mark.parametrize(
    ("old", "new", "told"),
    [
        ("EPSG:8.7:32632", "EPSG:8.7:32633", "is in EPSG:32633, not in the coordinate system"),
        ("</eop:Mask>", "", "not well-formed XML"),
        ("<eop:Mask ", "<!DOCTYPE x SYSTEM 'x'><eop:Mask ", "refused, it declares a DTD"),
        ('srsDimension="2">6', 'srsDimension="2">six', "cannot be read"),
    ],
)
def test_polygons_that_cannot_be_used_name_the_file(tmp_path, old, new, told):
    text = gml({"OPAQUE": RING})
    assert old in text
    own = grid_60m(RING.shape)
    with pytest.raises(SceneError, match=f"MSK_CLOUDS_B00.gml.* {told}|MSK_CLOUDS_B00.gml {told}"):
        masks.mask_flags(write_gml(tmp_path, text.replace(old, new, 1)), own, own)


def test_each_layer_has_its_flag(tmp_path):
    layers = np.zeros((3, 32, 32), np.uint8)
    layers[0, :8], layers[1, 4:12], layers[2, 30] = 1, 1, 1
    write_jp2(tmp_path / "a.jp2", layers, 60, MASK_CODINGS[60])
    mask = MaskSource(str(tmp_path / "a.jp2"), layers=(Flag.CLOUD, Flag.CIRRUS, Flag.SNOW))
    own = grid_60m((32, 32))
    flags = masks.mask_flags(mask, own, own)
    assert flags[[0, 5, 10, 20, 30], 0].tolist() == [
        Flag.CLOUD, Flag.CLOUD | Flag.CIRRUS, Flag.CIRRUS, 0, Flag.SNOW
    ]  # fmt: skip


def test_a_file_with_fewer_layers_is_refused(tmp_path):
    write_jp2(tmp_path / "a.jp2", np.zeros((32, 32), np.uint8), 60, MASK_CODINGS[60])
    own = grid_60m((32, 32))
    with pytest.raises(SceneError, match=r"a.jp2 has no layer"):
        masks.mask_flags(MaskSource(str(tmp_path / "a.jp2"), layers=(Flag.CLOUD, Flag.SNOW)), own, own)


@pytest.mark.parametrize("px", [0, 1, 2])
def test_growing_is_a_square_and_stops_at_the_edge(px):
    mask = np.zeros((9, 8), bool)
    mask[4, 3] = mask[0, 7] = True
    rows, columns = np.indices(mask.shape)
    near = [np.maximum(abs(rows - r), abs(columns - c)) <= px for r, c in ((4, 3), (0, 7))]
    np.testing.assert_array_equal(masks.grown(mask, px), near[0] | near[1])


def test_nodata_grows_before_it_is_resampled(tmp_path):
    quality = np.zeros((16, 16), np.uint16)
    quality[:, 8] = 1
    write_tif(tmp_path / "qa.tif", quality, 30)
    mask = MaskSource(str(tmp_path / "qa.tif"), bits={0: Flag.NODATA, 3: Flag.CLOUD}, grow_nodata_px=2)
    own = Grid(CRS.from_string(PLACE.crs), transform(30), 16, 16)
    flags = masks.mask_flags(mask, own, own)
    np.testing.assert_array_equal(np.flatnonzero(flags[3]), [6, 7, 8, 9, 10])
    fine = Grid(own.crs, transform(15), 32, 32)
    np.testing.assert_array_equal(np.flatnonzero(masks.mask_flags(mask, own, fine)[0]), range(12, 22))


def test_both_kinds_of_l1c_mask_flag_the_same_pixels(tmp_path):
    found = []
    for baseline in ("02.06", "05.10"):
        product = write_safe(tmp_path, SafeOptions(384, level="L1C", baseline=baseline))
        scene = READERS["sentinel2"].open(product, Request(SENSORS["sentinel2"], ("B02", "B10")))
        layout = radiometry.lay_out(scene, None, None)
        found.append(masks.mask_flags(scene.masks[0], layout.masks[0], layout.target))
    np.testing.assert_array_equal(*found)
    classes = np.kron(make_view(384, 1, "sentinel2").scene_classification(60), np.ones((6, 6), np.uint8))
    np.testing.assert_array_equal(found[0] == Flag.CLOUD, np.isin(classes, (8, 9)))
    np.testing.assert_array_equal(found[0] == Flag.CIRRUS, classes == 10)
    assert (found[0] == Flag.CLOUD).mean() > 0.01


def test_real_polygons_cover_what_the_product_says(real_data):
    """The tile states 41.2 % of clouds, of all its pixels; its mask is at 60 m, its downsampled bands at 250 m."""
    request = Request(SENSORS["sentinel2"], ("B02",))
    [product] = (real_data / "sentinel2_l1c_aws").glob("*.zip")
    scene = READERS["sentinel2_aws"].open(product, request)
    layout = radiometry.lay_out(scene, None, None)
    flags = masks.mask_flags(scene.masks[0], layout.masks[0], layout.target)
    assert ((flags & Flag.CLOUD) != 0).mean() == pytest.approx(0.412, abs=0.01)
    assert scene.cloud_share == pytest.approx(0.412, abs=0.001)
