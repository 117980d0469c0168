from collections import Counter

import numpy as np
import pytest
from rasterio.warp import transform

from pipeline.sample import KEY_PATTERN, Flag
from preprocessing import tiling
from preprocessing.tiling import Ground, Lattice, SplitRule, Tile, TileRule

CLEAR = Flag.NODATA | Flag.CLOUD | Flag.SHADOW


def rule(**changes) -> TileRule:
    return TileRule(
        **{"tile_px": 32, "step_px": 32, "cell_px": 8, "min_valid": 0.5, "min_clear": 0.5} | changes,
        unclear_bits=CLEAR,
    )


def around(lon: float, lat: float, metres_px: float = 10.0):
    """A footprint function of a scene whose upper left corner is at lon, lat; good enough for small scenes."""

    def footprint(columns, rows):
        return lon + columns * metres_px / 111_320 / np.cos(np.radians(lat)), lat - rows * metres_px / 111_132

    return footprint


def tiles(mask, by: TileRule):
    return tiling.tiles(mask, Lattice(*map(by.starts, mask.shape)), by)


def grid_of_tiles(rows: int, columns: int, size_px: int = 96) -> list[Tile]:
    return [Tile(i * size_px, j * size_px, size_px, 1.0, 1.0) for i in range(rows) for j in range(columns)]


@pytest.mark.parametrize("step", [16, 32])
def test_shares_are_those_of_the_pixels(step):
    mask = (
        np.random.default_rng(0)
        .choice([0, 1, 4, 8, 32], (100, 137), p=[0.5, 0.2, 0.1, 0.1, 0.1])
        .astype(np.uint8)
    )
    kept, dropped = tiles(mask, rule(step_px=step, min_valid=0, min_clear=0))
    assert not dropped.any()
    assert [(t.row_px, t.column_px) for t in kept] == [
        (i, j) for i in range(0, 96 - 31, step) for j in range(0, 136 - 31, step)
    ]
    for tile in kept:
        part = mask[tile.row_px :, tile.column_px :][:32, :32]
        assert tile.valid_share == pytest.approx(((part & 1) == 0).mean())
        assert tile.clear_share == pytest.approx(((part & CLEAR) == 0).mean())


def test_p08_tiles_are_dropped_and_counted_by_reason():
    mask = np.zeros((32, 160), np.uint8)
    mask[:, :20] = Flag.NODATA  # 62 % of the first tile
    mask[:, 32:52] = Flag.CLOUD
    mask[:, 64:82] = Flag.SHADOW
    mask[:, 64:72] = Flag.CLOUD | Flag.SNOW
    mask[:, 96:128] = Flag.SNOW  # not excluded
    kept, dropped = tiles(mask, rule())
    assert [t.column_px for t in kept] == [96, 128]
    assert dropped.tolist() == [["nodata", "cloud", "shadow", "", ""]]


@pytest.mark.parametrize(
    ("edge", "side_px", "expected"),
    [
        ("drop", 100, [0, 32, 64]),
        ("shift", 100, [0, 32, 64]),  # the rest is less than a cell
        ("pad", 100, [0, 32, 64, 96]),
        ("drop", 120, [0, 32, 64]),
        ("shift", 120, [0, 32, 64, 88]),
        ("pad", 120, [0, 32, 64, 96]),
        ("drop", 20, []),
        ("shift", 20, []),
        ("pad", 20, [0]),
        ("shift", 128, [0, 32, 64, 96]),
        ("pad", 128, [0, 32, 64, 96]),
    ],
)
def test_the_edge_rule_says_what_becomes_of_the_rest(edge, side_px, expected):
    assert rule(edge=edge).starts(side_px).tolist() == expected


def test_a_stride_beyond_the_tile_pads_only_where_there_is_ground():
    assert rule(edge="pad", step_px=64).starts(100).tolist() == [0, 64]
    assert rule(edge="pad", step_px=64).starts(140).tolist() == [0, 64, 128]
    assert rule(edge="pad", step_px=64).starts(110).tolist() == [0, 64]


def test_tiles_chosen_in_parts_are_those_chosen_at_once():
    rng = np.random.default_rng(0)
    mask = np.kron(rng.choice([0, 1, 4], (25, 18), p=[0.7, 0.2, 0.1]), np.ones((8, 8))).astype(np.uint8)
    by, taken = rule(step_px=16, min_valid=0.6), rng.random((25, 18)) > 0.6
    ground = Ground(SplitRule(0.4, 700, 10, 1), around(10, 50), taken)
    lattice = Lattice(*map(by.starts, mask.shape))
    whole = tiling.choose(mask, lattice, by, ground)
    parts = [
        tiling.choose(mask[top:end], Lattice(lattice.tops[rows], lattice.lefts), by, ground, top)
        for rows, top, end in ((slice(0, 4), 0, 80), (slice(4, None), 64, 200))
    ]
    assert tiling.Choice.together(parts).tiles == whole.tiles
    np.testing.assert_array_equal(tiling.Choice.together(parts).fates, whole.fates)
    assert {"train", "val", "nodata", "duplicate"} <= set(whole.fates.ravel())


