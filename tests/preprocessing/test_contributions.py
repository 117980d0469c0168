"""P12 for whole scenes: what cannot be reflectance stays out of the statistics, what is unlike all others is named."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import histogram as exact
from pipeline.histogram import Sparse
from preprocessing import contributions

BANDS = ("B03", "B04")
SHAPE = (len(BANDS), 128, 128)


def histogram(stored: np.ndarray) -> Sparse:
    made = exact.empty(len(BANDS))
    exact.count(made, stored.astype(np.int16), np.ones(stored.shape[1:], bool))
    return exact.sparse(made)


def ground(seed: int) -> Sparse:
    """A scene of its own brightness, as ground is."""
    rng = np.random.default_rng(seed)
    return histogram(rng.gamma(4, 300 * rng.uniform(0.7, 1.4), SHAPE))


GOOD = {f"s{seed}": ground(seed) for seed in range(9)}


def garbage(kind: str) -> Sparse:
    rng = np.random.default_rng(99)
    stored = {
        "noise": rng.integers(-32_000, 32_000, SHAPE),
        "a scale ten times too large": np.minimum(rng.gamma(4, 3000, SHAPE), 32_000),
        "one band of two": np.stack([rng.gamma(4, 300, SHAPE[1:]), np.full(SHAPE[1:], 30_000)]),
    }
    return histogram(stored[kind])


@pytest.mark.parametrize("kind", ["noise", "a scale ten times too large", "one band of two"])
def test_p12_a_scene_of_garbage_among_nine_good_ones_changes_nothing_and_is_named(kind):
    before = contributions.gather(BANDS, GOOD)
    found = contributions.gather(BANDS, {"bad": garbage(kind)} | GOOD)
    assert exact.statistics(found.total) == exact.statistics(before.total)
    assert list(found.left_out) == ["bad"]
    assert "is no reflectance (-0.2 to 1.6)" in found.left_out["bad"]
    assert found.counted == before.counted | {"bad": 0}
    # let in, it would have made the deviation twice as large
    exact.add(found.total, garbage(kind))
    let_in = exact.statistics(found.total)
    assert let_in[1].std > 2 * exact.statistics(before.total)[1].std


def test_p12_garbage_within_reflectance_moves_the_mean_by_its_share_at_most_and_is_named():
    rng = np.random.default_rng(5)
    bad = histogram(rng.integers(10_000, 11_000, SHAPE))
    before, found = (contributions.gather(BANDS, scenes) for scenes in (GOOD, GOOD | {"bad": bad}))
    assert not found.left_out
    for old, new in zip(exact.statistics(before.total), exact.statistics(found.total), strict=True):
        # one scene in ten, all between 1.0 and 1.1
        assert new.mean - old.mean < 0.1 * 1.1
    total = contributions.coarse(exact.sparse(found.total))
    apart = contributions.unlike(BANDS, total, contributions.coarse(bad))
    assert (apart.share, apart.is_told) == (1.0, True)
    for scene in GOOD.values():
        assert not contributions.unlike(BANDS, total, contributions.coarse(scene)).is_told


def test_a_few_impossible_pixels_do_not_cost_a_scene_its_say():
    stored = np.random.default_rng(1).gamma(4, 300, SHAPE)
    stored[:, :12] = 32_000
    assert contributions.impossible(BANDS, histogram(stored)) == ""
    stored[:, :14] = 32_000
    assert "11% of band B03" in contributions.impossible(BANDS, histogram(stored))


def test_scenes_without_training_pixels_and_single_scenes_are_like_all_others():
    empty = exact.sparse(exact.empty(len(BANDS)))
    assert contributions.impossible(BANDS, empty) == ""
    found = contributions.gather(BANDS, {"a": GOOD["s0"], "b": empty})
    assert found.counted == {"a": 128 * 128, "b": 0}
    total = contributions.coarse(exact.sparse(found.total))
    for one in (empty, GOOD["s0"]):
        assert contributions.unlike(BANDS, total, contributions.coarse(one)).share == 0
