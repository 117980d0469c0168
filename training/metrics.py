"""Scores over a whole data set, never averaged over batches.

Shape letters: N samples, C classes.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Counts = NDArray[np.int64]


def confusion(truth: Counts, predicted: Counts, classes: int) -> Counts:
    """Count [true class, predicted class]."""
    # each pair as one number: `np.add.at` would take many times as long
    flat = np.bincount(truth * classes + predicted, minlength=classes * classes)
    return flat.reshape(classes, classes).astype(np.int64)


def classification_scores(counted: Counts) -> dict[str, float]:
    """Return accuracy, balanced accuracy and macro F1 of a confusion matrix [true, predicted].

    Balanced accuracy and macro F1 average over the classes that occur in the truth.
    """
    return {
        "accuracy": _accuracy(counted),
        "balanced_accuracy": _over_present(counted, recalls(counted)),
        "macro_f1": _over_present(counted, f1_scores(counted)),
    }


def segmentation_scores(counted: Counts) -> dict[str, float]:
    """Return mIoU, mF1 and the accuracy of a confusion matrix of pixels [true, predicted]; means are over the classes
    that occur in the truth.
    """
    return {
        "miou": _over_present(counted, ious(counted)),
        "mf1": _over_present(counted, f1_scores(counted)),
        "pixel_accuracy": _accuracy(counted),
    }


def object_scores(counted: Counts, positive: int = 1) -> dict[str, float]:
    """Return IoU, precision, recall and F1 of one class of a confusion matrix of pixels [true, predicted]; of a class
    that is neither there nor said, NaN.
    """
    each = {"iou": ious, "precision": precisions, "recall": recalls, "f1": f1_scores}
    absent = counted[positive].sum() + counted[:, positive].sum() == 0
    return {name: float("nan") if absent else float(of(counted)[positive]) for name, of in each.items()}


def recalls(counted: Counts) -> Floats:
    """Return each class's share of its true items that were found; 0 for a class that is not there."""
    return _share(np.diag(counted), counted.sum(1))


def precisions(counted: Counts) -> Floats:
    """Return each class's share of what was said to be it that is; 0 for a class that is never said."""
    return _share(np.diag(counted), counted.sum(0))


def f1_scores(counted: Counts) -> Floats:
    """Return the harmonic mean of precision and recall of each class."""
    return _share(2 * np.diag(counted), counted.sum(1) + counted.sum(0))


def ious(counted: Counts) -> Floats:
    """Return intersection over union of each class."""
    right = np.diag(counted)
    return _share(right, counted.sum(1) + counted.sum(0) - right)


def _share(part: Counts, whole: Counts) -> Floats:
    return part.astype(np.float64) / np.maximum(whole, 1)


def _accuracy(counted: Counts) -> float:
    return float(np.diag(counted).sum() / max(counted.sum(), 1))


def _over_present(counted: Counts, of_class: Floats) -> float:
    # a class that never occurs has no recall; counting it as 0 would punish small sets
    present = counted.sum(1) > 0
    return float(of_class[present].mean()) if present.any() else float("nan")


def average_precision(truth: NDArray[np.bool_], scores: Floats) -> float:
    """Return the area under the steps of precision over recall, exact over all samples given; NaN where none is
    positive.

    Samples of equal score are taken together, so that their order decides nothing.
    """
    positives = int(truth.sum())
    if not positives:
        return float("nan")
    order = np.argsort(-scores, kind="stable")
    found = np.cumsum(truth[order])
    # only where the next score is another one may a threshold lie
    ends = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    recall = found[ends] / positives
    precision = found[ends] / (ends + 1)
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def multilabel_scores(truth_NC: NDArray[np.bool_], scores_NC: Floats) -> dict[str, float]:
    """Return macro mAP, over the classes that occur, and micro mAP, over all pairs of sample and class in one row."""
    of_class = class_precisions(truth_NC, scores_NC)
    present = ~np.isnan(of_class)
    return {
        "macro_map": float(of_class[present].mean()) if present.any() else float("nan"),
        "micro_map": average_precision(truth_NC.ravel(), scores_NC.ravel()),
    }


def class_precisions(truth_NC: NDArray[np.bool_], scores_NC: Floats) -> Floats:
    """Return the average precision of each class, NaN for one without positives."""
    pairs = zip(truth_NC.T, scores_NC.T, strict=True)
    return np.array([average_precision(truth, scores) for truth, scores in pairs])
