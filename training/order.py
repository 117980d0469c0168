"""Which samples a step sees: a pure function of (seed, epoch, position), looked up and never held in memory.

A step takes its samples from one sensor; each of the sensor's sources (sets under one weight) gives its share of
them. Without weights an epoch is one visit to each sample: `floor(samples / batch)` steps of every sensor, and the
few samples left over are others in every epoch. With weights an epoch has `floor(samples / batch)` steps of all sets
together, which the weights share out, and a source gives the same number of samples in every epoch:
- fewer than it has: none comes again before it has given as many as fill whole epochs;
- more than it has: within an epoch none comes again before all have come.
A visit to each sample of a source goes through its shards in an order drawn anew, `SHARDS` of them at a time, and
draws from all samples of these: storage sees a few shards being read and not a million places. Shards hold samples
of all scenes mixed, so that what comes together is as mixed as with all shards open; two samples of one shard come
within the same window of some ten thousand samples rather than anywhere in the epoch.
Shares are exact, not only expected: of an epoch, of a step, and of every 64 steps counted from the epoch's start, to
within one sample or step where there are two to share, and one more for each further.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import ConfigError
from pipeline.keys import permute

_ORDER, _SENSOR, _SHARD = 0x6F726465, 0x73656E73, 0x73686172  # keep the uses of (seed, epoch) apart
_ROWS = 4
RULE = 2
"""Which samples a step sees, for given data: to be raised with every change of that, for no run could go on with it."""
SHARDS = 16
"""Shards that samples are drawn from at a time."""
WINDOW = 64
"""Steps within which sensors come in an order drawn at random."""
Numbers = NDArray[np.int64]


@dataclass(frozen=True)
class Offer:
    """What a source has to give."""

    name: str
    """For errors."""
    shards: Sequence[int]
    """Samples of each shard."""
    weight: float | None = None
    """Null, for all sources: by number of samples."""

    @property
    def samples(self) -> int:
        """Samples of all shards."""
        return sum(self.shards)


class Quota:
    """What a source gives; its samples are numbered from 0, shard by shard."""

    def __init__(self, shards: Sequence[int], drawn: int) -> None:
        """drawn: samples it gives in an epoch."""
        self._sizes, self.drawn = np.array(shards, np.int64), drawn
        self._begins = np.cumsum(self._sizes) - self._sizes
        self.samples = int(self._sizes.sum())
        self._rows: OrderedDict[tuple[int, int], tuple[Numbers, Numbers]] = OrderedDict()

    def find(self, places: Numbers, seed: int, visit: int) -> Numbers:
        """Return the samples at places of the row that a visit to each sample is."""
        shards, ends = self._row(seed, visit)
        # the windows end with every so many shards, and with the last
        window_ends = np.append(ends[SHARDS - 1 : -1 : SHARDS], ends[-1])
        windows, moved = np.searchsorted(window_ends, places, side="right"), np.empty_like(places)
        for window in np.unique(windows).tolist():
            these = windows == window
            begin = int(window_ends[window - 1]) if window else 0
            inside, size = (places[these] - begin).astype(np.uint64), int(window_ends[window]) - begin
            moved[these] = begin + permute(inside, size, _ORDER, seed, visit, window).astype(np.int64)
        slots = np.searchsorted(ends, moved, side="right")
        found: Numbers = self._begins[shards[slots]] + moved - (ends[slots] - self._sizes[shards[slots]])
        return found

    def _row(self, seed: int, visit: int) -> tuple[Numbers, Numbers]:
        """Return the shards in the order of a visit, and how many samples there are up to the end of each."""
        # one number a shard, never one a sample; a step needs two rows where one visit ends
        if (seed, visit) not in self._rows:
            shards = permute(
                np.arange(len(self._sizes), dtype=np.uint64), len(self._sizes), _SHARD, seed, visit
            )
            order = shards.astype(np.int64)
            self._rows[seed, visit] = order, np.cumsum(self._sizes[order])
            if len(self._rows) > _ROWS:
                self._rows.popitem(last=False)
        return self._rows[seed, visit]


@dataclass(frozen=True)
class Draws:
    """The samples of a global step, in the order of their positions."""

    sensor: int
    source: Numbers
    """Each sample's source within the sensor."""
    sample: Numbers
    """Its number within the source."""
    visit: Numbers
    """How often it came before in the same epoch."""


