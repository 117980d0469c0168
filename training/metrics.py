"""Scores over a whole data set, never averaged over batches."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def confusion(truth: NDArray[np.int64], predicted: NDArray[np.int64], classes: int) -> NDArray[np.int64]:
    """Count [true class, predicted class]."""
    flat = np.bincount(truth * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def classification_scores(counted: NDArray[np.int64]) -> dict[str, float]:
    """Return accuracy, balanced accuracy and macro F1 of a confusion matrix [true, predicted].

    Balanced accuracy and macro F1 average over the classes that occur in the truth.
    """
    right = np.diag(counted).astype(np.float64)
    true, said = counted.sum(1), counted.sum(0)
    # a class that never occurs has no recall; counting it as 0 would punish small sets
    present = true > 0
    recall = right / np.maximum(true, 1)
    f1 = 2 * right / np.maximum(true + said, 1)
    return {
        "accuracy": float(right.sum() / max(counted.sum(), 1)),
        "balanced_accuracy": float(recall[present].mean()) if present.any() else float("nan"),
        "macro_f1": float(f1[present].mean()) if present.any() else float("nan"),
    }
