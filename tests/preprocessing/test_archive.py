import json
import warnings

import numpy as np
import pytest
import rioxarray  # noqa: F401 - gives xarray its `.rio`
import xarray
import zarr
from affine import Affine
from rasterio.crs import CRS

from pipeline.errors import ContractError, CorruptDataError
from pipeline.sample import NODATA
from preprocessing import archive
from preprocessing.archive import SceneHeader, SceneWriter, StoredScene
from preprocessing.grids import Grid

UTM = Grid(CRS.from_epsg(32632), Affine(10, 0, 600_000, 0, -10, 5_400_000), 300, 520)
DEGREES = Grid(CRS.from_epsg(4326), Affine(1e-4, 0, 12, 0, -1.1e-4, 45), 300, 520)
DIGESTS = {"pixels": "p", "cells": "c"}


def write(store, grid=UTM, name="scene", indices=("NDVI",)):
    """Write a scene of two bands with a nodata corner; returns its folder and pixels."""
    archive.create(store)
    pixels = np.random.default_rng(0).integers(-200, 9000, (2, *grid.shape_px)).astype(np.int16)
    pixels[:, 256:, 256:] = NODATA  # whole chunks
    header = SceneHeader(
        name, "sentinel2", "L2A", "r", "2020-01-01", ("B04", "B8A"), indices, grid, ("a note",)
    )
    writer = SceneWriter(store.parent / "work", header, "zstd")
    writer.start(has_labels=False)
    everything = slice(0, grid.height_px)
    writer.write("reflectance", everything, pixels)
    writer.write("mask", everything, (pixels[0] == NODATA).astype(np.uint8))
    writer.write_cells(np.ones((len(indices), 65, 37, 3), np.float32))
    writer.finish(store, DIGESTS)
    return store / name, pixels


@pytest.fixture
def stored(tmp_path):
    return write(tmp_path / archive.FOLDER)


@pytest.mark.parametrize("grid", [UTM, DEGREES], ids=["UTM", "degrees"])
def test_a_scene_opens_in_xarray_with_crs_and_band_names(tmp_path, grid):
    folder, pixels = write(tmp_path / archive.FOLDER, grid)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        data = xarray.open_zarr(folder.parent, group="scene", consolidated=False)
    assert data.reflectance.rio.crs == grid.crs
    assert data.reflectance.rio.bounds() == pytest.approx(grid.bounds)
    assert data.mask.rio.transform().almost_equals(grid.transform)
    assert list(data.band.values) == ["B04", "B8A"]
    values = data.reflectance.sel(band="B8A").values
    expected = np.where(pixels[1] == NODATA, np.nan, pixels[1] * 1e-4)
    np.testing.assert_allclose(values, expected, atol=1e-6)
    assert data.cells.dims == ("index", "cell_y", "cell_x", "statistic")
    assert list(data.statistic.values) == ["n", "mean", "std"]


def test_attributes_follow_cf_and_geozarr(stored):
    group = zarr.open_group(stored[0], mode="r")
    reflectance = dict(group["reflectance"].attrs)
    assert (reflectance["scale_factor"], reflectance["add_offset"], reflectance["units"]) == (1e-4, 0.0, "1")
    assert (reflectance["_FillValue"], reflectance["grid_mapping"]) == (NODATA, "spatial_ref")
    assert reflectance["standard_name"] == "surface_bidirectional_reflectance"
    assert group.attrs["proj:code"] == "EPSG:32632"
    assert [c["name"] for c in group.attrs["zarr_conventions"]] == ["proj", "spatial"]
    assert group.attrs["spatial:transform"] == [10, 0, 600_000, 0, -10, 5_400_000]
    assert group.attrs["spatial:bbox"] == [600_000, 5_394_800, 603_000, 5_400_000]
    assert group["mask"].attrs["flag_meanings"] == "nodata saturated cloud shadow cirrus snow"
    assert group["spatial_ref"].attrs["GeoTransform"].split() == [
        "600000.0",
        "10.0",
        "0.0",
        "5400000.0",
        "0.0",
        "-10.0",
    ]


def test_chunks_are_checked_by_crc_after_the_compressor_and_sharded(stored):
    reflectance = zarr.open_group(stored[0], mode="r")["reflectance"]
    assert [type(c).__name__ for c in reflectance.compressors] == ["BloscCodec", "Crc32cCodec"]
    width = stored[1].shape[2]
    assert reflectance.chunks == (1, 520, min(1024, width))
    assert reflectance.shards == (1, 520, min(1024, width))
    assert reflectance.fill_value == NODATA


