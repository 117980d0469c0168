"""Scene classification: one class a tile, accuracy over the whole split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.contract import DataContract
from pipeline.sample import Label
from training.backbones import Shape
from training.data import Batch
from training.metrics import classification_scores, confusion
from training.tasks.common import PooledHead, matrix, require_labels

SMOOTHING = 0.1


class Classification:
    """Single-label classification of tiles by `label.cls`."""

    pooled, mixable, pairs = True, True, False

    def __init__(self, contract: DataContract) -> None:
        """Take the classes from the shard set; raises `ContractError` for an unlabelled one."""
        self.classes = require_labels(contract, "class", "one class a tile")

    def learn(self, labels: Iterator[Label]) -> None:
        """Nothing is needed."""

    def head(self, shape: Shape, linear: bool) -> nn.Module:
        """Return the classification head: it is linear in any case."""
        return PooledHead(shape.width, len(self.classes))

    def usable(self, batch: Batch) -> Tensor:
        """Return which samples carry a class."""
        return batch.labels_B >= 0

    def items(self, labels: Tensor) -> float:
        """Count samples."""
        return float(len(labels))

    def loss_sum(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy with label smoothing 0.1, summed over samples."""
        # float32 whatever the model runs in: bf16 would keep two to three digits of the sum
        return F.cross_entropy(predicted.float(), labels, reduction="sum", label_smoothing=SMOOTHING)

    def tally(self, predicted: Tensor, labels: Tensor) -> NDArray[np.int64]:
        """Count the confusion matrix [true, predicted]."""
        said = torch.argmax(predicted, dim=1).cpu().numpy()
        return confusion(labels.cpu().numpy(), said, len(self.classes))

    def join(self, tallies: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
        """Add up."""
        return np.asarray(np.sum(tallies, axis=0), np.int64)

    def scores(self, tally: NDArray[np.int64]) -> dict[str, float]:
        """Return accuracy, balanced accuracy and macro F1."""
        return classification_scores(tally)

    def report(self, tally: NDArray[np.int64]) -> str:
        """Return the confusion matrix as a table: true classes in rows."""
        return matrix(self.classes, tally)
