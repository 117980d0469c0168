"""The batches of a run: the steps of a training, and one pass over a split for evaluation.

Any rank can load any step by itself, at any time: nothing is streamed past, so a resume reads nothing again.
"""

from __future__ import annotations

import itertools
import math
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from pipeline.console import LOG
from pipeline.errors import PipelineError
from pipeline.sample import Sample, Scratch
from training.collation import Handed, Room, Rows, Slot, Slots, collate, image_bytes
from training.data import PATIENCE_S, Batch, BatchConfig, Turn, View, draw_ids, look
from training.order import Draws, Offer, Order
from training.reader import Damaged
from training.sets import Part
from training.spares import Picked, Spares
from training.world import World

MOST_NAMED = 20
"""Damaged shards and samples that are named: a log must stay readable."""
REPLACED = "replaced_share"


class ShardStream(Dataset[Batch]):
    """The steps of a training run: `stream[step]` is this rank's batch of that step."""

    def __init__(
        self, parts: Sequence[Part], batch: BatchConfig, world: World, damaged: Damaged = "stop"
    ) -> None:
        """damaged: whether samples that cannot be had are replaced; rank 0 warns of shards that are known to be."""
        self.parts, self.world = tuple(parts), world
        self.batch_size, self.accumulation = batch.size, batch.accumulation(world.size)
        offers = [[Offer(s.name, s.shards, s.weight) for s in p.family.sources] for p in parts]
        self.order = Order.of(offers, batch.size, parts[0].view.seed)
        self.steps_per_epoch = self.order.steps_per_epoch
        self.room, self._scratch = Room(), Scratch()
        self.spares = Spares(parts, parts[0].view.seed) if damaged == "replace" else None
        for text in self.lost[:MOST_NAMED] if world.main else ():
            LOG.warning("its samples are replaced by others: %s", text)

    @property
    def lost(self) -> list[str]:
        """What is wrong with the shards that are known to be damaged."""
        sources = itertools.chain(*(part.family.sources for part in self.parts))
        return [text for source in sources for reader in source.readers for text in reader.lost.values()]

    @property
    def lost_share(self) -> float:
        """Share of an epoch's samples that lie in them."""
        given = [
            (quota.drawn, source.lost / len(source))
            for part, quotas in zip(self.parts, self.order.sensors, strict=True)
            for source, quota in zip(part.family.sources, quotas, strict=True)
        ]
        return sum(drawn * share for drawn, share in given) / sum(drawn for drawn, _ in given)

    def observed(self, batch: Batch) -> dict[str, float]:
        """Return what a batch says of the data: the share of it that was replaced, where that may be."""
        return {REPLACED: len(batch.replaced) / len(batch.keys)} if self.spares else {}

    def __len__(self) -> int:
        """Return the number of samples of all sets."""
        return sum(len(part.family) for part in self.parts)

    @property
    def image_bytes(self) -> int:
        """The most that the images of a batch take, of any sensor."""
        count = self.batch_size // self.world.size
        return max(image_bytes(part.view, count) for part in self.parts)

    def told(self) -> Iterator[str]:
        """Yield what each sensor gives to an epoch, for people."""
        for part, quotas, steps in zip(self.parts, self.order.sensors, self.order.steps, strict=True):
            family, view = part.family, part.view
            names = ", ".join(
                f"{s.name} ({q.drawn / sum(x.drawn for x in quotas):.1%})" if len(quotas) > 1 else s.name
                for s, q in zip(family.sources, quotas, strict=True)
            )
            what = f"{len(family)} samples of {names}, {len(view.bands)} bands, {view.image_px} px"
            of_steps = f", {steps / self.steps_per_epoch:.1%} of the steps" if len(self.parts) > 1 else ""
            yield f"{what}{of_steps}"

    def last(self, sensor: str, stop: int) -> int:
        """Return the last step before `stop` that takes its samples from a sensor, or else the first from there on."""
        steps = itertools.chain(range(stop - 1, -1, -1), itertools.count(stop))
        return next(s for s in steps if self.parts[self.order.sensor(s)[0]].view.sensor == sensor)

    def mine(self, step: int) -> Draws:
        """Return this rank's samples of a step, micro-batches one after the other."""
        # of the whole step, on every rank: only then is the share of one the rest of the others
        drawn = self.order.draws(step)
        shape = (self.accumulation, self.world.size, -1)
        rows = (drawn.source, drawn.sample, drawn.visit)
        return Draws(drawn.sensor, *(row.reshape(shape)[:, self.world.rank].ravel() for row in rows))

    def __getitem__(self, step: int) -> Batch:
        """Load this rank's batch of a step."""
        epoch, drawn = step // self.steps_per_epoch, self.mine(step)
        part = self.parts[drawn.sensor]
        picked = Picked(part, drawn, epoch, self.spares)
        rows = Rows(len(picked.ids), self.room, self._scratch)
        looked = picked.looked(rows, self._scratch)
        batch = collate(Slot(step, epoch, rows), looked, part.view, picked.ids)
        return replace(batch, replaced=tuple(picked.wrong)) if picked.wrong else batch

    def shards(self, step: int) -> list[str]:
        """Return the shards that this rank's samples of a step lie in."""
        drawn = self.mine(step)
        sources = self.parts[drawn.sensor].family.sources
        return sorted(
            {sources[s].place(n) for s, n in zip(drawn.source.tolist(), drawn.sample.tolist(), strict=True)}
        )

    def batches(self, start: int, stop: int, workers: int, timeout_s: float = PATIENCE_S) -> Iterator[Batch]:
        """Yield the batches of steps [start, stop), loaded ahead by `workers` processes."""
        yield from _load(self, range(start, stop), workers, timeout_s)