def test_chunks_of_nodata_are_written_too(tmp_path):
    folder, _ = write(tmp_path / archive.FOLDER, Grid(UTM.crs, UTM.transform, 2300, 300))
    assert sorted(p.name for p in (folder / "reflectance/c/0/0").iterdir()) == ["0", "1"]


def test_what_was_written_is_read_back(stored):
    scene = StoredScene(stored[0])
    np.testing.assert_array_equal(scene.read("reflectance"), stored[1])
    np.testing.assert_array_equal(scene.read("reflectance", slice(None), slice(8, 24)), stored[1][:, 8:24])
    assert scene.header.grid == UTM
    assert scene.header.notes == ("a note",)
    assert not scene.has_labels


def test_labels_are_stored_beside_the_pixels(tmp_path):
    writer = SceneWriter(
        tmp_path / "w", SceneHeader("s", "sentinel2", "L2A", "r", "", ("B04",), (), UTM), "lz4"
    )
    writer.start(has_labels=True)
    writer.write("label", slice(0, UTM.height_px), np.full(UTM.shape_px, 3, np.uint8))
    archive.create(tmp_path / "store")
    writer.finish(tmp_path / "store", DIGESTS)
    scene = StoredScene(tmp_path / "store/s")
    assert scene.has_labels
    assert (scene.read("label", slice(0, 8)) == 3).all()


def shard_file(folder):
    return folder / "reflectance/c/1/0/0"


def remove(path):
    path.unlink()


def truncate(path):
    path.write_bytes(path.read_bytes()[:-10])


@pytest.mark.parametrize("damage", [remove, truncate])
def test_p14_missing_and_truncated_chunks_fail_before_anything_is_read(stored, damage):
    damage(shard_file(stored[0]))
    with pytest.raises(CorruptDataError, match="reflectance/c/1/0/0"):
        StoredScene(stored[0])


def test_p14_a_flipped_bit_fails_the_read_and_is_found_by_its_checksum(stored):
    path = shard_file(stored[0])
    data = bytearray(path.read_bytes())
    data[len(data) // 3] ^= 1
    path.write_bytes(data)
    assert archive.problems(stored[0]) == []
    assert archive.problems(stored[0], deep=True) == [f"{path} was altered (SHA-256 differs)"]
    with pytest.raises(CorruptDataError, match="reflectance cannot be decoded"):
        StoredScene(stored[0]).read("reflectance")


def test_p14_a_scene_killed_while_written_is_not_there(tmp_path, stored):
    (stored[0] / archive.MARKER).unlink()
    with pytest.raises(CorruptDataError, match="never finished"):
        StoredScene(stored[0])
    assert archive.read_marker(tmp_path / "nothing") is None


def test_a_damaged_marker_is_told(stored):
    (stored[0] / archive.MARKER).write_text("{")
    with pytest.raises(CorruptDataError, match=archive.MARKER):
        archive.read_marker(stored[0])


def test_a_newer_store_is_refused(tmp_path):
    store = tmp_path / archive.FOLDER
    archive.create(store)
    archive.create(store)
    path = store / "zarr.json"
    tree = json.loads(path.read_text())
    tree["attributes"]["format_version"] = 2
    path.write_text(json.dumps(tree))
    with pytest.raises(ContractError, match="format 2"):
        archive.create(store)


def test_p19_new_cells_take_over_the_pixels_without_touching_them(stored):
    folder, pixels = stored
    before = shard_file(folder).stat().st_ino
    header = StoredScene(folder).header
    writer = SceneWriter(
        folder.parent.parent / "again", SceneHeader(**header.__dict__ | {"indices": ("NDWI", "NDBI")}), "lz4"
    )
    writer.take_over(folder)
    writer.write_cells(np.zeros((2, 65, 37, 3), np.float32))
    writer.finish(folder.parent, DIGESTS)
    scene = StoredScene(folder)
    assert scene.header.indices == ("NDWI", "NDBI")
    assert scene.read("cells").shape == (2, 65, 37, 3)
    np.testing.assert_array_equal(scene.read("reflectance"), pixels)
    assert shard_file(folder).stat().st_ino == before
