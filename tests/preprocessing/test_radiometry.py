import shutil

import numpy as np
import pytest
import rasterio
from affine import Affine
from rasterio.crs import CRS

from pipeline.errors import SceneError
from pipeline.sample import NODATA, Flag
from pipeline.sensors import SENSORS
from preprocessing import masks, radiometry, rows
from preprocessing.grids import Grid
from preprocessing.readers import READERS, Request
from preprocessing.scenes import BandSource, MaskSource, Scene
from preprocessing.simulation.safe import SafeOptions, write_safe

UTM = CRS.from_epsg(32633)


@pytest.fixture
def tif(tmp_path):
    """Write an array as a tif with pixels of a size in metres; returns its path."""

    def write(name: str, array, gsd_m: float = 10.0, left: float = 0.0, crs=UTM) -> str:
        array = np.asarray(array)
        profile = {"width": array.shape[1], "height": array.shape[0], "count": 1, "dtype": array.dtype.name}
        place = {"crs": crs, "transform": Affine(gsd_m, 0, left, 0, -gsd_m, 0)}
        with rasterio.open(tmp_path / name, "w", driver="GTiff", **profile, **place) as raster:
            raster.write(array, 1)
        return str(tmp_path / name)

    return write


def source(path: str = "", name: str = "B04", **rule) -> BandSource:
    return BandSource(name, path, **{"scale": 1e-4, "offset": -0.1} | rule)


def scene(*bands: BandSource, masks=()) -> Scene:
    return Scene("s", "sentinel2", "L2A", "r", None, "2020-01-01", bands, tuple(masks))


def images(one: Scene, gsd_m=None, how="bilinear") -> dict[str, np.ndarray]:
    layout = radiometry.lay_out(one, gsd_m, None)
    return {i.name: i.pixels for i in radiometry.band_images(layout, how)}


def convert(numbers, **rule):
    return radiometry._exact(source(**rule), np.asarray(numbers))


def test_offset_is_applied_after_nodata_is_found_and_negative_values_are_legal():
    image = convert(np.array([[0, 1, 999, 1000, 11_000]], np.uint16))
    assert image.pixels.tolist() == [[NODATA, -999, -1, 0, 10_000]]


def test_landsat_numbers_round_to_the_nearest_unit():
    numbers = np.arange(1, 65_536, dtype=np.uint16).reshape(255, 257)
    image = convert(numbers, scale=2.75e-5, offset=-0.2)
    exact = numbers * 0.275 - 2000
    assert np.abs(image.pixels - exact).max() <= 0.5 + 1e-9
    assert image.saturated is None or not image.saturated.any()


def test_ties_go_to_even():
    pixels, _ = radiometry.round_units(np.array([0.5, 1.5, 2.5, -0.5, -1.5]))
    assert pixels.tolist() == [0, 2, 2, 0, -2]


def test_p12_too_large_values_are_clipped_and_flagged_and_non_finite_ones_are_nodata():
    image = convert(
        np.array([[1e6, np.nan, np.inf, -1e6, 0.25]], np.float32), scale=1.0, offset=0.0, nodata_dn=-1
    )
    assert image.pixels.tolist() == [[32_767, NODATA, NODATA, -32_767, 2500]]
    assert image.saturated.tolist() == [[True, False, False, False, False]]


def test_the_products_saturation_value_is_flagged():
    image = convert(np.array([[65_535, 65_534]], np.uint16), saturated_dn=65_535)
    assert image.saturated.tolist() == [[True, True]]  # 65534 does not fit into int16 either
    assert convert(np.array([[255, 254]], np.uint8), saturated_dn=255).saturated.tolist() == [[True, False]]


def test_finest_bands_are_copied_exactly_and_coarser_ones_resampled(tif):
    fine = np.random.default_rng(0).integers(1, 9000, (12, 12)).astype(np.uint16)
    coarse = np.full((6, 6), 3000, np.uint16)
    found = images(scene(source(tif("a.tif", fine)), source(tif("b.tif", coarse, 20), "B11")))
    np.testing.assert_array_equal(found["B04"], fine.astype(int) - 1000)
    np.testing.assert_array_equal(found["B11"], np.full((12, 12), 2000))


def test_nodata_of_a_coarse_band_stays_where_it_is(tif):
    coarse = np.array([[0, 5000], [5000, 5000]], np.uint16)
    fine = np.full((4, 4), 5000, np.uint16)
    found = images(scene(source(tif("a.tif", fine)), source(tif("b.tif", coarse, 20), "B11")))
    expected = np.full((4, 4), 4000)
    expected[:2, :2] = NODATA
    np.testing.assert_array_equal(found["B11"], expected)


