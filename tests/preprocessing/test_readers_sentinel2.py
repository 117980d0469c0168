"""Sentinel-2: offset and scale from the product's own metadata, the right file of each band, refused XML."""

import hashlib
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio

from pipeline.errors import SceneError
from pipeline.sample import Flag
from pipeline.sensors import SENSORS
from preprocessing import checksums, masks, radiometry
from preprocessing.readers import Request, discover
from preprocessing.readers.sentinel2 import open_scene
from preprocessing.readers.sentinel2_bands import BAND_IDS
from preprocessing.readers.sentinel2_masks import SCL_FLAGS
from preprocessing.simulation.safe import SafeOptions, write_safe

SENSOR = SENSORS["sentinel2"]
REQUEST = Request(SENSOR, ("B02", "B04", "B8A", "B01"))
L2A = "sentinel2-L2A"
ENTITIES = '<!DOCTYPE x [<!ENTITY a "ha"><!ENTITY b "&a;&a;&a;&a;&a;&a;&a;&a;">]>'
EXTERNAL = '<!DOCTYPE x [<!ENTITY a SYSTEM "file:///etc/hostname">]>'
OUTSIDE_DTD = '<!DOCTYPE x SYSTEM "http://localhost:1/x.dtd">'


def edit(product: Path, old: str, new: str, name: str = "MTD_MSIL2A.xml") -> None:
    """Change metadata as one whose manifest knows it: there is none."""
    (product / "manifest.safe").unlink(missing_ok=True)
    path = product / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def reflectance(source):
    with rasterio.open(source.path) as raster:
        dn = raster.read(1)
    return np.where(dn == source.nodata_dn, np.nan, dn * source.scale + source.offset)


def test_band_ids_are_those_of_the_sensor_table():
    assert tuple(band.name for band in SENSOR.bands) == BAND_IDS


@pytest.mark.parametrize(("level", "tag"), [("L2A", "BOA_ADD_OFFSET"), ("L1C", "RADIO_ADD_OFFSET")])
def test_scale_and_offset_are_for_reflectance(copied, level, tag):
    product = copied(f"sentinel2-{level}")
    edit(product, f'<{tag} band_id="3">-1000', f'<{tag} band_id="3">-900', f"MTD_MSI{level}.xml")
    edit(product, ">10000<", ">20000<", f"MTD_MSI{level}.xml")
    scene = open_scene(product, REQUEST)
    assert [band.offset for band in scene.bands] == pytest.approx([-0.05, -0.045, -0.05, -0.05])
    assert {band.scale for band in scene.bands} == {1 / 20_000}
    assert {(band.nodata_dn, band.saturated_dn) for band in scene.bands} == {(0, 65535)}
    assert any("-1000, -900" in note for note in scene.notes)


@pytest.mark.parametrize(("option", "expected"), [("auto", -0.1), ("applied", 0.0), ("not_applied", -0.1)])
def test_offset_option(products, option, expected):
    scene = open_scene(products[L2A], replace(REQUEST, offset=option))
    assert {band.offset for band in scene.bands} == {expected}


@pytest.mark.parametrize(("level", "tag"), [("L2A", "BOA_ADD_OFFSET"), ("L1C", "RADIO_ADD_OFFSET")])
def test_p06_reflectance_is_the_same_in_every_baseline(tmp_path, level, tag):
    images = {}
    for baseline in ("02.06", "02.14", "03.01", "04.00", "05.10"):
        product = write_safe(tmp_path, SafeOptions(192, baseline=baseline, level=level))
        assert (tag in (product / f"MTD_MSI{level}.xml").read_text()) == (baseline >= "04")
        source = open_scene(product, Request(SENSOR, ("B04",))).bands[0]
        assert source.offset == (-0.1 if baseline >= "04" else 0.0)
        images[baseline] = reflectance(source)
    old = images["02.14"]
    above = old > 1.5e-4  # DN 1 of the old baseline holds all that is at or below it
    assert above.mean() > 0.8
    for image in images.values():
        np.testing.assert_allclose(image[above], old[above], atol=1e-12)
        np.testing.assert_array_equal(np.isnan(image), np.isnan(old))


