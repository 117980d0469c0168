"""The order of samples: a pure function of (seed, epoch, position), with exact shares of sources and sensors."""

from __future__ import annotations

import itertools
import time
import tracemalloc
from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest

from pipeline.errors import ConfigError
from training.order import SHARDS, WINDOW, Draws, Offer, Order, apportion, share_out


def order(*sensors: Sequence[tuple[int, float | None]], batch: int = 8, seed: int = 3) -> Order:
    """Lay out sensors of sources of (samples, weight), in shards of a thousand and a rest."""
    named = [
        [Offer(f"{i}{k}", [*[1000] * (n // 1000), n % 1000], w) for k, (n, w) in enumerate(s)]
        for i, s in enumerate(sensors)
    ]
    return Order.of(named, batch, seed)


def epoch_of(made: Order, epoch: int) -> list[Draws]:
    first = epoch * made.steps_per_epoch
    return [made.draws(step) for step in range(first, first + made.steps_per_epoch)]


def visits(draws: Sequence[Draws], sensor: int = 0, source: int = 0) -> Counter[int]:
    """Count how often each sample of a source comes."""
    return Counter(
        int(n)
        for d in draws
        if d.sensor == sensor
        for s, n in zip(d.source, d.sample, strict=True)
        if s == source
    )


@pytest.mark.parametrize(
    "parts", [(7,), (1, 1), (5, 3), (1, 99), (99, 1), (4, 3, 2, 1), (1, 1, 1, 97), (64, 64, 64)]
)
def test_shares_are_exact_and_even(parts: tuple[int, ...]) -> None:
    total = sum(parts)
    which, rank = share_out(np.arange(total), parts)
    for index, part in enumerate(parts):
        # every part's ranks, each once and in order
        assert rank[which == index].tolist() == list(range(part))
        # what comes in any beginning of the row is its share, to within one for each part before it
        so_far = np.cumsum(which == index)
        expected = np.arange(1, total + 1) * part / total
        assert np.abs(so_far - expected).max() < min(index + 1, len(parts) - 1) + 1e-9
    # any position can be looked up alone
    for position in (0, total // 2, total - 1):
        alone = share_out(np.array([position]), parts)
        assert (alone[0][0], alone[1][0]) == (which[position], rank[position])


def test_a_whole_number_is_shared_out_by_largest_remainders() -> None:
    assert apportion(10, [1, 1, 1]) == [4, 3, 3]
    assert apportion(7, [0.5, 0.25, 0.25]) == [3, 2, 2]
    assert apportion(5, [3, 1e-9]) == [5, 0]
    assert sum(apportion(10**9 + 7, [0.1, 0.2, 0.7])) == 10**9 + 7


def test_without_weights_an_epoch_is_one_visit_to_each_sample() -> None:
    made = order([(43, None)])
    assert made.steps_per_epoch == 5
    left_out = []
    for epoch in range(6):
        seen = visits(epoch_of(made, epoch))
        assert set(seen.values()) == {1}
        assert len(seen) == 40
        left_out.append(tuple(sorted(set(range(43)) - set(seen))))
    assert len(set(left_out)) > 1
    first, again = (np.concatenate([d.sample for d in epoch_of(made, e)]) for e in (0, 1))
    assert (first != again).any()


def test_every_sensor_gets_its_own_samples_once() -> None:
    made = order([(43, None)], [(20, None)])
    assert made.steps == (5, 2)
    draws = epoch_of(made, 1)
    assert Counter(d.sensor for d in draws) == {0: 5, 1: 2}
    assert [set(visits(draws, k).values()) for k in (0, 1)] == [{1}, {1}]


def test_weights_are_exact_shares_of_an_epoch_and_of_each_step() -> None:
    made = order([(50, 3.0), (30, 1.0)], batch=8)
    assert made.steps_per_epoch == 10
    draws = epoch_of(made, 4)
    assert sum(visits(draws, source=0).values()) == 60
    assert sum(visits(draws, source=1).values()) == 20
    assert {int((d.source == 1).sum()) for d in draws} == {2}


def test_a_source_that_gives_more_than_it_has_is_gone_through_evenly() -> None:
    made = order([(9, 9.0), (91, 1.0)], batch=10)
    draws = epoch_of(made, 2)
    seen = visits(draws)
    assert sum(seen.values()) == 90
    assert set(seen.values()) == {10}
    told = [
        (int(n), int(v)) for d in draws for s, n, v in zip(d.source, d.sample, d.visit, strict=True) if s == 0
    ]
    # each visit has a number of its own, so that each gets a crop and a mask of its own
    assert sorted(told) == [(n, v) for n in range(9) for v in range(10)]


def test_a_source_that_gives_less_than_it_has_is_gone_through_over_several_epochs() -> None:
    made = order([(95, 1.0), (5, 9.0)], batch=10)
    drawn = [visits(epoch_of(made, epoch)) for epoch in range(18)]
    assert {sum(d.values()) for d in drawn} == {10}
    for first in (0, 9):
        # nine epochs of ten samples: of the 95 none comes twice
        assert set(sum(drawn[first : first + 9], Counter()).values()) == {1}
    assert sorted(drawn[0]) != sorted(drawn[9])


def test_sensors_come_in_random_order_with_exact_shares_of_every_window() -> None:
    made = order([(900, 2.0)], [(60, 1.0)], [(320, 1.0)], batch=4)
    assert made.steps == (160, 80, 80)
    sensors = np.array([made.sensor(step)[0] for step in range(made.steps_per_epoch)])
    for start in range(0, len(sensors) - WINDOW, WINDOW):
        counts = np.bincount(sensors[start : start + WINDOW], minlength=3)
        assert np.abs(counts - [32, 16, 16]).max() <= 2
    # a drawing, no pattern: all pairs of neighbours occur, and the next epoch has another
    assert len({(int(a), int(b)) for a, b in itertools.pairwise(sensors)}) == 9
    other = [made.sensor(step + made.steps_per_epoch)[0] for step in range(made.steps_per_epoch)]
    assert (np.array(other) != sensors).mean() > 0.3


def test_the_order_depends_on_the_seed_and_on_nothing_else() -> None:
    given = ([(50, 3.0), (30, 1.0)], [(40, 2.0)])
    one, same, other = order(*given), order(*given), order(*given, seed=4)
    # asked in any order, by any process
    for step in (57, 3, 20, 3):
        for name in ("sensor", "source", "sample", "visit"):
            assert np.array_equal(getattr(one.draws(step), name), getattr(same.draws(step), name))
    assert [one.sensor(s) for s in range(30)] != [other.sensor(s) for s in range(30)]


@pytest.mark.parametrize(
    ("sensors", "says"),
    [
        ([[(5, None)]], "batch.size 8 is more than the 5 samples of 00; lower it"),
        ([[(50, None)], [(7, None)]], "more than the 7 samples of 10; lower it"),
        ([[(4, 1.0), (3, 1.0)]], "more than the 7 samples of 00, 01"),
        ([[(50, 1.0), (30, 1e-4)]], "weight of 01 is so small"),
        ([[(50, 1.0)], [(30, 1e-4)]], "weight of 10 is so small"),
    ],
)
def test_what_comes_to_nothing_is_refused(sensors: list[list[tuple[int, float | None]]], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        order(*sensors)


UNEQUAL = [7, 0, 30, 1] * 30 + [12]


def test_a_visit_to_each_sample_reads_a_few_shards_at_a_time() -> None:
    made = Order.of([[Offer("unequal", UNEQUAL)]], batch_size=8, seed=3)
    shard_of = np.repeat(np.arange(len(UNEQUAL)), UNEQUAL)
    draws = np.concatenate([d.sample for d in epoch_of(made, 0)])
    assert len(set(draws.tolist())) == len(draws) == sum(UNEQUAL) // 8 * 8
    seen = {}
    for position, shard in enumerate(shard_of[draws].tolist()):
        seen.setdefault(shard, []).append(position)
    # from its first sample to its last, a shard is open with at most the others of its window
    for positions in seen.values():
        assert len(set(shard_of[draws[positions[0] : positions[-1] + 1]].tolist())) <= SHARDS
    # the next epoch puts other shards together
    first = [
        set(shard_of[np.concatenate([d.sample for d in epoch_of(made, e)])[:100]].tolist()) for e in (0, 1)
    ]
    assert first[0] != first[1]


def test_within_a_window_samples_of_all_its_shards_are_mixed() -> None:
    made = Order.of([[Offer("equal", [100] * 64)]], batch_size=64, seed=3)
    for draws in epoch_of(made, 1)[:25]:
        counts = np.unique(draws.sample // 100, return_counts=True)[1]
        # 64 of 16 shards, drawn at random: about four of each
        assert len(counts) >= 10
        assert counts.max() <= 14
        assert np.abs(np.diff(draws.sample)).mean() > 100


def test_a_hundred_million_samples_are_looked_up_at_once_and_in_no_memory() -> None:
    made = order([(80_000_000, 1.0), (20_000_000, 1.0)], [(100_000_000, 3.0)], batch=4096)
    began = time.perf_counter()
    made.draws(7_000_000)
    # the first step of a resume, which lays out the shards too
    assert time.perf_counter() - began < 1
    tracemalloc.start()
    began = time.perf_counter()
    draws = [made.draws(step) for step in range(9_000_000, 9_000_020)]
    took_s, peak = time.perf_counter() - began, tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert {d.sensor for d in draws} == {0, 1}
    assert took_s < 5  # 20 steps; a millisecond or two each without the tracing
    # some numbers for each of 200 000 shards, none for a sample
    assert peak < 3e7