class Samples(Protocol):
    """Samples by number."""

    def __len__(self) -> int:
        """Return how many there are."""

    def read(self, number: int) -> Sample:
        """Read sample `number`."""


class Pass(Dataset[Batch]):
    """One pass over samples in stored order, shared out to the ranks in equally many batches; for evaluation.

    The last batches are filled up with unlabelled repetitions, so that each sample counts once and no rank waits
    for another.
    """

    def __init__(self, samples: Samples, view: View, batch_size: int, world: World) -> None:
        self.samples, self.view, self.batch_size, self.world = samples, view, batch_size, world
        self.room = Room()

    def __len__(self) -> int:
        """Return the number of batches of a rank."""
        return math.ceil(len(self.samples) / (self.batch_size * self.world.size))

    def __getitem__(self, step: int) -> Batch:
        """Load one batch."""
        first = (step * self.world.size + self.world.rank) * self.batch_size
        # every rank gets as many batches: one that waits for another under ZeRO-3 waits for ever
        looked = [self._look(n) for n in range(first, first + self.batch_size)]
        rows = Rows(len(looked), self.room, Scratch())
        return collate(Slot(step, rows=rows), looked, self.view, draw_ids([s.key for s in looked]))

    @property
    def image_bytes(self) -> int:
        """The most that the images of a batch take."""
        return image_bytes(self.view, self.batch_size)

    def _look(self, number: int) -> Sample:
        last = len(self.samples) - 1
        sample = look(self.samples.read(min(number, last)), self.view, Turn())
        return sample if number <= last else replace(sample, label=None)

    def batches(self, workers: int) -> Iterator[Batch]:
        """Yield all batches of this rank."""
        yield from _load(self, range(len(self)), workers, PATIENCE_S)


class _Batches(Protocol):
    """Batches by step."""

    room: Room
    """Where they lie."""

    @property
    def image_bytes(self) -> int:
        """The most that the images of a batch take."""

    def __getitem__(self, step: int) -> Batch:
        """Load one."""


class _Told(Dataset[Handed | PipelineError]):
    """Batches, and in their place errors as they are: raised in a worker, torch would make a traceback of their text."""

    def __init__(self, batches: _Batches, slots: Slots) -> None:
        self._batches, self._slots = batches, slots

    def __getitem__(self, task: tuple[int, int | None]) -> Handed | PipelineError:
        step, slot = task
        self._batches.room.lend(self._slots.memory(slot))
        try:
            return self._slots.hand_over(self._batches[step], slot)
        except PipelineError as error:
            return error


def _load(batches: _Batches, steps: range, workers: int, timeout_s: float) -> Iterator[Batch]:
    # two batches a worker are on their way; the loop holds one, or the one before it too
    slots = Slots((2 * workers + 2) if workers else 0, batches.image_bytes)
    loader: DataLoader[Handed | PipelineError] = DataLoader(
        _Told(batches, slots),
        batch_size=None,
        sampler=slots.tasks(steps),
        num_workers=workers,
        multiprocessing_context="fork" if workers else None,  # what inherits the slots
        worker_init_fn=_ignore_signals if workers else None,
        generator=torch.Generator(),  # its own: the loader must not draw from the global one
        timeout=timeout_s if workers else 0,
    )
    for loaded in loader:
        if isinstance(loaded, PipelineError):
            raise loaded
        yield slots.take_over(loaded)
        # or it would be held here while the next is loaded
        del loaded


def _ignore_signals(_worker: int) -> None:
    """Loader workers are in the signalled process group, but only the training process decides to stop."""
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        signal.signal(number, signal.SIG_IGN)