def test_nearest_is_a_choice(tif):
    coarse = np.array([[1000, 3000], [5000, 7000]], np.uint16)
    fine = np.full((4, 4), 5000, np.uint16)
    one = scene(source(tif("a.tif", fine)), source(tif("b.tif", coarse, 20), "B11"))
    np.testing.assert_array_equal(images(one, how="nearest")["B11"], np.kron(coarse, np.ones((2, 2))) - 1000)


def test_saturation_of_a_coarse_band_covers_its_pixels(tif):
    coarse = np.array([[65_535, 3000], [3000, 3000]], np.uint16)
    layout = radiometry.lay_out(
        scene(
            source(tif("a.tif", np.full((4, 4), 5000, np.uint16))),
            source(tif("b.tif", coarse, 20), "B11", saturated_dn=65_535),
        ),
        None,
        None,
    )
    image = list(radiometry.band_images(layout, "bilinear"))[1]
    # exactly the pixels whose value it has a part in: one more on each side
    assert image.saturated[:3, :3].all()
    assert not image.saturated[3].any()
    assert not image.saturated[:, 3].any()
    np.testing.assert_array_equal(image.saturated, image.pixels != 2000)


@pytest.mark.parametrize("how", ["bilinear", "nearest"])
def test_saturation_is_carried_to_another_crs_as_the_values_are(tif, how):
    numbers = np.full((40, 40), 3000, np.uint16)
    numbers[20, 20] = 65_535
    one = scene(source(tif("a.tif", numbers, left=500_000), saturated_dn=65_535))
    image = next(radiometry.band_images(radiometry.lay_out(one, 10, "EPSG:32632"), how))
    np.testing.assert_array_equal(image.saturated, ~np.isin(image.pixels, [2000, NODATA]))
    assert image.saturated.any()


def test_saturation_in_a_quality_layer_marks_what_its_band_becomes(tif):
    numbers = np.full((8, 8), 3000, np.uint16)
    numbers[3, 4] = 9000
    one = scene(
        source(tif("a.tif", numbers)),
        masks=[MaskSource(tif("q.tif", (numbers > 3000) * np.uint8(2)), bits={1: Flag.SATURATED})],
    )
    layout = radiometry.lay_out(one, 20, None)
    image = next(radiometry.band_images(layout, "bilinear"))
    flags = masks.mask_flags(one.masks[0], layout.masks[0], layout.target)
    np.testing.assert_array_equal(flags == Flag.SATURATED, image.pixels != 2000)
    assert (flags == Flag.SATURATED).sum() > 1


def test_another_crs_is_reprojected_only_when_asked(tif):
    path = tif("a.tif", np.full((40, 40), 5000, np.uint16), left=500_000)
    layout = radiometry.lay_out(scene(source(path)), 10, "EPSG:32632")
    image = next(radiometry.band_images(layout, "bilinear"))
    assert layout.target.crs == CRS.from_epsg(32632)
    assert set(np.unique(image.pixels)) == {NODATA, 4000}


def test_p07_files_that_do_not_belong_together_are_named(tif):
    a, b = tif("a.tif", np.ones((8, 8), np.uint16)), tif("b.tif", np.ones((8, 8), np.uint16), left=400)
    with pytest.raises(SceneError, match=r"a\.tif and .*b\.tif"):
        radiometry.lay_out(scene(source(a), source(b, "B03")), None, None)
    with pytest.raises(SceneError, match=r"a\.tif and .*b\.tif"):
        radiometry.lay_out(scene(source(a), masks=[MaskSource(b)]), None, None)


def test_class_codes_become_flags_by_nearest(tif):
    classes = {0: Flag.NODATA, 9: Flag.CLOUD, 1: Flag.SATURATED}
    path = tif("scl.tif", np.array([[9, 4], [1, 0]], np.uint8), 20)
    target = Grid(UTM, Affine(10, 0, 0, 0, -10, 0), 4, 4)
    own = Grid(UTM, Affine(20, 0, 0, 0, -20, 0), 2, 2)
    flags = masks.mask_flags(MaskSource(path, classes=classes), own, target)
    assert flags[0].tolist() == [4, 4, 0, 0]
    assert flags[3].tolist() == [2, 2, 3, 1]


def test_bit_fields_become_flags_together():
    table = masks.flag_table(MaskSource("qa", bits={0: Flag.NODATA, 3: Flag.CLOUD, 5: Flag.SNOW}), 1 << 16)
    assert table[1] == Flag.NODATA  # Landsat's fill is the value 1
    assert table[0b101000] == Flag.CLOUD | Flag.SNOW
    assert table[0b10110] == 0


def test_a_quality_layer_of_floats_is_refused(tif):
    path = tif("qa.tif", np.zeros((4, 4), np.float32))
    own = Grid(UTM, Affine(10, 0, 0, 0, -10, 0), 4, 4)
    with pytest.raises(SceneError, match=r"qa\.tif holds float32"):
        masks.mask_flags(MaskSource(path), own, own)


