"""What every reader owes, on one product of every kind."""

import os
import re
import shutil
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import pytest
import rasterio

from pipeline.errors import ConfigError, MissingInputError, SceneError, UnknownNameError
from pipeline.sensors import SENSORS
from preprocessing.readers import READERS, Request, discover
from preprocessing.readers.product import choose_gsd, product_name, scene_id


def open_kind(kind, **changes):
    return READERS[kind.reader].open(kind.product, replace(kind.request, **changes))


def test_every_reader_has_a_product_kind_here(products):
    assert {name.split("-")[0] for name in products} == {
        name for name, reader in READERS.items() if reader.automatic
    }


def test_scene_says_what_the_sensor_table_and_the_product_say(kind):
    scene = open_kind(kind)
    assert re.fullmatch(r"[A-Za-z0-9_-]{1,64}", scene.id)
    assert (scene.sensor, scene.reader) == (kind.request.sensor.name, kind.reader)
    assert scene.level in kind.product.name or kind.reader == "oscd"
    assert scene.location == kind.product
    assert datetime.fromisoformat(scene.acquired).year in (2016, 2024)
    assert scene.licence and all(scene.notes)
    assert open_kind(kind) == scene


def test_every_band_and_mask_opens_and_nests(kind):
    scene = open_kind(kind)
    for source in scene.bands:
        native = kind.request.sensor[source.name].gsd_m
        with rasterio.open(source.path) as raster:
            assert (raster.count, raster.res[0]) == (1, native)
            assert raster.dtypes[0] == ("uint8" if "LT04-L1TP" in kind.name else "uint16")
            assert raster.width * native == 1920
            dn = raster.read(1)
        reflectance = dn[dn != source.nodata_dn] * source.scale + source.offset
        assert 0 < reflectance.mean() < 0.6
        assert reflectance.min() > -0.02
    for mask in scene.masks:
        assert sum(map(bool, (mask.classes, mask.bits, mask.layers, mask.polygons))) == 1
        if not mask.polygons:
            with rasterio.open(mask.path) as raster:
                assert raster.count == max(len(mask.layers), 1)


def test_bands_come_in_the_requested_order(kind):
    backwards = kind.request.bands[::-1]
    there, back = open_kind(kind), open_kind(kind, bands=backwards)
    assert [b.name for b in back.bands] == list(backwards)
    assert set(back.bands) == set(there.bands)


@pytest.mark.parametrize("wrong", ["B4x", "b02"])
def test_p09_unknown_band_is_refused_with_the_nearest_name(kind, wrong):
    with pytest.raises(UnknownNameError, match=r"unknown band .* Did you mean `B0?[24]"):
        replace(kind.request, bands=("B3", wrong) if kind.reader == "landsat" else ("B03", wrong))


def remove(product: Path, pattern: str) -> None:
    """Take the files of a name pattern out of a product, packed or not."""
    if product.is_dir():
        for path in product.rglob(pattern):
            path.unlink()
        return
    folder = product.parent / "unpacked"
    shutil.unpack_archive(product, folder)
    remove(folder, pattern)
    kind = product.suffix[1:]
    shutil.make_archive(str(product.with_suffix("")), kind, folder)


def test_p04_missing_band_file_names_band_folder_and_what_is_there(kind, copied):
    product = copied(kind.name)
    scene = READERS[kind.reader].open(product, kind.request)
    band = scene.bands[2]
    pattern = {"sentinel2": f"*_{band.name}*.jp2", "sentinel2_aws": f"{band.name}.jp2"}.get(
        kind.reader, f"*_{band.name}.*"
    )
    remove(product, pattern)
    with pytest.raises(
        SceneError, match=rf"no file of band {band.name} in .*there: B.*take {band.name} out"
    ) as caught:
        READERS[kind.reader].open(product, kind.request)
    assert product.name in str(caught.value)
    assert scene.bands[3].name in str(caught.value).split("there:")[1]
    others = tuple(name for name in kind.request.bands if name != band.name)
    assert len(READERS[kind.reader].open(product, replace(kind.request, bands=others)).bands) == len(others)


def test_labels_are_the_land_cover_beside_the_product(kind, copied):
    product = copied(kind.name)
    raster = product.parent / f"{product_name(product)}_landcover.tif"
    raster.write_bytes(b"any raster")
    assert READERS[kind.reader].open(product, kind.request).labels == str(raster)
    raster.unlink()
    assert READERS[kind.reader].open(product, kind.request).labels is None


@pytest.mark.parametrize("asked", ["auto", "by name"])
def test_discover_finds_each_product_once(kind, asked):
    above = kind.product.parent.parent if kind.reader == "oscd" else kind.product.parent
    found = discover(above, kind.request, "auto" if asked == "auto" else kind.reader)
    count = 2 if kind.reader == "oscd" else 1
    assert [reader.name for reader, _ in found] == [kind.reader] * count
    assert found[0][1] == kind.product


