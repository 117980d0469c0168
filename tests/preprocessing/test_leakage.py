"""P13: training and validation share no ground, and where they do it is told."""

import shutil
from dataclasses import replace

import numpy as np
import pytest
from rasterio.warp import transform

from pipeline import config as configs
from preprocessing import leakage, shard
from preprocessing.profiles import Profile
from preprocessing.spool import Segment, Spool


def scene(name: str, x: float, y: float, split: str, epsg: int = 32632, tiles: int = 4) -> Spool:
    """A scene of a square of tiles of 960 m whose upper left corner is at x, y."""
    profile = Profile(f"EPSG:{epsg}", (10, 0, x, 0, -10, y), (96 * tiles, 96 * tiles), 96, 96)
    segments = tuple(
        Segment(f"{name}_{i}_{j}", split, 0, 1, False, 96 * i, 96 * j)
        for i in range(tiles)
        for j in range(tiles)
    )
    return Spool(name, "", 10, "L2A", "r", "", "", (), {}, segments, profile=profile)


def test_p13_neighbours_are_no_leak_and_common_ground_is():
    train = scene("a", 600_000, 5_500_000, "train")
    beside = scene("b", 600_000 + 4 * 960, 5_500_000, "val")
    assert leakage.check([train, beside]).pairs == 0
    shifted = scene("b", 600_000 + 3 * 960 + 900, 5_500_000, "val")
    found = leakage.check([train, shifted])
    assert (found.pairs, found.compared) == (4, 32)
    assert found.examples[0] == ("a_0_3", "b_0_0")
    assert leakage.check([train, replace(shifted, segments=train.segments)]).pairs == 0  # all of them train


def test_p13_common_ground_is_seen_across_projections():
    x, y = 780_000.0, 5_500_000.0
    (x33,), (y33,) = transform("EPSG:32632", "EPSG:32633", [x], [y])
    train = scene("a", x, y, "train")
    assert leakage.check([train, scene("b", x33, y33, "val", epsg=32633)]).pairs >= 16
    far = scene("b", x33 + 6_000, y33, "val", epsg=32633)
    assert leakage.check([train, far]).pairs == 0


def test_p13_scenes_of_many_tiles_and_dates_are_compared_in_pieces():
    rng = np.random.default_rng(0)
    many = [scene(f"s{k}", 500_000 + 3_000 * k, 5_000_000, "train", tiles=6) for k in range(20)]
    many += [scene(f"v{k}", 500_000 + float(rng.uniform(0, 6e4)), 4_900_000, "val") for k in range(20)]
    assert leakage.check(many).pairs == 0


@pytest.mark.parametrize("seed", [1, 3])
def test_p13_ground_blocks_keep_overlapping_scenes_apart(products, shard_words, tmp_path, seed):
    product = products["sentinel2-L2A"]
    for name in ("one", "two"):
        shutil.copytree(product, tmp_path / "archive" / f"{name}.SAFE")
    words = [shard_words[0], f"scenes={tmp_path / 'archive'}", *shard_words[2:], "labels=null", "tile_px=24"]
    words += [f"output={tmp_path / 'set'}", "duplicates=keep", "split.block_m=500", f"split.seed={seed}"]
    assert shard.main(words) == 0
    tree = configs.read_yaml(tmp_path / "set/quality.json")
    assert tree["leakage"]["pairs"] == 0
    assert tree["tiles"]["val"] > 0
    assert tree["tiles"]["train"] > 0


def test_p13_the_buffer_is_a_tile_wide_whatever_the_pixel(products, shard_words, tmp_path):
    words = [shard_words[0], f"scenes={products['sentinel2-L2A'].parent}", *shard_words[2:], "labels=null"]
    words += ["split.block_m=500", "split.seed=1", "min_valid=0", "min_clear=0"]
    words = [w for w in words if "buffer" not in w]
    dropped = {}
    for name, more in {
        "10": ["tile_px=8", "split.buffer_m=tile"],
        "10m": ["tile_px=8", "split.buffer_m=80"],
        "20": ["gsd_m=20", "tile_px=8", "split.buffer_m=tile"],
        "20m": ["gsd_m=20", "tile_px=8", "split.buffer_m=160"],
    }.items():
        assert shard.main([*words, *more, f"output={tmp_path / name}"]) == 0
        dropped[name] = configs.read_yaml(tmp_path / name / "quality.json")["tiles"]
    assert dropped["10"] == dropped["10m"]
    assert dropped["20"] == dropped["20m"]
    assert dropped["10"]["buffer"] > 0
