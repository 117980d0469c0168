"""Weights to start from lie in a run, a checkpoint or an export; what holds none says so."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch

from pipeline.errors import ContractError, CorruptDataError, MissingInputError
from tests.training.processes import SMALL, run_cases
from training import checkpoint, journal, origins
from training.downstream import Trained
from training.export import export


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The export of the finished pretraining."""
    return export(trained / "whole", tmp_path_factory.mktemp("exported") / "encoder")


def test_an_export_tells_what_a_checkpoint_does_and_no_paths(trained: Path, exported: Path) -> None:
    folder = origins.find(exported)
    state, whole = (checkpoint.read_state(f) for f in (folder, checkpoint.find(trained / "whole")))
    assert (state.kind, state.step, state.data.sensors) == (whole.kind, whole.step, whole.data.sensors)
    assert state.config == {"model": whole.config["model"]}
    assert [s.provenance for s in state.data.sets] == [s.provenance for s in whole.data.sets]
    assert str(trained) not in (exported / "state.json").read_text()
    assert not [s.path for s in state.data.sets if s.path]
    ours = origins.read_weights(folder, "encoder.")
    theirs = origins.read_weights(checkpoint.find(trained / "whole"), "encoder.")
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_a_fine_tuning_from_an_export_is_that_from_its_run(
    shards: Path, trained: Path, exported: Path, tmp_path: Path
) -> None:
    words = [f"output={tmp_path}", f"data.shards={shards}", "batch.size=8", "epochs=1"]
    from_export = [*words, f"init={exported}"]
    outcomes = run_cases(
        tmp_path,
        [
            ("finetune", [*words, f"init={trained}/whole", "name=run"]),
            ("finetune", [*from_export, "name=export", "model.size=base"]),
            ("finetune", [*from_export, "name=refused", "data.bands=[B02,B03,B04]"]),
            ("finetune", [*from_export, "name=adapted", "data.image_px=32", "handover=interpolate"]),
            ("finetune", [*from_export, "name=near", "mode=knn"]),
            ("finetune", [*words, f"init={tmp_path}/near", "name=after"]),
            ("pretrain", [*words, *SMALL, "steps=1", f"init={exported}", "name=further"]),
        ],
    )
    assert [outcomes[n] for n in (0, 1, 3, 4)] == [True] * 4, outcomes
    losses = [[line.metrics["loss"] for line in journal.read(tmp_path / name)] for name in ("run", "export")]
    assert losses[0] == losses[1]
    assert "data.bands: ['B02'" in str(outcomes[2]).replace("(", "[")
    assert "mode: knn learns at once and leaves scores, no weights" in str(outcomes[5])
    assert "is an export, which holds the encoder alone" in str(outcomes[6])
    # what it was trained on is told of what comes of it too
    later = checkpoint.read_state(export(tmp_path / "export", tmp_path / "later"))
    assert len(later.data.sets) == 1
    with pytest.raises(
        ContractError, match=r"near holds no checkpoint: mode: knn .*mode: full or linear_probe"
    ):
        Trained.of(tmp_path / "near")


def test_what_holds_no_weights_to_start_from_says_why(trained: Path, exported: Path, tmp_path: Path) -> None:
    older = Path(shutil.copytree(exported, tmp_path / "older"))
    (older / origins.STATE).unlink()
    with pytest.raises(
        ContractError, match=r"older was exported by an older version.*training/export\.py RUN"
    ):
        origins.find(older)
    chain = tmp_path / "chain"
    chain.mkdir()
    (chain / "COMPLETE").touch()
    (chain / "config.yaml").write_text("name: chain\n")
    with pytest.raises(ContractError, match=r"chain holds no checkpoint: .*one of the stages"):
        origins.find(chain)
    with pytest.raises(MissingInputError, match="no checkpoint in"):
        origins.find(tmp_path)
    with pytest.raises(ContractError, match=r"holds the encoder alone and neither decoder nor head"):
        origins.read_weights(exported)
    with pytest.raises(ContractError, match=r"encoder is a pretrain run"):
        Trained.of(exported)


def test_weights_that_were_altered_are_not_taken(exported: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(exported, tmp_path / "copy"))
    tree = json.loads((copy / origins.STATE).read_text())
    (copy / origins.STATE).write_text(json.dumps(tree | {"step": 1}))
    with pytest.raises(CorruptDataError, match=r"copy: state\.json has"):
        origins.find(copy)
