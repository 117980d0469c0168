import subprocess
import sys

import numpy as np
import pytest

from pipeline import keys
from pipeline.config import ROOT


def test_text_hashes_to_the_same_number_everywhere_and_forever():
    assert keys.hash_text(0, "a", 1.5) == 0x0 + keys.hash_text("0", "a", "1.5")
    code = "from pipeline.keys import hash_text; print(hash_text(7, 'oscd_pisa_1_00096_00000'))"
    other = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONHASHSEED": "5"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(other.stdout) == keys.hash_text(7, "oscd_pisa_1_00096_00000")


def test_parts_do_not_run_together():
    assert keys.hash_text("ab", "c") != keys.hash_text("a", "bc")


def test_mix_is_splitmix64():
    # splitmix64's published first outputs for the seed 0
    first = keys.mix(0)
    assert int(first[0]) == 0xE220A8397B1DCDAF


def test_mix_broadcasts_and_its_parts_have_an_order():
    rows = keys.mix(3, np.arange(4, dtype=np.uint64)[:, None], np.arange(5, dtype=np.uint64))
    assert rows.shape == (4, 5)
    assert len(np.unique(rows)) == 20
    assert rows[2, 1] == keys.mix(3, 2, 1)[0]
    assert keys.mix(1, 2) != keys.mix(2, 1)


def test_uniform_numbers_fill_the_open_interval():
    numbers = keys.uniform(1, np.arange(100_000, dtype=np.uint64))
    assert 0 < numbers.min() < numbers.max() < 1
    counts, _ = np.histogram(numbers, 20, (0, 1))
    assert np.abs(counts - 5000).max() < 5 * np.sqrt(5000)


@pytest.mark.parametrize("size", [1, 2, 3, 58, 100, 1025])
def test_permute_is_a_permutation_for_every_key(size):
    seen = set()
    for epoch in range(3):
        order = keys.permute(np.arange(size, dtype=np.uint64), size, 7, epoch)
        assert sorted(order) == list(range(size))
        seen.add(tuple(order))
    assert len(seen) == (3 if size > 3 else len(seen))


def test_positions_can_be_asked_for_singly_in_a_huge_order():
    size = 10**8
    some = np.array([0, 1, 99_999_999, 12_345_678], np.uint64)
    together = keys.permute(some, size, 1)
    assert [int(keys.permute(p[None], size, 1)[0]) for p in some] == [int(v) for v in together]
    assert (together < size).all()
    assert list(some) == [0, 1, 99_999_999, 12_345_678]  # the argument is left alone


def test_an_order_is_well_mixed():
    order = keys.permute(np.arange(10_000, dtype=np.uint64), 10_000, 3).astype(float)
    assert abs(np.corrcoef(order, np.arange(10_000))[0, 1]) < 0.05