def test_discover_takes_a_product_itself(kind):
    assert discover(kind.product, kind.request) == [(READERS[kind.reader], kind.product)]


def test_p16_odd_paths_are_read(kind, copied, tmp_path, monkeypatch):
    odd = tmp_path / "höme dir" / "scène archive (2)"
    odd.parent.mkdir()
    shutil.move(copied(kind.name).parent, odd)
    monkeypatch.chdir(odd.parent)
    monkeypatch.setenv("HOME", str(odd.parent))
    ways = [odd, Path(odd.name), Path("~") / odd.name, Path("..") / odd.parent.name / odd.name]
    scenes = []
    for way in ways:
        reader, path = discover(way, kind.request)[0]
        scenes.append(reader.open(path, kind.request))
    assert len({scene.id for scene in scenes}) == 1
    for scene in scenes:
        assert scene.location.is_absolute()
        with rasterio.open(scene.bands[0].path) as raster:
            assert raster.width > 0


def test_a_mixed_archive_gives_each_sensor_its_own_products(products, tmp_path):
    for name, product in products.items():
        (tmp_path / name).symlink_to(product.parent, target_is_directory=True)
    bands = {"sentinel2": ("B02",), "landsat_oli": ("B2",), "landsat_tm": ("B2",)}
    found = {s: discover(tmp_path, Request(SENSORS[s], b)) for s, b in bands.items()}
    assert {s: len(f) for s, f in found.items()} == {"sentinel2": 8, "landsat_oli": 4, "landsat_tm": 3}
    assert found["sentinel2"] == sorted(found["sentinel2"], key=lambda pair: pair[1])


def test_links_in_a_ring_and_hidden_folders_are_not_followed(products, tmp_path, copied):
    product = copied("landsat-LC09")
    (product.parent / "ring").symlink_to(product.parent, target_is_directory=True)
    shutil.copytree(product, product.parent / ".trash" / product.name)
    request = Request(SENSORS["landsat_oli"], ("B2",))
    assert [path for _, path in discover(product.parent, request)] == [product]


@pytest.mark.parametrize("sensor", SENSORS)
@pytest.mark.parametrize("place", ["absent", "empty"])
def test_nothing_to_read_says_what_to_do(tmp_path, sensor, place):
    (tmp_path / "empty").mkdir()
    request = Request(SENSORS[sensor], (SENSORS[sensor].bands[0].name,))
    with pytest.raises(MissingInputError) as caught:
        discover(tmp_path / place, request)
    message = str(caught.value)
    assert str(tmp_path / place) in message
    assert "scenes=/path/to/archive" in message
    assert "python preprocessing/simulate.py demo/archive" in message
    assert all(
        reader.layout in message
        for reader in READERS.values()
        if reader.automatic and sensor in reader.sensors
    )
    assert caught.value.exit_code == 2


def test_a_folder_that_cannot_be_listed_is_not_skipped(tmp_path, monkeypatch):
    (tmp_path / "locked").mkdir()
    scandir = os.scandir

    def refuse(path):
        if os.fspath(path).endswith("locked"):
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)  # root may list anything, so permissions alone would not do
    with pytest.raises(MissingInputError, match=r"cannot list .*locked"):
        discover(tmp_path, Request(SENSORS["sentinel2"], ("B02",)))


def test_reader_must_exist_and_fit_the_sensor(tmp_path):
    request = Request(SENSORS["landsat_oli"], ("B2",))
    with pytest.raises(UnknownNameError, match="Did you mean `landsat`"):
        discover(tmp_path, request, "landsad")
    with pytest.raises(ConfigError, match="reader `oscd` reads sentinel2, not landsat_oli"):
        discover(tmp_path, request, "oscd")


def test_scene_ids_fit_keys_and_stay_apart():
    assert scene_id("S2A_MSIL2A_20221005") == "S2A_MSIL2A_20221005"
    odd = ["a b", "a-b", "a.b", "é", "è", "", "x" * 64, "x" * 65, "x" * 66]
    ids = [scene_id(name) for name in odd]
    assert len(set(ids)) == len(odd)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,64}", one) for one in ids)


@pytest.mark.parametrize(
    ("gsd_m", "chosen"), [(None, 10), (5, 10), (10, 10), (19, 10), (20, 20), (30, 20), (60, 60), (500, 60)]
)
def test_the_coarsest_file_that_is_fine_enough_is_chosen(gsd_m, chosen):
    assert choose_gsd({10.0: 10, 20.0: 20, 60.0: 60}, gsd_m) == chosen
