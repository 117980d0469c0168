"""slurm/ablation.sh: a study as an array of jobs with its report after them, and in turn without Slurm."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, Slurm, wait_until

STANDIN = str(ROOT / "tests/slurm/standin.py")
ABLATION = ("bash", "slurm/ablation.sh")


def call(*words: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment = clean | {"PYTHON": sys.executable, "STUDY_ENTRY": STANDIN} | variables
    return subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_a_dry_run_prints_the_array_and_the_report(tmp_path: Path) -> None:
    done = call(*ABLATION, "--dry-run", "--time=1:00:00", "c.yaml", f"folder={tmp_path}", "name=a b")
    assert done.returncode == 0, done.stderr
    first, second = (line.replace("'", "") for line in done.stdout.splitlines())
    words = f"slurm/ablation.sh c.yaml folder={tmp_path} name=a b"
    assert first == f"ablation: 3 cells: sbatch --parsable --array=0-2 --time=1:00:00 {words}"
    assert second == f"ablation: then: sbatch --dependency=afterany:<array> {words} --report"
    assert not list(tmp_path.iterdir())


def test_without_slurm_the_cells_run_here(tmp_path: Path) -> None:
    tools = tmp_path / "bin"
    tools.mkdir()
    # everything but Slurm
    for name in ("bash", "dirname", "env"):
        (tools / name).symlink_to(subprocess.check_output(["which", name], text=True).strip())
    done = call(*ABLATION, "c.yaml", f"folder={tmp_path}", PATH=str(tools))
    assert done.returncode == 0, done.stderr
    assert "no sbatch here" in done.stdout
    assert (tmp_path / "COMPLETE").exists()


@pytest.mark.slurm
def test_an_array_runs_every_cell_once_also_interrupted_ones_and_then_reports(
    slurm: Slurm, tmp_path: Path
) -> None:
    done = slurm.call(
        *ABLATION, f"folder={tmp_path}", "do=wait", STUDY_ENTRY=STANDIN, SBATCH_OUTPUT=f"{tmp_path}/%A_%a.log"
    )
    assert done.returncode == 0, done.stderr
    array, report = re.findall(r"job (\d+): ", done.stdout)
    for cell in range(3):
        wait_until(lambda c=cell: (tmp_path / f"{c}/rank-0-life-0.json").exists(), f"cell {cell}")
        slurm.call("scancel", "--batch", "--signal=USR1", f"{array}_{cell}")
    assert slurm.wait(report)["JobState"] == "COMPLETED"
    assert all((tmp_path / f"{cell}/rank-0-life-1.json").exists() for cell in range(3))
    assert all((tmp_path / f"{cell}/COMPLETE").exists() for cell in range(3))
    assert (tmp_path / "report/rank-None-life-0.json").exists()
