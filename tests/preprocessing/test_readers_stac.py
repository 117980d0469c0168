"""STAC Items: assets by key, name or common name; scale and offset as stated; catalogs."""

import json
from dataclasses import replace

import numpy as np
import pytest

from pipeline.config import ROOT
from pipeline.errors import MissingInputError, SceneError
from pipeline.sample import Flag
from pipeline.sensors import SENSORS
from preprocessing import shard
from preprocessing.readers import READERS, Request, discover
from tests.preprocessing.patches import numbers, write_image
from tests.preprocessing.test_readers_geotiff import all_samples

ASK = Request(SENSORS["sentinel2"], ("B02", "B03", "B04", "B08", "B8A"))
RASTER = [{"scale": 1e-4, "offset": -0.1, "nodata": 0}]


def write_item(folder, name="S2A_1", applied=False, raster=True, **properties):
    """Write an Item as Earth Search has them, with local assets; returns its path."""
    assets = {}
    for place, (key, gsd_m) in enumerate(
        {"blue": 10, "green": 10, "red": 10, "nir": 10, "nir08": 20, "scl": 20}.items()
    ):
        stored = numbers(1, 640 // gsd_m, place) + np.uint16(1000)
        if key == "scl":
            stored = np.where(np.arange(32) < 8, 9, 4)[None, None].repeat(32, 1).astype(np.uint8)
        write_image(folder / name / f"{key}.tif", stored, gsd_m)
        assets[key] = {"href": f"./{name}/{key}.tif"} | ({"raster:bands": RASTER} if raster else {})
    said = {
        "datetime": "2024-05-01T10:00:00Z",
        "eo:cloud_cover": 12.5,
        "earthsearch:boa_offset_applied": applied,
    }
    item = {"type": "Feature", "stac_version": "1.0.0", "id": name, "collection": "sentinel-2-l2a"}
    path = folder / f"{name}.json"
    path.write_text(json.dumps(item | {"properties": said | properties, "assets": assets, "links": []}))
    return path


def opened(path, request=ASK):
    return READERS["stac"].open(path, request)


@pytest.mark.parametrize(("applied", "offset"), [(False, -0.1), (True, 0.0)])
def test_scale_and_offset_are_the_items(tmp_path, applied, offset):
    scene = opened(write_item(tmp_path, applied=applied))
    assert {(b.scale, b.offset, b.nodata_dn) for b in scene.bands} == {(1e-4, offset, 0)}
    assert [b.path.rsplit("/", 1)[1] for b in scene.bands] == [
        f"{k}.tif" for k in ("blue", "green", "red", "nir", "nir08")
    ]
    assert (scene.level, scene.cloud_share, scene.acquired) == ("L2A", 0.125, "2024-05-01T10:00:00Z")
    assert {b.offset for b in opened(scene.location, replace(ASK, offset="applied")).bands} == {0.0}


@pytest.mark.parametrize(("baseline", "offset"), [("05.10", -0.1), ("02.14", 0.0)])
def test_without_raster_bands_the_baseline_tells(tmp_path, baseline, offset):
    scene = opened(write_item(tmp_path, raster=False, **{"s2:processing_baseline": baseline}))
    assert {(b.scale, b.offset) for b in scene.bands} == {(1e-4, offset)}
    with pytest.raises(SceneError, match="neither raster:bands with a scale nor s2:processing_baseline"):
        opened(write_item(tmp_path, raster=False))


def test_layers_of_one_asset_and_scales_of_stac_1_1(tmp_path):
    path = write_item(tmp_path)
    item = json.loads(path.read_text())
    bands = [{"name": n, "raster:scale": 2e-4, "raster:offset": 0.5} for n in ("B03", "B02")]
    item["assets"] = {"image": {"href": "https://there/a b.tif", "nodata": -1, "bands": bands}}
    path.write_text(json.dumps(item))
    (source,) = opened(path, replace(ASK, bands=("B02",))).bands
    assert (source.path, source.layer) == ("/vsicurl/https://there/a b.tif", 2)
    assert (source.scale, source.offset, source.nodata_dn) == (2e-4, 0.5, -1)


def test_landsat_items_bring_quality_layers_of_the_requested_bands(tmp_path):
    raster = [{"scale": 2.75e-05, "offset": -0.2, "nodata": 0}]
    keys = ("blue", "nir08", "swir16", "qa_pixel", "qa_radsat")
    assets = {key: {"href": f"{key}.TIF", "raster:bands": raster} for key in keys}
    item = {"type": "Feature", "stac_version": "1.0.0", "id": "LC09", "collection": "landsat-c2l2-sr"}
    said = {"landsat:correction": "L2SP", "datetime": "2024-05-01T10:00:00Z"}
    path = tmp_path / "LC09.json"
    path.write_text(json.dumps(item | {"properties": said, "assets": assets}))
    scene = opened(path, Request(SENSORS["landsat_oli"], ("B2", "B5", "B6")))
    assert [(b.path.rsplit("/", 1)[1], b.scale, b.offset) for b in scene.bands] == [
        (f"{key}.TIF", 2.75e-05, -0.2) for key in keys[:3]
    ]
    pixel, radsat = scene.masks
    assert pixel.bits[3] == Flag.CLOUD and radsat.bits == dict.fromkeys((1, 4, 5), Flag.SATURATED)
    assert (scene.level, scene.cloud_share) == ("L2SP", None)


def test_a_catalog_leads_to_its_items_and_not_round_in_circles(tmp_path):
    items = [write_item(tmp_path / "one", "A"), write_item(tmp_path / "two", "B")]
    write_item(tmp_path / "three", "C")
    links = [{"rel": "item", "href": "./one/A.json"}, {"rel": "child", "href": "two/collection.json"}]
    back = [{"rel": "item", "href": "B.json"}, {"rel": "child", "href": "../catalog.json"}]
    for path, links_here in ((tmp_path / "catalog.json", links), (tmp_path / "two/collection.json", back)):
        path.write_text(json.dumps({"type": "Catalog", "stac_version": "1.0.0", "links": links_here}))
    assert [path for _, path in discover(tmp_path / "catalog.json", ASK)] == items
    assert len(discover(tmp_path, ASK, "stac")) == 3
    far = {
        "type": "Catalog",
        "stac_version": "1.0.0",
        "links": [{"rel": "item", "href": "https://there/x.json"}],
    }
    (tmp_path / "far.json").write_text(json.dumps(far))
    with pytest.raises(MissingInputError, match="Items must be local"):
        discover(tmp_path / "far.json", ASK, "stac")


def test_an_item_that_says_too_little_is_refused(tmp_path):
    path = write_item(tmp_path)
    item = json.loads(path.read_text())
    path.write_text(json.dumps(item | {"collection": "mine"}))
    with pytest.raises(SceneError, match="does not say its level"):
        opened(path)
    del item["assets"]["red"]
    path.write_text(json.dumps(item))
    with pytest.raises(SceneError, match=r"no file of band B04 .*there: blue, green, nir"):
        opened(path)


def test_an_item_becomes_samples_with_its_clouds(tmp_path):
    write_item(tmp_path / "in")
    words = [f"scenes={tmp_path / 'in'}", f"output={tmp_path / 'out'}", "reader=stac", "tile_px=64"]
    words += [
        "bands=[B02,B03,B04,B08,B8A]",
        "indices=[NDVI]",
        "split.val_share=0",
        "min_clear=0.5",
        "workers=0",
    ]
    assert shard.main([str(ROOT / "configs/shard/default.yaml"), *words]) == 0
    (one,) = all_samples(tmp_path / "out")["train"]
    assert (one.mask[:, :16] == Flag.CLOUD).all() and (one.mask[:, 16:] == 0).all()
    # DN 1500 with the offset of -1000
    assert 500 <= one.pixels[0].min() <= one.pixels[0].max() < 600
    assert one.info["crs"] == "EPSG:32633"