def test_an_offset_that_the_metadata_lost_can_be_demanded(tmp_path):
    product = write_safe(tmp_path, SafeOptions(192, baseline="02.14"))
    scene = open_scene(product, replace(REQUEST, offset="not_applied"))
    assert {band.offset for band in scene.bands} == {-0.1}
    assert "-1000 where there is none" in scene.notes[1]


def test_p06_a_reprocessed_old_scene_is_read_by_its_metadata_not_its_date(copied):
    """The sensing date is from before the offset, the baseline is not; and the reverse."""
    product = copied(L2A)
    edit(product, "2024-06-02", "2017-06-02")
    assert open_scene(product, REQUEST).bands[0].offset == -0.1


def test_offsets_that_must_be_there_and_are_not(copied):
    product = copied(L2A)
    edit(product, "BOA_ADD_OFFSET", "SOMETHING_ELSE")
    with pytest.raises(
        SceneError, match=r"baseline 05.10 has BOA_ADD_OFFSET .*none for B02.*offset: applied"
    ):
        open_scene(product, REQUEST)
    assert open_scene(product, replace(REQUEST, offset="applied")).bands[0].offset == 0.0


def test_one_band_without_an_offset_is_refused(copied):
    product = copied(L2A)
    edit(product, 'BOA_ADD_OFFSET band_id="8"', 'BOA_ADD_OFFSET band_id="99"')
    with pytest.raises(SceneError, match="none for B8A"):
        open_scene(product, REQUEST)


def test_names_as_products_until_2018_spell_them(tmp_path):
    product = write_safe(tmp_path, SafeOptions(192, baseline="02.06"))
    assert "<L2A_BOA_QUANTIFICATION_VALUE" in (product / "MTD_MSIL2A.xml").read_text()
    scene = open_scene(product, REQUEST)
    assert {band.scale for band in scene.bands} == {1e-4}
    files = [*(band.path for band in scene.bands), scene.masks[0].path]
    assert all(Path(path).name.startswith("L2A_T32UPU_") for path in files)


@pytest.mark.parametrize("value", ["0", "-1", "nan", "many", ""])
def test_unusable_quantification_names_file_and_key(copied, value):
    product = copied(L2A)
    edit(product, ">10000<", f">{value}<")
    with pytest.raises(SceneError, match=r"SAFE/MTD_MSIL2A.xml: BOA_QUANTIFICATION_VALUE is"):
        open_scene(product, REQUEST)


@pytest.mark.parametrize(
    ("gsd_m", "bands", "scl"),
    [
        (None, [10, 10, 20, 60], 20),
        (10, [10, 10, 20, 60], 20),
        (20, [20, 20, 20, 60], 20),
        (60, [60] * 4, 20),
    ],
)
def test_the_file_nearest_the_wanted_pixel_size_is_taken(products, gsd_m, bands, scl):
    scene = open_scene(products[L2A], replace(REQUEST, gsd_m=gsd_m))
    sizes = [rasterio.open(path).res[0] for path in (*(b.path for b in scene.bands), scene.masks[0].path)]
    assert sizes == [*bands, scl]


def test_scene_classification_becomes_flags(products):
    mask = open_scene(products[L2A], REQUEST).masks[0]
    assert mask.classes == SCL_FLAGS
    assert {code for code, flag in SCL_FLAGS.items() if flag == Flag.CLOUD} == {8, 9}
    assert not set(SCL_FLAGS) & {2, 4, 5, 6, 7}  # dark, vegetation, bare, water, unclassified are clear


def test_missing_scene_classification_is_refused(copied):
    product = copied(L2A)
    next(product.rglob("*_SCL_20m.jp2")).unlink()
    with pytest.raises(SceneError, match=r"no scene classification \(SCL\)"):
        open_scene(product, REQUEST)