def test_a_scene_smaller_than_a_tile_gives_none():
    kept, dropped = tiles(np.zeros((20, 200), np.uint8), rule())
    assert (kept, dropped.size) == ([], 0)


def test_keys_are_legal_and_short_for_the_longest_scene_name():
    key = tiling.key("A" * 64, Tile(10_980, 5, 96, 1, 1))
    assert key.endswith("_10980_00005")
    assert KEY_PATTERN.fullmatch(key)


def test_equal_area_plane_is_epsg_6933():
    rng = np.random.default_rng(0)
    lon, lat = rng.uniform(-180, 180, 200), rng.uniform(-86, 86, 200)
    expected = transform("EPSG:4326", "EPSG:6933", lon, lat)
    np.testing.assert_allclose(tiling.equal_area(lon, lat), expected, atol=0.01)


@pytest.mark.parametrize("lat", [0.0, 30.0, 52.0, -71.0])
def test_stretch_is_what_a_metre_becomes(lat):
    step = 1e-5
    lon_m = (
        np.radians(step)
        * tiling._A_M
        * np.cos(np.radians(lat))
        / np.sqrt(1 - tiling._E2 * np.sin(np.radians(lat)) ** 2)
    )
    x, _ = tiling.equal_area(np.array([0.0, step]), np.array([lat, lat]))
    along_x, along_y = tiling.stretch(np.array([lat]))
    assert np.ptp(x) / lon_m == pytest.approx(along_x[0], rel=1e-6)
    assert along_x * along_y == pytest.approx(1)


def test_no_share_means_training_only():
    found = grid_of_tiles(3, 3)
    assert tiling.split(found, SplitRule(0, 1000, 0, 0), around(10, 50)) == (found, [])


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("lat", [2.0, 50.0, -65.0])
def test_training_tiles_keep_their_distance_from_validation_ground(seed, lat):
    found, buffer_m = grid_of_tiles(30, 30), 500
    chosen = SplitRule(0.3, 5_000, buffer_m, seed)
    kept, between = tiling.split(found, chosen, around(12, lat))
    sides = Counter(t.split for t in kept)
    assert sides.total() + len(between) == len(found)
    assert sides["train"]
    assert sides["val"]
    gaps = [
        960 * max(abs(a.row_px - b.row_px), abs(a.column_px - b.column_px)) / 96 - 960
        for a in kept
        for b in kept
        if a.split == "train" and b.split == "val"
    ]
    assert min(gaps) >= buffer_m * 0.99


def test_the_same_ground_is_on_the_same_side_in_every_scene():
    chosen = SplitRule(0.3, 3_000, 0, 5)
    lon, lat = 12.0, 50.0
    whole, _ = tiling.split(grid_of_tiles(20, 20), chosen, around(lon, lat))
    shifted_lon, shifted_lat = around(lon, lat)(np.array([96.0 * 4]), np.array([96.0 * 4]))
    part, _ = tiling.split(
        grid_of_tiles(12, 12), chosen, around(float(shifted_lon[0]), float(shifted_lat[0]))
    )
    side = {(t.row_px, t.column_px): t.split for t in whole}
    same = [side.get((t.row_px + 384, t.column_px + 384)) == t.split for t in part]
    # the flat footprints of this test shrink a little with latitude
    assert np.mean(same) > 0.97


def test_the_seed_chooses_other_ground():
    found = grid_of_tiles(30, 30)
    sides = {
        tuple(t.split for t in tiling.split(found, SplitRule(0.3, 5_000, 0, s), around(12, 50))[0])
        for s in range(4)
    }
    assert len(sides) == 4


def test_the_share_of_blocks_is_the_one_asked_for():
    chosen = SplitRule(0.1, 1, 0, 0)
    blocks = [chosen.in_validation(x, y) for x in range(100) for y in range(100)]
    assert np.mean(blocks) == pytest.approx(0.1, abs=0.01)


def test_a_tile_across_the_180th_meridian_touches_both_sides_only():
    lon = np.array([[179.99, -179.99, -179.99, 179.99]])
    assert np.ptp(tiling.unwrap(lon)) == pytest.approx(0.02)
    edge = tiling.HALF_WORLD_M
    last, first = int(np.floor(edge / 100)), int(np.floor(-edge / 100))
    for box in ((edge - 10, 0, edge + 10, 50), (-edge - 10, 0, -edge + 10, 50)):
        touched = {x for x, _ in tiling.blocks(box, 100.0)}
        assert {last, first} <= touched <= {last - 1, last, first, first + 1}
