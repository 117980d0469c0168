"""What is watched while a run trains: steps that were skipped, losses that jump, samples that were replaced, ranks that
drift apart or lag behind.

A watch changes nothing that is trained: it counts, logs and writes down, and ends a run that has gone wrong.
"""

from __future__ import annotations

import json
import math
import socket
import statistics
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import Field
from torch import Tensor, nn

from pipeline.config import Config
from pipeline.console import LOG
from pipeline.errors import TrainingError
from training import journal
from training.report import StepResult
from training.stream import MOST_NAMED, REPLACED, ShardStream
from training.world import World

NOTED = "noted.jsonl"
_COUNT = "replaced_samples"
_FEWEST = 10
"""Losses below which a window says nothing."""
_NOTES_BYTES = 10_000_000
"""Where the file of noted batches stops growing: a run that jumps at every step must not fill a disk."""


class GuardsConfig(Config):
    """What a run is watched for."""

    max_skipped: int = Field(default=10, ge=0)
    """Steps in a row that may be skipped because loss or gradient is not finite; one more ends the run."""
    spike_window: int = Field(default=100, ge=_FEWEST)
    """Steps whose losses a new one is compared with."""
    spike_sigmas: float = Field(default=6.0, gt=0)
    """A loss above mean + so many standard deviations of the window is noted."""
    max_replaced: float = Field(default=0.01, ge=0, le=1)
    """With `data.damaged: replace`: share of the samples of an epoch, and of all seen later on, that others may stand
    in for; one more ends the run."""
    compare_every_steps: int = Field(default=100, ge=1)
    """Steps after which the ranks compare weights and times."""
    straggler_ratio: float = Field(default=1.5, gt=1)
    """A rank that needs so many times the median of the ranks is named."""


@dataclass(frozen=True)
class Watched:
    """A step as it is watched."""

    step: int
    result: StepResult
    keys: Sequence[str]
    """This rank's samples."""
    replaced: Sequence[str] = ()
    """What was wrong with those of this rank that others stand in for."""


class Watch:
    """Watches the steps of one life, alike on all ranks."""

    def __init__(self, config: GuardsConfig, world: World, run: Path) -> None:
        self.config, self.world, self.run = config, world, run
        self.skipped = 0
        self._in_row = 0
        self._losses: deque[float] = deque(maxlen=config.spike_window)

    def see(self, seen: Watched) -> dict[str, float]:
        """Judge a step; returns what to log of it. Raises `TrainingError` after too many skipped ones; collective."""
        if not seen.result.finite:
            return self._skip(seen)
        self._in_row = 0
        loss, limit = seen.result.loss, self._limit()
        jumped = loss > limit
        if jumped:
            self._note(
                seen, "spike", f"loss {loss:.4g} is above {limit:.4g}, mean + sigmas of the steps before"
            )
        # taken in all the same: a level that stays is no jump any more
        self._losses.append(min(loss, limit))
        return {"loss_spike": 1.0} if jumped else {}

    def _limit(self) -> float:
        if len(self._losses) < _FEWEST:
            return math.inf
        mean = statistics.fmean(self._losses)
        # losses that hardly differ have no spread worth the name
        spread = max(statistics.pstdev(self._losses), 0.01 * abs(mean))
        return mean + self.config.spike_sigmas * spread

    def _skip(self, seen: Watched) -> dict[str, float]:
        self.skipped += 1
        self._in_row += 1
        result = seen.result
        what = f"loss {result.loss}, gradient norm {result.grad_norm}"
        self._note(seen, "skipped", f"{what}: weights stay as they were ({self._in_row} in a row)")
        if self._in_row > self.config.max_skipped:
            raise TrainingError(
                f"{self._in_row} steps in a row were not finite, the last is {seen.step} ({what})."
                f" The last good checkpoint is kept; {self.run / NOTED} names the samples. Lower optimiser.base_lr,"
                " or look at the data."
            )
        return {"skipped_steps": float(self.skipped)}

    def _note(self, seen: Watched, why: str, text: str) -> None:
        """Write the samples of all ranks down; collective."""
        keys = _of_all(self.world, seen.keys)
        record = {"step": seen.step, "why": why, "loss": str(seen.result.loss), "keys": keys}
        if self.world.main and _written(self.run, record):
            LOG.warning("step %d: %s; its samples are in %s", seen.step, text, self.run / NOTED)


def _of_all(world: World, mine: Sequence[str]) -> list[str]:
    """Return the texts of all ranks; collective."""
    return [text for each in world.gather(list(mine)) for text in each]  # type: ignore[attr-defined]


def _written(run: Path, record: dict[str, object]) -> bool:
    """Write down what is noted of a step; returns whether there was room for it."""
    path = run / NOTED
    if path.exists() and path.stat().st_size > _NOTES_BYTES:
        return False
    with path.open("a") as stream:
        stream.write(json.dumps(record) + "\n")
    return True


