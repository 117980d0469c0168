"""Object extraction: pixels of one object against the rest, scored on the object alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.contract import DataContract
from training.metrics import object_scores
from training.tasks.common import require_labels, require_two
from training.tasks.dense import Dense


class Extraction(Dense):
    """Binary segmentation; the second class is the object."""

    def __init__(self, contract: DataContract) -> None:
        """Take the classes from the shard set; raises `ContractError` unless it has two, a class a pixel."""
        self.classes = require_two(require_labels(contract, "mask", "a class a pixel"), "the object")

    def scores(self, tally: NDArray[np.int64]) -> dict[str, float]:
        """Return the object's IoU, precision, recall and F1."""
        return object_scores(tally)
