"""Tiles of JPEG 2000 files that are alike: by all their bytes, wherever they lie, and never by guessing."""

import zipfile
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from preprocessing import codestream, locations
from preprocessing.codestream import Box
from preprocessing.simulation.raster import IMAGE_CODINGS, MASK_CODINGS, write_jp2

CODING = replace(MASK_CODINGS[60], tile_px=32)


def write(path, layers, coding=CODING):
    write_jp2(path, layers.astype(np.uint8), 60, coding)
    return str(path)


def decoded_by_groups(location: str, shape) -> np.ndarray:
    """Decode one tile of each group and put it wherever the group says."""
    found = np.full(shape, 255, np.uint8)
    with rasterio.open(location) as raster:
        for tiles in codestream.alike(location):
            part = raster.read(window=Window(*tiles.boxes[0]))
            for box in tiles.boxes:
                found[:, box.top : box.top + box.height, box.left : box.left + box.width] = part
    return found


def test_an_empty_mask_is_one_kind_of_tile_and_one_at_each_edge(tmp_path):
    location = write(tmp_path / "a.jp2", np.zeros((8, 150, 140)))
    groups = codestream.alike(location)
    assert sum(len(tiles.boxes) for tiles in groups) == 25
    assert Counter((b.width, b.height) for t in groups for b in t.boxes) == {
        (32, 32): 16, (12, 32): 4, (32, 22): 4, (12, 22): 1
    }  # fmt: skip
    assert max(len(tiles.boxes) for tiles in groups) >= 4


@pytest.mark.parametrize("coding", [CODING, replace(IMAGE_CODINGS[20], tile_px=48), IMAGE_CODINGS[60]])
@pytest.mark.parametrize("seed", range(4))
def test_what_one_tile_decodes_to_holds_for_its_group(tmp_path, coding, seed):
    random = np.random.default_rng(seed)
    layers = np.zeros((3, 210, 400), np.uint8)
    # the same pattern in many tiles, at every place that precincts and code blocks can cut it
    pattern = random.integers(0, 2, (3, coding.tile_px, coding.tile_px))
    for row, column in random.integers(0, 210 // coding.tile_px, (9, 2)):
        top, left = row * coding.tile_px, column * coding.tile_px
        part = layers[:, top : top + coding.tile_px, left : left + coding.tile_px]
        part[:] = pattern[:, : part.shape[1], : part.shape[2]]
    location = write(tmp_path / "a.jp2", layers, coding)
    np.testing.assert_array_equal(decoded_by_groups(location, layers.shape), layers)


def test_one_pixel_sets_its_tile_apart(tmp_path):
    layers = np.zeros((1, 128, 128))
    layers[0, 40, 70] = 1
    location = write(tmp_path / "a.jp2", layers)
    alone = [tiles.boxes[0] for tiles in codestream.alike(location) if len(tiles.boxes) == 1]
    assert Box(64, 32, 32, 32) in alone
    np.testing.assert_array_equal(decoded_by_groups(location, layers.shape), layers)


def test_equal_tiles_of_two_files_have_one_digest(tmp_path):
    empty, one = np.zeros((8, 64, 64)), np.zeros((8, 64, 64))
    one[2, 0, 0] = 1
    known = {t.digest for t in codestream.alike(write(tmp_path / "a.jp2", empty))}
    other = codestream.alike(write(tmp_path / "b.jp2", one))
    assert [t.boxes[0] for t in other if t.digest not in known] == [Box(0, 0, 32, 32)]
    coarser = codestream.alike(write(tmp_path / "c.jp2", np.zeros((3, 64, 64))))
    assert not known & {t.digest for t in coarser}


def test_members_of_a_zip_are_compared_too(tmp_path):
    write(tmp_path / "a.jp2", np.zeros((1, 64, 64)))
    with zipfile.ZipFile(tmp_path / "p.zip", "w") as packed:
        packed.write(tmp_path / "a.jp2", "x/a.jp2")
    inside = codestream.alike(locations.in_zip(tmp_path / "p.zip", "x/a.jp2"))
    assert inside == codestream.alike(str(tmp_path / "a.jp2")) != []


@pytest.mark.parametrize("share", [0.0, 0.01, 0.3, 0.5, 0.9, 0.999])
def test_a_file_that_is_cut_off_is_left_to_the_decoder(tmp_path, share):
    path = tmp_path / "a.jp2"
    write(path, np.random.default_rng(1).integers(0, 2, (3, 100, 100)))
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    assert codestream.alike(str(path)) == []


@pytest.mark.parametrize("name", ["a.tif", "none.jp2"])
def test_other_files_have_no_tiles_to_compare(tmp_path, name):
    (tmp_path / "a.tif").write_bytes(b"II*\0")
    assert codestream.alike(str(tmp_path / name)) == []


@pytest.mark.parametrize("marker", [0xFF60, 0xFF53, 0xFF5F, 0xFF57])
def test_headers_by_which_bytes_are_not_all_are_left_to_the_decoder(tmp_path, marker):
    path = tmp_path / "a.jp2"
    write(path, np.zeros((1, 64, 64)))
    data = path.read_bytes()
    start = data.find(b"\xff\x90")
    path.write_bytes(data[:start] + marker.to_bytes(2, "big") + b"\0\x04\0\0" + data[start:])
    assert codestream.alike(str(path)) == []


def test_real_masks_have_few_kinds_of_tiles_and_decode_to_the_same(real_data):
    [granule] = (real_data / "sentinel2_safe").glob("*.SAFE/GRANULE/L2A*")
    for name, tiles, kinds in (("B01", 64, 4), ("B10", 64, 12), ("B02", 121, 4), ("B12", 9, 7)):
        location = str(granule / f"QI_DATA/MSK_QUALIT_{name}.jp2")
        groups = codestream.alike(location)
        assert (sum(len(t.boxes) for t in groups), len(groups)) == (tiles, kinds)
    location = str(granule / "QI_DATA/MSK_QUALIT_B10.jp2")
    whole = rasterio.open(location).read()
    assert whole[4].sum() == 4107
    np.testing.assert_array_equal(decoded_by_groups(location, whole.shape), whole)
