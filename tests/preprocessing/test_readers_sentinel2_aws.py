"""Sentinel-2 tiles of the AWS buckets: the same scene as the product they are of, and the real one."""

import json
import zipfile

import numpy as np
import pytest
import rasterio

from pipeline import manifest as manifests
from pipeline.config import ROOT
from pipeline.errors import SceneError
from pipeline.sensors import SENSORS
from preprocessing import radiometry, shard
from preprocessing.readers import READERS, Request, discover
from preprocessing.readers.sentinel2_aws import open_scene
from preprocessing.simulation.safe import SafeOptions, write_safe

SENSOR = SENSORS["sentinel2"]
REQUEST = Request(SENSOR, ("B02", "B8A", "B01"))
L1C, L1C_ZIP, L2A = "sentinel2_aws-L1C", "sentinel2_aws-L1C-zip", "sentinel2_aws-L2A"


def pixels(scene):
    layout = radiometry.lay_out(scene, None, None)
    return {image.name: image.pixels for image in radiometry.band_images(layout, "bilinear")}


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        (L1C, SafeOptions(192, level="L1C", baseline="02.06")),
        (L1C_ZIP, SafeOptions(192, level="L1C")),
        (L2A, SafeOptions(192)),
    ],
)
def test_a_tile_is_the_same_scene_as_its_product(products, tmp_path, kind, options):
    tile = open_scene(products[kind], REQUEST)
    product = READERS["sentinel2"].open(write_safe(tmp_path, options), REQUEST)
    assert (tile.id, tile.level, tile.acquired) == (product.id, product.level, product.acquired)
    assert [(b.scale, b.offset, b.nodata_dn, b.saturated_dn) for b in tile.bands] == [
        (b.scale, b.offset, b.nodata_dn, b.saturated_dn) for b in product.bands
    ]
    assert [(m.classes, m.layers, m.polygons) for m in tile.masks] == [
        (m.classes, m.layers, m.polygons) for m in product.masks
    ]
    for name, image in pixels(product).items():
        np.testing.assert_array_equal(pixels(tile)[name], image)


def test_the_finest_file_that_is_fine_enough_is_taken(products):
    scene = open_scene(products[L2A], Request(SENSOR, ("B02", "B8A"), gsd_m=20))
    assert [band.path.split("/")[-2:] for band in scene.bands] == [["R20m", "B02.jp2"], ["R20m", "B8A.jp2"]]


def test_metadata_of_the_product_beside_the_tile_is_believed(copied, tmp_path):
    tile = copied(L1C)
    product = write_safe(tmp_path, SafeOptions(192, level="L1C"))
    text = (product / "MTD_MSIL1C.xml").read_text().replace(">-1000<", ">-900<")
    (tile / "MTD_MSIL1C.xml").write_text(text)
    assert {band.offset for band in open_scene(tile, REQUEST).bands} == {-0.09}


def test_a_mirrored_tile_is_found_by_what_it_holds(copied):
    tile = copied(L1C)
    number = tile.rename(tile.with_name("0"))
    assert [(reader.name, path) for reader, path in discover(number.parent, REQUEST)] == [
        ("sentinel2_aws", number)
    ]
    assert open_scene(number, REQUEST).id.startswith("S2A_MSIL1C_2024")


def test_without_a_product_name_the_tile_names_itself(copied):
    tile = copied(L1C)
    path = tile / "tileInfo.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"productName": "S2A_OPER_PRD_MSIL1C_PDMC"}))
    first = open_scene(tile, REQUEST).id
    path.unlink()
    assert first == open_scene(tile, REQUEST).id
    assert first.startswith("S2A_OPER_MSI_L1C_TL_SIML_")


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("tileInfo.json", "{", "tileInfo.json: not a tile's"),
        ("tileInfo.json", "[]", "tileInfo.json: not a tile's"),
        ("metadata.xml", "<x/>", "metadata.xml: not the metadata of a tile"),
        ("metadata.xml", "<x>", "metadata.xml: not well-formed XML"),
        ("metadata.xml", '<!DOCTYPE x [<!ENTITY a "b">]><x/>', "metadata.xml: refused, it declares a DTD"),
        ("metadata.xml", None, "metadata.xml is not there"),
    ],
)
def test_p10_metadata_that_cannot_be_used_is_refused(copied, name, text, told):
    tile = copied(L1C)
    if text is None:
        (tile / name).unlink()
    else:
        (tile / name).write_text(text)
    with pytest.raises(SceneError, match=told):
        open_scene(tile, REQUEST)


def test_p05_a_changed_byte_in_a_zip_without_a_manifest_is_found(copied):
    product = copied(L1C_ZIP)
    with zipfile.ZipFile(product) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith("/B02.jp2"))
    data = bytearray(product.read_bytes())
    data[info.header_offset + 30 + len(info.filename) + info.compress_size - 30] ^= 1
    product.write_bytes(data)
    with pytest.raises(SceneError, match=r"/vsizip/.*B02.jp2 (cannot be read|is not what its product)"):
        pixels(open_scene(product, REQUEST))


def test_real_tile_in_its_zip(real_data):
    bands = tuple(band.name for band in SENSOR.bands)
    [(reader, product)] = discover(real_data / "sentinel2_l1c_aws", Request(SENSOR, bands))
    scene = reader.open(product, Request(SENSOR, bands))
    assert (reader.name, scene.level) == ("sentinel2_aws", "L1C")
    assert scene.id == "S2B_MSIL1C_20180617T001109_N0206_R073_T55JGF_20180617T013729"
    assert scene.acquired == "2018-06-17T00:11:07.458Z"
    assert {(b.scale, b.offset, b.nodata_dn) for b in scene.bands} == {(1e-4, 0.0, 0)}
    assert scene.notes[0] == "processing baseline 02.06"
    assert all(band.checksum.algorithm == "CRC-32" for band in scene.bands)
    assert scene.masks[0].path.endswith("/qi/MSK_CLOUDS_B00.gml")
    with rasterio.open(scene.bands[1].path) as raster:
        assert raster.shape == (439, 439)


def test_real_tile_to_shards(real_data, tmp_path):
    words = ["tile_px=48", "split.val_share=0", "min_clear=0.5", "workers=0", "bands=[B02,B03,B04,B08,B11]"]
    given = [f"scenes={real_data / 'sentinel2_l1c_aws'}", f"output={tmp_path}", *words]
    assert shard.main([str(ROOT / "configs/shard/oscd.yaml"), "reader=sentinel2_aws", *given]) == 0
    made = manifests.read(tmp_path)
    [scene] = made.scenes
    assert made.samples("train") > 5
    assert scene.tiles["nodata"] > 5 and scene.tiles["cloud"] > 5
