"""Landsat: rescaling by MTL group, quality bits, satellites kept apart."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio.crs import CRS

from pipeline.errors import SceneError
from pipeline.sample import NODATA, Flag
from pipeline.sensors import SENSORS
from preprocessing import masks, radiometry
from preprocessing.readers import Request, discover, landsat_mtl
from preprocessing.readers.landsat import QA_PIXEL_BITS, open_scene
from preprocessing.readers.landsat_mtl import parse_text
from preprocessing.simulation.landsat import (
    POLAR_PLACE,
    RESCALING,
    SUN_ELEVATION,
    LandsatOptions,
    interpolated,
    scan_gaps,
    write_landsat,
)

OLI = Request(SENSORS["landsat_oli"], ("B4", "B5"))
TM = Request(SENSORS["landsat_tm"], ("B3", "B7"))
LC09 = "landsat-LC09"


def mtl(product: Path) -> Path:
    return next(product.glob("*_MTL.txt"))


def unstated(product: Path) -> Path:
    """Take away what states the sums of a product's files."""
    for item in product.glob("*_stac.json"):
        item.unlink()
    return product


def edit(product: Path, old: str, new: str) -> None:
    unstated(product)
    text = mtl(product).read_text()
    assert old in text
    mtl(product).write_text(text.replace(old, new))


def test_rescaling_is_read_from_its_own_group(products):
    text = mtl(products[LC09]).read_text()
    assert text.count("REFLECTANCE_MULT_BAND_4 =") == 2
    groups = parse_text(text, "MTL")
    assert groups["LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"]["REFLECTANCE_MULT_BAND_4"] == "2.75e-05"
    assert groups["LEVEL1_RADIOMETRIC_RESCALING"]["REFLECTANCE_MULT_BAND_4"] == "2e-05"
    assert {(b.scale, b.offset) for b in open_scene(products[LC09], OLI).bands} == {(2.75e-05, -0.2)}


@pytest.mark.parametrize("form", ["json", "xml"])
def test_other_forms_say_the_same_as_text(copied, form):
    product = copied(LC09)
    from_text = open_scene(product, OLI)
    for path in product.glob("*_MTL.*"):
        if path.suffix != f".{form}":
            path.unlink()
    assert open_scene(product, OLI) == from_text


def test_two_products_in_one_folder_are_refused(copied):
    product = copied(LC09)
    mtl(product).with_name(mtl(product).name.replace("LC09_", "LC08_")).write_text(mtl(product).read_text())
    with pytest.raises(SceneError, match=r"LC08_.*_MTL.txt, LC09_.*_MTL.txt. One folder a product"):
        open_scene(product, OLI)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("<LANDSAT_METADATA_FILE><A>", "not well-formed XML"),
        ("<L1_METADATA_FILE/>", "not a Collection-2 MTL"),
        ('<!DOCTYPE x [<!ENTITY a "b">]><LANDSAT_METADATA_FILE/>', "refused, it declares a DTD"),
    ],
)
def test_p10_xml_of_another_kind_is_refused(copied, text, told):
    product = unstated(copied(LC09))
    for form in ("txt", "json"):
        next(product.glob(f"*_MTL.{form}")).unlink()
    next(product.glob("*_MTL.xml")).write_text(text)
    with pytest.raises(SceneError, match=rf"_MTL.xml: {told}"):
        open_scene(product, OLI)


def test_surface_reflectance_without_temperature_is_read(products):
    scene = open_scene(products["landsat-LE07-L2SR"], TM)
    assert scene.level == "L2SR"
    assert {(b.scale, b.offset) for b in scene.bands} == {(2.75e-05, -0.2)}


def stored(scene):
    layout = radiometry.lay_out(scene, None, None)
    flags = np.zeros(layout.target.shape_px, np.uint8)
    for mask, grid in zip(scene.masks, layout.masks, strict=True):
        flags |= masks.mask_flags(mask, grid, layout.target)
    return layout, {i.name: i for i in radiometry.band_images(layout, "bilinear")}, flags


def test_gaps_of_landsat_7_are_nodata_with_their_interpolated_rim(products):
    scene = open_scene(products["landsat-LE07-L2SR"], TM)
    _, images, flags = stored(scene)
    gaps = scan_gaps(flags.shape[0])
    assert (images["B3"].pixels[gaps] == NODATA).all()
    rim = interpolated(np.arange(gaps.size, dtype=np.float32).reshape(gaps.shape), gaps)
    invented = rim != np.arange(gaps.size).reshape(gaps.shape)
    assert (flags[invented] & Flag.NODATA).all()
    assert ((flags & Flag.NODATA) != 0).mean() < 0.75
    assert scene.notes[-1] == "gaps of the failed scan line corrector widened by 2 px"


@pytest.mark.parametrize(
    ("kind", "day", "px"), [("LE07-L2SR", "2003-05-30", 0), ("LE07-L2SR", "2003-05-31", 2)]
)
def test_only_landsat_7_since_its_failure_has_a_rim(copied, kind, day, px):
    product = copied(f"landsat-{kind}")
    edit(product, "DATE_ACQUIRED = 2024-06-03", f"DATE_ACQUIRED = {day}")
    assert open_scene(product, TM).masks[0].grow_nodata_px == px


