"""STAC Items: assets by key, name or common name; scale and offset as stated; catalogs."""

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pipeline import config as configs
from pipeline.config import ROOT
from pipeline.errors import MissingInputError, SceneError
from pipeline.sample import Flag
from pipeline.sensors import SENSORS
from preprocessing import checksums, grids, radiometry, shard
from preprocessing.finding import find_scenes
from preprocessing.readers import READERS, Request, discover
from preprocessing.settings import ShardConfig
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


def edit(path, **changes):
    """Change the properties of an Item."""
    item = json.loads(path.read_text())
    path.write_text(json.dumps(item | {"properties": item["properties"] | changes}))
    return path


def collect(paths, target, **more):
    """Put Items into one collection file."""
    features = [json.loads(path.read_text()) for path in paths]
    for path in paths:
        path.unlink()
    target.write_text(json.dumps({"type": "FeatureCollection", "features": features} | more))
    return target


@pytest.mark.parametrize("name", ["catalog.json", "search.geojson"])
def test_a_collection_in_one_file_gives_its_items_by_name(tmp_path, name):
    paths = [write_item(tmp_path, one) for one in ("B_1", "A/2", "A/2")]
    features = [json.loads(path.read_text()) for path in paths]
    one = collect(paths[:1], tmp_path / name)
    one.write_text(json.dumps({"type": "FeatureCollection", "features": [*features, {"type": "Feature"}]}))
    found = discover(one, ASK)
    assert [path.relative_to(tmp_path).as_posix() for _, path in found] == [
        f"{name}/{item}" for item in ("A-2-1", "A-2-2", "B_1")
    ]
    scene = opened(found[2][1])
    assert (scene.id, scene.location) == ("B_1", one / "B_1")
    assert scene.bands[0].path == str(tmp_path / "B_1/blue.tif")
    with pytest.raises(SceneError, match=rf"{name}/none cannot be read as a STAC Item"):
        opened(one / "none")


def test_a_catalog_may_lead_to_collections_of_items(tmp_path):
    inner = collect([write_item(tmp_path / "in", "A")], tmp_path / "in/items.json", stac_version="1.0.0")
    links = [{"rel": "items", "href": "./in/items.json"}, {"rel": "license", "href": "https://there/"}]
    (tmp_path / "catalog.json").write_text(
        json.dumps({"type": "Catalog", "stac_version": "1.0.0", "links": links})
    )
    assert [path for _, path in discover(tmp_path / "catalog.json", ASK)] == [inner / "A"]


def test_of_a_mixed_archive_each_sensor_takes_its_own(tmp_path):
    for name, platform in (("S2", "sentinel-2b"), ("L9", "landsat-9"), ("L7", "LANDSAT_7"), ("any", "")):
        edit(write_item(tmp_path, name), platform=platform)
    taken = {
        sensor: [path.stem for _, path in discover(tmp_path, Request(SENSORS[sensor], (band,)), "stac")]
        for sensor, band in (("sentinel2", "B02"), ("landsat_oli", "B2"), ("landsat_tm", "B1"))
    }
    assert taken == {"sentinel2": ["S2", "any"], "landsat_oli": ["L9", "any"], "landsat_tm": ["L7", "any"]}


@pytest.mark.parametrize(
    ("satellite", "day", "px"), [("landsat-7", "2003-06-01", 2), ("landsat-5", "2003-06-01", 0)]
)
def test_items_of_landsat_7_have_its_gaps_and_dropped_pixels(tmp_path, satellite, day, px):
    raster = [{"scale": 2.75e-05, "offset": -0.2, "nodata": 0}]
    assets = {key: {"href": f"{key}.TIF", "raster:bands": raster} for key in ("red", "qa_pixel", "qa_radsat")}
    item = {"type": "Feature", "stac_version": "1.0.0", "id": "LE07", "assets": assets}
    said = {"landsat:correction": "L2SP", "datetime": f"{day}T10:00:00Z", "platform": satellite}
    path = tmp_path / "LE07.json"
    path.write_text(json.dumps(item | {"properties": said}))
    pixel, radsat = opened(path, Request(SENSORS["landsat_tm"], ("B3",))).masks
    assert pixel.grow_nodata_px == px
    assert radsat.bits == {2: Flag.SATURATED, 9: Flag.NODATA}


def test_a_broken_json_of_many_is_quarantined_and_a_broken_catalog_is_told(tmp_path):
    sound, broken = write_item(tmp_path, "A"), tmp_path / "B.json"
    broken.write_text(sound.read_text()[:300])
    (tmp_path / "notes.json").write_text("[1, 2]")
    assert [path for _, path in discover(tmp_path, ASK, "stac")] == [sound, broken]
    with pytest.raises(SceneError, match=r"B.json cannot be read as STAC"):
        opened(broken)
    with pytest.raises(MissingInputError, match=r"B.json cannot be read as STAC"):
        discover(broken, ASK)


