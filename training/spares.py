"""The samples of a step as they are read: those that were drawn, or others in place of damaged ones.

What stands in for a sample is a pure function of (seed, source, sample, attempt): the same for any number of ranks and
loader workers and after any resume, as long as the same is damaged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from pipeline.errors import CorruptDataError
from pipeline.keys import hash_text, mix
from pipeline.sample import Sample, Scratch
from training.collation import Rows
from training.data import Turn, draw_id, draw_ids, draw_turns, look
from training.order import Draws, Numbers
from training.sets import Part

_SPARE = 0x73706172  # keeps what is drawn here apart from the other uses of the seed
ATTEMPTS = 100
"""Samples that are tried in place of one: where half of all are damaged, a row of so many never happens."""


class Spares:
    """Which samples stand in for others."""

    def __init__(self, parts: Sequence[Part], seed: int) -> None:
        self._sources, self._seed = [part.family.sources for part in parts], seed
        self._ends: dict[tuple[int, int], Numbers] = {}

    def numbers(self, sensor: int, source: int, number: int) -> Iterator[int]:
        """Yield the samples of a source to try in place of one of them, in their order."""
        ends, key = self._shards(sensor, source), (_SPARE, self._seed, sensor, source)
        damaged = _which(ends, number)
        for attempt in range(ATTEMPTS):
            # all of a shard from one other shard: storage sees one more being read, and not a thousand
            other = _which(ends, int(mix(*key, damaged, attempt)[0]) % int(ends[-1]))
            begin, end = int(ends[other - 1]) if other else 0, int(ends[other])
            yield begin + int(mix(*key, number, attempt, other)[0]) % (end - begin)

    def _shards(self, sensor: int, source: int) -> Numbers:
        """Return how many samples of a source there are up to the end of each shard."""
        if (sensor, source) not in self._ends:
            self._ends[sensor, source] = np.cumsum(self._sources[sensor][source].shards)
        return self._ends[sensor, source]


def _which(ends: Numbers, number: int) -> int:
    return int(np.searchsorted(ends, number, side="right"))


class Picked:
    """A rank's samples of a step."""

    def __init__(self, part: Part, drawn: Draws, epoch: int, spares: Spares | None) -> None:
        """spares: what stands in for damaged samples; None where they are errors."""
        self._sources, self._view = part.family.sources, part.view
        self._sensor, self._epoch, self._spares = drawn.sensor, epoch, spares
        self._places = list(zip(drawn.source.tolist(), drawn.sample.tolist(), strict=True))
        self._visits: list[int] = drawn.visit.tolist()
        self.ids = draw_ids([self._key(*place) for place in self._places], self._visits)
        """What augmentation and mask of each sample are drawn by, once it is read."""
        self.wrong: list[str] = []
        """What is wrong with each of the samples that others stand in for, once they are read."""

    def _key(self, source: int, number: int) -> str:
        try:
            return self._sources[source].key(number)
        except CorruptDataError:
            if self._spares is None:
                raise
            # reading it will say so again, and then it is another's
            return ""

    def looked(self, rows: Rows, scratch: Scratch) -> Iterator[Sample]:
        """Yield the samples as an epoch shows them, each for as long as the next is not asked for.

        rows: where those lie that need no turn; scratch: where all others do.
        """
        for row, turn in enumerate(draw_turns(self._view, self.ids, self._epoch)):
            source, number = self._places[row]
            try:
                sample = self._sources[source].read(number, rows if turn.as_stored else scratch)
            except CorruptDataError as error:
                if self._spares is None:
                    raise
                self.wrong.append(str(error))
                sample, turn = self._spare(self._spares, row, scratch)
            yield look(sample, self._view, turn)

    def _spare(self, spares: Spares, row: int, scratch: Scratch) -> tuple[Sample, Turn]:
        """Return the first that can be had of the samples that stand in for one, and how it lies."""
        source, number = self._places[row]
        for instead in spares.numbers(self._sensor, source, number):
            try:
                # never where it would lie in the batch: there the damaged one may have left something
                sample = self._sources[source].read(instead, scratch)
            except CorruptDataError:
                continue
            # it comes in its own right too, and must not look the same then
            self.ids[row] = draw_id(sample.key, hash_text("instead of", number, self._visits[row]))
            (turn,) = draw_turns(self._view, self.ids[row : row + 1], self._epoch)
            return sample, turn
        raise CorruptDataError(
            f"{self.wrong[-1]} None of {ATTEMPTS} samples of {self._sources[source].name} that could stand in for one"
            " of its samples can be read either: most of this set is damaged or gone."
        )