def test_no_rim_for_other_satellites(products):
    assert open_scene(products[LC09], OLI).masks[0].grow_nodata_px == 0
    assert open_scene(products["landsat-LT05"], TM).masks[0].grow_nodata_px == 0


def test_eight_bit_level_1_is_read_and_what_it_saturates_is_flagged(products):
    bands = tuple(band.name for band in TM.sensor.bands)
    scene = open_scene(products["landsat-LT04-L1TP-tar"], Request(TM.sensor, bands))
    _, images, flags = stored(scene)
    with rasterio.open(scene.bands[0].path) as raster:
        dn = raster.read(1)
    assert dn.dtype == np.uint8
    held = images["B1"].pixels != NODATA
    np.testing.assert_array_equal(held, dn != 0)
    sun = math.sin(math.radians(SUN_ELEVATION))
    factor, summand = RESCALING["L1-8bit"]
    expected = (dn[held] * factor + summand) / sun
    np.testing.assert_allclose(images["B1"].pixels[held] * 1e-4, expected, atol=0.51e-4)
    full = np.zeros(dn.shape, bool)
    for band in scene.bands:
        with rasterio.open(band.path) as raster:
            full |= raster.read(1) == 255
    np.testing.assert_array_equal((flags & Flag.SATURATED) != 0, full)
    assert full.any()


def test_pixels_that_tm_dropped_are_nodata(products):
    assert open_scene(products["landsat-LT05"], TM).masks[1].bits[9] == Flag.NODATA


def test_polar_products_keep_their_projection(products):
    scene = open_scene(products["landsat-LC09-L1TP-polar"], OLI)
    layout, images, _ = stored(scene)
    assert layout.target.crs == CRS.from_epsg(3031)
    assert layout.target.transform[:6] == (30, 0, POLAR_PLACE.left_m, 0, -30, POLAR_PLACE.top_m)
    lon, lat = layout.target.lonlat(np.array([0.0]), np.array([0.0]))
    assert lat[0] < -70 and -180 <= lon[0] <= 180
    assert (images["B4"].pixels != NODATA).mean() > 0.9


def test_an_unknown_level_is_refused(copied):
    product = copied(LC09)
    edit(product, 'PROCESSING_LEVEL = "L2SP"', 'PROCESSING_LEVEL = "ARD"')
    with pytest.raises(SceneError, match="PROCESSING_LEVEL is 'ARD'"):
        open_scene(product, OLI)


def test_level_1_is_divided_by_the_suns_height(products, tmp_path):
    scene = open_scene(products["landsat-LC08-L1TP"], OLI)
    sun = math.sin(math.radians(SUN_ELEVATION))
    assert scene.level == "L1TP"
    assert scene.bands[0].scale == pytest.approx(2e-05 / sun)
    assert scene.bands[0].offset == pytest.approx(-0.1 / sun)
    surface = open_scene(write_landsat(tmp_path, LandsatOptions(192, satellite="LC08")), OLI)
    means = []
    for source in (scene.bands[1], surface.bands[1]):
        with rasterio.open(source.path) as raster:
            dn = raster.read(1)
        means.append((dn[dn > 0] * source.scale + source.offset).mean())
    assert means[0] == pytest.approx(means[1], abs=0.01)  # haze adds little at 865 nm


def test_time_comes_from_date_and_centre_time(products):
    assert open_scene(products[LC09], OLI).acquired == "2024-06-03T10:04:12.0000000Z"


def test_quality_bits_become_flags(products):
    pixel, saturation = open_scene(products[LC09], OLI).masks
    assert pixel.bits == QA_PIXEL_BITS
    assert QA_PIXEL_BITS[0] == Flag.NODATA and QA_PIXEL_BITS[1] == QA_PIXEL_BITS[3] == Flag.CLOUD
    assert saturation.bits == {3: Flag.SATURATED, 4: Flag.SATURATED}  # B4 and B5 only
    assert open_scene(products["landsat-LT05"], TM).masks[1].bits == {
        2: Flag.SATURATED, 6: Flag.SATURATED, 9: Flag.NODATA
    }  # fmt: skip


def test_fill_of_the_bands_is_fill_of_the_quality_layer(products):
    scene = open_scene(products[LC09], OLI)
    with rasterio.open(scene.bands[0].path) as band, rasterio.open(scene.masks[0].path) as quality:
        filled = band.read(1) == scene.bands[0].nodata_dn
        np.testing.assert_array_equal(filled, quality.read(1) & 1 == 1)
    assert 0.01 < filled.mean() < 0.1


def test_satellites_of_another_instrument_are_refused_by_name(products):
    with pytest.raises(SceneError, match=r"made by LANDSAT_5 TM, not by Landsat 8-9 OLI.*Set `sensor`"):
        open_scene(products["landsat-LT05"], OLI)


