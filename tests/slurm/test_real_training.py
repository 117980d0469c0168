"""The real pretraining on two nodes of a real Slurm: warned in the middle, requeued, completed."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from .conftest import ROOT, Slurm, wait_until

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
STEPS = 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some fifty small tiles, from a simulated scene of four kilometres."""
    folder = tmp_path_factory.mktemp("shards")
    call("preprocessing/simulate.py", f"{folder}/archive", "--size-px", "384")
    words = [f"scenes={folder}/archive", f"output={folder}/shards", "tile_px=48", "split.val_share=0"]
    call("preprocessing/shard.py", "configs/shard/demo_sentinel2.yaml", *words)
    return folder / "shards"


def call(*words: str) -> None:
    done = subprocess.run([sys.executable, *words], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def steps(journal: Path) -> set[int]:
    """Return the steps whose loss is in a journal that may just be written."""
    if not journal.exists():
        return set()
    lines = [json.loads(line) for line in journal.read_text().splitlines() if line.endswith("}")]
    return {line["step"] for line in lines if "loss" in line.get("metrics", {})}


def test_a_warned_pretraining_on_two_nodes_is_requeued_and_completes(
    slurm: Slurm, shards: Path, tmp_path: Path
) -> None:
    run, log = tmp_path / "runs/warned", tmp_path / "log"
    log.touch()
    words = [f"data.shards={shards}", "data.image_px=48", "batch.size=8", f"steps={STEPS}", "panel_images=0"]
    script = [
        "slurm/pretrain.sh",
        "configs/pretrain/demo.yaml",
        *words,
        f"output={tmp_path}/runs",
        "name=warned",
    ]
    # two ranks share this machine's cores
    number = slurm.sbatch(f"--output={log}", *script, OMP_NUM_THREADS="1")
    wait_until(
        lambda: len(steps(run / "journal.jsonl")) >= 2 or "error" in log.read_text(),
        "two steps",
        timeout_s=180,
    )
    slurm.call("scancel", "--batch", "--signal=USR1", number)
    job = slurm.wait(number, timeout_s=180)
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1"), log.read_text()
    assert (run / "COMPLETE").exists()
    assert steps(run / "journal.jsonl") == set(range(1, STEPS + 1))
    assert "2 ranks" in log.read_text() or "2 x cpu" in log.read_text()