@dataclass(frozen=True)
class Order:
    """The order of all samples of a training."""

    sensors: tuple[tuple[Quota, ...], ...]
    steps: tuple[int, ...]
    """Steps of an epoch by sensor."""
    batch_size: int
    seed: int

    @classmethod
    def of(cls, sensors: Sequence[Sequence[Offer]], batch_size: int, seed: int) -> Order:
        """Share an epoch out to the sources of every sensor.

        Raises `ConfigError` where samples do not fill a step, or a weight comes to nothing.
        """
        steps = _steps(sensors, batch_size)
        quotas = [tuple(_quotas(o, n * batch_size)) for o, n in zip(sensors, steps, strict=True)]
        return cls(tuple(quotas), tuple(steps), batch_size, seed)

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch."""
        return sum(self.steps)

    def sensor(self, step: int) -> tuple[int, int]:
        """Return which sensor a step takes its samples from, and the how-many-th of the epoch's that is."""
        epoch, within = divmod(step, self.steps_per_epoch)
        if len(self.steps) == 1:
            return 0, within
        # shuffled within windows only: over a whole epoch chance could leave a sensor out for long
        window, place = divmod(within, WINDOW)
        size = min(WINDOW, self.steps_per_epoch - window * WINDOW)
        shuffled = permute(np.array([place], np.uint64), size, _SENSOR, self.seed, epoch, window)
        which, rank = share_out(shuffled.astype(np.int64) + window * WINDOW, self.steps)
        return int(which[0]), int(rank[0])

    def draws(self, step: int) -> Draws:
        """Return the samples of a global step: the same on every rank, which takes its part of them."""
        sensor, number = self.sensor(step)
        quotas, epoch = self.sensors[sensor], step // self.steps_per_epoch
        positions = np.arange(number * self.batch_size, (number + 1) * self.batch_size, dtype=np.int64)
        which, rank = share_out(positions, [q.drawn for q in quotas])
        sample, visit = np.empty_like(rank), np.empty_like(rank)
        for index, quota in enumerate(quotas):
            mine = which == index
            sample[mine], visit[mine] = _look_up(quota, rank[mine], epoch, self.seed)
        return Draws(sensor, which, sample, visit)


def _steps(sensors: Sequence[Sequence[Offer]], batch_size: int) -> list[int]:
    """Return the steps of an epoch by sensor."""
    samples = [sum(o.samples for o in offers) for offers in sensors]
    weights = [sum(o.weight or 0 for o in offers) for offers in sensors]
    if all(weights) and sum(samples) >= batch_size:
        return apportion(sum(samples) // batch_size, weights)
    for offers, n in zip(sensors, samples, strict=True):
        if n < batch_size:
            names = ", ".join(o.name for o in offers)
            raise ConfigError(f"batch.size {batch_size} is more than the {n} samples of {names}; lower it.")
    return [n // batch_size for n in samples]


def _quotas(offers: Sequence[Offer], total: int) -> Iterator[Quota]:
    for offer, number in zip(offers, apportion(total, [o.weight or o.samples for o in offers]), strict=True):
        if not number:
            raise ConfigError(
                f"the weight of {offer.name} is so small that an epoch would have none of it; raise it, or leave it"
                " out of data.shards."
            )
        yield Quota(offer.shards, number)


def _look_up(source: Quota, rank: Numbers, epoch: int, seed: int) -> tuple[Numbers, Numbers]:
    """Return number and visit of a source's samples by their rank within the epoch."""
    # a round of whole epochs: the few samples left over at its end are left out
    epochs = max(source.samples // source.drawn, 1)
    visit, place = np.divmod(rank + epoch % epochs * source.drawn, source.samples)
    rounds = -(-source.drawn // source.samples)
    number = np.empty_like(rank)
    for again in np.unique(visit):
        these = visit == again
        key = epoch // epochs * rounds + int(again)
        number[these] = source.find(place[these], seed, key)
    return number, visit


def share_out(positions: Numbers, parts: Sequence[int]) -> tuple[Numbers, Numbers]:
    """Tell which of several parts has each position of a row, and the how-many-th of the part's that is.

    The row holds parts[i] positions of part i, spread as evenly as whole numbers allow.
    positions: below sum(parts), which must be below 3e9 for the products to fit.
    """
    which, rank = np.full_like(positions, len(parts) - 1), positions.copy()
    rest, undecided = sum(parts), np.ones(len(positions), bool)
    for index, part in enumerate(parts[:-1]):
        before, after = rank * part // rest, (rank + 1) * part // rest
        mine = undecided & (after > before)
        undecided &= ~mine
        which[mine], rank[mine] = index, before[mine]
        # the others close up to a row of their own, which is shared out in turn
        rank[undecided] -= before[undecided]
        rest -= part
    return which, rank


def apportion(total: int, weights: Sequence[float]) -> list[int]:
    """Share a whole number out by weights: each share rounded down, the rest to the largest remainders."""
    # fractions: what is rounded up must not depend on rounding before it
    exact = [Fraction(w) for w in weights]
    shares = [total * w / sum(exact) for w in exact]
    whole = [int(share) for share in shares]
    by_remainder = sorted(range(len(whole)), key=lambda i: (whole[i] - shares[i], i))
    for index in by_remainder[: total - sum(whole)]:
        whole[index] += 1
    return whole
