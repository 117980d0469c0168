"""The record of a training's steps: what each was, how fast, and on how much memory; told to journal and people."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from pipeline.console import Progress
from pipeline.errors import ContractError
from training import memory
from training.checkpoint import RunData
from training.data import Batch
from training.report import Report, StepResult
from training.runs import RunConfig
from training.stream import ShardStream
from training.tracking import Tracker
from training.watch import Replaced, Watch, Watched
from training.world import World


@dataclass(frozen=True)
class Effort:
    """What a rank's step takes, where somebody counts it."""

    tokens: int = 0
    """Cubes that the encoder reads."""
    flops: int = 0
    """Operations, as `training.flops` counts them."""


@dataclass(frozen=True)
class Entry:
    """A step that the device may still be busy with."""

    step: int
    batch: Batch
    report: Report
    scores: dict[str, float]
    """What was measured after it."""
    effort: Effort


class Recorded(Protocol):
    """The training whose steps are recorded."""

    world: World
    stream: ShardStream
    data: RunData

    @property
    def config(self) -> RunConfig:
        """The run's configuration."""


class Ledger:
    """Records steps, each when the next one is under way: the host need not wait for the device in between."""

    def __init__(self, work: Recorded, tracker: Tracker, progress: Progress, peak: float) -> None:
        """peak: operations that a rank's device does in a second at its best."""
        self._work, self._tracker, self._progress, self._peak = work, tracker, progress, peak
        self._open: Entry | None = None
        self._first = True
        self._watch = Watch(work.config.guards, work.world, work.config.folder)
        self._replaced = Replaced(work.config.guards, work.stream, work.config.folder)
        self.told: dict[str, float] = {}
        """What to log with the next step."""
        self._asked = self._loaded = time.perf_counter()
        self._turn = (self._asked,) * 3

    def batches(self, batches: Iterator[Batch]) -> Iterator[Batch]:
        """Pass batches on, and take the time that they are waited for."""
        self._asked = time.perf_counter()
        for batch in batches:
            self._loaded = time.perf_counter()
            yield batch
            self._asked = time.perf_counter()

    def open(self, entry: Entry) -> None:
        """Take a step whose result is not read yet."""
        self._open = entry
        # kept with the step: the next batch is asked for before this step is closed
        self._turn = self._asked, self._loaded, time.perf_counter()

    def close(self) -> bool:
        """Read and record the open step, if there is one; returns whether any rank was asked to stop.

        Raises `TrainingError` on all ranks where too many in a row were not finite.
        """
        entry, self._open = self._open, None
        if entry is None:
            return False
        result = entry.report.read()
        # the first batch alone: a later one may be empty by chance
        if self._first:
            _require_counted(result, self._work.config)
            self._first = False
        metrics = self._measured(entry, result) | self._speed(entry.effort) | result.observed | entry.scores
        seen = Watched(entry.step, result, entry.batch.keys, entry.batch.replaced)
        metrics |= self._watch.see(seen) | self._replaced.see(seen) | self.told
        self.told = {}
        self._tracker.log(entry.step, metrics)
        self._progress.advance(note=told(metrics))
        return result.stop

    def _measured(self, entry: Entry, result: StepResult) -> dict[str, float]:
        found = {"loss": result.loss, "grad_norm": result.grad_norm, "lr": result.lr}
        # sensors lose at levels of their own, and each step is of one: a common curve only jumps
        if len(self._work.data.sensors) > 1:
            found[f"loss_{entry.batch.sensor}"] = result.loss
        return found | {"memory_gb": memory.used_bytes(self._work.world.device) / 1e9}

    def _speed(self, effort: Effort) -> dict[str, float]:
        asked, loaded, left = self._turn
        # where the step is not left to run on, its time is what was waited for it
        whole_s = (time.perf_counter() if asked == self._asked else left) - asked
        found = {
            "samples_per_s": self._work.config.batch.size / whole_s,
            "data_wait_share": (loaded - asked) / whole_s,
        }
        ranks = self._work.world.size
        if effort.tokens:
            found["tokens_per_s"] = effort.tokens * ranks / whole_s
        if effort.flops:
            found["flops_per_s"] = effort.flops * ranks / whole_s
            # this rank's operations over this rank's peak, so no number of ranks
            found["peak_share"] = effort.flops / whole_s / self._peak
        return found


def told(metrics: dict[str, float]) -> str:
    """Return what the progress line says of a step, beside rate and time left."""
    return (
        f"loss {metrics['loss']:.4f}, lr {metrics['lr']:.2e}, data wait {metrics['data_wait_share']:.0%},"
        f" memory {metrics['memory_gb']:.2f} GB"
    )


def _require_counted(result: StepResult, config: RunConfig) -> None:
    """Raise `ContractError` where nothing in a run's first batch counts: it would train on nothing, silently."""
    if not result.counted:
        raise ContractError(
            f"no sample of the first batch from {config.data.names} counts: none has a label, or none has enough"
            " valid pixels. Look at the set with preprocessing/show.py and verify.py."
        )