def test_band_flags_join_the_mask():
    mask = np.zeros((1, 3), np.uint8)
    pixels = np.array([[NODATA, 1, 2]], np.int16)
    radiometry.add_band_flags(mask, radiometry.BandImage("B04", pixels, np.array([[False, True, False]])))
    assert mask.tolist() == [[Flag.NODATA, Flag.SATURATED, 0]]


@pytest.fixture(scope="module")
def jp2(products):
    return sorted(products["sentinel2-L2A"].rglob("*B04_10m.jp2"))[0]


@pytest.mark.parametrize("share", [0.0, 0.3, 0.5, 0.99])
def test_p04_a_truncated_jp2_raises_instead_of_giving_stale_memory(jp2, tmp_path, share):
    damaged = tmp_path / jp2.name
    damaged.write_bytes(jp2.read_bytes()[: int(jp2.stat().st_size * share)])
    with pytest.raises(SceneError, match=jp2.name):
        rows.read_numbers(str(damaged), 0)


def test_pixels_left_undecoded_are_noticed(tif):
    untouched = np.full((64, 64), rows.UNREAD, np.uint16)
    with pytest.raises(SceneError, match="4096 pixels were never decoded"):
        rows.read_numbers(tif("a.tif", untouched), 0)


@pytest.mark.parametrize("band", ["B04", "B11"])
def test_p06_baselines_of_the_same_ground_give_the_same_reflectance(tmp_path, band):
    found = []
    for baseline in ("02.14", "04.00", "05.10"):
        product = write_safe(tmp_path / baseline, SafeOptions(192, baseline=baseline))
        found.append(images(READERS["sentinel2"].open(product, Request(SENSORS["sentinel2"], (band,))))[band])
    positive = found[0] > 1
    assert positive.mean() > 0.5
    for other in found[1:]:
        np.testing.assert_array_equal(found[0][positive], other[positive])


# ---- real imagery


def independent_bilinear(values, source_grid, target):
    """Textbook bilinear in float64 by fractional index, edges clamped; no nodata."""
    x, y = target.centres()
    column = np.clip((x - source_grid.transform.c) / source_grid.transform.a - 0.5, 0, values.shape[1] - 1)
    row = np.clip((y - source_grid.transform.f) / source_grid.transform.e - 0.5, 0, values.shape[0] - 1)
    left, top = (
        np.minimum(a.astype(int), n - 2) for a, n in ((column, values.shape[1]), (row, values.shape[0]))
    )
    fx, fy = column - left, (row - top)[:, None]
    upper = values[top][:, left] * (1 - fx) + values[top][:, left + 1] * fx
    lower = values[top + 1][:, left] * (1 - fx) + values[top + 1][:, left + 1] * fx
    return upper * (1 - fy) + lower * fy


@pytest.mark.parametrize("city", ["hongkong/imgs_2", "norcia/imgs_1", "saclay_e/imgs_1"])
def test_real_oscd_finest_bands_are_exact_and_coarser_ones_bilinear(real_data, city):
    request = Request(SENSORS["sentinel2"], tuple(b.name for b in SENSORS["sentinel2"].bands))
    one = READERS["oscd"].open(real_data / "oscd/images" / city, request)
    layout = radiometry.lay_out(one, None, None)
    for image, band, own in zip(
        radiometry.band_images(layout, "bilinear"), one.bands, layout.bands, strict=True
    ):
        with rasterio.open(band.path) as raster:
            numbers = raster.read(1).astype(np.float64)
        assert (numbers > 0).all()
        if own == layout.target:
            np.testing.assert_array_equal(image.pixels, numbers)
        else:
            assert np.abs(image.pixels - independent_bilinear(numbers, own, layout.target)).max() < 0.51


def test_real_landsat_is_within_half_a_step(real_data):
    product = sorted((real_data / "landsat_c2").glob("LC08*T1"))[0]
    request = Request(SENSORS["landsat_oli"], ("B5", "B2"))
    one = READERS["landsat"].open(product, request)
    for name, pixels in images(one).items():
        with rasterio.open(product / f"{product.name}_SR_{name}.TIF") as raster:
            numbers = raster.read(1)
        reflectance = numbers * 0.0000275 - 0.2
        held = pixels != NODATA
        np.testing.assert_array_equal(held, numbers != 0)
        assert np.abs(pixels * 1e-4 - reflectance)[held].max() <= 0.5e-4 + 1e-12


def test_p04_real_jp2_truncated_raises(real_data, tmp_path):
    original = sorted((real_data / "sentinel2_safe").rglob("*SCL_60m.jp2"))[0]
    damaged = tmp_path / original.name
    shutil.copyfile(original, damaged)
    with damaged.open("r+b") as stream:
        stream.truncate(original.stat().st_size // 2)
    with pytest.raises(SceneError, match="SCL_60m"):
        rows.read_numbers(str(damaged), 0)