def test_mss_is_not_taken_for_tm(copied):
    product = copied("landsat-LT05")
    edit(product, 'SENSOR_ID = "TM"', 'SENSOR_ID = "MSS"')
    with pytest.raises(SceneError, match="LANDSAT_5 MSS"):
        open_scene(product, TM)


def test_missing_metadata_is_refused_not_overlooked(copied):
    product = copied(LC09)
    for path in product.glob("*_MTL.*"):
        path.unlink()
    assert [path for _, path in discover(product.parent, OLI)] == [product]
    with pytest.raises(SceneError, match="found none"):
        open_scene(product, OLI)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9, 0.99])
def test_truncated_metadata_is_refused(copied, share):
    path = mtl(unstated(copied(LC09)))
    path.write_bytes(path.read_bytes()[: int(path.stat().st_size * share)])
    with pytest.raises(SceneError, match="not a whole MTL file"):
        open_scene(path.parent, OLI)


@pytest.mark.parametrize(
    "text", ["[]", "{}", "{", '{"LANDSAT_METADATA_FILE": 1}', '{"L1_METADATA_FILE": {}}']
)
def test_json_of_another_kind_is_refused(copied, text):
    product = unstated(copied(LC09))
    mtl(product).unlink()
    next(product.glob("*_MTL.xml")).unlink()
    next(product.glob("*_MTL.json")).write_text(text)
    with pytest.raises(SceneError, match="not a Collection-2 MTL"):
        open_scene(product, OLI)


@pytest.mark.parametrize("layer", ["QA_PIXEL", "QA_RADSAT"])
def test_missing_quality_layer_is_refused(copied, layer):
    product = copied(LC09)
    next(product.glob(f"*_{layer}.TIF")).unlink()
    with pytest.raises(SceneError, match=f"quality layer .*_{layer}.TIF is not in"):
        open_scene(product, OLI)


def test_missing_rescaling_names_the_key(copied):
    product = copied(LC09)
    edit(product, "REFLECTANCE_MULT_BAND_5", "REFLECTANCE_FACTOR_BAND_5")
    with pytest.raises(SceneError, match=r"LEVEL2_SURFACE.*REFLECTANCE_MULT_BAND_5 is missing"):
        open_scene(product, OLI)


def test_a_file_name_in_the_metadata_leads_nowhere_else(copied):
    product = copied(LC09)
    outside = product.parent / "other.TIF"
    outside.write_bytes(b"")
    edit(product, f"{product.name}_SR_B4.TIF", "../other.TIF")
    with pytest.raises(SceneError, match="no file of band B4"):
        open_scene(product, OLI)


def test_night_scenes_have_no_reflectance(copied):
    product = copied("landsat-LC08-L1TP")
    edit(product, f"SUN_ELEVATION = {SUN_ELEVATION}", "SUN_ELEVATION = -12.5")
    with pytest.raises(SceneError, match="taken at night"):
        open_scene(product, OLI)


@pytest.mark.parametrize("form", ["txt", "json", "xml"])
def test_real_metadata_says_the_same_in_every_form(real_data, form):
    for product in sorted((real_data / "landsat_c2").iterdir()):
        groups = {
            kind: landsat_mtl.FORMS[kind](next(product.glob(f"*_MTL.{kind}")).read_text(), kind)
            for kind in (form, "txt")
        }
        for group in ("PRODUCT_CONTENTS", "IMAGE_ATTRIBUTES", "LEVEL2_SURFACE_REFLECTANCE_PARAMETERS"):
            assert groups[form][group].items() == groups["txt"][group].items()


def test_real_landsat(real_data):
    request = replace(OLI, bands=tuple(b.name for b in OLI.sensor.bands))
    found = discover(real_data / "landsat_c2", request)
    scenes = [reader.open(product, request) for reader, product in found]
    assert [s.id[:16] for s in scenes] == ["LC08_L2SP_005009", "LC08_L2SP_008059", "LC08_L2SP_017036"]
    assert scenes[0].acquired == "2015-07-10T14:34:35.9783990Z"
    for scene in scenes:
        assert {(b.scale, b.offset, b.nodata_dn) for b in scene.bands} == {(2.75e-05, -0.2, 0)}
        assert scene.labels is None
        with rasterio.open(scene.bands[3].path) as band, rasterio.open(scene.masks[0].path) as quality:
            assert band.res[0] > 400  # overviews: the file's transform holds, not the MTL's 30 m
            # fill has the value 1, and nearly every filled pixel of the bands is one of the quality layer
            assert ((band.read(1) == 0) & (quality.read(1) & 1 == 0)).mean() < 0.02


def test_real_json_says_the_same_as_text(real_data, tmp_path):
    original = sorted((real_data / "landsat_c2").iterdir())[0]
    product = tmp_path / original.name
    product.mkdir()
    for path in original.glob("*"):
        if not path.name.endswith("_MTL.txt"):
            (product / path.name).symlink_to(path)
    as_text, as_json = open_scene(original, OLI), open_scene(product, OLI)
    assert [b.scale for b in as_json.bands] == [b.scale for b in as_text.bands]
    assert (as_json.acquired, as_json.level) == (as_text.acquired, as_text.level)
