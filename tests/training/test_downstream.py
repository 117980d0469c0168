"""All tasks and ways through the one harness: trained, scored over the whole split, recorded, resumed."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.errors import ContractError
from tests.training.processes import Case, run_cases
from tests.training.shard_sets import SENTINEL2, Kind, write_shards
from training import checkpoint, journal
from training.compare import results
from training.downstream import FinetuneConfig
from training.plain import Plain
from training.recorded import read_runs

SPLITS = {"train": range(32), "val": range(32, 42)}
MIXED = "regularise={mixup: 0.8, cutmix: 1.0, drop_path: 0.2}"


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Sets of the same ground with each kind of label."""
    folder = tmp_path_factory.mktemp("sets")
    kinds = {
        "class": SENTINEL2,
        "classes": Kind(labels="classes"),
        "mask": Kind(labels="mask"),
        "pairs": Kind(dates=2),
    }
    return {name: write_shards(folder / name, SPLITS, kind) for name, kind in kinds.items()}


@pytest.fixture(scope="module")
def runs(sets: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output folder with a run of each task and way."""
    output = tmp_path_factory.mktemp("runs")
    words = [f"output={output}", "batch.size=8", "model.size=tiny", "optimiser.warmup_epochs=1"]
    full = [*words, "optimiser.base_lr=0.03", "epochs=6"]

    def case(kind: str, task: str, way: list[str], *more: str) -> Case:
        name = next((m for m in more if m.startswith("name=")), f"name={task}")
        return "finetune", [*way, f"data.shards={sets[kind]}", f"task={task}", name, *more]

    short = [*words, "optimiser.base_lr=0.01", "steps=4"]
    cases = [
        case("classes", "multilabel", full),
        case("mask", "segmentation", full),
        case("pairs", "change", full),
        case("pairs", "extraction", short, "mode=linear_probe", "data.image_px=32"),
        case("pairs", "change", words, "mode=logistic", "name=logistic-change"),
        case("mask", "segmentation", words, "mode=forest", "name=forest-mask"),
        *(case("class", "classification", words, f"mode={m}", f"name={m}") for m in ("knn", "forest")),
        case("class", "classification", words, "mode=logistic", "name=logistic", "index_statistics=true"),
        case("class", "classification", words, "mode=ridge", "name=ridge"),
        case("class", "classification", words, "mode=ridge", "beside_statistics=true", "name=ridge-beside"),
        case("mask", "segmentation", words, "mode=ridge", "name=ridge-mask"),
        case("pairs", "change", words, "mode=ridge", "data.image_px=32", "name=ridge-change"),
        case("classes", "multilabel", words, "mode=knn", "name=knn-classes"),
        case("classes", "multilabel", words, "mode=logistic", "name=logistic-classes"),
        case("class", "classification", short, "fraction=0.25", "name=few"),
        case("class", "classification", short, "fraction=0.25", "name=few-again"),
        case("class", "classification", short, "fraction=0.25", "name=few-other", "seed=1"),
        case("class", "classification", short, MIXED, "name=mixed"),
        case("class", "classification", short, MIXED, "name=mixed-halves", "stop_at=2"),
        case("class", "classification", short, MIXED, "name=mixed-halves"),
        case("class", "classification", short, "backbone=resnet50", "name=resnet"),
        case("pairs", "change", short, "name=short-change"),
    ]  # fmt: skip
    outcomes = run_cases(output, cases)
    assert outcomes == [True] * 19 + [False, True, True, True]
    ranks = [
        case("pairs", "change", short, "name=ranks-change", "engine.zero_stage=3"),
        case("classes", "multilabel", words, "mode=knn", "name=ranks-knn"),
        case("mask", "segmentation", words, "mode=ridge", "name=ranks-ridge"),
        case("class", "classification", short, "backbone=resnet50", "name=ranks-resnet"),
    ]
    outcomes = run_cases(output, ranks, ranks=2)
    assert outcomes[:3] == [True] * 3
    assert "start one rank" in str(outcomes[3])
    return output


def last(runs: Path, name: str) -> dict[str, float]:
    metrics = journal.read(runs / name)[-1].metrics
    # of a slow machine there is more to tell: how busy it was
    return {name: value for name, value in metrics.items() if not name.startswith("system/")}


def test_each_task_learns_what_there_is_to_learn(runs: Path) -> None:
    assert last(runs, "multilabel")["val_macro_map"] > 0.8
    assert last(runs, "segmentation")["val_miou"] > 0.6
    assert last(runs, "change")["val_change_f1"] > 0.6
    assert {"val_change_precision", "val_change_recall", "val_macro_f1"} <= last(runs, "change").keys()
    assert {"val_iou", "val_precision", "val_recall", "val_f1"} <= last(runs, "extraction").keys()


def test_plain_baselines_and_neighbours_are_scored_and_recorded_like_trainings(runs: Path) -> None:
    for name in ("knn", "ridge", "ridge-beside", "forest", "logistic"):
        assert last(runs, name)["val_accuracy"] > 0.6
        assert (last(runs, name)["val_accuracy"] * 10) % 1 == pytest.approx(0, abs=1e-9)
        assert (runs / name / "COMPLETE").exists()
        assert "run_id" in json.loads((runs / name / "mlflow.json").read_text())
    for name in ("knn-classes", "logistic-classes"):
        assert last(runs, name)["val_macro_map"] > 0.7
    assert last(runs, "logistic-change")["val_change_f1"] > 0.8
    assert last(runs, "forest-mask")["val_miou"] > 0.8


def test_ridge_regression_tells_classes_of_pixels_from_the_cells_of_an_encoder(runs: Path) -> None:
    assert last(runs, "ridge-mask")["val_miou"] > 0.5
    assert last(runs, "ridge-change")["val_change_f1"] > 0.3


@pytest.mark.parametrize("labels", [np.zeros(0, np.int64), np.zeros((0, 3), np.int64)])
def test_plain_baselines_say_where_no_sample_is_labelled(labels: NDArray[np.int64]) -> None:
    with pytest.raises(ContractError, match="no sample carries a label"):
        Plain("logistic", seed=0).fit(np.zeros((0, 4), np.float32), labels)


def test_few_labels_are_drawn_by_class_and_recorded(runs: Path) -> None:
    first, again, other = (
        json.loads((runs / name / "drawn.json").read_text()) for name in ("few", "few-again", "few-other")
    )
    assert first == again
    assert first["keys"] != other["keys"]
    # 11, 11 and 10 samples of the classes, a quarter of each
    assert sorted(int(key[-5:]) % 3 for key in first["keys"]) == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    digests = [
        checkpoint.read_state(checkpoint.find(runs / n)).data.digest for n in ("few", "few-other", "mixed")
    ]
    assert len(set(digests)) == 3
    assert last(runs, "few")["loss"] == last(runs, "few-again")["loss"]


def test_a_mixed_training_that_was_interrupted_ends_as_the_whole_one(runs: Path) -> None:
    whole, halves = (
        checkpoint.read_weights(checkpoint.find(runs / name)) for name in ("mixed", "mixed-halves")
    )
    assert all(torch.equal(whole[name], halves[name]) for name in whole)


def test_a_comparison_shows_the_scores_of_all_tasks(runs: Path) -> None:
    told = results(read_runs(f"sqlite:///{runs}/mlflow.db", "spectral", ()))
    header, *rows = told.splitlines()
    assert {"loss", "val_accuracy", "val_change_f1", "val_macro_map", "val_miou"} <= set(header.split())
    found = next(row.split() for row in rows if row.startswith("forest-mask "))
    assert found[header.split().index("val_miou")] == f"{last(runs, 'forest-mask')['val_miou']:.4f}"
    assert found[header.split().index("loss")] == "-"


def test_two_ranks_score_what_one_scores(runs: Path) -> None:
    assert last(runs, "ranks-knn") == pytest.approx(last(runs, "knn-classes"))
    assert last(runs, "ranks-ridge")["val_miou"] == pytest.approx(
        last(runs, "ridge-mask")["val_miou"], abs=1e-3
    )
    alone, together = last(runs, "short-change"), last(runs, "ranks-change")
    assert together["loss"] == pytest.approx(alone["loss"], rel=1e-4)
    assert together["val_miou"] == pytest.approx(alone["val_miou"], abs=0.01)


def test_resnet_trains_and_is_saved_with_its_running_averages(runs: Path) -> None:
    weights = checkpoint.read_weights(checkpoint.find(runs / "resnet"))
    assert "encoder.stem.1.running_mean" in weights
    assert weights["encoder.stem.1.num_batches_tracked"] == 4
    assert weights["encoder.stem.0.weight"].shape == (64, 6, 7, 7)
    assert math.isfinite(last(runs, "resnet")["val_accuracy"])


def test_what_cannot_be_done_is_told_before_anything_is_trained(
    sets: dict[str, Path], tmp_path: Path
) -> None:
    common = [f"output={tmp_path}", "batch.size=8", "model.size=tiny", "name=refused"]
    outcomes = run_cases(
        tmp_path,
        [
            ("finetune", [*common, f"data.shards={sets['mask']}", "task=segmentation", "mode=knn"]),
            ("finetune", [*common, f"data.shards={sets['mask']}", "task=segmentation", MIXED]),
        ],
    )
    assert "mode knn and beside_statistics are about whole tiles" in str(outcomes[0])
    assert "regularise.mixup=0" in str(outcomes[1])


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"init": "somewhere", "backbone": "resnet50"}, "init=null"),
        ({"init": "somewhere", "mode": "forest"}, "init=null"),
        ({"mode": "linear_probe", "regularise": {"mixup": 0.8}}, "mode: full"),
        ({"mode": "logistic", "beside_statistics": True}, "mode: knn or ridge"),
    ],
)
def test_keys_that_contradict_each_other_are_refused(given: dict[str, object], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        FinetuneConfig.model_validate({"name": "x", "data": {"shards": "x"}, **given})
