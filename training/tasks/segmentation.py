"""Semantic segmentation: a class of every pixel, mIoU and mF1 over the whole split."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.contract import DataContract
from training.metrics import segmentation_scores
from training.tasks.common import require_labels
from training.tasks.dense import Dense


class Segmentation(Dense):
    """Semantic segmentation."""

    def __init__(self, contract: DataContract) -> None:
        """Take the classes from the shard set; raises `ContractError` for one without a class a pixel."""
        self.classes = require_labels(contract, "mask", "a class a pixel")

    def scores(self, tally: NDArray[np.int64]) -> dict[str, float]:
        """Return mIoU, mF1 and pixel accuracy."""
        return segmentation_scores(tally)
