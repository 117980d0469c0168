"""Weights leave a run at any time, whole, with what they expect of images."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from pipeline.errors import MissingInputError, OutputError
from tests.training.processes import ROOT
from training.checkpoint import DataRecord, find, read_weights
from training.export import export, main


@pytest.mark.parametrize("name", ["stage1", "stage3"])
def test_the_weights_of_any_stage_leave_with_contract_and_normalisation(
    trained: Path, tmp_path: Path, name: str
) -> None:
    out = tmp_path / "weights.safetensors"
    count = export(trained / name, out)
    expected = read_weights(find(trained / name))
    found = load_file(out)
    assert len(found) == count == len(expected)
    assert all(torch.equal(found[k], v) and v.dtype == torch.float32 for k, v in expected.items())
    with safe_open(out, "pt") as stream:
        metadata = stream.metadata()
    assert (metadata["kind"], metadata["step"]) == ("pretrain", "20")
    assert json.loads(metadata["model"])["size"] == "tiny"
    record = DataRecord.model_validate(json.loads(metadata["data"])["sentinel2"])
    assert (record.image_px, len(record.statistics), record.normalise) == (48, 6, "minmax")


def test_weights_leave_a_run_that_goes_on_and_a_checkpoint_by_name(trained: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(trained / "whole", tmp_path / "whole"))
    (run / "COMPLETE").unlink()
    assert main([str(run), str(tmp_path / "new"), "--prefix", "encoder."]) == 0
    assert main([str(run / "checkpoints/step-00000010"), str(tmp_path / "old"), "--prefix", "encoder."]) == 0
    new, old = load_file(tmp_path / "new"), load_file(tmp_path / "old")
    assert new.keys() == old.keys()
    assert not any(name.startswith("encoder") for name in new)
    assert not all(torch.equal(new[k], old[k]) for k in new)
    with pytest.raises(OutputError, match="--force replaces it"):
        main([str(run), str(tmp_path / "new")])
    assert main([str(run), str(tmp_path / "new"), "--force"]) == 0


def test_what_cannot_leave_is_told(trained: Path, tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match="no checkpoint in"):
        export(tmp_path, tmp_path / "out")
    with pytest.raises(OutputError, match="no weights whose names start with `decodr`"):
        export(trained / "whole", tmp_path / "out", "decodr")
    with pytest.raises(OutputError, match="choose another place"):
        export(trained / "whole", tmp_path / "nowhere/out")


def test_help_shows_how_to_read_the_header() -> None:
    told = subprocess.run(
        [sys.executable, "training/export.py", "--help"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert "safe_open" in told
    assert "--prefix encoder." in told
