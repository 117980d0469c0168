"""The compiled pass equals the plain form, for every index of the table, whatever pixels and masks are."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline import histogram as histograms
from pipeline.indices import INDICES
from pipeline.saliency import cell_statistics
from pipeline.sample import NODATA, SCALE
from preprocessing import kernel
from preprocessing.kernel import Pixels


def images(seed: int, bands: int, shape: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Bands with dark, negative, bright, flat and missing parts, and a mask with empty and full cells."""
    rng = np.random.default_rng(seed)
    stack = rng.integers(-300, 7000, (bands, *shape)).astype(np.int16)
    stack[:, :8, :8], stack[:, 8:16, :8], stack[:, 16:24, :8] = 5, NODATA, 16000
    counted = rng.random(shape) > 0.2
    counted[:16, 8:16], counted[16:24, 8:16] = False, True
    return stack, counted


@pytest.mark.parametrize("name", sorted(INDICES))
@pytest.mark.parametrize("cell_px", [8, 4, 16])
def test_every_index_equals_the_plain_form(name: str, cell_px: int) -> None:
    index = INDICES[name]
    stack, counted = images(1, len(index.roles) + 1, (64, 48))
    # not in the stack's order: positions decide, not order
    which = list(range(len(index.roles), 0, -1))
    bands = [stack[w].astype(np.float32) * np.float32(SCALE) for w in which]
    plain = cell_statistics(index(*bands), counted, cell_px)
    found = kernel.cell_statistics(index, Pixels(stack, which), counted, cell_px)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, plain, rtol=0, atol=1e-6)
    assert (found[..., 0] == 0).any() or cell_px == 16
    assert len(np.unique(found[..., 1])) > 6


def test_a_rest_smaller_than_a_cell_is_left_out() -> None:
    stack, counted = images(2, 2, (37, 51))
    found = kernel.cell_statistics(INDICES["NDVI"], Pixels(stack, [0, 1]), counted, 8)
    assert found.shape == (4, 6, 3)
    whole = kernel.cell_statistics(INDICES["NDVI"], Pixels(stack[:, :32, :48], [0, 1]), counted[:32, :48], 8)
    np.testing.assert_array_equal(found, whole)


def test_counting_is_the_plain_form():
    rng = np.random.default_rng(4)
    stack = rng.integers(-32768, 32767, (3, 40, 50)).astype(np.int16)
    times = rng.integers(0, 3, (30, 50)).astype(np.uint16)
    found, plain = histograms.empty(2), histograms.empty(2)
    kernel.count(found, Pixels(stack, (2, 0), 5), times)
    for at_least in (1, 2):
        histograms.count(plain, stack[[2, 0], 5:35], times >= at_least)
    np.testing.assert_array_equal(found, plain)
    assert found.sum() == 2 * times.sum()


def test_bits_are_counted_in_cells():
    mask = np.random.default_rng(5).integers(0, 64, (43, 50)).astype(np.uint8)
    found = kernel.bit_counts(mask, [1, 6, 32], 8)
    for counts, bits in zip(found, (1, 6, 32), strict=True):
        plain = ((mask & bits) != 0)[:40, :48].reshape(5, 8, 6, 8).sum((1, 3))
        np.testing.assert_array_equal(counts, plain)
