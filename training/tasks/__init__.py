"""Downstream tasks: one file each, one line in `TASKS`.

A task turns the encoder's tokens into predictions, says what a batch's loss is, and scores a whole split.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.contract import DataContract
from pipeline.errors import unknown
from training.data import Batch
from training.tasks.classification import Classification


class Task(Protocol):
    """One downstream task, fitted to a shard set."""

    def head(self, width: int) -> nn.Module:
        """Return the module that maps tokens [B, N, D] to predictions."""

    def usable(self, batch: Batch) -> Tensor:
        """Return which samples of a batch carry a label, bool [B]."""

    def loss_sum(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, summed over the samples given; float32 scalar."""

    def tally(self, predicted: Tensor, labels: Tensor) -> NDArray[np.int64]:
        """Count what the scores need; tallies of batches and ranks add up."""

    def scores(self, tally: NDArray[np.int64]) -> dict[str, float]:
        """Return the scores of a whole split."""

    def report(self, tally: NDArray[np.int64]) -> str:
        """Return a table for people."""


def task(name: str) -> Callable[[DataContract], Task]:
    """Return the task called `name`; raises `UnknownNameError` with the nearest one."""
    try:
        return TASKS[name]
    except KeyError:
        raise unknown("task", name, TASKS, "task") from None


TASKS: dict[str, Callable[[DataContract], Task]] = {"classification": Classification}
