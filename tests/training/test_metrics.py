"""Scores of a confusion matrix, against scikit-learn (it comes with mlflow)."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn import metrics as oracle

from training.metrics import classification_scores, confusion


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
