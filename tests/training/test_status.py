"""A run folder alone tells where the run is."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import MissingInputError
from pipeline.lock import locked
from tests.training.processes import ROOT
from training.guards import INTERRUPTED, mark
from training.journal import Journal
from training.status import status


def test_a_finished_run_is_told(trained: Path) -> None:
    told = dict(status(trained / "whole"))
    assert told["state"] == "complete"
    assert told["step"].startswith("20 of 20 (100%), epoch 4.0")
    assert told["checkpoints"].endswith("newest: step-00000010, step-00000020")
    assert " of the time" in told["saving"]
    assert "time left" not in told


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run folder after five of a hundred steps, one of them skipped."""
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "config.yaml").write_text("name: run\n")
    (folder / "plan.json").write_text(json.dumps({"steps": 100, "steps_per_epoch": 10}))
    journal = Journal(folder, 0)
    for step in range(1, 6):
        journal.append(step, {"loss": 1 / step} | ({"skipped_steps": 1.0} if step == 3 else {}))
        time.sleep(0.01)
    journal.close()
    return folder


def test_a_run_that_goes_on_names_its_process_and_the_time_left(run: Path) -> None:
    with locked(run):
        told = dict(status(run))
    assert told["state"].startswith(f"running as process {os.getpid()} on ")
    assert told["step"].startswith("5 of 100 (5%), epoch 0.5")
    assert told["loss"] == "0.2 (median of the last 5: 0.3333)"
    assert told["noted"].startswith("1 steps skipped, 0 losses that jumped")
    assert told["time left"]
    assert told["checkpoints"].endswith("none")


def test_how_a_run_ended_is_told(run: Path) -> None:
    assert "ended without a marker" in dict(status(run))["state"]
    mark(run, INTERRUPTED)
    assert "interrupted with everything saved" in dict(status(run))["state"]


def test_several_runs_are_told_in_a_moment_and_without_torch(run: Path) -> None:
    other = shutil.copytree(run, run.with_name("other"))
    code = "import sys; from training.status import main; main(sys.argv[1:]); print('torch' in sys.modules)"
    told = subprocess.run(
        [sys.executable, "-c", code, run, other], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert told.count("ended without a marker") == 2
    assert told.endswith("False\n")


def test_another_folder_is_none(tmp_path: Path) -> None:
    with pytest.raises(MissingInputError, match=r"is no run folder: it has no config\.yaml"):
        status(tmp_path)
