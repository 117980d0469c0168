"""Scores over a whole set, against scikit-learn (it comes with mlflow)."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from training.metrics import (
    class_precisions,
    classification_scores,
    confusion,
    multilabel_scores,
    object_scores,
)


@pytest.mark.parametrize("seed", range(3))
def test_scores_equal_scikit_learns(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.integers(0, 4, 200)
    predicted = np.where(rng.random(200) < 0.6, truth, rng.integers(0, 4, 200))
    counted = confusion(truth, predicted, 4)
    scores = classification_scores(counted)
    assert (counted == oracle.confusion_matrix(truth, predicted)).all()
    assert scores["accuracy"] == pytest.approx(oracle.accuracy_score(truth, predicted))
    assert scores["balanced_accuracy"] == pytest.approx(oracle.balanced_accuracy_score(truth, predicted))
    assert scores["macro_f1"] == pytest.approx(oracle.f1_score(truth, predicted, average="macro"))


def test_tallies_of_batches_add_up() -> None:
    truth, predicted = np.array([0, 1, 2, 2]), np.array([0, 2, 2, 1])
    parts = confusion(truth[:2], predicted[:2], 3) + confusion(truth[2:], predicted[2:], 3)
    assert (parts == confusion(truth, predicted, 3)).all()


def test_a_class_absent_from_the_truth_does_not_count() -> None:
    scores = classification_scores(np.array([[5, 0, 0], [0, 3, 2], [0, 0, 0]]))
    assert scores["balanced_accuracy"] == pytest.approx((1 + 0.6) / 2)


@pytest.mark.parametrize("seed", range(3))
def test_average_precision_equals_scikit_learns_ties_included(seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.random((150, 5)) < [0.5, 0.1, 0.02, 0.9, 0]
    truth[0, 2] = True
    # few distinct scores: most samples share theirs with others
    scores = np.round(truth * 0.4 + rng.random((150, 5)), 1)
    each = class_precisions(truth, scores)
    assert each[:4] == pytest.approx(
        oracle.average_precision_score(truth[:, :4], scores[:, :4], average=None)
    )
    assert np.isnan(each[4])
    found = multilabel_scores(truth, scores)
    assert found["macro_map"] == pytest.approx(each[:4].mean())
    assert found["micro_map"] == pytest.approx(oracle.average_precision_score(truth, scores, average="micro"))
    order = rng.permutation(150)
    assert multilabel_scores(truth[order], scores[order]) == pytest.approx(found, nan_ok=True)


def test_an_object_that_is_neither_there_nor_said_has_no_scores() -> None:
    assert all(np.isnan(v) for v in object_scores(np.array([[9, 0], [0, 0]])).values())
    assert object_scores(np.array([[9, 0], [3, 0]])) == {"iou": 0, "precision": 0, "recall": 0, "f1": 0}
