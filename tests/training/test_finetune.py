"""Fine-tuning: what is trained, what is scored, what fits."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from tests.training.processes import ROOT, run_cases
from tests.training.shard_sets import Kind
from training import checkpoint, journal


def test_the_probe_leaves_the_encoder_alone_and_full_tuning_does_not(trained: Path) -> None:
    before = checkpoint.read_weights(checkpoint.find(trained / "whole"), "encoder.")
    probe, full = (
        checkpoint.read_weights(checkpoint.find(trained / m), "encoder.") for m in ("linear_probe", "full")
    )
    assert all(torch.equal(before[name], probe[name]) for name in before)
    assert not torch.equal(before["blocks.0.attention.qkv.weight"], full["blocks.0.attention.qkv.weight"])


@pytest.mark.parametrize("mode", ["linear_probe", "full"])
def test_the_whole_validation_split_is_scored_at_the_end(trained: Path, mode: str) -> None:
    last = journal.read(trained / mode)[-1].metrics
    assert {"val_accuracy", "val_balanced_accuracy", "val_macro_f1"} <= set(last)
    assert (last["val_accuracy"] * 12) % 1 == pytest.approx(0, abs=1e-9)  # 12 validation samples, each once


def test_full_tuning_learns_the_classes(trained: Path) -> None:
    assert journal.read(trained / "full")[-1].metrics["val_accuracy"] > 0.6


def test_what_does_not_fit_is_refused_with_the_difference(
    shards: Path, trained: Path, tmp_path: Path
) -> None:
    tree = json.loads((shards / "manifest.json").read_text())
    other = tmp_path / "other"
    other.mkdir()
    for split in ("train", "val"):
        (other / split).symlink_to(shards / split)
    tree["contract"] |= {"level": "L1C"}
    (other / "manifest.json").write_text(json.dumps(tree))
    tree["contract"] |= {"level": "L2A", "classes": []}
    unlabelled = tmp_path / "unlabelled"
    unlabelled.mkdir()
    for split in ("train", "val"):
        (unlabelled / split).symlink_to(shards / split)
    (unlabelled / "manifest.json").write_text(json.dumps(tree))
    common = [f"output={tmp_path}", "batch.size=8", "epochs=1", "name=refused"]
    whole = f"init={trained}/whole"
    outcomes = run_cases(
        tmp_path,
        [
            ("finetune", [*common, f"data.shards={other}", whole]),
            ("finetune", [*common, f"data.shards={shards}", whole, "data.bands=[B02,B03,B04]"]),
            ("finetune", [*common, f"data.shards={unlabelled}", whole]),
            ("finetune", [*common, f"data.shards={shards}", f"init={tmp_path}/nowhere"]),
            ("finetune", [*common, f"data.shards={shards}", whole, "task=clasification"]),
        ],
    )
    says = [
        "level: 'L2A' -> 'L1C'",
        "data.bands",
        "has no class labels",
        "no checkpoint in",
        "Did you mean `classification`",
    ]
    assert [expected in str(found) for expected, found in zip(says, outcomes, strict=True)] == [True] * 5, (
        outcomes
    )


def test_the_weights_decide_model_and_input_and_that_is_recorded(
    shards: Path, trained: Path, tmp_path: Path
) -> None:
    words = [f"output={tmp_path}", f"data.shards={shards}", "batch.size=8", "epochs=1"]
    outcomes = run_cases(
        tmp_path,
        [
            (
                "finetune",
                [*words, "name=first", f"init={trained}/whole", "model.size=base", "data.normalise=none"],
            ),
            ("finetune", [*words, "name=second", f"init={tmp_path}/first"]),
        ],
    )
    assert outcomes == [True, True]
    for name in ("first", "second"):
        config = yaml.safe_load((tmp_path / name / "config.yaml").read_text())
        assert (config["model"]["size"], config["data"]["normalise"]) == ("tiny", "minmax")
        assert checkpoint.read_state(checkpoint.find(tmp_path / name)).config["model"]["size"] == "tiny"


def test_a_set_without_a_label_is_refused(make_shards: Callable[..., Path], tmp_path: Path) -> None:
    common = [f"output={tmp_path}", "batch.size=4", "epochs=1", "model.size=tiny"]
    bare, half = (
        make_shards(name, Kind(labelled=labelled), train=range(8), val=range(8, 12))
        for name, labelled in (("bare", ()), ("half", ("train",)))
    )
    outcomes = run_cases(
        tmp_path,
        [("finetune", [*common, f"name={s.name}", f"data.shards={s}"]) for s in (bare, half)],
    )
    assert "no sample of the first batch" in str(outcomes[0])
    assert "no sample of split `val`" in str(outcomes[1])


def test_several_sets_are_trained_on_together_and_scored_whole(
    shards: Path, more_shards: Path, landsat_shards: Path, mixed: str, trained: Path, tmp_path: Path
) -> None:
    common = [f"output={tmp_path}", "batch.size=8", "epochs=1"]
    both = f"data.shards=[{shards},{more_shards}]"
    outcomes = run_cases(
        tmp_path,
        [
            # weights of two sensors serve a set of either
            ("finetune", [*common, "name=both", both, f"init={trained}/mixed"]),
            ("finetune", [*common, "name=mixed", mixed, "model.size=tiny"]),
            ("finetune", [*common, "name=other", f"data.shards={landsat_shards}", f"init={trained}/whole"]),
        ],
    )
    assert outcomes[0] is True
    assert "these are of several: sentinel2 (" in str(outcomes[1])
    assert "the weights know images of sentinel2, not of landsat_oli" in str(outcomes[2])
    last = journal.read(tmp_path / "both")[-1]
    assert last.step == (40 + 24) // 8
    assert (last.metrics["val_accuracy"] * (12 + 6)) % 1 == pytest.approx(0, abs=1e-9)
    state = checkpoint.read_state(checkpoint.find(tmp_path / "both"))
    assert [s.path for s in state.data.sets] == [str(shards), str(more_shards)]
    # normalised as the weights were trained, whatever the new sets hold
    pretrained = checkpoint.read_state(checkpoint.find(trained / "mixed")).data.of("sentinel2")
    assert state.data.of("sentinel2").statistics == pretrained.statistics


def test_a_sample_trained_on_in_one_set_and_scored_in_another_is_refused(
    shards: Path, make_shards: Callable[..., Path], tmp_path: Path
) -> None:
    other = make_shards("other", train=range(60, 70), val=range(38, 42))
    words = [
        f"output={tmp_path}",
        f"data.shards=[{shards},{other}]",
        "batch.size=8",
        "model.size=tiny",
        "name=x",
    ]
    (said,) = run_cases(tmp_path, [("finetune", words)])
    assert "both hold the samples tile_00038, tile_00039" in str(said)


def test_compare_shows_what_differs_and_draws_the_curves(trained: Path) -> None:
    command = [sys.executable, "training/compare.py", "--output", str(trained)]
    told = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    rows = {line.split()[0]: line.split()[1:] for line in told.splitlines() if line.strip()}
    assert rows["mode"] == ["linear_probe", "full"]
    assert "engine.zero_stage" in rows
    assert "masking.ratio" not in rows  # the same in all
    loss = journal.read(trained / "whole")[-1].metrics["loss"]
    assert f"{loss:.4f}" in rows["whole"]
    picture = trained / "compare-loss.png"
    assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "mlflow" in told


def test_compare_says_what_is_missing(tmp_path: Path) -> None:
    command = [sys.executable, "training/compare.py", "--output", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr.count("\n")) == (2, 1)
    assert "no MLflow database" in ended.stderr