def grid_of(path) -> dict:
    """State a raster's grid as the projection extension does."""
    grid = grids.read_grid(str(path))
    return {
        "proj:epsg": grid.crs.to_epsg(),
        "proj:transform": list(grid.transform),
        "proj:shape": list(grid.shape_px),
    }


def state_grids(path, **changes):
    """State the grids of an Item's assets, and something else of the red band's."""
    item = json.loads(path.read_text())
    for key, asset in item["assets"].items():
        asset |= grid_of(path.parent / asset["href"]) | (changes if key == "red" else {})
    path.write_text(json.dumps(item))
    return path


def test_stated_grids_agree_and_plan_without_a_file(tmp_path):
    path = state_grids(write_item(tmp_path))
    radiometry.lay_out(opened(path), None, None)
    told = opened(path).bands[0].stated
    assert (told.by, told.crs, told.shape_px) == ("S2A_1.json", "EPSG:32633", (64, 64))
    own = grids.read_grid(opened(path).bands[0].path)
    assert grids.stated(told) == own
    for file in (tmp_path / "S2A_1").iterdir():
        file.unlink()
    words = {
        "scenes": str(tmp_path),
        "output": str(tmp_path / "out"),
        "reader": "stac",
        "sensor": "sentinel2",
    }
    found = find_scenes(
        configs.build(ShardConfig, words | {"bands": list(ASK.bands), "indices": ["NDVI"]}, "test")
    )
    assert {name: place.grid for name, place in found.places.items()} == {"S2A_1": own}


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"proj:epsg": 32634}, r"EPSG:32634, but .*red.tif has 64 x 64 px .*EPSG:32633"),
        ({"proj:epsg": None, "proj:code": "EPSG:32634"}, "EPSG:32634, but"),
        ({"proj:shape": [64, 65]}, r"S2A_1.json states 64 x 65 px .*red.tif has 64 x 64 px"),
        ({"proj:transform": [10, 0, 500_006, 0, -10, 5_300_000]}, r"from 500006, 5300000 in"),
        ({"proj:transform": [10.2, 0, 500_000, 0, -10.2, 5_300_000, 0, 0, 1]}, r"px of 10.2 from"),
        ({"proj:epsg": 999_999}, "states a coordinate system that is none, EPSG:999999"),
    ],
)
def test_a_grid_that_contradicts_its_file_names_both(tmp_path, change, told):
    path = state_grids(write_item(tmp_path), **change)
    with pytest.raises(SceneError, match=told):
        radiometry.lay_out(opened(path), None, None)


def test_a_grid_may_be_stated_in_part_for_all_assets_or_by_pixel_centres(tmp_path):
    part = edit(write_item(tmp_path), **{"proj:code": "EPSG:32633"})
    radiometry.lay_out(opened(part), None, None)
    assert grids.stated(opened(part).bands[0].stated) is None
    centres = state_grids(part, **{"proj:transform": [10, 0, 500_005, 0, -10, 5_299_995]})
    radiometry.lay_out(opened(centres), None, None)


@pytest.mark.parametrize("change", [{"proj:transform": ["x"]}, {"proj:shape": [1]}, {"proj:shape": 3}])
def test_a_grid_that_is_none_is_refused(tmp_path, change):
    path = state_grids(write_item(tmp_path), **change)
    with pytest.raises(SceneError, match=r"proj:transform .* or proj:shape .* is none"):
        opened(path)


def test_p05_sums_of_local_assets_are_compared(tmp_path):
    path = write_item(tmp_path)
    item = json.loads(path.read_text())
    for key, asset in item["assets"].items():
        asset["file:checksum"] = (
            "1220" + hashlib.sha256((tmp_path / "S2A_1" / f"{key}.tif").read_bytes()).hexdigest()
        )
    item["assets"]["green"]["href"] = "https://there/green.tif"
    path.write_text(json.dumps(item))
    scene = opened(path)
    assert [band.checksum and band.checksum.algorithm for band in scene.bands][:2] == ["SHA2-256", None]
    assert scene.notes[-1].startswith("remote assets: read in parts, so that their sums are not compared")
    for source in (scene.bands[0], scene.masks[0]):
        checksums.verify(source.path, source.checksum)
        path = Path(source.path)
        path.write_bytes(path.read_bytes() + b"x")
        with pytest.raises(SceneError, match=r"tif is not what its product .* Item's file:checksum"):
            checksums.verify(source.path, source.checksum)
