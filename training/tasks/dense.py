"""What the tasks with a class of every pixel share: decoder, loss and confusion matrix over labelled pixels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.sample import Label
from training.backbones import Shape
from training.data import Batch
from training.metrics import confusion
from training.tasks.common import matrix
from training.upernet import LinearDecoder, UPerNet

UNLABELLED = -1


class Dense(ABC):
    """A class of every pixel, by `label.npy.blosc`; pixels without one count nowhere."""

    pooled, mixable, pairs = False, False, False
    classes: tuple[str, ...]
    weights: Tensor | None = None
    """Weight of each class in the loss; None weighs pixels alike."""

    def learn(self, labels: Iterator[Label]) -> None:
        """Weigh all pixels alike; nothing is read."""
        self.weights = None

    def head(self, shape: Shape, linear: bool) -> nn.Module:
        """Return the decoder, or for a probe one linear map of the last features."""
        return (LinearDecoder if linear else UPerNet)(shape, len(self.classes))

    def usable(self, batch: Batch) -> Tensor:
        """Return which samples have a labelled pixel."""
        return (batch.labels_B >= 0).flatten(1).any(1)

    def items(self, labels: Tensor) -> float:
        """Count labelled pixels, by their weight."""
        seen = labels[labels >= 0]
        # the sum of weights, as `F.cross_entropy` takes its own weighted mean
        return float(len(seen) if self.weights is None else self.weights[seen.cpu()].sum())

    def loss_sum(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy of [B, class, y, x], summed over labelled pixels by weight."""
        weights = None if self.weights is None else self.weights.to(predicted.device)
        return F.cross_entropy(predicted.float(), labels, weights, ignore_index=UNLABELLED, reduction="sum")

    def tally(self, predicted: Tensor, labels: Tensor) -> NDArray[np.int64]:
        """Count the confusion matrix of pixels [true, predicted]."""
        known = labels >= 0
        said = predicted.argmax(1)[known].cpu().numpy()
        return confusion(labels[known].cpu().numpy(), said, len(self.classes))

    def join(self, tallies: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Add up."""
        return np.asarray(np.sum(tallies, axis=0), np.int64)

    @abstractmethod
    def scores(self, tally: NDArray[np.int64]) -> dict[str, float]:
        """Return the scores of a whole split."""

    def report(self, tally: NDArray[np.int64]) -> str:
        """Return the confusion matrix of pixels as a table: true classes in rows."""
        return matrix(self.classes, tally)
