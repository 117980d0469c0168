"""Downstream tasks: one file each, one line in `TASKS`.

A task turns a backbone's feature maps into predictions, says what a batch's loss is, and scores a whole split.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.contract import DataContract
from pipeline.errors import unknown
from pipeline.sample import Label
from training.backbones import Shape
from training.data import Batch
from training.tasks.change import Change
from training.tasks.classification import Classification
from training.tasks.extraction import Extraction
from training.tasks.multilabel import MultiLabel
from training.tasks.segmentation import Segmentation


class Task(Protocol):
    """One downstream task, fitted to a shard set."""

    pooled: bool
    """Whether it reads one vector a sample, so that neighbours and statistics can do it too."""
    mixable: bool
    """Whether mixup and cutmix make sense: one class a sample."""
    pairs: bool
    """Whether a sample is the same ground at two dates."""
    classes: tuple[str, ...]

    def learn(self, labels: Iterator[Label]) -> None:
        """Take from the training labels what the loss needs; most need nothing and read nothing."""

    def head(self, shape: Shape, linear: bool) -> nn.Module:
        """Return the module that maps feature maps to predictions; linear: the plainest there is, for a probe."""

    def usable(self, batch: Batch) -> Tensor:
        """Return which samples of a batch carry a label, bool [B]."""

    def items(self, labels: Tensor) -> float:
        """Return what the summed loss of these labels is to be divided by."""

    def loss_sum(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Return the loss, summed over the items of the samples given; float32 scalar."""

    def tally(self, predicted: Tensor, labels: Tensor) -> NDArray[Any]:
        """Return what the scores need of these samples."""

    def join(self, tallies: Sequence[NDArray[Any]]) -> NDArray[Any]:
        """Put together the tallies of batches or ranks; those of no sample too."""

    def scores(self, tally: NDArray[Any]) -> dict[str, float]:
        """Return the scores of a whole split."""

    def report(self, tally: NDArray[Any]) -> str:
        """Return a table for people."""


def task(name: str) -> Callable[[DataContract], Task]:
    """Return the task called `name`; raises `UnknownNameError` with the nearest one."""
    try:
        return TASKS[name]
    except KeyError:
        raise unknown("task", name, TASKS, "task") from None


TASKS: dict[str, Callable[[DataContract], Task]] = {
    "classification": Classification,
    "multilabel": MultiLabel,
    "segmentation": Segmentation,
    "extraction": Extraction,
    "change": Change,
}