def test_l1c_takes_the_cloud_mask_of_its_baseline(products, tmp_path):
    request = replace(REQUEST, bands=("B10",))
    new = open_scene(products["sentinel2-L1C"], request)
    old = open_scene(write_safe(tmp_path, SafeOptions(192, level="L1C", baseline="02.06")), request)
    assert [Path(scene.masks[0].path).name for scene in (new, old)] == [
        "MSK_CLASSI_B00.jp2",
        "MSK_CLOUDS_B00.gml",
    ]
    assert new.masks[0].layers == (Flag.CLOUD, Flag.CIRRUS, Flag.SNOW)
    assert old.masks[0].polygons == {"OPAQUE": Flag.CLOUD, "CIRRUS": Flag.CIRRUS}
    assert new.notes[-1] == old.notes[-1] == "clouds from the L1C mask, no shadows"


def test_l1c_without_a_mask_says_so(copied):
    product = copied("sentinel2-L1C")
    next(product.rglob("MSK_CLASSI_B00.jp2")).unlink()
    scene = open_scene(product, replace(REQUEST, bands=("B10",), quality_masks="off"))
    assert scene.masks == ()
    assert scene.notes[-1] == "no cloud mask in the product"


def test_missing_metadata_is_refused_not_overlooked(copied):
    product = copied(L2A)
    (product / "MTD_MSIL2A.xml").unlink()
    assert [path for _, path in discover(product.parent, REQUEST)] == [product]
    with pytest.raises(SceneError, match=r"neither MTD_MSIL2A.xml nor MTD_MSIL1C.xml"):
        open_scene(product, REQUEST)


def test_a_renamed_product_is_found_by_its_metadata(copied):
    product = copied(L2A).rename(copied("sentinel2-L1C").parent / "my scene")
    found = [path for _, path in discover(product.parent, REQUEST)]
    assert product in found
    assert open_scene(product, REQUEST).id.startswith("my-scene-")


def test_truncated_xml_is_refused(copied):
    path = copied(L2A) / "MTD_MSIL2A.xml"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    (path.parent / "manifest.safe").unlink()
    with pytest.raises(SceneError, match=r"MTD_MSIL2A\.xml: not well-formed XML"):
        open_scene(path.parent, REQUEST)


@pytest.mark.parametrize("doctype", [ENTITIES, EXTERNAL, OUTSIDE_DTD], ids=["expansion", "external", "dtd"])
def test_p10_xml_with_entities_is_refused(copied, doctype):
    product = copied(L2A)
    edit(product, "<!-- Simulated scene: no satellite took it. -->", doctype)
    with pytest.raises(SceneError, match=r"MTD_MSIL2A.xml: refused, it declares a DTD or entities"):
        open_scene(product, REQUEST)


@pytest.mark.parametrize("name", ["MTD_MSIL2A.xml", "manifest.safe"])
@pytest.mark.parametrize("kind", ["expansion", "external"])
def test_p10_no_file_outside_the_product_is_read_and_nothing_expands(copied, name, kind):
    product = copied(L2A)
    entities = {"expansion": ENTITIES, "external": EXTERNAL}[kind]
    text = (product / name).read_text(encoding="utf-8")
    body = text.replace("Simulated", "&b;").replace(">Level-2A<", ">&a;<")
    edit(product, "SAFE_COMPACT", "SAFE_COMPACT")
    (product / name).write_text(body.replace("<!-- ", entities + "<!-- "), encoding="utf-8")
    with pytest.raises(SceneError, match=rf"{name}: refused, it declares a DTD or entities"):
        open_scene(product, REQUEST)


def restate(product: Path, algorithm: str) -> None:
    """Write all sums of a manifest anew, of another kind and in upper case."""
    path = product / "manifest.safe"
    text = path.read_text(encoding="utf-8").replace('checksumName="SHA3-256"', f'checksumName="{algorithm}"')

    def sum_of(match):
        data = (product / match[2]).read_bytes()
        made = hashlib.md5(data) if algorithm == "MD5" else hashlib.sha3_256(data)
        return match[1] + match[2] + match[3] + made.hexdigest().upper()

    path.write_text(
        re.sub(r'(href="\./)([^"]+)("[^<]*<checksum[^>]*>)[0-9A-Fa-f]+', sum_of, text), encoding="utf-8"
    )


