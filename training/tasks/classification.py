"""Scene classification: one class a tile, accuracy over the whole split."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from pipeline.console import table
from pipeline.contract import DataContract
from pipeline.errors import ContractError
from training.data import Batch
from training.metrics import classification_scores, confusion

SMOOTHING = 0.1


class PooledHead(nn.Module):
    """Global average pool, LayerNorm, Linear: tokens [B, N, D] to scores [B, class]."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.linear = nn.Linear(width, classes)
        nn.init.trunc_normal_(self.linear.weight, std=0.01)
        nn.init.zeros_(self.linear.bias)

    def forward(self, tokens_BND: Tensor) -> Tensor:
        """Return class scores [B, class]."""
        scores: Tensor = self.linear(self.norm(tokens_BND.mean(1)))
        return scores


class Classification:
    """Single-label classification of tiles by `label.cls`."""

    def __init__(self, contract: DataContract) -> None:
        """Take the classes from the shard set; raises `ContractError` for an unlabelled one."""
        if len(contract.classes) < 2:
            raise ContractError(
                "the shard set has no class labels: shard it with `labels.classes`, or choose another task."
            )
        if contract.label_kind != "class":
            raise ContractError(
                f"the shard set has labels of kind `{contract.label_kind}`, not one class a tile: shard it with"
                " `labels.kind=class`, or choose another task."
            )
        self.classes = contract.classes

    def head(self, width: int) -> nn.Module:
        """Return the classification head."""
        return PooledHead(width, len(self.classes))

    def usable(self, batch: Batch) -> Tensor:
        """Return which samples carry a class, bool [B]."""
        return batch.labels_B >= 0

    def loss_sum(self, predicted: Tensor, labels: Tensor) -> Tensor:
        """Return the cross-entropy with label smoothing 0.1, summed over samples."""
        return F.cross_entropy(predicted.float(), labels, reduction="sum", label_smoothing=SMOOTHING)

    def tally(self, predicted: Tensor, labels: Tensor) -> NDArray[np.int64]:
        """Count the confusion matrix [true, predicted]."""
        said = torch.argmax(predicted, dim=1).cpu().numpy()
        return confusion(labels.cpu().numpy(), said, len(self.classes))

    def scores(self, tally: NDArray[np.int64]) -> dict[str, float]:
        """Return accuracy, balanced accuracy and macro F1."""
        return classification_scores(tally)

    def report(self, tally: NDArray[np.int64]) -> str:
        """Return the confusion matrix as a table: true classes in rows."""
        rows = [(name, *(str(n) for n in line)) for name, line in zip(self.classes, tally, strict=True)]
        return table(("true \\ predicted", *self.classes), rows)
