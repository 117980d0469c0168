"""Change detection between two dates: a shared backbone, the difference of its features, a class of every pixel.

Scores count each scored pixel of whole images once; those of the change class and those over both classes differ
widely, so their names tell which they are.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.contract import DataContract
from pipeline.errors import ContractError
from pipeline.sample import Label
from training.data import Batch
from training.metrics import classification_scores, object_scores, segmentation_scores
from training.tasks.common import require_labels, require_two
from training.tasks.dense import Dense

RARITY = 0.5
"""Power of a class's rarity by which its pixels weigh; 1 would make both classes weigh the same (ours)."""


class Change(Dense):
    """Change detection, as OSCD's; the second class is change."""

    pairs = True

    def __init__(self, contract: DataContract) -> None:
        """Take the classes from the shard set; raises `ContractError` unless it has pairs, two classes, a class a
        pixel.
        """
        self.classes = require_two(require_labels(contract, "mask", "a class a pixel"), "change")
        if contract.dates != 2:
            raise ContractError(
                "the shard set has one date a sample: change wants pairs, shard it with reader=oscd_pairs."
            )

    def learn(self, labels: Iterator[Label]) -> None:
        """Weigh the classes by their rarity among the training pixels, so that the mean weight of a pixel is 1."""
        counted = np.zeros(2, np.float64)
        for label in labels:
            # 255 stands where there is no class: counted beyond the two, and so left out
            counted += np.bincount(np.asarray(label).ravel(), minlength=256)[:2]
        # a class that no pixel has would weigh infinitely much
        if not counted.all():
            return
        shares = counted / counted.sum()
        weights = shares**-RARITY
        self.weights = torch.from_numpy(weights / (weights @ shares)).float()

    def usable(self, batch: Batch) -> Tensor:
        """Return which samples have a labelled pixel; none where the later date is missing."""
        return super().usable(batch) & torch.tensor(batch.after_BCHW is not None)

    def scores(self, tally: NDArray[np.int64]) -> dict[str, float]:
        """Return precision, recall, F1 and IoU of the change class, and macro F1 and mIoU over both."""
        both = {
            "macro_f1": classification_scores(tally)["macro_f1"],
            "miou": segmentation_scores(tally)["miou"],
        }
        return {f"change_{name}": value for name, value in object_scores(tally).items()} | both
