"""slurm/finetune.sh on a real Slurm: what it does not share with slurm/pretrain.sh."""

from __future__ import annotations

from pathlib import Path

import pytest

from .conftest import ROOT, Slurm

pytestmark = pytest.mark.slurm
STANDIN = str(ROOT / "tests/slurm/standin.py")


def test_finetune_runs_on_one_node_and_is_complete(slurm: Slurm, tmp_path: Path) -> None:
    words = ["slurm/finetune.sh", f"folder={tmp_path}/run"]
    job = slurm.wait(slurm.sbatch(f"--output={tmp_path}/log", *words, TRAIN_ENTRY=STANDIN))
    assert (job["JobName"], job["JobState"], job["NumNodes"]) == ("finetune", "COMPLETED", "1")
    assert f"finetune: complete: {tmp_path}/run" in (tmp_path / "log").read_text()
