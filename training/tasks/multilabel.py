"""Several classes a tile: multi-label soft margin, mean average precision over all samples at once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.console import table
from pipeline.contract import DataContract
from pipeline.sample import Label
from training.backbones import Shape
from training.data import Batch
from training.metrics import class_precisions, multilabel_scores
from training.tasks.common import PooledHead, require_labels


class MultiLabel:
    """Multi-label classification of tiles by `label.json`, as BigEarthNet's.

    A tally holds a row a sample, the scores of all classes and then the truth of all: average precision needs the
    order of every sample.
    """

    pooled, mixable, pairs = True, False, False

    def __init__(self, contract: DataContract) -> None:
        """Take the classes from the shard set; raises `ContractError` for one without several classes a tile."""
        self.classes = require_labels(contract, "classes", "several classes a tile")

    def learn(self, labels: Iterator[Label]) -> None:
        """Nothing is needed."""

    def head(self, shape: Shape, linear: bool) -> nn.Module:
        """Return the classification head: it is linear in any case."""
        return PooledHead(shape.width, len(self.classes))

    def usable(self, batch: Batch) -> Tensor:
        """Return which samples are labelled; a sample with none of the classes is."""
        return batch.labels_B[:, 0] >= 0

    def items(self, labels: Tensor) -> float:
        """Count samples."""
        return float(len(labels))

    def loss_sum(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Return the multi-label soft margin, averaged over classes and summed over samples."""
        return F.multilabel_soft_margin_loss(predicted.float(), labels.float(), reduction="sum")

    def tally(self, predicted: Tensor, labels: Tensor) -> NDArray[np.float32]:
        """Keep scores and truth of every sample, [sample, 2 x class]."""
        kept: NDArray[np.float32] = np.hstack([predicted.cpu().numpy(), labels.cpu().numpy()])
        # beside int64 labels numpy makes float64 of the scores
        return kept.astype(np.float32)

    def join(self, tallies: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
        """Put the samples one below the other."""
        # the empty one first: a rank without samples would have nothing to put together
        return np.concatenate([np.zeros((0, 2 * len(self.classes)), np.float32), *tallies])

    def scores(self, tally: NDArray[np.float32]) -> dict[str, float]:
        """Return macro and micro mean average precision."""
        return multilabel_scores(*self._parts(tally))

    def report(self, tally: NDArray[np.float32]) -> str:
        """Return a table of each class's average precision; n/a for a class that no sample has."""
        truth, scores = self._parts(tally)
        found = zip(self.classes, truth.sum(0), class_precisions(truth, scores), strict=True)
        rows = [(name, str(n), "n/a" if np.isnan(ap) else f"{ap:.4f}") for name, n, ap in found]
        return table(("class", "samples", "average precision"), rows)

    def _parts(self, tally: NDArray[np.float32]) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        count = len(self.classes)
        return tally[:, count:] > 0.5, tally[:, :count].astype(np.float64)
