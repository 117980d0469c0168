"""What is watched while a run trains: steps that were skipped, losses that jump, ranks that drift apart or lag behind.

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
from training.report import StepResult
from training.world import World

NOTED = "noted.jsonl"
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
        keys = [key for mine in self.world.gather(list(seen.keys)) for key in mine]  # type: ignore[attr-defined]
        path = self.run / NOTED
        if not self.world.main or (path.exists() and path.stat().st_size > _NOTES_BYTES):
            return
        LOG.warning("step %d: %s; its samples are in %s", seen.step, text, path)
        record = {"step": seen.step, "why": why, "loss": str(seen.result.loss), "keys": keys}
        with path.open("a") as stream:
            stream.write(json.dumps(record) + "\n")


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
    words = value.detach().contiguous().flatten()
    return words.view(torch.int32 if words.element_size() == 4 else torch.int16).sum(dtype=torch.int64)
