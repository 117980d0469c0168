"""Exact band statistics, of one set and of several together."""

import numpy as np
import pytest

from pipeline import histogram as histograms
from pipeline.errors import CorruptDataError, MissingInputError
from tests.pipeline.test_contract import contract
from tests.pipeline.test_manifest import make


def test_statistics_are_those_of_the_counted_pixels():
    rng = np.random.default_rng(0)
    pixels = rng.normal(2000, 900, (3, 200, 200)).astype(np.int16)
    counted = rng.random((200, 200)) > 0.3
    histogram = histograms.empty(3)
    histograms.count(histogram, pixels[:, :100], counted[:100])
    histograms.count(histogram, pixels[:, 100:], counted[100:])
    for found, band in zip(histograms.statistics(histogram), pixels, strict=True):
        raw = band[counted]
        ends = np.percentile(raw, [0.1, 99.9], method="inverted_cdf")
        values = np.clip(raw, *ends) * 1e-4
        assert found.winsorised == pytest.approx(ends * 1e-4)
        assert found.n == counted.sum()
        assert found.mean == pytest.approx(values.mean(), rel=1e-12)
        assert found.std == pytest.approx(values.std(), rel=1e-9)
        low, high = np.percentile(raw * 1e-4, [0.5, 99.5], method="inverted_cdf")
        assert (found.low, found.high) == pytest.approx((low, high))


def test_the_sum_of_parts_does_not_depend_on_their_order():
    parts = []
    for seed in range(4):
        part = histograms.empty(1)
        pixels = np.random.default_rng(seed).integers(-300, 12_000, (1, 50, 50)).astype(np.int16)
        histograms.count(part, pixels, np.ones((50, 50), bool))
        parts.append(part)
    assert histograms.statistics(sum(parts)) == histograms.statistics(sum(parts[::-1]))


def ground(seed: int, side: int = 300) -> np.ndarray:
    """Reflectance with a bright tail, as ground has."""
    return np.random.default_rng(seed).gamma(4, 400, (1, side, side)).astype(np.int16)


@pytest.mark.parametrize("wild", [32_767, -32_000, 0])
def test_p12_one_pixel_in_two_thousand_may_be_anything(wild):
    histogram, pixels = histograms.empty(1), ground(0)
    everywhere = np.ones(pixels.shape[1:], bool)
    histograms.count(histogram, pixels, everywhere)
    (before,) = histograms.statistics(histogram)
    pixels.ravel()[::2000] = wild
    histogram = histograms.empty(1)
    histograms.count(histogram, pixels, everywhere)
    (found,) = histograms.statistics(histogram)
    for name in ("mean", "std", "low", "high"):
        moved = abs(getattr(found, name) - getattr(before, name)) / before.std
        assert moved < (0.1 if name == "high" else 0.02), (name, moved)
    # without the rule
    if wild:
        assert (pixels * 1e-4).std() > 1.3 * before.std


def test_statistics_of_format_1_are_known_for_those_of_the_same_pixels():
    histogram = histograms.empty(1)
    histograms.count(histogram, ground(1), np.ones((300, 300), bool))
    found = histograms.statistics(histogram)
    assert histograms.agree(histogram, found)
    old = found[0].model_copy(update={"mean": 0.16, "std": 0.09, "winsorised": None})
    assert histograms.agree(histogram, [old])
    assert not histograms.agree(histogram, [old.model_copy(update={"n": 3})])
    assert not histograms.agree(histogram, [found[0].model_copy(update={"mean": 0.3})])
    assert not histograms.agree(histogram, [*found, *found])


def test_extreme_values_do_not_overflow():
    histogram = histograms.empty(1)
    histogram[0, [1, -1]] = 2**40
    (found,) = histograms.statistics(histogram)
    assert found.mean == pytest.approx(0, abs=1e-9)
    assert found.std == pytest.approx(3.2767)


def test_no_pixels_give_zeros():
    (found,) = histograms.statistics(histograms.empty(1))
    assert (found.n, found.mean, found.std) == (0, 0.0, 0.0)


def test_sets_together_have_the_statistics_of_one_set_of_all_pixels(tmp_path):
    names = contract().band_names
    parts = np.random.default_rng(1).integers(0, 50, (2, len(names), histograms.VALUES))
    sets = {}
    for folder, part in zip((tmp_path / "a", tmp_path / "b"), parts, strict=True):
        folder.mkdir()
        histograms.write(folder, names, part)
        sets[folder] = make(contract=contract(), statistics=histograms.statistics(part))
    assert histograms.read(folder)[0] == names
    assert histograms.merged(sets) == histograms.statistics(parts.sum(0))
    for bands, part in ((names[::-1], parts[1]), (names, parts[0])):
        histograms.write(folder, bands, part)
        with pytest.raises(CorruptDataError, match="is not that of the set beside it"):
            histograms.merged(sets)


def test_a_histogram_that_is_lost_or_damaged_is_named(tmp_path):
    with pytest.raises(MissingInputError, match=r"has no histogram\.npz"):
        histograms.read(tmp_path)
    histograms.write(tmp_path, ("B02",), histograms.empty(1))
    path = tmp_path / histograms.NAME
    whole = path.read_bytes()
    for data in (whole[: len(whole) // 2], whole[:100] + bytes(40) + whole[140:], b""):
        path.write_bytes(data)
        with pytest.raises(CorruptDataError, match=r"histogram\.npz cannot be read"):
            histograms.read(tmp_path)
