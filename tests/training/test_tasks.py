"""Every task of the table keeps the contract: heads, losses, tallies that can be put together, scores, refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn import metrics as oracle

from pipeline.contract import DataContract
from pipeline.errors import ContractError
from tests.training.shard_sets import Kind, contract_of
from training.backbones import Shape
from training.tasks import TASKS, Task
from training.tasks.change import Change
from training.tasks.classification import Classification

KINDS = {
    "classification": Kind(),
    "multilabel": Kind(labels="classes"),
    "segmentation": Kind(labels="mask"),
    "extraction": Kind(dates=2),
    "change": Kind(dates=2),
}
SHAPE = Shape(48, 2, (16,) * 4, (6,) * 4)


def contract(name: str) -> DataContract:
    return contract_of(KINDS[name])


def maps(count: int, shape: Shape = SHAPE) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [
        torch.randn(count, shape.groups, width, side, side)
        for width, side in zip(shape.widths, shape.sides, strict=True)
    ]


def some_labels(task: Task, count: int) -> torch.Tensor:
    rng, classes = np.random.default_rng(1), len(task.classes)
    if task.pooled:
        shape = (count,) if task.mixable else (count, classes)
        return torch.from_numpy(rng.integers(0, classes if task.mixable else 2, shape))
    labels = torch.from_numpy(rng.integers(0, classes, (count, 48, 48)))
    labels[0, :5] = -1
    return labels


def test_the_table_is_tested_whole() -> None:
    assert KINDS.keys() == TASKS.keys()


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("name", sorted(TASKS))
def test_every_task_keeps_the_contract(name: str, linear: bool) -> None:
    task = TASKS[name](contract(name))
    task.learn(iter([np.eye(48, dtype=np.uint8)] if name == "change" else []))
    labels, head = some_labels(task, 5), task.head(SHAPE, linear)
    predicted = head(maps(5))
    loss = task.loss_sum(predicted, labels)
    loss.backward()
    assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in head.parameters())
    parts = [task.loss_sum(predicted[i : i + 1], labels[i : i + 1]) for i in range(5)]
    assert float(sum(parts)) == pytest.approx(float(loss), rel=1e-5)  # type: ignore[arg-type]
    assert sum(task.items(labels[i : i + 1]) for i in range(5)) == pytest.approx(task.items(labels), rel=1e-5)
    assert task.items(labels[:0]) == 0
    whole = task.tally(predicted.detach(), labels)
    split = task.join([task.tally(predicted.detach()[a:b], labels[a:b]) for a, b in ((0, 2), (2, 2), (2, 5))])
    assert np.array_equal(whole, split)
    assert all(np.isfinite(v) for v in task.scores(whole).values())
    assert all(name in task.report(whole) for name in task.classes)


@pytest.mark.parametrize("name", ["segmentation", "extraction", "change"])
def test_scores_of_pixels_equal_scikit_learns_over_all_labelled_pixels(name: str) -> None:
    task = TASKS[name](contract(name))
    labels = some_labels(task, 4)
    predicted = torch.randn(4, len(task.classes), 48, 48, generator=torch.Generator().manual_seed(0))
    known = (labels >= 0).numpy()
    truth, said = labels.numpy()[known], predicted.argmax(1).numpy()[known]
    scores = task.scores(task.tally(predicted, labels))
    expected = {
        "miou": oracle.jaccard_score(truth, said, average="macro"),
        "mf1": oracle.f1_score(truth, said, average="macro"),
        "macro_f1": oracle.f1_score(truth, said, average="macro"),
        "pixel_accuracy": oracle.accuracy_score(truth, said),
    }
    if name != "segmentation":
        of_object = {
            "iou": oracle.jaccard_score(truth, said),
            "precision": oracle.precision_score(truth, said),
            "recall": oracle.recall_score(truth, said),
            "f1": oracle.f1_score(truth, said),
        }
        expected |= of_object | {f"change_{k}": v for k, v in of_object.items()}
    assert scores == pytest.approx({k: expected[k] for k in scores})


def test_a_class_that_no_sample_has_is_not_available() -> None:
    task = TASKS["multilabel"](contract("multilabel"))
    labels = torch.tensor([[1, 0, 0], [0, 0, 1], [1, 0, 0]])
    tally = task.tally(torch.tensor([[3.0, 9, 1], [1, 9, 2], [2, 9, 0]]), labels)
    assert task.scores(tally)["macro_map"] == 1
    field = next(line for line in task.report(tally).splitlines() if line.startswith("field"))
    assert field.split() == ["field", "0", "n/a"]


def test_rare_change_weighs_more_and_a_mean_pixel_weighs_one() -> None:
    task = Change(contract("change"))
    task.learn(iter([np.repeat(np.uint8([1, 0, 0, 0, 255]), 100).reshape(10, 50)]))
    assert task.weights is not None
    same, change = task.weights.tolist()
    assert change / same == pytest.approx(3**0.5)
    assert 0.25 * change + 0.75 * same == pytest.approx(1)
    labels = torch.tensor([[[0, 1], [-1, 0]]])
    predicted = torch.zeros(1, 2, 2, 2)
    mean = task.loss_sum(predicted, labels) / task.items(labels)
    assert float(mean) == pytest.approx(np.log(2))
    assert float(F.cross_entropy(predicted, labels, task.weights, ignore_index=-1)) == pytest.approx(
        float(mean)
    )


@pytest.mark.parametrize(
    ("task", "kind", "told"),
    [
        ("classification", Kind(labels="mask"), "labels.kind=class"),
        ("multilabel", Kind(), "labels.kind=classes"),
        ("segmentation", Kind(labels="classes"), "labels.kind=mask"),
        ("extraction", Kind(labels="mask"), "task=segmentation"),
    ],
)
def test_a_set_with_other_labels_is_refused(task: str, kind: Kind, told: str) -> None:
    with pytest.raises(ContractError, match=told):
        TASKS[task](contract_of(kind))


def test_change_wants_pairs() -> None:
    with pytest.raises(ContractError, match="one date a sample"):
        Change(contract("change").model_copy(update={"dates": 1}))


def test_an_unlabelled_set_is_no_classification_set() -> None:
    with pytest.raises(ContractError, match=r"labels\.classes"):
        Classification(contract("classification").model_copy(update={"classes": ()}))
