"""slurm/finetune.sh and slurm/shard.sh on a real Slurm: what they do not share with slurm/pretrain.sh."""

from __future__ import annotations

import json
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


def test_shard_is_one_task_whatever_the_job_has(slurm: Slurm, tmp_path: Path) -> None:
    words = ["--nodes=2", "--ntasks=2", "--cpus-per-task=1", "slurm/shard.sh", f"folder={tmp_path}/run"]
    job = slurm.wait(slurm.sbatch(f"--output={tmp_path}/log", *words, SHARD_ENTRY=STANDIN))
    assert job["JobState"] == "COMPLETED", (tmp_path / "log").read_text()
    (told,) = [json.loads(path.read_text()) for path in (tmp_path / "run").glob("rank-*.json")]
    assert told["WORLD_SIZE"] == "1"


def test_shard_hands_on_the_entrys_exit_code(slurm: Slurm, tmp_path: Path) -> None:
    entry = tmp_path / "entry.py"
    entry.write_text("raise SystemExit(3)")
    job = slurm.wait(slurm.sbatch(f"--output={tmp_path}/log", "slurm/shard.sh", SHARD_ENTRY=str(entry)))
    assert (job["JobState"], job["ExitCode"]) == ("FAILED", "3:0")