class Replaced:
    """Counts the samples of a run that others stood in for, alike on all ranks, and ends a run that has too many."""

    def __init__(self, config: GuardsConfig, stream: ShardStream, run: Path) -> None:
        """Go on counting where an earlier life ended; collective.

        Raises `TrainingError` where so many are known to be damaged that the run would end.
        """
        self.config, self.stream, self.run = config, stream, run
        self._told = set(stream.lost)
        self.count = 0.0
        if stream.spares:
            before = [x.metrics[_COUNT] for x in journal.read(run) if _COUNT in x.metrics]
            # rank 0's: another may look before the journal tells where it was rewound to
            self.count = float(str(stream.world.gather(before[-1] if before else 0.0)[0]))
            if stream.lost_share > config.max_replaced:
                raise TrainingError(
                    self._too_many(f"{stream.lost_share:.1%} of the samples are", stream.lost[0])
                )
        if stream.lost and stream.world.main:
            _written(run, {"why": "replaced", "damaged": stream.lost[:MOST_NAMED]})

    def see(self, seen: Watched) -> dict[str, float]:
        """Count those of a step; returns what to log of them. Raises `TrainingError` where they are too many;
        collective where there are any.
        """
        if not self.stream.spares:
            return {}
        size = self.stream.batch_size
        found = round(seen.result.observed[REPLACED] * size)
        self.count += found
        if found:
            self._name(seen)
        if self.count > self.config.max_replaced * size * max(seen.step, self.stream.steps_per_epoch):
            share = f"{self.count:.0f} of {seen.step * size} samples up to step {seen.step} were"
            raise TrainingError(self._too_many(share, f"{self.run / NOTED} names them."))
        return {_COUNT: self.count}

    def _name(self, seen: Watched) -> None:
        """Name what was not named before, as long as these are not too many; collective."""
        room = MOST_NAMED - len(self._told)
        if room < 0:
            return
        new = sorted(set(_of_all(self.stream.world, seen.replaced)) - self._told)
        self._told |= set(new)
        if not self.stream.world.main or not new:
            return
        _written(self.run, {"step": seen.step, "why": "replaced", "damaged": new[:room]})
        for text in new[:room]:
            LOG.warning("step %d: a sample is replaced by another: %s", seen.step, text)
        if len(new) > room:
            LOG.warning("further ones are counted and not named; training/status.py tells how many")

    def _too_many(self, what: str, where: str) -> str:
        return (
            f"{what} missing or damaged, more than guards.max_replaced={self.config.max_replaced:g} allows. {where}"
            " Copy the shards back or make them again, then give the same command again."
        )


@dataclass(frozen=True)
class _Told:
    """What one rank tells the others."""

    host: str
    busy_s: float
    sums: list[int]


class Peers:
    """Compares the ranks every few steps: the same weights, and about the same time."""

    def __init__(self, config: GuardsConfig, world: World) -> None:
        self.config, self.world = config, world
        self._busy_s = 0.0
        self._events: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []

    def timed(self, losses: Iterator[Tensor]) -> Iterator[Tensor]:
        """Pass losses on and take the time of their forward passes, in which no rank waits for another."""
        if self.world.size == 1:
            yield from losses  # nobody to compare with, and nobody would take the events away
            return
        gpu = self.world.device.type == "cuda"
        began, at_s = _event() if gpu else None, time.perf_counter()
        for loss in losses:
            if began:
                self._events.append((began, _event()))
            else:
                self._busy_s += time.perf_counter() - at_s
            yield loss
            began, at_s = _event() if gpu else None, time.perf_counter()

    def compare(self, step: int, module: nn.Module) -> dict[str, float]:
        """Compare the ranks where it is due after `step`; returns what to log; collective.

        Raises `TrainingError` where a weight is not the same on all ranks.
        """
        if self.world.size == 1 or step % self.config.compare_every_steps:
            return {}
        names, sums = checksums(module)
        told = [
            x
            for x in self.world.gather(_Told(socket.gethostname(), self._take(), sums))
            if isinstance(x, _Told)
        ]
        self._require_alike(step, names, [t.sums for t in told])
        return self._lag(step, told)

    def _take(self) -> float:
        """Return the seconds of the forward passes since the last time."""
        busy_s = self._busy_s
        if self._events:
            self._events[-1][1].synchronize()
            busy_s += sum(a.elapsed_time(b) for a, b in self._events) / 1000
        self._busy_s, self._events = 0.0, []
        return busy_s

    def _require_alike(self, step: int, names: Sequence[str], sums: Sequence[list[int]]) -> None:
        odd = [rank for rank, mine in enumerate(sums) if mine != sums[0]]
        if odd:
            apart = [n for n, *each in zip(names, *sums, strict=True) if len(set(each)) > 1]
            raise TrainingError(
                f"after step {step} the weights of ranks {', '.join(map(str, odd))} are not those of rank 0:"
                f" {', '.join(apart[:5])} ({len(apart)} in all). The checkpoint before is kept; look for a faulty device,"
                " then give the same command again."
            )

    def _lag(self, step: int, told: Sequence[_Told]) -> dict[str, float]:
        times_s = [t.busy_s for t in told]
        # of two ranks the upper median would be the slow one itself
        middle_s, slowest_s = statistics.median_low(times_s), max(times_s)
        if self.world.main and slowest_s > self.config.straggler_ratio * middle_s:
            slow = times_s.index(slowest_s)
            LOG.warning(
                "step %d: rank %d on %s takes %.1f times as long as the others: all wait for it",
                step, slow, told[slow].host, slowest_s / middle_s,
            )  # fmt: skip
        return {"slowest_rank_ratio": slowest_s / middle_s if middle_s else 1.0}


def _event() -> torch.cuda.Event:
    """Mark where the device is; the host does not wait for it."""
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event


def checksums(module: nn.Module) -> tuple[list[str], list[int]]:
    """Return the names of the weights that are whole on this rank, and a sum of the bits of each."""
    # ZeRO-3 keeps only shares, which have no twin on another rank
    whole = [(n, p) for n, p in module.named_parameters() if p.numel()]
    if not whole:
        return [], []
    sums = torch.stack([_bits(p) for _, p in whole])
    return [n for n, _ in whole], sums.tolist()


def _bits(value: Tensor) -> Tensor:
    # bits, summed as whole numbers: a sum of floats depends on its order, and NaN would hide the rest
    words = value.detach().contiguous().flatten()
    return words.view(torch.int32 if words.element_size() == 4 else torch.int16).sum(dtype=torch.int64)