@pytest.mark.parametrize("algorithm", ["SHA3-256", "MD5"])
@pytest.mark.parametrize("layer", ["B04_10m", "SCL_20m"])
def test_p05_a_changed_byte_of_an_image_is_found_before_decoding(copied, algorithm, layer):
    product = copied(L2A)
    restate(product, algorithm)
    scene = open_scene(product, Request(SENSOR, ("B04",)))
    assert {band.checksum.algorithm for band in (*scene.bands, *scene.masks)} == {algorithm}
    path = next(product.rglob(f"*_{layer}.jp2"))
    read(scene)
    data = bytearray(path.read_bytes())
    data[-20] ^= 4
    path.write_bytes(data)
    with pytest.raises(
        SceneError, match=rf"{layer}.jp2 is not what its product .* its {algorithm} sum .* again"
    ):
        read(scene)


def read(scene) -> None:
    layout = radiometry.lay_out(scene, None, None)
    for mask, grid in zip(scene.masks, layout.masks, strict=True):
        masks.mask_flags(mask, grid, layout.target)
    assert len(list(radiometry.band_images(layout, "bilinear"))) == len(scene.bands)


def test_p05_changed_metadata_is_found(copied):
    path = copied(L2A) / "MTD_MSIL2A.xml"
    path.write_text(path.read_text().replace(">-1000<", ">-1001<", 1))
    with pytest.raises(SceneError, match=r"MTD_MSIL2A.xml is not what its product was published with"):
        open_scene(path.parent, REQUEST)


def test_p05_sums_of_a_kind_nobody_knows_are_not_compared(copied):
    product = copied(L2A)
    path = product / "manifest.safe"
    path.write_text(path.read_text().replace("SHA3-256", "SHA9"))
    read(open_scene(product, Request(SENSOR, ("B04",))))


def test_p05_a_product_without_a_manifest_is_read(copied):
    product = copied(L2A)
    (product / "manifest.safe").unlink()
    assert open_scene(product, REQUEST).bands[0].checksum is None


def test_files_of_the_desktop_are_not_taken_for_bands(copied):
    product = copied(L2A)
    for path in list(product.rglob("*_B02_10m.jp2")):
        path.with_name(f"._{path.name}").write_bytes(b"resource fork")
    assert Path(open_scene(product, REQUEST).bands[0].path).name.startswith("T32UPU")


def test_real_safe_at_60_m(real_data):
    bands = tuple(b.name for b in SENSOR.bands if b.name not in ("B08", "B10"))
    request = Request(SENSOR, bands, gsd_m=60)
    [(reader, product)] = discover(real_data / "sentinel2_safe", request)
    scene = reader.open(product, request)
    assert scene.id == "S2A_MSIL2A_20221005T115411_N0400_R023_T29UNU_20221005T164454"
    assert (scene.level, scene.acquired) == ("L2A", "2022-10-05T11:54:11.024Z")
    assert all(band.checksum.algorithm == "SHA3-256" for band in (*scene.bands, *scene.masks))
    checksums.verify(scene.bands[0].path, scene.bands[0].checksum)
    assert all("_60m.jp2" in path for path in (*(b.path for b in scene.bands), scene.masks[0].path))
    assert {(b.scale, b.offset, b.nodata_dn, b.saturated_dn) for b in scene.bands} == {(1e-4, -0.1, 0, 65535)}
    assert scene.notes[:2] == ("processing baseline 04.00", "BOA_ADD_OFFSET -1000, used")
    assert SENSOR.resolve("nir", bands).name == "B8A"


def test_real_safe_says_which_bands_it_has(real_data):
    request = Request(SENSOR, ("B04", "B08"))
    [(reader, product)] = discover(real_data / "sentinel2_safe", request)
    with pytest.raises(SceneError, match=r"no file of band B08 .*there: B01 \(60 m\), .*B8A \(60 m\)\. "):
        reader.open(product, request)
